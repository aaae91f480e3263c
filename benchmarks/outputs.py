"""The cost of a slide's outputs: wall and CPU seconds, peak memory and bytes.

Each output is written in a process of its own.

python benchmarks/outputs.py [--side 1000]        (side × side patches; 1000 gives a million)

Per-patch GeoJSON is compared with the regions in one run, and with the cost of WSInfer's (0.31 ms
and 327 bytes a patch).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.choices import OUTPUT_GROUPS, PREDICTIONS
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions
from wsi_pipeline.core.slide import PatchTable, SlideInfo, Thumbnail
from wsi_pipeline.outputs import WRITERS, View
from wsi_pipeline.outputs.heatmap import build_heatmap, summarise
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.stages.aggregate import choose_samples, publish
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import Predictions, prepare_predictions, write_prediction_block

MPP = 0.25
BLOCK_SIZE = 4096
EVERYTHING = "all default formats, committed"
WSINFER_MS, WSINFER_BYTES = 0.31, 327


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--side", type=int, default=1000, help="patches along one side of the slide"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.only, options.side)))
        return
    patches = options.side**2
    print(f"{patches:,} patches, {platform.machine()}, Python {platform.python_version()}")
    print(
        "| format | seconds | CPU seconds | peak memory, MB | MB above the map in memory | bytes |"
        " bytes a patch |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows: dict[str, dict[str, Any]] = {}
    for name in [EVERYTHING, *OUTPUT_GROUPS["all"], "geojson-patches"]:
        row = rows[name] = run_alone(name, options.side)
        times = f"{row['seconds']:.2f} | {row['cpu']:.2f}"
        memory = f"{row['peak_mb']:.0f} | {row['peak_mb'] - row['base_mb']:.0f}"
        print(
            f"| {name} | {times} | {memory} | {row['bytes']:,} | {row['bytes'] / patches:.2f} |",
            flush=True,
        )
    print(
        f"| WSInfer's GeoJSON, reckoned | {patches * WSINFER_MS / 1000:.0f} | | | |"
        f" {patches * WSINFER_BYTES:,} | {WSINFER_BYTES} |"
    )
    regions, tiles = rows["geojson"], rows["geojson-patches"]
    times_more, bytes_more = (tiles[key] / regions[key] for key in ("cpu", "bytes"))
    print(f"tiles / regions: {times_more:.1f} times the CPU time, {bytes_more:.0f} times the bytes")


def run_alone(name: str, side: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", str(side), "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, side: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        staging = write_predictions(Path(place) / "slide", side)
        if name == EVERYTHING:
            return measure_commit(staging, side)
        result = read_result(staging, side)
        folder = Path(place) / "out"
        folder.mkdir()
        base = peak_mb()
        with Clock() as clock:
            WRITERS[name](result, folder)
        return {
            **clock.seconds,
            "base_mb": base,
            "peak_mb": peak_mb(),
            "bytes": count_bytes(folder),
        }


def measure_commit(staging: Staging, side: int) -> dict[str, Any]:
    """Return the cost from stored probabilities to the committed folder.

    Metrics, checksums and flushing to disk are included.
    """
    base = peak_mb()
    with Clock() as clock:
        predictions = Predictions(staging.product / PREDICTIONS)
        samples = choose_samples(
            predictions, lambda index: np.zeros((len(index), 50, 50, 3), dtype=np.uint8)
        )
        publish(staging, View(), samples, staging.target)
    own = count_bytes(staging.target) - count_bytes(staging.target / PREDICTIONS)
    return {**clock.seconds, "base_mb": base, "peak_mb": peak_mb(), "bytes": own}


def read_result(staging: Staging, side: int) -> SlideResult:
    predictions = Predictions(staging.product / PREDICTIONS)
    heatmap = build_heatmap(predictions)
    samples = choose_samples(
        predictions, lambda index: np.zeros((len(index), 50, 50, 3), dtype=np.uint8)
    )
    return SlideResult(predictions.table, heatmap, summarise(predictions, heatmap), samples=samples)


def write_predictions(target: Path, side: int) -> Staging:
    """Write a slide full of tissue with positive islands of some hundred patches.

    Their borders are ragged, and one patch in a thousand is unreadable.
    """
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.standard_normal((side, side)), 8)
    field = field / field.std() + rng.standard_normal((side, side)) * 0.1
    probability = (1 / (1 + np.exp(-2 * (field - 1)))).astype(np.float32)
    probability[rng.random((side, side)) < 0.001] = np.nan
    grid = Grid(PatchSpec(50, 50, MPP), side, side, Fraction(1))
    cells = all_positions(grid)
    n, extent = len(cells), side * 50
    slide = SlideInfo(
        "slide",
        "slide.svs",
        (extent, extent),
        MPP,
        "property",
        (Fraction(1),),
        (0, 0, extent, extent),
        "0" * 64,
    )
    thumbnail = Thumbnail(
        np.full((1024, 1024, 3), 230, dtype=np.uint8), Fraction(extent, 1024), (0, 0)
    )
    nothing = np.full(n, np.nan, dtype=np.float32)
    labels = np.full(n, -1, dtype=np.int8)
    table = PatchTable(
        slide,
        grid,
        cells,
        labels,
        nothing,
        np.ones(n, dtype=np.float32),
        thumbnail,
        BLOCK_SIZE,
        "patient",
        ("negative", "positive"),
    )
    staging = Staging(target, {"benchmark": side})
    prepare_predictions(
        staging,
        table,
        {"model": {"threshold": 0.5, "digest": "0" * 64, "class_names": ["negative", "positive"]}},
    )
    logits = Calibration().undo(probability.ravel())
    for block in range(table.blocks):
        write_prediction_block(staging, table, block, logits[table.block_slice(block)], {})
    return staging


class Clock:
    """The seconds between entering and leaving."""

    seconds: dict[str, float]

    def __enter__(self) -> "Clock":
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._started
        self.seconds = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
