"""Wall and CPU seconds of a process with its children: to its end, and to a moment on the way."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
    environment: Mapping[str, str] | None = None,
) -> Timed:
    """Run a command to its end; `has_begun` is asked, with its error output so far, until it has.

    Raises CalledProcessError, with the error output, where it fails.
    """
    with tempfile.TemporaryFile() as out, tempfile.NamedTemporaryFile() as errors:
        text, started, moment = Path(errors.name), time.perf_counter(), (0.0, 0.0)
        process = psutil.Popen(command, stdout=out, stderr=errors, env=environment)
        while has_begun and moment == (0.0, 0.0) and process.poll() is None:
            if has_begun(text.read_bytes()):
                moment = (time.perf_counter() - started, measure_cpu(process))
            time.sleep(POLL_S)
        cpu = wait_for(process)
        wall = time.perf_counter() - started
        if process.returncode:
            raise subprocess.CalledProcessError(
                process.returncode, command, stderr=text.read_bytes()
            )
    return Timed(wall, cpu, *moment)


def wait_for(process: psutil.Popen) -> float:
    """Wait for the end; return the CPU seconds of the process and all children it waited for."""
    before = psutil.Process().cpu_times()
    process.wait()
    after = psutil.Process().cpu_times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def measure_cpu(process: psutil.Process) -> float:
    """Return the CPU seconds so far of a process and its children, living and ended."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])
    return total
