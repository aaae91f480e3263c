"""Many small slides: slides per minute, and the memory of the process that starts the run.

The same slides with all default outputs and with the summary alone, in turns, as whole processes;
the difference is what the outputs cost. Start-up is told apart by a run over one slide. With
`--before`, this version and another take turns instead, both with all outputs.

    python benchmarks/cohort.py [--slides 40] [--patches 1000] [--model idc-cnn] [--rounds 1]
        [--before COMMAND]

COMMAND starts the other version, up to the name of the subcommand, such as "OTHER/bin/wsi".
"""

import argparse
import re
import shlex
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from startup import PYTHON, WSI, make_slide
from stopwatch import Timed, measure
from tiling import describe_machine

PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)
KILOBYTES_PER_MB = 1024
OURS = [*PYTHON, WSI]


class Cohort:
    """A folder of many slides, one of a single slide, and the commands that infer them."""

    def __init__(self, folder: Path, slides: int, patches: int, model: str) -> None:
        self.slides, self.patches, self._model = slides, patches, model
        self.many, self.one, self._out = (folder / name for name in ("many", "one", "out"))
        make_slide(self.one / "s0.tiff", patches)
        self.many.mkdir()
        for number in range(slides):
            shutil.copy(self.one / "s0.tiff", self.many / f"s{number}.tiff")

    def run(self, start: Sequence[str], slides: Path, outputs: str) -> tuple[Timed, float]:
        """Infer a folder of slides; what it took, and the starting process's peak in MB."""
        where = ["infer", str(slides), "--model", self._model, "--min-tissue", "0"]
        peak_kb = 0

        def watch(process_id: int) -> None:
            nonlocal peak_kb
            with suppress(OSError):
                found = PEAK.search(Path(f"/proc/{process_id}/status").read_text())
                peak_kb = max(peak_kb, int(found[1]) if found else 0)

        command = [*start, *where, "--out", str(self._out), "--outputs", outputs]
        timed = measure(command, watch=watch)
        shutil.rmtree(self._out)
        return timed, peak_kb / KILOBYTES_PER_MB

    def describe(self, name: str, timed: Timed, peak_mb: float) -> str:
        """Return one run over all slides in one line."""
        minute = 60 * self.slides / timed.total_wall
        return (
            f"{name}: {self.slides} slides of {self.patches} patches: {timed.total_wall:.1f} s,"
            f" {timed.total_cpu:.1f} s of CPU, {minute:.0f} slides/min; peak of the starting"
            f" process {peak_mb:.0f} MB"
        )


def compare_outputs(cohort: Cohort, rounds: int) -> None:
    """Print what the outputs cost, and what is left without start-up."""
    for _ in range(rounds):
        for outputs in ("all", "summary"):
            one, _ = cohort.run(OURS, cohort.one, outputs)
            many, peak_mb = cohort.run(OURS, cohort.many, outputs)
            each = (many.total_wall - one.total_wall) / (cohort.slides - 1)
            line = cohort.describe(f"outputs {outputs}", many, peak_mb)
            print(f"{line}; after the first {60 / each:.0f} slides/min", flush=True)


def compare_versions(cohort: Cohort, before: Sequence[str], rounds: int) -> None:
    """Print both versions' runs, in turns, and the medians of the ratios of the pairs."""
    walls, cpus, starts = [], [], {"before": before, "after": OURS}
    for number in range(rounds):
        found: dict[str, Timed] = {}
        for name in list(starts)[:: -1 if number % 2 else 1]:
            found[name], peak_mb = cohort.run(starts[name], cohort.many, "all")
            print(cohort.describe(name, found[name], peak_mb), flush=True)
        walls.append(found["before"].total_wall / found["after"].total_wall)
        cpus.append(found["before"].total_cpu / found["after"].total_cpu)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    print(f"slides a minute, after / before: {wall:.2f} x; of CPU {cpu:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--model", default="idc-cnn", help="one that both versions read")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", metavar="COMMAND", help="starts another version of wsi")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as made:
        cohort = Cohort(Path(made), options.slides, options.patches, options.model)
        if options.before:
            compare_versions(cohort, shlex.split(options.before), options.rounds)
        else:
            compare_outputs(cohort, options.rounds)


if __name__ == "__main__":
    main()
