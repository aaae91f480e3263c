"""How much reading macro-tiles saves over one read per patch, on a drawn slide, both ways in one run.

python benchmarks/reading.py [--side 6000] [--rounds 3]
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from wsi_pipeline.demo.phantom import draw_phantom
from wsi_pipeline.geometry import PatchSpec, all_cells, lay_grid, order_by_macro_tile
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches, macro_tile_cells, view_grid
from wsi_pipeline.slides.tiff_writer import write_pyramid

MPP = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=6000, help="side of the slide in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tiff"
        tile = draw_phantom(1500, 1500, seed=1).pixels
        copies = -(-options.side // 1500)
        write_pyramid(slide, np.tile(tile, (copies, copies, 1))[: options.side, : options.side], MPP, compression="jpeg")
        compare(slide, options.rounds)


def compare(slide: Path, rounds: int) -> None:
    reader = open_slide(slide)
    grid = lay_grid(reader.info.bounds_l0, Fraction(1), PatchSpec(mpp=MPP))
    cells = order_by_macro_tile(all_cells(grid), macro_tile_cells(view_grid(reader, grid), grid))
    source = SlidePatches(reader, grid, cells, block_size=4096)
    blocks = range(-(-len(cells) // 4096))
    level = reader.levels[0]

    def by_patch() -> None:
        for row, col in cells.tolist():
            reader.read(level, col * 50, row * 50, 50, 50)

    def by_macro_tile() -> None:
        for block in blocks:
            source.read_block(block)

    ways = {"one read per patch": by_patch, "macro-tiles": by_macro_tile}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(measure(way))
    rates = {name: len(cells) / statistics.median(times) for name, times in seconds.items()}
    width, height = reader.info.size_l0
    print(f"{len(cells):,} patches of 50 px from {width} × {height} px of JPEG tiles, one thread, {platform.machine()}")
    for name, rate in rates.items():
        print(f"  {name:<20} {rate:>9,.0f} patches/s")
    print(f"  ratio                {rates['macro-tiles'] / rates['one read per patch']:>9.1f}")


def measure(way: Callable[[], None]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
