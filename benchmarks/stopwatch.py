"""Wall and CPU seconds of a process with its children: to its end, and to a moment on the way."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

POLL_S = 0.02


@dataclass(frozen=True)
class Timed:
    """Seconds of one process; 0 where nothing was measured."""

    total_wall: float = 0.0
    total_cpu: float = 0.0
    first_wall: float = 0.0
    """Until the first patches were predicted."""
    first_cpu: float = 0.0
    patches: int = 0

    def with_patches(self, patches: int) -> "Timed":
        """Return the same with the number of patches that were predicted."""
        return replace(self, patches=patches)


def measure(
    command: Sequence[str],
    has_begun: Callable[[bytes], bool] | None = None,
    watch: Callable[[int], None] | None = None,
) -> Timed:
    """Run a command to its end; `has_begun` is asked, with its error output so far, until it has.

    `watch` is called with the process's number again and again, as long as it runs.
    Raises CalledProcessError, with the error output, where it fails.
    """
    with tempfile.TemporaryFile() as out, tempfile.NamedTemporaryFile() as errors:
        text, started, moment = Path(errors.name), time.perf_counter(), (0.0, 0.0)
        before = ended_children_cpu()
        process = psutil.Popen(command, stdout=out, stderr=errors)
        while process.poll() is None and (watch or (has_begun and moment == (0.0, 0.0))):
            if has_begun and moment == (0.0, 0.0) and has_begun(text.read_bytes()):
                moment = (time.perf_counter() - started, measure_cpu(process))
            if watch:
                watch(process.pid)
            time.sleep(POLL_S)
        process.wait()
        wall, cpu = time.perf_counter() - started, ended_children_cpu() - before
        if process.returncode:
            raise subprocess.CalledProcessError(
                process.returncode, command, stderr=text.read_bytes()
            )
    return Timed(wall, cpu, *moment)


def ended_children_cpu() -> float:
    """Return the CPU seconds of all children that have ended, with theirs."""
    times = os.times()
    return times.children_user + times.children_system


def measure_cpu(process: psutil.Process) -> float:
    """Return the CPU seconds so far of a process and its children, living and ended."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])
    return total
