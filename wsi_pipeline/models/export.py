"""Networks in the formats of other programs: written, and read back as those programs do.

An exported network takes prepared patches, float32 (b, 3, side, side) for any b, and gives two
logits (b, 2), whose softmax is the calibrated probability of each patch alone: other programs know
no neighbours. No file records paths of the machine that wrote it.
"""

import io
import logging
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.core.choices import RAW, TORCHSCRIPT
from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.models.architectures.network import positive_logit
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.zoo import ZooConfig, load_torchscript

Run = Callable[[Tensor], Tensor]
INPUT, OUTPUT = "pixels", "logits"
EXAMPLE_BATCH = 2
BATCH = torch.export.Dim("batch")


class ExportedNetwork(nn.Module):
    """A checkpoint's network with its calibration and, on request, its normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, checkpoint: Checkpoint, inside: Normalisation | None) -> None:
        super().__init__()
        self.network = checkpoint.build()
        self.calibration = checkpoint.terms.alone.calibration
        self.has_normalisation = inside is not None
        inside = inside or Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.register_buffer("mean", torch.tensor(inside.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(inside.std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.has_normalisation:
            x = (x - self.mean) / self.std
        logit = positive_logit(self.network(x))  # (b,)
        logit = logit * self.calibration.slope + self.calibration.offset
        # Half of it each way: the softmax of the two is the sigmoid of the one, to the last bits
        # also where both logits were large.
        return torch.stack([-logit / 2, logit / 2], dim=1)  # (b, 2)


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format: its file name, its writer and its reader."""

    file: str
    write: Callable[[nn.Module, Tensor, Path], None]
    read: Callable[[Path], Run]


def _write_torchscript(network: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # torch would rather have torch.export, but QuPath and WSInfer read this; branches on shapes
        # are the same for every batch.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(network, example)
        written = io.BytesIO()
        torch.jit.save(traced, written)
    _write_without_origin(written, path)


def _write_without_origin(script: io.BytesIO, path: Path) -> None:
    """Write the same TorchScript without the records of source file and line of each operation."""
    with zipfile.ZipFile(script) as full, zipfile.ZipFile(path, "w") as lean:
        for member in full.infolist():
            # The identity is a hash over the records too; it is optional, as they are.
            if not member.filename.endswith((".debug_pkl", ".data/serialization_id")):
                lean.writestr(zipfile.ZipInfo(member.filename), full.read(member))


def _read_pt2(path: Path) -> Run:
    run: Run = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return run


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    _import_onnxruntime()  # fails before the work where the result could not be checked
    # It reports every step of its optimiser.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    program = torch.onnx.export(
        _capture(network, example), **names, dynamo=True, external_data=False, verbose=False
    )
    if program is None:
        raise TypeError("torch gave no ONNX program")
    graph = program.model.graph
    parts: list[Any] = [program.model, graph, *graph.all_nodes(), *graph.initializers.values()]
    for part in parts:
        part.metadata_props.clear()
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Run:
    session = _import_onnxruntime()(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _capture(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return the network's graph without the source lines of its operations."""
    program = torch.export.export(network, (example,), dynamic_shapes=({0: BATCH},))
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                for key in ("stack_trace", "from_node"):
                    node.meta.pop(key, None)
    return program


def _import_onnxruntime() -> Callable[..., Any]:
    try:
        import onnxscript  # noqa: F401 - what torch writes it with
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise ModelError(
            f"onnx: needs {error.name}, which is not installed; pip install 'wsi-pipeline[export]'"
        ) from error
    session: Callable[..., Any] = InferenceSession
    return session


FORMATS: dict[str, ExportFormat] = {
    "torchscript": ExportFormat(
        TORCHSCRIPT, _write_torchscript, lambda path: load_torchscript(path.read_bytes(), path)
    ),
    "onnx": ExportFormat("model.onnx", _write_onnx, _read_onnx),
    "pt2": ExportFormat(
        "model.pt2",
        lambda network, example, path: torch.export.save(_capture(network, example), path),
        _read_pt2,
    ),
}


def describe_export(checkpoint: Checkpoint, *, is_normalised_inside: bool) -> ZooConfig:
    """Return the configuration that goes beside an exported network.

    Raises ModelError for a network of sRGB: nobody would convert its patches.
    """
    if checkpoint.spec.icc != RAW:
        raise ModelError(
            f"the model takes patches in {checkpoint.spec.icc}, which the folder of an exported"
            " model cannot say; export one that was trained on raw colours"
        )
    return ZooConfig(
        architecture=checkpoint.architecture,
        class_names=checkpoint.class_names,
        spec=checkpoint.spec,
        resized_px=checkpoint.spec.side_px,
        normalisation=None if is_normalised_inside else checkpoint.normalisation,
        is_leaky=checkpoint.is_leaky,
        seen_patients=checkpoint.seen_patients,
    )


def write_export(
    checkpoint: Checkpoint, name: str, path: Path, *, is_normalised_inside: bool
) -> None:
    """Write a checkpoint's network in the format called `name`. Raises ModelError."""
    network = ExportedNetwork(
        checkpoint, checkpoint.normalisation if is_normalised_inside else None
    ).eval()
    side = checkpoint.spec.side_px
    example = torch.rand((EXAMPLE_BATCH, 3, side, side), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            FORMATS[name].write(network, example, path)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"{checkpoint.architecture}: cannot be written as {name} ({one_line(error)}); choose"
            " another format"
        ) from error


def compare_export(checkpoint: Checkpoint, name: str, path: Path, config: ZooConfig) -> float:
    """Return the largest difference in probability between a checkpoint and its export.

    NaN where the export gives NaN. The patches are noise and plain colours, in two batches of
    different size. Raises ModelError where the exported file does not run.
    """
    pixels = _compared_patches(checkpoint.spec.side_px)
    batches = (config.prepare(torch.from_numpy(part)) for part in (pixels[:5], pixels[5:]))
    try:
        run = FORMATS[name].read(path)
        with torch.no_grad():
            logits = torch.cat([run(batch.contiguous()) for batch in batches])
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{name}: written, but the file does not run ({one_line(error)}); choose another format"
        ) from error
    probability = torch.softmax(logits, dim=1)[:, 1].numpy()
    return float(np.abs(probability - Predictor(checkpoint)(pixels)).max())


def _compared_patches(side_px: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, side_px, side_px, 3), dtype=np.uint8)
    plain = np.broadcast_to(rng.integers(0, 256, (8, 1, 1, 3), dtype=np.uint8), noise.shape)
    return np.concatenate([noise, plain])
