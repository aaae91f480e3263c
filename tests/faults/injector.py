"""Commands run by a process that has everything loaded, with faults of their file operations where
they are asked for.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

HERE = Path(__file__).parent
HEAVY = (
    "wsi_cli.main",
    "wsi_pipeline.runs.tile",
    "wsi_pipeline.runs.infer",
    "wsi_pipeline.stages.aggregate",
    "wsi_pipeline.training.run",
)
"""What loads most of what the commands need."""
FORK_SAFE_THREAD = "jemalloc_bg_thd"
"""Arrow's allocator begins it when it is loaded, and a forked child begins its own."""


@dataclass(frozen=True)
class Fault:
    """What happens at which file operation."""

    mode: str
    """kill, ENOSPC or EIO; none, or count, which logs every operation."""
    kind: str = "change"
    """Of operations that change something, or that read."""
    number: int = 0
    """Counted from 1."""


NO_FAULT = Fault("none")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Negative: the signal that killed it."""
    stdout: str
    stderr: str
    operations: tuple[str, ...]
    """`change 12 write PATH`: all that were counted, or the one that was struck."""


@functools.cache
def build_library() -> Path | None:
    """The preloaded library, compiled; None where there is no C compiler, or where it cannot be
    preloaded.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = Path(tempfile.mkdtemp(prefix="wsi-faults-")) / "file_faults.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(library),
        str(HERE / "file_faults.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Zygote:
    """Runs `wsi` commands, each in a child of a process that has loaded all they need."""

    def __init__(self, process: "subprocess.Popen[str]", scratch: Path) -> None:
        self._process = process
        self._scratch = scratch

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def warm(
        self, arguments: Sequence[object], fault: Fault = NO_FAULT, watched: Path | None = None
    ) -> Ended:
        """Run a command undisturbed, and keep loaded what it loaded."""
        if fault is not NO_FAULT and build_library() is None:
            pytest.skip("needs a C compiler (cc) and Linux, to put faults into file operations")
        modules = self._scratch / "modules"
        ended = self.run(arguments, fault, watched, modules=str(modules))
        assert ended.code == 0, ended.stderr
        self.load(modules.read_text().split("\n"))
        return ended

    def load(self, modules: Sequence[str]) -> None:
        """Load modules once, for all commands."""
        threads = self._ask({"load": modules})
        assert {*threads} <= {FORK_SAFE_THREAD}, "a process with threads cannot be forked safely"

    def run(
        self,
        arguments: Sequence[object],
        fault: Fault = NO_FAULT,
        watched: Path | None = None,
        **more: Any,
    ) -> Ended:
        """Run one command to its end."""
        return self.run_all([arguments], fault, watched, **more)[0]

    def run_all(
        self,
        commands: Sequence[Sequence[object]],
        fault: Fault = NO_FAULT,
        watched: Path | None = None,
        **more: Any,
    ) -> list[Ended]:
        """Run commands side by side, all to their ends."""
        jobs = [
            self._describe(index, arguments, fault, watched) | more
            for index, arguments in enumerate(commands)
        ]
        codes = self._ask({"wait": self._ask({"begin": jobs})})
        return [self._read(job, code) for job, code in zip(jobs, codes, strict=True)]

    def _describe(
        self, index: int, arguments: Sequence[object], fault: Fault, watched: Path | None
    ) -> dict[str, Any]:
        places = {
            name: str(self._scratch / f"{index}.{name}") for name in ("stdout", "stderr", "log")
        }
        Path(places["log"]).unlink(missing_ok=True)
        return {
            "arguments": [str(argument) for argument in arguments],
            "mode": fault.mode,
            "kind": fault.kind,
            "number": fault.number,
            "watched": str(watched),
        } | places

    def _read(self, job: dict[str, Any], code: int) -> Ended:
        texts = [Path(job[name]).read_text(errors="replace") for name in ("stdout", "stderr")]
        log = Path(job["log"])
        operations = tuple(log.read_text(errors="replace").splitlines()) if log.exists() else ()
        return Ended(code, texts[0], texts[1], operations)


@contextmanager
def open_zygote(scratch: Path) -> Iterator[Zygote]:
    """A zygote until the end of the block; `scratch` is an empty folder for output."""
    scratch.mkdir(parents=True, exist_ok=True)
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
    if (library := build_library()) is not None:
        environment["LD_PRELOAD"] = str(library)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.zygote"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    try:
        zygote = Zygote(process, scratch)
        zygote.load(HEAVY)
        yield zygote
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait(20)
