"""The rules of every worker process of this machine: its memory, its GPU, the time of a step.

A worker process times its step. A thread cannot be stopped from outside, so a worker whose step
exceeds its deadline reports this and ends itself; another is started in its place.
"""

import logging
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

from wsi_pipeline.core.errors import GpuLost, WsiError
from wsi_pipeline.core.limits import machine_memory
from wsi_pipeline.scheduling.jobs import Deadlines, Step, Workers

TRIES_ALONE = 3
"""Times that a step whose worker died is tried while nothing else runs: workers also die of what
has nothing to do with it.
"""
HANGS_ALONE = 1
"""Once is enough for a step that hangs alone."""
ENOUGH = 3
"""Blocks that make a median."""
CHECK_LIMITS = "check free memory and the limits of processes and open files (ulimit -a)"
"""Remedy where a process cannot be started."""
FLUSH_S = 1.0
"""Time that the last message gets on its way out."""

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": 64 * 1024 * 1024, "MALLOC_MMAP_THRESHOLD_": 32 * 1024 * 1024}
"""Freed memory that glibc keeps.

Dask would return everything above 64 kB; each layer of a network then starts with new pages of
zeros from the kernel, half of PyTorch's time.
"""
logger = logging.getLogger(__name__)
SMALLEST_SHARE = 4 * 1024**3
"""PyTorch, OpenVINO and the stacks of their threads alone take 1 to 2 GiB of address space."""


def share_memory(workers: Workers) -> int:
    """Return the bytes of private memory that each worker process of this machine may take.

    This is the memory of the machine, or of its cgroup, divided among them. Processes with a GPU
    may each take all of it, because drivers reserve memory for a GPU.
    """
    has_gpu = workers.gpus or workers.cluster == "cuda"
    return max(SMALLEST_SHARE, machine_memory() // (1 if has_gpu else max(workers.processes, 1)))


def gpu_environment(workers: Workers, index: int) -> dict[str, str]:
    """Return the environment by which process number `index` sees one GPU; empty without GPUs."""
    if not workers.gpus:
        return {}
    return {"CUDA_VISIBLE_DEVICES": workers.gpus[index % len(workers.gpus)]}


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, and of those that it starts, for the block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def start_tracker() -> None:
    """Start Python's resource tracker so that it outlives its processes, and a closed terminal."""
    if threading.current_thread() is not threading.main_thread():
        return  # signals can be set in the main thread only
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGHUP, before or signal.SIG_DFL)


class Timed(NamedTuple):
    """A step's result, and its seconds."""

    value: Any
    seconds: float


def choose_deadline(step: Step, deadlines: Deadlines, seconds_before: deque[float]) -> float:
    """Return the seconds that a step may take: max(floor, factor × median of earlier blocks)."""
    if step.kind != "block":
        return deadlines.others_s
    if len(seconds_before) < ENOUGH:
        return deadlines.first_s
    return max(deadlines.floor_s, deadlines.factor * statistics.median(seconds_before))


_seconds: deque[float] = deque(maxlen=101)
"""Seconds of the blocks of this process."""


def run_watched(
    step: Step,
    deadline_s: float,
    deadlines: Deadlines,
    report_hang: Callable[[float], None],
    function: Callable[..., Any],
    *arguments: Any,
) -> Timed:
    """Run a step in a worker, and end the worker after `deadline_s`, or its own blocks' deadline.

    `report_hang` is called first, with the seconds that the step had.
    """
    deadline_s = min(deadline_s, choose_deadline(step, deadlines, _seconds))
    watch = threading.Timer(deadline_s, _give_up, [report_hang, deadline_s])
    watch.daemon = True
    watch.start()
    started = time.monotonic()
    try:
        value = function(*arguments)
    except GpuLost as error:
        # Another process can use the GPU again; this one's death is told like any other.
        logger.warning("a worker process ends: %s", error)
        os.kill(os.getpid(), signal.SIGKILL)
        raise
    finally:
        watch.cancel()
    seconds = time.monotonic() - started
    if step.kind == "block":
        _seconds.append(seconds)
    return Timed(value, seconds)


def _give_up(report_hang: Callable[[float], None], seconds: float) -> None:
    report_hang(seconds)
    time.sleep(FLUSH_S)
    os.kill(os.getpid(), signal.SIGKILL)


def is_hopeless(tries_alone: int, hangs: Sequence[float]) -> bool:
    """Return whether a step that ended its worker again is not tried once more."""
    return tries_alone >= (HANGS_ALONE if hangs else TRIES_ALONE)


class WorkerDeath(WsiError):
    """A step ended its worker process each time that it was tried."""


def describe_death(hangs: Sequence[float]) -> WorkerDeath:
    """Return the fault of a step that ended its workers; `hangs`: deadlines that it outlived."""
    alone = "also when it ran alone"
    if hangs:
        fault = f"still at work after {hangs[-1]:.0f} s, {alone} (a drive that hangs, or a decoder)"
        return WorkerDeath(f"{fault}; copy it to another drive, or leave it out")
    fault = f"a worker process died over it, {alone} (out of memory, or a crash in a library)"
    return WorkerDeath(f"{fault}; use fewer workers or a machine with more memory, or leave it out")
