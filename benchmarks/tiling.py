"""The speed of tiling: patches and stores per second.

Compared with the bare decoding of the same JPEG tiles and the bare writing of the same bytes.

All ways take turns, block by block, in one run; medians over blocks; ratios are of the ways in the
same turn, so that other load on the machine affects all of them equally. Seconds are CPU seconds
of the process (--clock cpu) or wall-clock seconds.

    python benchmarks/tiling.py SLIDE… [--blocks 12] [--clock cpu] [--threads 2]
        [--store-patches 100000] [--memory]

Without a slide, a synthetic one is made (see slide_maker.py). `taskset -c 0` keeps everything on
one core.
"""

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
from numpy.typing import NDArray
from slide_maker import make_slide

from wsi_pipeline.core.geometry import PatchSpec, block_slice, count_blocks
from wsi_pipeline.core.patch_table import PatchBlock, PatchTable
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.tiff_reader import TiffReader
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.patches import (
    PatchStore,
    finish_patch_store,
    prepare_patch_store,
    write_patch_block,
)
from wsi_pipeline.store.zarr_io import open_array

SIDE = 50
MPP = 0.25
SAMPLE = 800
"""Patches that are read one by one in each turn: the slow way needs no more to be measured."""
BATCH = 256
END_TO_END_TURNS = 3
CORE_TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument(
        "--blocks",
        type=int,
        default=12,
        help="blocks of 4,096 patches to take, from the middle of each slide",
    )
    parser.add_argument("--clock", choices=["cpu", "wall"], default="wall")
    parser.add_argument(
        "--threads", type=int, default=1, help="decode threads of the direct reader"
    )
    parser.add_argument(
        "--store-patches",
        type=int,
        default=100_000,
        help="size of the store for random batches; 0: leave out",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also `wsi tile` from end to end, with its peak memory",
    )
    options = parser.parse_args()
    print(f"{describe_machine()}; clock: {options.clock}")
    with tempfile.TemporaryDirectory() as folder:
        slides = options.slides or [draw(Path(folder) / "synthetic.tiff")]
        for slide in slides:
            compare_reading(slide, options.blocks, options.threads, options.clock, Path(folder))
            if len(os.sched_getaffinity(0)) > 1:
                compare_cores(slide, options.blocks)
            if options.memory:
                measure_memory(slide, Path(folder) / "tiled")
        if options.store_patches:
            compare_batches(options.store_patches, Path(folder))


def describe_machine() -> str:
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} of {len(names)} cores of {names[0] if names else platform.machine()}, load"
        f" {os.getloadavg()[0]:.1f}"
    )


def draw(path: Path) -> Path:
    make_slide(path, 20_000, 20_000, tissue=0.36)
    return path


