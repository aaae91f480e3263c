"""From the return key to the answer: whole processes, as a user starts them.

Wall and CPU seconds (with child processes) of a command that says something, of a run with nothing
to do, and of a run over one small slide, in turns with an import of torch alone, which every
process that computes has to pay. The ratio is to that import.

    python benchmarks/startup.py [--rounds 5] [--patches 1000]
"""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from wsi_pipeline.runs.synthetic_slides import draw_phantom

SIDE_PX, MPP = 50, 4.0
WSI = "import sys; sys.argv[0] = 'wsi'; from wsi_cli.main import wsi; wsi()"
TORCH = ["-c", "import torch"]


def make_slide(path: Path, patches: int) -> None:
    """Write a slide at 4 µm/px of about so many patches, all of them tissue."""
    side = math.ceil(math.sqrt(patches)) * SIDE_PX
    tile = draw_phantom(600, 500, seed=1).pixels
    whole = np.tile(tile, (-(-side // tile.shape[0]), -(-side // tile.shape[1]), 1))[:side, :side]
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = (10_000 / MPP, 10_000 / MPP)
    tifffile.imwrite(
        path, whole, tile=(256, 256), resolution=resolution, resolutionunit="CENTIMETER"
    )


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run Python with arguments to its end; wall and CPU seconds."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", *arguments], check=True, capture_output=True)
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        slides, done, new = (Path(made) / name for name in ("slides", "done", "new"))
        make_slide(slides / "s.tiff", options.patches)
        infer = ["-c", WSI, "infer", str(slides), "--model", "idc", "--min-tissue", "0", "--out"]
        measure([*infer, str(done)])
        commands = {
            "import torch": TORCH,
            "wsi --help": ["-c", WSI, "--help"],
            "wsi model info idc": ["-c", WSI, "model", "info", "idc"],
            "wsi infer, nothing to do": [*infer, str(done)],
            f"wsi infer, {options.patches} patches": [*infer, str(new)],
            "the same, --workers 0": [*infer, str(new), "--workers", "0"],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, arguments in commands.items():
                shutil.rmtree(new, ignore_errors=True)
                found[name].append(measure(arguments))
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in found.items()
    }
    for name, (wall, cpu) in medians.items():
        ratio = wall / medians["import torch"][0]
        print(f"{name:<28} {wall:6.2f} s, {cpu:6.2f} s of CPU, {ratio:5.2f} x import torch")


if __name__ == "__main__":
    main()
