"""`wsi infer` from slide to logits against its parts, and what scheduling adds.

On one slide, as often as makes five waves of blocks between the first and the last (a wave is one
block of every thread), in turns: reading alone and the model alone by the same threads, and both as
`wsi infer` does it in one worker process. First of all the logits of both ways are compared, by
their digests; nothing else is printed where they differ. The model is measured before and after
every turn, because a machine's speed drifts. On a CPU both share the cores: what takes r and m
seconds alone takes r + m seconds together where nothing is lost, and that is the bound; with a GPU
it is the slower of the two. Of the threads' time in the run it is said how much of it they read,
computed, waited for the model, and wrote.

Slides are in the system's cache (warm), or dropped from it before every turn (`--cache cold`).

Scheduling: jobs that do nothing, as many as a large run has, give the milliseconds per block that
one process takes, which needs no cluster, and that several of Dask take.

    python benchmarks/inference.py [SLIDE] [--arch idc_cnn] [--rounds 2] [--side 20000]
        [--cache warm] [--workers 1 4]
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from slide_maker import make_slide
from steady import BlockEnd, GpuUse, blocks_needed, steady_seconds, watched_gpu
from tiling import describe_machine

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import RUN_JSON
from wsi_pipeline.core.geometry import PatchSpec, count_blocks
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.runs.workers import choose_workers
from wsi_pipeline.scheduling import Workers, run_jobs
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.tile import plan_patches
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.slide_results import open_result

MPP = 0.25
NULL_BLOCKS = 400
OPTIONS = InferOptions(outputs="summary", workers=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--arch", default="idc_cnn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", type=int, default=20_000, help="of the slide that is drawn")
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 4], help="processes of the runs of empty jobs"
    )
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slide = options.slide or draw(folder / "synthetic.tiff", options.side)
        model = write_model(folder / "model.safetensors", options.arch)
        bench = Bench(slide, model, folder, options.cache == "cold")
        found = bench.compare(options.rounds)
        print(f"{slide.name}: blocks of {bench.table.block_size:,}", *found.lines, sep="\n")
        block_s = bench.table.block_size / found.whole_per_s
        for workers in options.workers:
            measure_scheduling(workers, block_s)


def draw(path: Path, side: int) -> Path:
    make_slide(path, side, side, tissue=0.36)
    return path


def write_model(path: Path, arch: str) -> Path:
    torch.manual_seed(0)
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    spec = PatchSpec(50, 50, MPP)
    weights = build_network(arch, 50).state_dict()
    save_checkpoint(
        Checkpoint(
            architecture=arch,
            spec=spec,
            class_names=("negative", "positive"),
            normalisation=normalisation,
            terms=ModelTerms(),
            threshold_source="none",
            weights=weights,
        ),
        path,
    )
    return path


class Clock(Listener):
    """A listener that notes when blocks were done."""

    def __init__(self) -> None:
        self.ends: list[BlockEnd] = []
        self._done = 0

    def progress(self, line: str, done: float, total: float | None) -> None:
        """Note that a block is done."""
        patches, self._done = int(done) - self._done, int(done)
        if patches > 0:
            self.ends.append(BlockEnd(time.perf_counter(), patches))


class WholeRun(NamedTuple):
    """One run of `wsi infer`."""

    patch_s: float
    """Seconds per patch, in its steady state."""
    stages: dict[str, float]
    """Seconds of its threads by stage."""
    thread_s: float
    """Seconds of all its threads together, from the first block to the last."""
    gpu: GpuUse


class Bench:
    """One slide and one model, measured in several ways."""

    def __init__(self, slide: Path, model: Path, folder: Path, is_cold: bool) -> None:
        self.slide, self.model, self.folder, self.is_cold = slide, model, folder, is_cold
        self.threads = choose_workers(OPTIONS, OPTIONS.device).threads
        self.table, _ = plan_patches(open_slide(slide), TileConfig(spec=PatchSpec(50, 50, MPP)))
        self.blocks = count_blocks(self.table.patches, self.table.block_size)
        self.predictor = open_predictor(load_checkpoint(model)).predictor
        table = self.table
        self.source = SlidePatches(open_slide(slide), table.grid, table.positions, table.block_size)
        self.copies = -(-blocks_needed(self.threads) // self.blocks)

    def compare(self, rounds: int) -> "Comparison":
        """Measure reading, computing, and both, in turns.

        Raises SystemExit where both ways give other logits.
        """
        pixels = self.source.read_block(0).pixels
        logits = self.refuse_other_logits()
        read, whole, bars = [], [], []
        compute = [time_model(self.predictor, pixels)]
        shares_cores = choose_device("auto").type == "cpu"
        for turn in range(rounds):
            read.append(self.time_reading())
            whole.append(self.run(self.folder / f"results{turn}"))
            compute.append(time_model(self.predictor, pixels))
            beside = statistics.mean(compute[-2:])
            bars.append(read[-1] + beside if shares_cores else max(read[-1], beside))
        model_s = statistics.median(compute)
        return Comparison(
            logits=logits,
            cache="cold" if self.is_cold else "warm",
            patches=self.copies * self.table.patches,
            threads=self.threads,
            read_per_s=1 / statistics.median(read),
            model_per_s=1 / model_s,
            whole_per_s=1 / statistics.median(run.patch_s for run in whole),
            bound="both one after the other" if shares_cores else "the slower of both",
            ratio=statistics.median(
                run.patch_s / bar for run, bar in zip(whole, bars, strict=True)
            ),
            shares=self.share_threads(whole[-1], model_s),
            gpu_busy=whole[-1].gpu.mean_busy,
            gpu_memory_mib=whole[-1].gpu.most_memory_mib,
        )

    def refuse_other_logits(self) -> str:
        """Return the digest of the logits of `wsi infer`.

        Raises SystemExit where the predictor, asked block by block, gives others.
        """
        logits = [
            self.predictor.predict_logits(self.source.read_block(block).pixels)
            for block in range(self.blocks)
        ]
        results = self.folder / "first"
        infer_slides(find_slides([self.slide]), self.model, results, OPTIONS)
        found = digest(open_result(results / self.slide.stem).logit)
        if found != (wanted := digest(np.concatenate(logits))):
            raise SystemExit(f"the logits of both ways differ: {found} and {wanted}")
        return found

    def run(self, results: Path) -> WholeRun:
        """Run `wsi infer` over the slide under as many names as its steady state needs."""
        slides = results.with_suffix(".slides")
        slides.mkdir()
        for number in range(self.copies):
            (slides / f"{number}{self.slide.suffix}").symlink_to(self.slide.resolve())
        clock = Clock()
        self.forget()
        with watched_gpu() as gpu:
            infer_slides(find_slides([slides]), self.model, results, OPTIONS, clock)
        stages = json.loads((results / RUN_JSON).read_text())["seconds"]
        wall = clock.ends[-1].moment - clock.ends[0].moment
        shutil.rmtree(results)
        patch_s = steady_seconds(clock.ends, self.threads)
        return WholeRun(patch_s, stages, wall * self.threads, gpu)

    def time_reading(self) -> float:
        """Return seconds per patch of reading alone, by the threads of one worker."""
        self.forget()
        ends: list[BlockEnd] = []

        def read(number: int) -> None:
            patches = len(self.source.read_block(number % self.blocks).pixels)
            ends.append(BlockEnd(time.perf_counter(), patches))

        with ThreadPoolExecutor(self.threads) as pool:
            for _ in pool.map(read, range(blocks_needed(self.threads))):
                pass
        return steady_seconds(ends, self.threads)

    def forget(self) -> None:
        """Drop the slide from the system's cache, where that is wanted."""
        if self.is_cold:
            with self.slide.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def share_threads(self, run: "WholeRun", model_s: float) -> dict[str, float]:
        """Return the shares of the threads' time by what they were at in a run."""
        computed = min(model_s * self.copies * self.table.patches, run.stages["compute"])
        if choose_device("auto").type == "cpu":  # a batch a core, so that threads share the model
            computed = min(computed * self.threads, run.stages["compute"])
        shares = {
            "reading": run.stages["read"],
            "computing": computed,
            "waiting for the model": run.stages["compute"] - computed,
            "writing": run.stages["write"],
        }
        shares = {name: seconds / run.thread_s for name, seconds in shares.items()}
        return shares | {"nothing to do": max(0.0, 1 - sum(shares.values()))}


