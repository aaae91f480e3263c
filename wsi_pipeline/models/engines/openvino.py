"""The engine `openvino`: the network as an OpenVINO graph, normalisation included."""

import importlib.util
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.errors import one_line
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.engines.engine import EngineFault, Run
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.outlines import is_own

HINTS = {"fp32": "f32", "bf16": "bf16"}
_converting = threading.Lock()


def find_fault(model: Model, device: str) -> str | None:
    """Require the package, and a model that takes patches without resizing."""
    if importlib.util.find_spec("openvino") is None:
        return "it is not installed; pip install 'wsi-pipeline[cpu]'"
    if model.resizes_patches:
        return "the model resizes its patches, which only torch does exactly; use --engine torch"
    return None


def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
    """Return the graph compiled for this CPU, with one single-threaded stream per core."""
    cores = available_cores()
    # One at a time: a conversion sets Python's filters for warnings, which all threads share.
    with _converting, _keep_logging():
        compiled = _compile(_convert(model, batch_size), setting, cores)
    own, starting = threading.local(), threading.Lock()
    side = model.spec.side_px

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        if not hasattr(own, "request"):
            # The first batch of a stream prepares it: one at a time, because OpenVINO does not
            # promise that two at once work.
            with starting:
                request = compiled.create_infer_request()
                request.infer({0: np.zeros((batch_size, side, side, 3), np.uint8)})
                own.request = request
        output = own.request.infer({0: np.ascontiguousarray(pixels)})[0]
        return torch.from_numpy(np.array(output, dtype=np.float32))

    return run


def _convert(model: Model, batch_size: int) -> Any:
    openvino, side = _import_openvino(), model.spec.side_px
    network = model.network(has_features=True)
    # The graphs of our own networks hold no batch size: two patches trace them as well as many.
    traced_patches = min(batch_size, 2) if is_own(model.architecture) else batch_size
    example = torch.zeros((traced_patches, side, side, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # torch recommends torch.export, which takes seconds where tracing takes tenths, and
            # does not take external TorchScript.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            traced = torch.jit.trace(network, example, check_trace=False)
            return openvino.convert_model(
                traced, input=[([batch_size, side, side, 3], openvino.Type.u8)]
            )
    except Exception as error:
        reason = one_line(error)
        raise EngineFault(
            f"{model.architecture}: OpenVINO cannot take it ({reason}); use --engine torch"
        ) from error


@contextmanager
def _keep_logging() -> Iterator[None]:
    """Restore logging afterwards: a conversion silences everything below errors."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers[:], root.filters[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


def _compile(graph: Any, setting: EngineSetting, cores: int) -> Any:
    properties = {
        "INFERENCE_PRECISION_HINT": HINTS[setting.precision],
        # One thread computes a batch: the order of additions must not depend on the cores.
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
        "ENABLE_CPU_PINNING": False,  # pinned, two processes can land on one core
    }
    return _import_openvino().Core().compile_model(graph, "CPU", properties)


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report every import to its makers."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino
