"""Check a machine with a GPU: is everything right on it, does it survive faults, how fast is it.

    python benchmarks/gpu_check.py [--out gpu-check] [--budget 530] [--only facts,training]
    python benchmarks/gpu_check.py --device cpu      # a rehearsal of every section, without a GPU

Ends within nine minutes and leaves `gpu_check.json` and a table, `gpu_check.txt`, in `--out`. Every
section is a process of its own, so that a GPU that fails costs one section; one for which no time
is left is named. A fact holds or does not, figures are figures. Nothing here changes the settings
of the GPU. The exit code is 1 where a fact does not hold, 5 without a GPU.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import gpu_facts
import gpu_speed
import gpu_training
import torch
from gpu_report import Report, draw_table

PACKAGES = ("torch", "torchvision", "numpy", "zarr", "dask", "lightning-fabric", "simplejpeg")
LEAST_S = 15.0
"""A section is not begun with less time left."""


class Section(NamedTuple):
    """A part of the check, with the seconds after which it is stopped."""

    run: Callable[[Report], None]
    most_s: float


SECTIONS = {
    "machine": Section(gpu_speed.measure_machine, 40),
    "facts": Section(gpu_facts.check_computing, 90),
    "commands": Section(gpu_facts.check_commands, 120),
    "models": Section(gpu_speed.measure_models, 60),
    "overlap": Section(gpu_speed.measure_overlap, 120),
    "training": Section(gpu_training.check_training, 100),
    "steps": Section(gpu_training.measure_steps, 40),
    "decoding": Section(gpu_speed.measure_decoders, 40),
}
"""The most important first."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--budget", type=float, default=530.0, help="seconds for everything")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        folder = options.work / f"of {options.section}"
        folder.mkdir()
        report = Report(options.section, options.device, folder, options.work)
        with report.part(options.section):
            SECTIONS[options.section].run(report)
        return
    sys.exit(check(options))


def check(options: argparse.Namespace) -> int:
    """Run the sections, write both files and print the table; return the exit code."""
    if options.device == "cuda" and not has_gpu():
        sys.stderr.write(
            "no GPU here that torch can use (see nvidia-smi and `wsi doctor`); rehearse the check"
            " without one by --device cpu\n"
        )
        return 5
    deadline = time.monotonic() + options.budget
    options.out.mkdir(parents=True, exist_ok=True)
    sections: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in options.only.split(","):
            left = deadline - time.monotonic()
            if left < LEAST_S:
                skipped[name] = "no time was left"
                continue
            if fault := run_section(name, options, Path(work), left):
                skipped[name] = fault
            if (path := Path(work) / f"{name}.json").is_file():
                sections[name] = json.loads(path.read_text())
            sys.stderr.write(f"{name}: {skipped.get(name, 'done')}\n")
    return write(options, sections, skipped)


def has_gpu() -> bool:
    """Return whether torch sees a GPU; asked in a process of its own."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def run_section(name: str, options: argparse.Namespace, work: Path, left: float) -> str | None:
    """Run one section in a process of its own; return why it did not end, or None."""
    line = [sys.executable, __file__, "--section", name, "--device", options.device]
    most = left if options.device == "cpu" else min(left, SECTIONS[name].most_s)
    with (options.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*line, "--work", str(work)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}),
        )
        try:
            process.wait(most)
        except subprocess.TimeoutExpired:
            # Its own group: workers that it started end with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {most:.0f} s"
    return None if process.returncode == 0 else f"ended with {process.returncode}, see {name}.log"


def write(options: argparse.Namespace, sections: dict[str, Any], skipped: dict[str, str]) -> int:
    """Write the JSON and the table; return the exit code."""
    facts = [fact for section in sections.values() for fact in section["facts"]]
    failed = [fact["fact"] for fact in facts if fact["holds"] is False]
    head = {
        "device": describe_device(sections),
        "rehearsal": options.device == "cpu",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "packages": {name: find_version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "held": sum(fact["holds"] is True for fact in facts),
        "failed": failed,
        "left_out": skipped,
    }
    whole = head | {"sections": sections}
    (options.out / "gpu_check.json").write_text(json.dumps(whole, indent=1) + "\n")
    kind = "a rehearsal on the CPU" if head["rehearsal"] else head["device"]
    closing = f"{head['held']} facts hold, {len(failed)} do not, {len(skipped)} sections left out"
    table = f"{kind}: {closing}\n\n{draw_table(sections, skipped)}\n"
    (options.out / "gpu_check.txt").write_text(table)
    sys.stdout.write(table)
    return int(bool(failed or skipped))


def describe_device(sections: dict[str, Any]) -> str:
    """Return the device's name, as the first section found it."""
    return str(sections.get("machine", {}).get("figures", {}).get("device", "not told"))


def find_version(package: str) -> str | None:
    """Return the installed version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
