"""Many small slides: slides per minute, and the memory of the process that starts the run.

The same slides with all default outputs and with the summary alone, in turns, as whole processes;
the difference is what the outputs cost. Start-up is told apart by a run over one slide.

    python benchmarks/cohort.py [--slides 40] [--patches 1000] [--model idc-cnn] [--rounds 1]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from startup import WSI, make_slide

MEGABYTE_KB = 1024
TELL_PEAK = (
    "import atexit, resource;"
    "atexit.register(lambda: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss));"
)


def run(slides: Path, out: Path, model: str, outputs: str) -> tuple[float, float]:
    """Infer the slides in a process of its own; wall seconds, and its own peak memory in MB."""
    arguments = ["infer", str(slides), "--model", model, "--min-tissue", "0", "--out", str(out)]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        TELL_PEAK + WSI,
        *arguments,
        "--outputs",
        outputs,
    ]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - started
    peak = next(line for line in done.stdout.splitlines() if line.startswith("peak "))
    return wall, int(peak.split()[1]) / MEGABYTE_KB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--model", default="idc-cnn")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        many, one, out = (Path(made) / name for name in ("many", "one", "out"))
        make_slide(one / "s0.tiff", options.patches)
        for number in range(options.slides):
            (many / f"s{number}.tiff").parent.mkdir(exist_ok=True)
            shutil.copy(one / "s0.tiff", many / f"s{number}.tiff")
        for _ in range(options.rounds):
            for outputs in ("all", "summary"):
                walls = []
                for slides in (one, many):
                    wall, peak = run(slides, out, options.model, outputs)
                    walls.append(wall)
                    shutil.rmtree(out)
                each = (walls[1] - walls[0]) / (options.slides - 1)
                print(
                    f"outputs {outputs:<8} {options.slides} slides of {options.patches} patches:"
                    f" {walls[1]:.1f} s, {60 * options.slides / walls[1]:.0f} slides/min; after the"
                    f" first {60 / each:.0f} slides/min; peak of the starting process {peak:.0f} MB"
                )


if __name__ == "__main__":
    main()