def compare_reading(slide: Path, blocks: int, threads: int, clock: str, folder: Path) -> None:
    reader, theirs = (
        TiffReader(slide, "slide", decode_threads=threads),
        open_slide(slide, reader="openslide"),
    )
    table = plan_patches(reader, TileConfig(spec=PatchSpec(SIDE, SIDE, MPP)))[0]
    first = max(0, (count_blocks(table.patches, table.block_size) - blocks) // 2)
    chosen = range(first, min(first + blocks, table.patches // table.block_size))
    direct, by_openslide = (
        SlidePatches(one, table.grid, table.positions, table.block_size) for one in (reader, theirs)
    )
    tiles = TilesOnce(slide, reader, table)
    handle = openslide.OpenSlide(slide)
    staging = begin_store(folder / "store", table, reader)
    now = time.process_time if clock == "cpu" else time.perf_counter
    rates: dict[str, list[float]] = {}

    def measure(name: str, patches: int, way: Callable[[], object]) -> None:
        started = now()
        way()
        rates.setdefault(name, []).append(patches / (now() - started))

    # A naive reader goes through the slide row by row; here from the middle on.
    in_rows = table.positions[np.lexsort((table.positions[:, 1], table.positions[:, 0]))][
        table.patches // 2 :
    ]
    for block in chosen:
        cells = table.positions[block_slice(block, table.block_size, table.patches)]
        raster, in_rows = in_rows[:SAMPLE], in_rows[SAMPLE:]
        streams = tiles.take(cells)
        measure(
            "a  one read_region per patch",
            len(raster),
            lambda raster=raster: read_singly(handle, raster),
        )  # type: ignore[misc]
        measure(
            "b  our OpenSlide reader",
            len(cells),
            lambda block=block: by_openslide.read_block(block),
        )  # type: ignore[misc]
        measure("c  our direct reader", len(cells), lambda block=block: direct.read_block(block))  # type: ignore[misc]
        measure(
            "d  bare decode of its tiles", len(cells), lambda streams=streams: tiles.decode(streams)
        )  # type: ignore[misc]
    pixels = direct.read_block(chosen[0])
    assert np.array_equal(pixels.pixels, by_openslide.read_block(chosen[0]).pixels)
    for block in chosen:
        measure(
            "   writing the store",
            table.block_size,
            lambda block=block: write_patch_block(staging, table, block, pixels),
        )  # type: ignore[misc]
        measure(
            "   writing a plain file",
            table.block_size,
            lambda block=block: write_plainly(folder / f"{block}.raw", pixels.pixels),
        )  # type: ignore[misc]
    turns = [
        measure_end_to_end(slide, table, chosen, threads, folder, now)
        for _ in range(END_TO_END_TURNS)
    ]
    report(slide, reader, table, rates, turns)


def read_singly(handle: openslide.OpenSlide, cells: NDArray[np.int32]) -> None:
    for row, col in cells.tolist():
        np.asarray(handle.read_region((col * SIDE, row * SIDE), 0, (SIDE, SIDE)))[..., :3]


def write_plainly(path: Path, pixels: NDArray[np.uint8]) -> None:
    with path.open("wb") as stream:
        stream.write(pixels.data)
        stream.flush()
        os.fsync(stream.fileno())


class TilesOnce:
    """The JPEG streams under patches, each given once.

    So would a reader decode them that keeps what it needs again.
    """

    def __init__(self, slide: Path, reader: TiffReader, table: PatchTable) -> None:
        self._content = np.memmap(slide, dtype=np.uint8, mode="r")
        layout = reader.layout_of(reader.levels[0])
        assert layout is not None, "the slide's level 0 cannot be decoded directly"
        self._layout = layout
        self._seen: set[int] = set()

    def take(self, cells: NDArray[np.int32]) -> list[bytes]:
        form, corners = self._layout.form, cells.astype(np.int64) * SIDE
        found: set[int] = set()
        for dy in (0, SIDE - 1):
            for dx in (0, SIDE - 1):
                row, col = (corners[:, 0] + dy) // form.height, (corners[:, 1] + dx) // form.width
                found |= set((row * self._layout.across + col).tolist())
        fresh = sorted(found - self._seen)
        self._seen |= found
        places = [
            (int(self._layout.offsets[index]), int(self._layout.counts[index])) for index in fresh
        ]
        return [
            self._content[offset : offset + count].tobytes() for offset, count in places if count
        ]

    def decode(self, streams: list[bytes]) -> None:
        form = self._layout.form
        colors = "YCBCR" if form.photometric == 6 else "RGB"
        for stream in streams:
            imagecodecs.jpeg8_decode(
                stream, tables=form.jpeg_tables, colorspace=colors, outcolorspace="RGB"
            )


def begin_store(path: Path, table: PatchTable, reader: TiffReader) -> Staging:
    staging = Staging(path, {"slide": reader.info.fingerprint})
    prepare_patch_store(staging, table, {})
    return staging


def measure_end_to_end(
    slide: Path,
    table: PatchTable,
    blocks: range,
    threads: int,
    folder: Path,
    now: Callable[[], float],
) -> tuple[float, float]:
    """Return patches per second into a store, two blocks under way, and decoded just before.

    Measured from the end of the first block to the end of the last.
    """
    reader = TiffReader(slide, "slide", decode_threads=threads)
    source = SlidePatches(reader, table.grid, table.positions, table.block_size)
    tiles = TilesOnce(slide, reader, table)
    streams = [
        stream
        for block in blocks
        for stream in tiles.take(
            table.positions[block_slice(block, table.block_size, table.patches)]
        )
    ]
    started = now()
    tiles.decode(streams)
    decoded = len(blocks) * table.block_size / (now() - started)
    staging = begin_store(folder / "whole", table, reader)
    ends: list[float] = []

    def store(block: int) -> None:
        write_patch_block(staging, table, block, source.read_block(block))
        ends.append(now())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(store, blocks))
    staging.discard()
    return (len(blocks) - 1) * table.block_size / (max(ends) - min(ends)), decoded


def report(
    slide: Path,
    reader: TiffReader,
    table: PatchTable,
    rates: dict[str, list[float]],
    turns: list[tuple[float, float]],
) -> None:
    width, height = reader.info.size_l0
    print(
        f"\n{slide.name}: {width} × {height} px, {table.patches:,} tissue patches of {SIDE} px at"
        f" {MPP} µm/px"
    )
    for name, found in rates.items():
        print(f"  {name:<30} {statistics.median(found):>9,.0f} patches/s")
    end_to_end = statistics.median(rate for rate, _ in turns)
    print(f"  {'e  end to end into the store':<30} {end_to_end:>9,.0f} patches/s")

    def ratio(one: str, other: str) -> float:
        pairs = zip(pick(rates, one), pick(rates, other), strict=True)
        return statistics.median(first / second for first, second in pairs)

    print(
        f"  c / a {ratio('c', 'a'):.2f}   c / d {ratio('c', 'd'):.2f}   b / a"
        f" {ratio('b', 'a'):.2f}",
        end="   ",
    )
    steady = statistics.median(stored / decoded for stored, decoded in turns)
    print(f"e / d {steady:.2f}   store / plain file {ratio('   writing the', '   writing a'):.2f}")


class Share:
    """A slide that is open in this process or in one of its own, to read blocks of it."""

    source: SlidePatches

    @classmethod
    def open(cls, slide: Path, table: PatchTable) -> None:
        cls.source = SlidePatches(
            TiffReader(slide, "slide", decode_threads=1),
            table.grid,
            table.positions,
            table.block_size,
        )

    @classmethod
    def read(cls, block: int) -> int:
        return len(cls.source.read_block(block).pixels)


def compare_cores(slide: Path, blocks: int) -> None:
    """Print the direct reader on one thread, on two, and on one of each of two processes.

    Two processes are what `wsi tile` starts; the ways take turns.
    """
    reader = TiffReader(slide, "slide", decode_threads=1)
    table = plan_patches(reader, TileConfig(spec=PatchSpec(SIDE, SIDE, MPP)))[0]
    chosen = range(min(blocks, table.patches // table.block_size))
    Share.open(slide, table)
    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(2) as threads,
        ProcessPoolExecutor(2, get_context("spawn"), Share.open, (slide, table)) as processes,
    ):
        list(
            processes.map(Share.read, chosen)
        )  # they are started, and the slide is in the page cache
        rates = [
            [measure_sharing(pool, chosen) for pool in (one, threads, processes)]
            for _ in range(CORE_TURNS)
        ]
    medians = [statistics.median(rate) for rate in zip(*rates, strict=True)]
    by_threads, by_processes = (
        statistics.median(turn[way] / turn[0] for turn in rates) for way in (1, 2)
    )
    print(
        f"  c on one thread {medians[0]:,.0f}, on two {medians[1]:,.0f}, in two processes"
        f" {medians[2]:,.0f} patches/s;",
        end=" ",
    )
    print(f"ratio of two threads {by_threads:.2f}, of two processes {by_processes:.2f}")


def measure_sharing(pool: Executor, blocks: range) -> float:
    """Return patches per second."""
    started = time.perf_counter()
    return sum(pool.map(Share.read, blocks)) / (time.perf_counter() - started)


def pick(rates: dict[str, list[float]], beginning: str) -> list[float]:
    return next(found for name, found in rates.items() if name.startswith(beginning))


def measure_memory(slide: Path, out: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from wsi_cli.main import wsi; wsi()",
        "tile",
        str(slide),
        "--out",
        str(out),
        "--workers",
        "0",
        "--force",
    ]
    started = time.perf_counter()
    done = subprocess.run(
        ["/usr/bin/time", "-v", *command], capture_output=True, text=True, check=True
    )
    peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    store = next(out.glob("*.patches.zarr"))
    patches = PatchStore(store).table.patches
    seconds = time.perf_counter() - started
    print(
        f"  wsi tile --workers 0: {patches:,} patches in {seconds:.0f} s, peak memory"
        f" {int(peak[1]) / 1024 if peak else 0:,.0f} MB"
    )
    shutil.rmtree(out)


def compare_batches(patches: int, folder: Path) -> None:
    """Print random batches by memory map and by Zarr's own indexing."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.builders import make_table

    cols = 1000
    cells = [(index // cols, index % cols) for index in range(patches)]
    table = make_table(cells, block_size=4096)
    staging = Staging(folder / "random.patches.zarr", {"patches": patches})
    prepare_patch_store(staging, table, {})
    rng = np.random.default_rng(0)
    for block in range(count_blocks(patches, 4096)):
        rows = len(cells[block_slice(block, 4096, patches)])
        pixels = rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
        write_patch_block(staging, table, block, PatchBlock(pixels, np.ones(rows, dtype=np.bool_)))
    finish_patch_store(staging, table)
    store = PatchStore(folder / "random.patches.zarr")
    array = open_array(store.path, "patches")
    seconds: dict[str, list[float]] = {"map": [], "zarr": []}
    for _ in range(5):
        wanted = rng.integers(0, patches, BATCH)
        started = time.perf_counter()
        mapped = store.read_patches(wanted)
        middle = time.perf_counter()
        through_zarr = array.oindex[wanted]
        seconds["map"].append(middle - started)
        seconds["zarr"].append(time.perf_counter() - middle)
        assert np.array_equal(mapped, through_zarr)
    by_map, by_zarr = (statistics.median(seconds[name]) for name in ("map", "zarr"))
    print(
        f"\nrandom batches of {BATCH} from {patches:,} patches: memory map {by_map * 1000:.1f} ms,"
        f" Zarr {by_zarr * 1000:.0f} ms",
        end=", ",
    )
    ratios = (z / m for m, z in zip(seconds["map"], seconds["zarr"], strict=True))
    print(f"ratio {statistics.median(ratios):.0f}")


if __name__ == "__main__":
    main()
