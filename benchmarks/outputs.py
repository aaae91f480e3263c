"""The cost of a slide's outputs: wall and CPU seconds, peak memory and bytes.

Each output is written in a process of its own.

python benchmarks/outputs.py [--side 1000]        (side × side patches; 1000 gives a million)
python benchmarks/outputs.py --small              (a slide of a thousand patches)

Per-patch GeoJSON is compared with the regions in one run, and with the cost of WSInfer's (0.31 ms
and 327 bytes a patch). The outputs of a small slide, one after the other in one process, are
compared with two figures of matplotlib of the same size.
"""

import argparse
import functools
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.choices import OUTPUT_GROUPS, PREDICTIONS
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.outputs import WRITERS, View
from wsi_pipeline.outputs.heatmap import build_heatmap
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.summarise import summarise
from wsi_pipeline.stages.aggregate import choose_samples, publish
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import Predictions, prepare_predictions, write_prediction_block

MPP = 0.25
BLOCK_SIZE = 4096
EVERYTHING = "all default formats, committed"
WSINFER_MS, WSINFER_BYTES = 0.31, 327
SMALL_SHAPE = (25, 40)
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--side", type=int, default=1000, help="patches along one side of the slide"
    )
    parser.add_argument("--small", action="store_true", help="outputs of a small slide only")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        compare_small()
        return
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


def compare_small() -> None:
    """Print the CPU time of a small slide's outputs, and how often it goes into matplotlib's."""
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for number in range(ROUNDS):
            staging = write_predictions(Path(place) / f"slide-{number}", SMALL_SHAPE)
            result = read_result(staging)
            folder = Path(place) / f"out-{number}"
            folder.mkdir()
            writers: dict[str, Callable[[], object]] = {
                name: functools.partial(WRITERS[name], result, folder)
                for name in OUTPUT_GROUPS["all"]
            }
            writers["two figures of matplotlib"] = lambda: plot_maps(result, folder)  # noqa: B023
            writers[EVERYTHING] = lambda: publish(staging, View(), result.samples, staging.target)  # noqa: B023
            for name, write in writers.items():
                with Clock() as clock:
                    write()
                rows.setdefault(name, []).append(clock.seconds["cpu"])
    print("| CPU seconds of a slide of a thousand patches | first | median of the others |")
    print("| --- | --- | --- |")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds[0]:.3f} | {median(seconds[1:]):.3f} |")
    ours, theirs = (median(rows[name][1:]) for name in (EVERYTHING, "two figures of matplotlib"))
    print(
        f"two figures of matplotlib / all default outputs: {theirs / ours:.1f} times the CPU time"
    )


def plot_maps(result: SlideResult, folder: Path) -> None:
    """Write the heatmap and the overlay as figures of matplotlib."""
    from matplotlib.figure import Figure

    for name, alpha in (("plain", 1.0), ("over the slide", 0.45)):
        figure = Figure(figsize=(10.8, 6.6), dpi=120, layout="constrained")
        axes = figure.add_subplot(xticks=[], yticks=[])
        axes.set_title(f"{result.summary.slide_id}\n{result.summary.patches} patches", fontsize=10)
        place = (0, 1, 1, 0)
        if alpha < 1:
            axes.imshow(result.table.thumbnail.pixels, extent=place, aspect="auto")
        look: dict[str, Any] = {"alpha": alpha, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        image = axes.imshow(result.heatmap.probability, extent=place, aspect="auto", **look)
        figure.colorbar(image, ax=axes, label="probability")
        figure.savefig(folder / f"{name}.png")


def run_alone(name: str, side: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", str(side), "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, side: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        staging = write_predictions(Path(place) / "slide", (side, side))
        if name == EVERYTHING:
            return measure_commit(staging)
        result = read_result(staging)
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


def measure_commit(staging: Staging) -> dict[str, Any]:
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


def read_result(staging: Staging) -> SlideResult:
    predictions = Predictions(staging.product / PREDICTIONS)
    heatmap = build_heatmap(predictions)
    samples = choose_samples(
        predictions, lambda index: np.zeros((len(index), 50, 50, 3), dtype=np.uint8)
    )
    return SlideResult(predictions.table, heatmap, summarise(predictions, heatmap), samples=samples)


def write_predictions(target: Path, shape: tuple[int, int]) -> Staging:
    """Write a slide of rows × cols patches, all of tissue, with positive islands.

    These are some hundred patches large, with ragged borders; one patch in a thousand is
    unreadable.
    """
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.standard_normal(shape), min(8, min(shape) / 8))
    field = field / field.std() + rng.standard_normal(shape) * 0.1
    probability = (1 / (1 + np.exp(-2 * (field - 1)))).astype(np.float32)
    probability[rng.random(shape) < 0.001] = np.nan
    rows, cols = shape
    grid = Grid(PatchSpec(50, 50, MPP), rows, cols, Fraction(1))
    cells = all_positions(grid)
    n, extent = len(cells), (cols * 50, rows * 50)
    slide = SlideInfo(
        "slide",
        "slide.svs",
        extent,
        MPP,
        "property",
        (Fraction(1),),
        (0, 0, *extent),
        "0" * 64,
    )
    longest = max(shape)
    pixels = paint_tissue((1024 * rows // longest, 1024 * cols // longest), rng)
    thumbnail = Thumbnail(pixels, Fraction(longest * 50, 1024), (0, 0))
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
    staging = Staging(target, {"benchmark": list(shape)})
    prepare_predictions(
        staging,
        table,
        {"model": {"threshold": 0.5, "digest": "0" * 64, "class_names": ["negative", "positive"]}},
    )
    logits = Calibration().undo(probability.ravel())
    for block in range(table.blocks):
        write_prediction_block(staging, table, block, logits[table.block_slice(block)], {})
    return staging


def paint_tissue(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return pink with the texture of tissue at a low magnification, RGB (height, width, 3)."""
    texture = gaussian_filter(rng.standard_normal(shape), 1.5)[..., None]
    color = np.array([215, 150, 195]) + texture / texture.std() * np.array([18, 25, 14])
    pixels: NDArray[np.uint8] = np.clip(color, 0, 255).astype(np.uint8)
    return pixels


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