class Comparison(NamedTuple):
    """Reading alone, the model alone, and `wsi infer`."""

    logits: str
    """Digest of the logits, the same of both ways."""
    cache: str
    """"warm" or "cold", of the slide's file."""
    patches: int
    threads: int
    read_per_s: float
    model_per_s: float
    whole_per_s: float
    bound: str
    """The other way of the comparison, in words."""
    ratio: float
    shares: dict[str, float]
    """Of the threads' time, by what they were at."""
    gpu_busy: float | None
    """Per cent."""
    gpu_memory_mib: int | None

    @property
    def lines(self) -> list[str]:
        """All of it, for people."""
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        gpu = "no GPU"
        if self.gpu_busy is not None:
            gpu = (
                f"GPU: {self.gpu_memory_mib:,} MiB at most, busy {self.gpu_busy:.0f} % of the time"
            )
        return [
            f"{self.patches:,} patches, {self.threads} threads, the cache is {self.cache}, logits"
            f" of both ways {self.logits}",
            f"  reading alone {self.read_per_s:>9,.0f} patches/s   model alone"
            f" {self.model_per_s:>9,.0f}   end to end {self.whole_per_s:>9,.0f}",
            f"  end to end takes {self.ratio:.2f} of {self.bound}",
            f"  of the threads' time: {shares}; {gpu}",
        ]


def digest(logits: NDArray[np.float32]) -> str:
    """Return a short digest of logits."""
    return hashlib.sha256(np.ascontiguousarray(logits, dtype="<f4").tobytes()).hexdigest()[:16]


def time_model(predictor: Predictor, pixels: NDArray[np.uint8], blocks: int = 5) -> float:
    """Return seconds per patch of the model, over one block of patches in memory, repeatedly."""
    return seconds_of(lambda: [predictor(pixels) for _ in range(blocks)]) / (blocks * len(pixels))


def seconds_of(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


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
