"""Checks of this machine: versions, devices, disk space, and a measurement of ten seconds."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import WsiError, gpu_fault, memory_fault, one_line
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.core.recipe import TOOL
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.device import choose_device, cpu_flags, cuda_version, list_gpus
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.opening import make_random_checkpoint, open_predictor
from wsi_pipeline.runs.checks import (
    Check,
    Verdict,
    check_cpu,
    check_folder,
    check_gpu,
    check_load,
    check_open_files,
    check_packages,
    check_shared_memory,
    check_tool,
)
from wsi_pipeline.runs.reading_speed import measure_reading
from wsi_pipeline.slides.openslide_reader import library_version

MEASURED_S = 5.0
"""For reading, and again for the model."""
FIRST_BLOCK = 256
LARGEST_BLOCK = 4096
LIBRARIES = ("torch", "zarr", "dask", "distributed")

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured patches per second."""

    read: float
    """By one worker, at the model's own scale."""
    compute: float
    shares_cores: bool
    """True if the model runs on the cores that decode."""

    @property
    def expected(self) -> float:
        """Patches per second of `wsi infer`, at best."""
        if self.shares_cores:
            return 1 / (1 / self.read + 1 / self.compute)
        return min(self.read, self.compute)

    @property
    def bottleneck(self) -> str:
        """The step that takes most of the time."""
        return "reading the slides" if self.read < self.compute else "the model"


def examine(
    model: Path | None,
    out: Path,
    terms: ExternalModelTerms | None = None,
    seconds: float = MEASURED_S,
) -> Iterator[Check]:
    """Yield every check as it is made. Raises ModelError for a model that cannot be used."""
    loaded = make_random_checkpoint() if model is None else load_model(model, terms)
    examinations: dict[str, Callable[[], Check | list[Check]]] = {
        TOOL: check_tool,
        "OpenSlide": lambda: Check("OpenSlide", Verdict.OK, library_version()),
        "packages": lambda: check_packages(LIBRARIES),
        "GPU": lambda: check_gpu(len(list_gpus()), cuda_version()),
        "CPU": lambda: check_cpu(cpu_flags(), available_cores()),
        "engines": lambda: check_engines(loaded),
        "disk": lambda: check_folder(out),
        "shared memory": check_shared_memory,
        "open files": check_open_files,
        "load": lambda: check_load(available_cores()),
        "speed": lambda: _measure(loaded, seconds),
    }
    for name, examination in examinations.items():
        yield from examine_safely(name, examination)


def examine_safely(name: str, examination: Callable[[], Check | list[Check]]) -> list[Check]:
    """Return the checks of an examination; one that fails itself is a check that says so."""
    try:
        found = examination()
    except Exception as error:  # noqa: BLE001 - drivers and libraries fail in many ways
        fault = memory_fault(error) or gpu_fault(error) or error
        return [Check(name, Verdict.BAD, f"cannot be examined: {one_line(fault)}")]
    return [found] if isinstance(found, Check) else found


def check_engines(model: Model) -> list[Check]:
    """Return the engines that could run the model here; a machine needs one of them."""
    place = choose_device("auto").type
    found = []
    for name, engine in ENGINES.items():
        is_known = place in engine.precisions
        fault = engine.find_fault(model, place) if is_known else "not for this device"
        said = engine.summary if fault is None else f"not here: {fault}"
        found.append(Check(f"engine {name}", Verdict.OK, said))
    return found


def _measure(model: Model, seconds: float) -> list[Check]:
    """Measure what one worker reads and what its device computes, one after the other."""
    shares_cores = choose_device("auto").type == "cpu"
    workers = 1 if shares_cores else len(list_gpus())
    threads = max(2, available_cores() // workers)
    read = measure_reading(model.spec, threads, seconds)
    said = f"{read:,.0f} patches/s from JPEG tiles by the {threads} threads of one worker"
    reading = Check("reading", Verdict.OK, said)
    try:
        predictor = open_predictor(model).predictor
        compute = measure_model(predictor, model.spec, seconds)
    except WsiError as error:
        return [reading, Check("model", Verdict.BAD, str(error))]
    speed = Speed(read, compute, shares_cores)
    name = f"{model.architecture}, {model.spec.side_px} px"
    place = f" on each of {workers} GPUs" if workers > 1 else ""
    expected = (
        f"about {speed.expected:,.0f} patches/s{place} of slides scanned at the model's scale; the"
        f" bottleneck is {speed.bottleneck}"
    )
    return [
        reading,
        Check("model", Verdict.OK, f"{name}: {compute:,.0f} patches/s by {predictor.setting}"),
        Check("expected", Verdict.OK, expected),
    ]


def measure_model(predict: Predict, spec: PatchSpec, seconds: float) -> float:
    """Return patches per second on random patches, in blocks that grow to a fair share of time."""
    rng, size = np.random.default_rng(0), FIRST_BLOCK
    predict(_draw(rng, FIRST_BLOCK, spec))  # the first one makes everything ready
    started, done = time.perf_counter(), 0
    spent = 0.0
    while time.perf_counter() - started < seconds:
        pixels = _draw(rng, size, spec)
        begun = time.perf_counter()
        predict(pixels)
        took = time.perf_counter() - begun
        spent, done = spent + took, done + size
        size = min(size * 2, LARGEST_BLOCK) if took < seconds / 8 else size
    return done / max(spent, 1e-9)


def _draw(rng: np.random.Generator, count: int, spec: PatchSpec) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (count, spec.side_px, spec.side_px, 3), dtype=np.uint8)


def exit_code(checks: list[Check]) -> int:
    """0, or 5 where work would fail."""
    return 5 if any(check.verdict is Verdict.BAD for check in checks) else os.EX_OK
