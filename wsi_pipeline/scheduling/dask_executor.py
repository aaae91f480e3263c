"""Steps as Dask tasks; steps whose worker died, or that hang."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from distributed import get_worker
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.scheduling.jobs import Deadlines, Step
from wsi_pipeline.scheduling.worker_process import (
    CHECK_LIMITS,
    Timed,
    choose_deadline,
    describe_death,
    is_hopeless,
    run_watched,
)

ALLOWED_DEATHS = 1
"""Workers that may die in a step before it waits to be tried alone."""
Key = tuple[str, int, int, int]
"""Kind of step and client, job, block, and how many were sent before it."""
HUNG_TOPIC = "wsi-hung"
LOOK_S = 5.0
"""Seconds between two looks whether there are workers, while nothing is done."""
logger = logging.getLogger(__name__)


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
    patience_s: float = 60.0
    """Seconds without any worker after which others are started, or the run ends."""
    start_more: Callable[[], None] | None = None
    """Starts as many workers as there were, once; None: only the cluster can."""

    def __post_init__(self) -> None:
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._had_workers = time.monotonic()
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
            run_in_worker,
            *(step, deadline_s, self.deadlines, str(key), work.function, *work.arguments),
            key=key,
            pure=False,
            priority=-step.job if step.kind != "prepare" else 1,
            resources={"GPU": self.gpu_share} if uses_gpu else None,
        )
        self._pending[key] = work._replace(future=future)
        future.add_done_callback(self._done.put)

    def drop(self, job: int) -> None:
        """Cancel the job's steps that have not started, and ignore the others."""
        self._suspects = deque(work for work in self._suspects if work.step.job != job)
        stale = {key: work.future for key, work in self._pending.items() if work.step.job == job}
        self._dropped.update(stale)
        if stale:
            self.client.cancel([*stale.values()])

    def next_done(self) -> tuple[Step, Any]:
        """Wait for the next step. Raises EnvironmentFault where cluster or workers are lost.

        A step whose worker died is tried again when nothing else is running: what runs beside a
        deadly step dies with it, and must not be taken for its cause.
        """
        while True:
            if not self._pending and self._suspects:
                suspect = self._suspects.popleft()
                self._send(suspect._replace(tries_alone=suspect.tries_alone + 1))
            future = self._wait()
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
            if is_hopeless(work.tries_alone, hangs):
                return work.step, describe_death(hangs)
            self._suspects.append(work)

    def _wait(self) -> Any:
        """Return the next future that is done, as long as there are workers, or may be again."""
        while True:
            with suppress(Empty):
                future = self._done.get(timeout=LOOK_S)
                self._had_workers = time.monotonic()
                return future
            try:
                is_any = bool(self.client.scheduler_info(n_workers=-1)["workers"])
            except (OSError, RuntimeError) as error:
                raise _cluster_lost() from error
            if is_any:
                self._had_workers = time.monotonic()
            elif time.monotonic() - self._had_workers > self.patience_s:
                self._replace_workers()

    def _replace_workers(self) -> None:
        """Start workers in place of all that are gone. Raises EnvironmentFault the second time."""
        if self.start_more is None:
            what = f"no worker process for {self.patience_s:.0f} s"
            raise EnvironmentFault(f"{what}; {CHECK_LIMITS}, then run the same line again")
        start, self.start_more = self.start_more, None
        logger.warning("no worker process for %.0f s; others are started", self.patience_s)
        start()
        self._had_workers = time.monotonic()

    def _hangs_of(self, key: Key) -> Sequence[float]:
        """Deadlines that the task outlived, in seconds."""
        events = self.client.get_events(HUNG_TOPIC)
        return [event["seconds"] for _, event in events if event["key"] == str(key)]


def _result_of(future: Any) -> Timed | Exception:
    """Return what a step returned or raised; a result lost with its worker is computed again."""
    try:
        result: Timed = future.result()
    except FutureCancelledError as error:
        raise _cluster_lost() from error
    except Exception as error:  # noqa: BLE001 - a fault is the job's result, others go on
        return error
    return result


def _cluster_lost() -> EnvironmentFault:
    what = "the Dask cluster was lost; what is finished stays on disk"
    return EnvironmentFault(f"{what}, run the same line again")


def run_in_worker(
    step: Step,
    deadline_s: float,
    deadlines: Deadlines,
    key: str,
    function: Callable[..., Any],
    *arguments: Any,
) -> Timed:
    """Run a step in a Dask worker; a hang is told by an event."""
    worker: Any = get_worker()

    def report_hang(seconds: float) -> None:
        worker.log_event(HUNG_TOPIC, {"key": key, "seconds": seconds})

    return run_watched(step, deadline_s, deadlines, report_hang, function, *arguments)
