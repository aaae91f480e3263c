"""From the return key to the answer: whole processes, as a user starts them.

Wall and CPU seconds (with child processes) to say something, to a run with nothing to do, to the
first block of predictions on disk, and to the end of slides of different sizes. In turns with an
import of torch alone, which every process that computes has to pay, and, where its executable is
given, with WSInfer in an environment of its own: the same network, exported, on the same slides and
cores. A ratio is WSInfer's seconds over ours, the median over pairs.

    python benchmarks/startup.py [--rounds 3] [--patches 1000 15000 170000] [--largest 15000]
        [--wsinfer PATH/bin/wsinfer] [--batch-size 256]
"""

import argparse
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import slide_maker
from stopwatch import Timed, measure
from tiling import describe_machine
from wsinfer_peer import Wsinfer

from wsi_pipeline.core.geometry import choose_block_size

SIDE_PX, MPP = 50, 4.0
TINT = (0.97, 0.78, 0.90)
"""A thin layer of eosin over everything, so that no place is taken for glass."""
WSI = "import sys; sys.argv[0] = 'wsi'; from wsi_cli.main import wsi; wsi()"
PYTHON = [sys.executable, "-W", "ignore", "-c"]
FIRST_BLOCK = ".wsi/staging/*/blocks/*.json"
"""In a folder of results: what is written when a block is on disk."""


@dataclass(frozen=True)
class Case:
    """One line of the table: a command of ours, and the other program's for the same."""

    name: str
    ours: list[str]
    out: Path | None = None
    """Folder of results, deleted before each turn; None: nothing is written, or all is there."""
    peer: Wsinfer | None = None
    theirs: list[str] | None = None
    their_out: Path | None = None
    block: int = 0
    """Patches of our first block; the other program's moment is when it has predicted as many."""


def make_slide(path: Path, patches: int) -> None:
    """Write a square slide at 4 µm/px of at least so many patches, all of them tissue."""
    side = patches_across(patches) * SIDE_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    slide_maker.make_slide(path, side, side, tissue=1.0, mpp=MPP, tint=TINT)


def patches_across(patches: int) -> int:
    """Return the patches in a row of a square slide of at least so many."""
    return math.ceil(math.sqrt(patches))


def infer(slides: Path, out: Path, model: str, *more: str) -> list[str]:
    """Return the command that predicts every patch of some slides, with all outputs."""
    command = ["infer", str(slides), "--model", model, "--min-tissue", "0", "--out", str(out)]
    return [*PYTHON, WSI, *command, *more]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, nargs="+", default=[1000, 15_000, 170_000])
    parser.add_argument("--largest", type=int, help="leave out slides of more patches")
    parser.add_argument("--model", default="idc-cnn")
    parser.add_argument("--wsinfer", type=Path, help="the executable of WSInfer 0.6.1")
    parser.add_argument("--batch-size", type=int, default=256, help="WSInfer's")
    options = parser.parse_args()
    print(describe_machine())
    sizes = [size for size in options.patches if size <= (options.largest or max(options.patches))]
    with tempfile.TemporaryDirectory() as made:
        folder, peer = Path(made), None
        for size in sizes:
            make_slide(folder / f"slides{size}" / "s.tiff", size)
        if options.wsinfer:
            export = ["export", options.model, "--out", str(folder / "exported")]
            subprocess.run([*PYTHON, WSI, *export, "--to", "torchscript"], check=True)
            peer = Wsinfer(options.wsinfer.absolute(), folder, options.batch_size)
            print(f"WSInfer in its own environment: {peer.describe_versions()}")
        for case in list_cases(folder, sizes, options.model, peer):
            print(compare(case, options.rounds), flush=True)


