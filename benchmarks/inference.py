"""`wsi infer` from slide to probabilities against its parts, and what scheduling adds.

On one slide, in turns of some blocks each: reading alone (all cores), the model alone (patches in
memory, all cores), and both as `wsi infer` does it in one worker process, each turn
continuing where the last one stopped. The model is measured before and after every turn, because a
machine's speed drifts. On a CPU both share the cores: what takes r and m seconds alone takes r + m
seconds together where nothing is lost, and that is the bound; with a GPU it is the slower of the
two. Scheduling: jobs that do nothing, as many as a large run has, give the milliseconds per block
that one process takes, which needs no cluster, and that several of Dask take.

    python benchmarks/inference.py [SLIDE] [--arch idc_cnn] [--blocks 12] [--rounds 2]
        [--workers 1 4]
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from slide_maker import make_slide
from tiling import describe_machine

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.geometry import PatchSpec, count_blocks
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.scheduling import Workers, run_jobs
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig

MPP = 0.25
NULL_BLOCKS = 400


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--arch", default="idc_cnn")
    parser.add_argument("--blocks", type=int, default=12, help="blocks of every turn, at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 4], help="processes of the runs of empty jobs"
    )
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or draw(Path(folder) / "drawn.tiff")
        block_s = compare(
            slide,
            write_model(Path(folder) / "model.safetensors", options.arch),
            options.blocks,
            options.rounds,
            Path(folder),
        )
        for workers in options.workers:
            measure_scheduling(workers, block_s)


def draw(path: Path) -> Path:
    make_slide(path, 20_000, 20_000, tissue=0.36)
    return path


def write_model(path: Path, arch: str) -> Path:
    torch.manual_seed(0)
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    spec = PatchSpec(50, 50, MPP)
    weights = build_network(arch, 50).state_dict()
    save_checkpoint(
        Checkpoint(
            arch, spec, ("negative", "positive"), normalisation, ModelTerms(), "none", weights
        ),
        path,
    )
    return path


class Clock(Listener):
    """A listener that notes when blocks were done, and stops the run after a number of them."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.ends: list[tuple[float, int]] = []

    def progress(self, line: str, done: float, total: float | None) -> None:
        """Note that a block is done."""
        patches = int(done) - sum(patches for _, patches in self.ends)
        if patches == 0:
            return
        self.ends.append((time.perf_counter(), patches))
        if len(self.ends) == self.blocks:
            raise KeyboardInterrupt

    @property
    def seconds_per_patch(self) -> float:
        """Return the time from when every thread has ended a block to the end of the last block."""
        begin = Workers().threads - 1
        return (self.ends[-1][0] - self.ends[begin][0]) / sum(
            patches for _, patches in self.ends[begin + 1 :]
        )


def compare(slide: Path, model: Path, blocks: int, rounds: int, folder: Path) -> float:
    """Print reading, computing, and both; return the seconds that a block takes end to end."""
    from wsi_pipeline.models.checkpoint import load_checkpoint

    reader = open_slide(slide)
    table, _ = plan_patches(reader, TileConfig(spec=PatchSpec(50, 50, MPP)))
    opened = open_predictor(load_checkpoint(model))
    print(opened.line)
    source = SlidePatches(reader, table.grid, table.positions, table.block_size)
    turn_blocks = min(blocks, count_blocks(table.patches, table.block_size) // rounds)
    pixels = source.read_block(0).pixels
    read, whole = [], []
    compute = [time_model(opened.predictor, pixels, turn_blocks)]
    for turn in range(rounds):
        chosen = range(turn * turn_blocks, (turn + 1) * turn_blocks)
        read.append(
            seconds_per_patch(
                lambda: read_all(source, chosen),  # noqa: B023 - called at once
                turn_blocks * table.block_size,
            )
        )
        whole.append(go_on(slide, model, folder / "results", turn_blocks))
        compute.append(time_model(opened.predictor, pixels, turn_blocks))
    shares_cores = choose_device("auto").type == "cpu"
    beside = [(before + after) / 2 for before, after in pairwise(compute)]
    bars = [r + m if shares_cores else max(r, m) for r, m in zip(read, beside, strict=True)]
    r, m, e = (statistics.median(times) for times in (read, compute, whole))
    print(f"{slide.name}: {table.patches:,} patches, blocks of {table.block_size:,}")
    print(
        f"  reading alone {1 / r:>9,.0f} patches/s   model alone {1 / m:>9,.0f}   end to end"
        f" {1 / e:>9,.0f}"
    )
    ratio = statistics.median(one / bar for one, bar in zip(whole, bars, strict=True))
    print(
        f"  end to end takes {ratio:.2f} of"
        f" {'both one after the other' if shares_cores else 'the slower of both'}"
    )
    return e * table.block_size


def go_on(slide: Path, model: Path, results: Path, blocks: int) -> float:
    """Return seconds per patch of `wsi infer`, over a number of further blocks of a slide."""
    clock = Clock(blocks)
    with contextlib.suppress(KeyboardInterrupt):
        options = InferOptions(outputs="summary", workers=1)
        infer_slides(find_slides([slide]), model, results, options, clock)
    return clock.seconds_per_patch


def time_model(predictor: Predictor, pixels: np.ndarray, blocks: int) -> float:
    """Return seconds per patch of the model, over one block of patches in memory, repeatedly."""
    return seconds_per_patch(
        lambda: [predictor(pixels) for _ in range(blocks)], blocks * len(pixels)
    )


def read_all(source: SlidePatches, blocks: Sequence[int]) -> None:
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(lambda block: len(source.read_block(block).pixels), blocks):
            pass


def seconds_per_patch(way: object, patches: int) -> float:
    started = time.perf_counter()
    way()  # type: ignore[operator]
    return (time.perf_counter() - started) / patches


@dataclass(frozen=True)
class NullPlan:
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class NullJob:
    """A slide without work."""

    blocks: int

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def prepare(self) -> NullPlan:
        return NullPlan(tuple(range(self.blocks)))

    def run_block(self, plan: NullPlan, block: int) -> int:
        return block

    def finish(self, plan: NullPlan, reports: Sequence[int]) -> int:
        return len(reports)


class Ends:
    """The times at which blocks were done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def prepared(self, job: int, plan: NullPlan) -> None:
        """Do nothing."""

    def block_done(self, job: int, report: int) -> None:
        self.times.append(time.perf_counter())

    def ended(self, job: int, result: object) -> None:
        """Do nothing."""


def measure_scheduling(workers: int, block_s: float) -> None:
    """Print the cost of a block that does nothing, for jobs of 10 blocks each."""
    costs = {}
    crew = "one process" if workers == 1 else f"Dask with {workers} processes"
    for name, pool in (("plain loop", Workers(count=0)), (crew, Workers(count=workers))):
        ends = Ends()
        run_jobs([NullJob(10)] * (NULL_BLOCKS // 10), pool, ends)
        costs[name] = (ends.times[-1] - ends.times[0]) / (NULL_BLOCKS - 1)
    load = os.getloadavg()[0]
    overhead = costs[crew] - costs["plain loop"]
    print(
        f"{crew}: {overhead * 1000:.1f} ms a block, {overhead / block_s:.2%}"
        f" of a block's {block_s:.2f} s (at most {1 / max(costs[crew], 1e-9):,.0f} blocks/s; load"
        f" {load:.1f})"
    )


if __name__ == "__main__":
    main()
