"""The engine `torch-compile`: PyTorch's compiler, with the weights frozen into the code."""

import os
import shutil
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.errors import one_line
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.engines.engine import EngineFault, Run
from wsi_pipeline.models.engines.torch_eager import in_precision, place_network, send
from wsi_pipeline.models.model import Model


def find_fault(model: Model, device: str) -> str | None:
    """Require a compiler, and a network whose code can be traced."""
    if model.is_script:
        return "external TorchScript cannot be compiled; use --engine torch or openvino"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if device == "cpu" and not any(shutil.which(name) for name in compilers if name):
        return "there is no C++ compiler; install g++"
    return None


def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
    """Return the compiled network; the first batch compiles it, for seconds to a minute."""
    network = torch.compile(
        place_network(model, setting.device), dynamic=False, options={"freezing": True}
    )
    compiling = threading.Lock()
    is_compiled = threading.Event()

    def compute(pixels: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode(), in_precision(setting):
            output: Tensor = network(send(pixels, setting.device))
        return output.float().cpu()

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        if is_compiled.is_set():
            return compute(pixels)
        with compiling:
            try:
                output = compute(pixels)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise EngineFault(
                    f"{model.architecture}: torch cannot compile it ({one_line(error)}); use"
                    " --engine torch"
                ) from error
            is_compiled.set()
            return output

    return run
