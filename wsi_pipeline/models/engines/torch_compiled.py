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
from wsi_pipeline.models.engines.engine import EngineFault, Forward, Run
from wsi_pipeline.models.engines.torch_eager import in_precision, place_network
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
    forward = place(model, setting, torch.device("cpu"))
    compiling = threading.Lock()
    is_compiled = threading.Event()

    def compute(pixels: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode():
            return forward(torch.from_numpy(np.ascontiguousarray(pixels))).float()

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        if is_compiled.is_set():
            return compute(pixels)
        with compiling:
            output = compute(pixels)
            is_compiled.set()
            return output

    return run


def place(model: Model, setting: EngineSetting, device: torch.device) -> Forward:
    """Return the compiled network on a device; its first batch compiles it."""
    network = torch.compile(place_network(model, device), dynamic=False, options={"freezing": True})

    def forward(pixels: Tensor) -> Tensor:
        try:
            with in_precision(setting):
                output: Tensor = network(pixels)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise EngineFault(
                f"{model.architecture}: torch cannot compile it ({one_line(error)}); use"
                " --engine torch"
            ) from error
        return output

    return forward
