"""The engine `openvino`: the network as a graph of OpenVINO, pixels in, their normalisation inside; the door to OpenVINO."""

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

from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.models.engines.engine import EngineFault, EngineSetting, Run
from wsi_pipeline.models.model import Model

HINTS = {"fp32": "f32", "bf16": "bf16"}
_converting = threading.Lock()


def find_fault(model: Model, device: str) -> str | None:
    """It has to be installed, and the model must take patches as they are."""
    if importlib.util.find_spec("openvino") is None:
        return "it is not installed; pip install 'wsi-pipeline[cpu]'"
    if model.resizes_patches:
        return (
            "the model resizes its patches, which only torch does as its maker did; use --engine"
            " torch"
        )
    return None


def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
    """The graph compiled for this CPU, a stream of one thread per core."""
    cores = available_cores()
    with (
        _converting,
        _keep_logging(),
    ):  # it sets Python's filters for warnings, which all threads share
        compiled = _compile(_convert(model, batch_size), setting, cores)
    own, starting = threading.local(), threading.Lock()
    side = model.spec.side_px

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        if not hasattr(own, "request"):
            with starting:  # a stream is prepared by the first batch that it gets: one at a time, for nothing promises that two at once go well
                request = compiled.create_infer_request()
                request.infer({0: np.zeros((batch_size, side, side, 3), np.uint8)})
                own.request = request
        return torch.from_numpy(
            np.array(own.request.infer({0: np.ascontiguousarray(pixels)})[0], dtype=np.float32)
        )

    return run


def _convert(model: Model, batch_size: int) -> Any:
    openvino = _import_openvino()
    side = model.spec.side_px
    network = model.network()
    example = torch.zeros((batch_size, side, side, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # torch would rather have torch.export, which takes seconds where tracing takes tenths,
            # and no TorchScript of others.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            traced = torch.jit.trace(network, example, check_trace=False)
            return openvino.convert_model(traced, input=[([*example.shape], openvino.Type.u8)])
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise EngineFault(
            f"{model.architecture}: OpenVINO cannot take it ({reason}); use --engine torch"
        ) from error


@contextmanager
def _keep_logging() -> Iterator[None]:
    """Logging as it was: a conversion lets nothing below errors through any more, ours included."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers[:], root.filters[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


def _compile(graph: Any, setting: EngineSetting, cores: int) -> Any:
    return (
        _import_openvino()
        .Core()
        .compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": HINTS[setting.precision],
                # One thread computes a batch: the order of additions must not depend on the number
                # of cores.
                "NUM_STREAMS": cores,
                "INFERENCE_NUM_THREADS": cores,
                "ENABLE_CPU_PINNING": False,  # pinned, two processes can land on one core
            },
        )
    )


def _import_openvino() -> Any:
    """OpenVINO without its telemetry, which would report every import to its makers; it does without where that cannot be imported."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino
