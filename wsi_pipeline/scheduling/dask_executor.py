"""Steps as Dask tasks; steps whose worker died, or that hang.

A worker process times its step. A thread cannot be stopped from outside, so a worker whose step
exceeds its deadline reports this and ends itself; its nanny starts another.
"""

import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distributed import as_completed, get_worker
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.scheduling.jobs import Deadlines, Step

ALLOWED_DEATHS = 1
"""Workers that may die in a step before it waits to be tried alone."""
TRIES_ALONE = 3
"""Times that it is tried alone: workers also die of what has nothing to do with it."""
HANGS_ALONE = 1
"""Once is enough for a step that hangs alone."""


Key = tuple[str, int, int, int]
"""Kind of step and client, job, block, and how many were sent before it."""
HUNG_TOPIC = "wsi-hung"
FLUSH_S = 1.0
"""Time that the last message gets on its way out."""
ENOUGH = 3
"""Blocks that make a median."""


class _Submitted(NamedTuple):
    """A step under way."""

    step: Step
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Any = None
    tries_alone: int = 0


@dataclass
class DaskExecutor:
    """Steps as tasks of a cluster."""

    client: Any
    processes: int
    """Worker processes there are, or will be."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    gpu_share: float = 0.0
    """Share of the resource GPU that a block requests; 0: none."""

    def __post_init__(self) -> None:
        self._done = as_completed([], loop=self.client.loop)
        self._pending: dict[Key, _Submitted] = {}
        self._suspects: deque[_Submitted] = deque()
        self._dropped: set[Key] = set()
        self._seconds: deque[float] = deque(maxlen=101)
        self._sent = 0
        self._anchors: dict[str, Any] = {}
        """A task of each group that does nothing and is never let go."""

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None:
        """Send a step. Earlier jobs come first, so that slides are finished one after another."""
        self._send(_Submitted(step, function, arguments))

    def _send(self, work: _Submitted) -> None:
        step = work.step
        self._sent += 1
        # A tuple, of which Dask takes the first for the name of a group. It keeps notes of every
        # group that ever was, also where one of the same name starts again after its last task: so
        # there is a group per kind of step, and a task that keeps it.
        group = f"{step.kind}-{self.client.id}"
        key = (group, step.job, step.block, self._sent)
        if step.kind not in self._anchors:
            self._anchors[step.kind] = self.client.submit(int, key=(group,), pure=False)
        deadline_s = choose_deadline(step, self.deadlines, self._seconds)
        uses_gpu = self.gpu_share > 0 and step.kind in ("call", "block")
        future = self.client.submit(
            run_watched,
            *(step, deadline_s, self.deadlines, str(key), work.function, *work.arguments),
            key=key,
            pure=False,
            priority=-step.job if step.kind != "prepare" else 1,
            resources={"GPU": self.gpu_share} if uses_gpu else None,
        )
        self._pending[key] = work._replace(future=future)
        self._done.add(future)

    def drop(self, job: int) -> None:
        """Cancel the job's steps that have not started, and ignore the others."""
        self._suspects = deque(work for work in self._suspects if work.step.job != job)
        stale = {key: work.future for key, work in self._pending.items() if work.step.job == job}
        self._dropped.update(stale)
        if stale:
            self.client.cancel([*stale.values()])

    def next_done(self) -> tuple[Step, Any]:
        """Wait for the next step. Raises EnvironmentFault where the cluster is lost.

        A step whose worker died is tried again when nothing else is running: what runs beside a
        deadly step dies with it, and must not be taken for its cause.
        """
        while True:
            if not self._pending and self._suspects:
                suspect = self._suspects.popleft()
                self._send(suspect._replace(tries_alone=suspect.tries_alone + 1))
            future = next(self._done)
            work = self._pending.pop(future.key)
            if future.key in self._dropped:
                self._dropped.remove(future.key)
                continue
            result = _result_of(future)
            if isinstance(result, Timed):
                if work.step.kind == "block":
                    self._seconds.append(result.seconds)
                return work.step, result.value
            if not isinstance(result, KilledWorker):
                return work.step, result
            hangs = self._hangs_of(future.key)
            if work.tries_alone >= (HANGS_ALONE if hangs else TRIES_ALONE):
                return work.step, _describe_death(hangs)
            self._suspects.append(work)

    def _hangs_of(self, key: Key) -> Sequence[float]:
        """Deadlines that the task outlived, in seconds."""
        events = self.client.get_events(HUNG_TOPIC)
        return [event["seconds"] for _, event in events if event["key"] == str(key)]


def _result_of(future: Any) -> "Timed | Exception":
    """Return what a step returned or raised; a result lost with its worker is computed again."""
    try:
        result: Timed = future.result()
    except FutureCancelledError as error:
        what = "the Dask cluster was lost; what is finished stays on disk"
        raise EnvironmentFault(f"{what}, run the same line again") from error
    except Exception as error:  # noqa: BLE001 - a fault is the job's result, others go on
        return error
    return result


def _describe_death(hangs: Sequence[float]) -> RuntimeError:
    alone = "also when it ran alone"
    if hangs:
        fault = f"still at work after {hangs[-1]:.0f} s, {alone} (a drive that hangs, or a decoder)"
    else:
        fault = f"a worker process died over it, {alone} (out of memory, or a crash in a decoder)"
    return RuntimeError(fault)


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
    key: str,
    function: Callable[..., Any],
    *arguments: Any,
) -> Timed:
    """Run a step in a worker, and stop it after `deadline_s`, or its own blocks' deadline."""
    deadline_s = min(deadline_s, choose_deadline(step, deadlines, _seconds))
    watch = threading.Timer(deadline_s, _give_up, [get_worker(), key, deadline_s])
    watch.daemon = True
    watch.start()
    started = time.monotonic()
    try:
        value = function(*arguments)
    finally:
        watch.cancel()
    seconds = time.monotonic() - started
    if step.kind == "block":
        _seconds.append(seconds)
    return Timed(value, seconds)


def _give_up(worker: Any, key: str, deadline_s: float) -> None:
    worker.log_event(HUNG_TOPIC, {"key": key, "seconds": deadline_s})
    time.sleep(FLUSH_S)
    os.kill(os.getpid(), signal.SIGKILL)
