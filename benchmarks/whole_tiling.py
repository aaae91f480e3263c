"""The speed of `wsi tile` as a whole process, from its start to its exit.

Compared with one `read_region` per patch and with the bare decoding of the same JPEG tiles on all
cores. The ways take turns; a ratio is of ways in the same turn, so that other load on the machine
affects them alike. Wall-clock seconds, medians over turns; the slide is in the page cache.

    python benchmarks/whole_tiling.py [SLIDE] [--turns 3] [--command "wsi tile"]…

Without a slide, a synthetic one of 40,000 × 30,000 px is made. Several commands, such as those of
two versions, take turns too.
"""

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
from slide_maker import make_slide
from tiling import MPP, SIDE, TilesOnce, describe_machine, read_singly

from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.slides.tiff_reader import TiffReader
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig

SINGLY = 20_000
"""Patches that are read one by one in each turn, row by row from the middle of the slide."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--command", action="append", help='such as "wsi tile --workers 0"')
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on a disk, unlike some /tmp
        slide = options.slide or Path(folder) / "synthetic.tiff"
        if options.slide is None:
            make_slide(slide, 40_000, 30_000, tissue=0.72)
        compare_whole(slide, options.command or ["wsi tile"], options.turns, Path(folder))


def compare_whole(slide: Path, commands: list[str], turns: int, folder: Path) -> None:
    reader = TiffReader(slide, "slide")
    table = plan_patches(reader, TileConfig(spec=PatchSpec(SIDE, SIDE, MPP)))[0]
    positions = table.positions
    tiles = TilesOnce(slide, reader, table)
    streams = tiles.take(positions)
    in_rows = positions[np.lexsort((positions[:, 1], positions[:, 0]))]
    middle = max(0, (len(in_rows) - SINGLY) // 2)
    singly = in_rows[middle : middle + SINGLY]
    rates: dict[str, list[float]] = {}
    for _ in range(turns):
        for command in commands:
            seconds = run_whole(command, slide, folder / "tiled")
            rates.setdefault(command, []).append(len(positions) / seconds)
        started = time.perf_counter()
        read_singly(openslide.OpenSlide(slide), singly)
        rates.setdefault("one read_region per patch", []).append(
            len(singly) / (time.perf_counter() - started)
        )
        seconds = decode_on_all_cores(tiles, streams)
        rates.setdefault("bare decode on all cores", []).append(len(positions) / seconds)
    report(slide, len(positions), rates, commands)


def run_whole(command: str, slide: Path, out: Path) -> float:
    """Return the seconds of a command from its start to its exit."""
    os.sync()
    started = time.perf_counter()
    words = [*shlex.split(command), str(slide), "--out", str(out)]
    subprocess.run(words, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def decode_on_all_cores(tiles: TilesOnce, streams: list[bytes]) -> float:
    """Return seconds; the decoder runs without Python's lock."""
    cores = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(tiles.decode, [streams[part::cores] for part in range(cores)]))
    return time.perf_counter() - started


def report(slide: Path, patches: int, rates: dict[str, list[float]], commands: list[str]) -> None:
    print(
        f"{slide.name}: {patches:,} patches of {SIDE} px at {MPP} µm/px, {patches * 7500:,} bytes"
    )
    for name, found in rates.items():
        print(f"  {name[-60:]:<60} {statistics.median(found):>9,.0f} patches/s")
    for command in commands:
        by_name = {
            name: statistics.median(
                whole / other for whole, other in zip(rates[command], found, strict=True)
            )
            for name, found in rates.items()
            if name not in commands or name != command
        }
        ratios = ", ".join(f"{ratio:.2f} × {name[-40:]}" for name, ratio in by_name.items())
        print(f"  {command[-40:]}: {ratios}")


if __name__ == "__main__":
    main()