def list_cases(folder: Path, sizes: list[int], model: str, peer: Wsinfer | None) -> Iterator[Case]:
    """Yield the cases; what a rerun needs is made when it is reached."""
    yield Case("import torch", [*PYTHON, "import torch"])
    yield Case("--help", [*PYTHON, WSI, "--help"], theirs=peer and peer.help)
    info = [*PYTHON, WSI, "model", "info", model]
    yield Case(f"model info {model}", info, theirs=peer and peer.list_models)
    smallest = folder / f"slides{sizes[0]}"
    done, their_done = folder / "done", folder / "their_done"
    measure(infer(smallest, done, model))
    again = peer and peer.run(smallest, their_done)
    if again:
        measure(again)
    yield Case("nothing to do", infer(smallest, done, model), theirs=again)
    here = infer(smallest, folder / "new", model, "--workers", "0")
    yield Case(f"{sizes[0]:,} patches, --workers 0", here, folder / "new")
    for size in sizes:
        slides, new, theirs = (folder / f"{name}{size}" for name in ("slides", "new", "theirs"))
        run = peer and peer.run(slides, theirs)
        block = choose_block_size(patches_across(size) ** 2, SIDE_PX)
        ours = infer(slides, new, model)
        yield Case(f"{size:,} patches", ours, new, peer, run, theirs, block)


def compare(case: Case, rounds: int) -> str:
    """Run both commands of a case in turns, the first one changing; return the lines to print."""
    ours: list[Timed] = []
    theirs: list[Timed] = []
    for number in range(rounds):
        turns = [lambda: ours.append(run_ours(case)), lambda: theirs.append(run_theirs(case))]
        for turn in turns[:: -1 if number % 2 else 1]:
            turn()
    lines = [describe(case.name, "total", ours, theirs)]
    if case.out:
        first = f", first {case.block:,}" if case.block else ", the first"
        lines.append(describe(case.name + first, "first", ours, theirs))
    if case.theirs and case.their_out:
        counts = f"{ours[0].patches} and {theirs[0].patches} patches"
        lines.append(f"    {counts}; per patch {per_patch(ours, theirs):.1f} x")
    return "\n".join(lines)


def run_ours(case: Case) -> Timed:
    """Run our command and count the patches of its table."""
    out = case.out
    if out is None:
        return measure(case.ours)
    shutil.rmtree(out, ignore_errors=True)
    timed = measure(case.ours, lambda _: any(out.glob(FIRST_BLOCK)))
    return timed.with_patches((out / "s" / "patches.csv").read_bytes().count(b"\n") - 1)


def run_theirs(case: Case) -> Timed:
    """Run the other program's command; without one, nothing."""
    out, peer = case.their_out, case.peer
    if case.theirs is None:
        return Timed()
    if out is None or peer is None:
        return measure(case.theirs)
    shutil.rmtree(out, ignore_errors=True)
    timed = measure(case.theirs, lambda errors: peer.has_predicted(errors, case.block))
    return timed.with_patches(Wsinfer.count_patches(out))


def describe(name: str, moment: str, ours: list[Timed], theirs: list[Timed]) -> str:
    """Return medians of both and the median of the ratios of the pairs."""

    def median(timed: list[Timed], kind: str) -> float:
        return statistics.median(getattr(turn, f"{moment}_{kind}") for turn in timed)

    def ratio(kind: str) -> float:
        key = f"{moment}_{kind}"
        pairs = zip(ours, theirs, strict=True)
        return statistics.median(getattr(two, key) / getattr(one, key) for one, two in pairs)

    line = f"{name:<34} {median(ours, 'wall'):8.2f} s, {median(ours, 'cpu'):8.2f} s of CPU"
    if not theirs[0].total_wall:
        return line
    other = f"WSInfer {median(theirs, 'wall'):8.2f} s, {median(theirs, 'cpu'):8.2f} s of CPU"
    return f"{line}; {other}; {ratio('wall'):.1f} x, CPU {ratio('cpu'):.1f} x"


def per_patch(ours: list[Timed], theirs: list[Timed]) -> float:
    """Return the ratio of the seconds per patch."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(
        (two.total_wall / two.patches) / (one.total_wall / one.patches) for one, two in pairs
    )


if __name__ == "__main__":
    main()
