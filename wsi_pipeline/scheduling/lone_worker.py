"""One worker process of this machine, without a cluster.

Loading Dask, starting its scheduler and closing both takes two seconds, as long as a small slide
takes. One process needs a queue, which is kept here, and a watch: it is a process of its own with
the limits of any other worker, and what it had when it died is tried again in another.
"""

import heapq
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, NamedTuple

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.scheduling.jobs import Step, Workers
from wsi_pipeline.scheduling.piped_steps import (
    ALIVE,
    CONNECTION_LOST,
    FAREWELL,
    HUNG,
    READY,
    SIGNS_OF_LIFE,
    read_message,
    to_message,
    work_for,
)
from wsi_pipeline.scheduling.worker_process import (
    ALLOCATOR,
    CHECK_LIMITS,
    Timed,
    choose_deadline,
    describe_death,
    environment,
    gpu_environment,
    is_hopeless,
    share_memory,
    start_tracker,
)

SENT_AHEAD = 1
"""Steps that wait in the worker, so that it never waits for this process."""
STARTS = 4
"""Workers in a row that may end before they are ready."""
PAUSE_S = 1.0
"""Seconds before the second start; each further pause is twice as long."""
END_S = 5.0
"""Seconds that a worker gets to end."""


@contextmanager
def start_lone_worker(workers: Workers) -> Iterator["LoneWorker"]:
    """Start a worker process for the block. Raises EnvironmentFault where it cannot be started."""
    worker = LoneWorker(workers)
    try:
        yield worker
    finally:
        worker.close()


class _Submitted(NamedTuple):
    """A step that is queued, or in the worker."""

    step: Step
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    tries_alone: int = 0


class _Message(NamedTuple):
    """A message of a worker; None in place of bytes: it is gone."""

    child: "_Child"
    number: int
    body: bytes | None


@dataclass(eq=False)
class _Child:
    """A worker process, and the pipe to it."""

    process: BaseProcess
    pipe: Connection
    is_ready: bool = False

    def listen(self, inbox: "SimpleQueue[_Message]", silence_s: float) -> None:
        """Pass on what it says until it is gone; one that is silent for too long is killed."""
        with suppress(*CONNECTION_LOST, MemoryError):  # no memory for what it says
            while self._speaks(silence_s):
                message = self.pipe.recv_bytes()
                number, body = read_message(message)
                if number != ALIVE:
                    inbox.put(_Message(self, number, body))
        self.process.kill()
        # The pipe closes with its last user: a step may be on its way into it in another thread.
        inbox.put(_Message(self, ALIVE, None))

    def _speaks(self, silence_s: float) -> bool:
        """Wait for a message; in parts, of which one alone passes while this process is stopped."""
        return any(self.pipe.poll(silence_s / SIGNS_OF_LIFE) for _ in range(SIGNS_OF_LIFE))

    def send(self, number: int, work: Any) -> None:
        """Send a step. One that cannot be sent is among what the worker had when it was lost."""
        with suppress(*CONNECTION_LOST):
            self.pipe.send_bytes(to_message(number, pickle.dumps(work)))

    def end(self) -> int | None:
        """End the process; its exit code, or minus the signal that ended it."""
        with suppress(*CONNECTION_LOST):
            self.pipe.send_bytes(FAREWELL)
        self.process.join(END_S)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


@dataclass
class LoneWorker:
    """Steps in one process, `threads` of them at a time."""

    workers: Workers
    _queue: list[tuple[bool, int, int, _Submitted]] = field(default_factory=list)
    """A heap: preparations first, then earlier jobs, so that slides end one after another."""
    _sent: dict[int, _Submitted] = field(default_factory=dict)
    _dropped: set[int] = field(default_factory=set)
    _suspects: deque[_Submitted] = field(default_factory=deque)
    _hangs: dict[int, list[float]] = field(default_factory=dict)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=101))
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _inbox: "SimpleQueue[_Message]" = field(default_factory=SimpleQueue)
    _child: _Child | None = None
    _failed_starts: int = 0

    def __post_init__(self) -> None:
        start_tracker()
        self._start()

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue a step, and send it if there is room."""
        self._put(_Submitted(step, function, arguments))

    def drop(self, job: int) -> None:
        """Forget the job's steps that were not sent, and ignore the others."""
        self._queue = [entry for entry in self._queue if entry[-1].step.job != job]
        heapq.heapify(self._queue)
        self._suspects = deque(work for work in self._suspects if work.step.job != job)
        self._dropped |= {number for number, work in self._sent.items() if work.step.job == job}

    def next_done(self) -> tuple[Step, Any]:
        """Wait for the next step.

        A step whose worker died is tried again when nothing else is running: what runs beside a
        deadly step dies with it, and must not be taken for its cause. Raises EnvironmentFault where
        no worker can be started.
        """
        while True:
            if not self._sent and not self._queue and self._suspects:
                suspect = self._suspects.popleft()
                self._put(suspect._replace(tries_alone=suspect.tries_alone + 1))
            self._fill()
            answer = self._take(self._inbox.get())
            if answer is not None:
                return answer

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _put(self, work: _Submitted) -> None:
        step = work.step
        entry = (step.kind != "prepare", step.job, next(self._numbers), work)
        heapq.heappush(self._queue, entry)
        self._fill()

    def _fill(self) -> None:
        """Send steps while the worker has room."""
        child, deadlines = self._child, self.workers.deadlines
        if child is None or not child.is_ready:
            return
        while self._queue and len(self._sent) < self.workers.threads + SENT_AHEAD:
            _, _, number, work = heapq.heappop(self._queue)
            self._sent[number] = work
            deadline_s = choose_deadline(work.step, deadlines, self._seconds)
            child.send(number, (work.step, deadline_s, deadlines, work.function, *work.arguments))

    def _take(self, message: _Message) -> tuple[Step, Any] | None:
        """Return the step that a message ends, with its result."""
        if message.child is not self._child:
            return None
        if message.body is None:
            return self._bury(message.child)
        if message.number == READY:
            message.child.is_ready, self._failed_starts = True, 0
            return None
        if message.body[:1] == HUNG:
            self._hangs.setdefault(message.number, []).append(float(message.body[1:]))
            return None
        work = self._sent.pop(message.number)
        if message.number in self._dropped:
            self._dropped.remove(message.number)
            return None
        result = _unpack(message.body[1:])
        if not isinstance(result, Timed):
            return work.step, result
        if work.step.kind == "block":
            self._seconds.append(result.seconds)
        return work.step, result.value

    def _bury(self, child: _Child) -> tuple[Step, Any] | None:
        """Start another worker; a step that also ended this one alone has failed."""
        exit_code, self._child = child.end(), None
        if not child.is_ready:
            self._note_failed_start(_describe_exit(exit_code))
        lost = [(number, self._sent[number]) for number in sorted(self._sent)]
        kept = [(number, work) for number, work in lost if number not in self._dropped]
        self._sent.clear()
        self._dropped.clear()
        failed = None
        for number, work in kept:
            hangs = self._hangs.get(number, [])
            if is_hopeless(work.tries_alone, hangs):
                failed = work.step, describe_death(hangs)
            else:
                self._suspects.append(work)
        self._hangs.clear()
        self._start()
        return failed

    def _start(self) -> None:
        """Start a worker process, at the second or a later try if need be."""
        while self._child is None:
            try:
                self._child = _start_child(self.workers)
            except OSError as error:
                self._note_failed_start(str(error))
        listening = (self._inbox, self.workers.deadlines.silence_s)
        threading.Thread(target=self._child.listen, args=listening, daemon=True).start()

    def _note_failed_start(self, reason: str) -> None:
        """Wait a little before the next start. Raises EnvironmentFault after the last."""
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            raise _no_worker(f"{reason}, {STARTS} times in a row")
        time.sleep(PAUSE_S * 2 ** (self._failed_starts - 1))


def _start_child(workers: Workers) -> _Child:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    settings = (workers.threads, share_memory(workers), workers.deadlines)
    process = context.Process(target=work_for, args=(theirs, *settings), daemon=True)
    allocator = {name: str(size) for name, size in ALLOCATOR.items()}
    # Ctrl-C reaches the process that asks; what that had blocked stays blocked in its child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with theirs, environment(allocator | gpu_environment(workers, 0)), _script_without_file():
            process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Child(process, ours)


def _no_worker(reason: str) -> EnvironmentFault:
    what = f"no worker process can be started ({reason})"
    return EnvironmentFault(f"{what}; {CHECK_LIMITS}, then run the same line again")


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name} at its start"
    script = "; a script needs the guard `if __name__ == '__main__':`" if exit_code == 1 else ""
    return f"ended at its start with exit code {exit_code}{script}"


@contextmanager
def _script_without_file() -> Iterator[None]:
    """Hide the name of a script that has no file (`python - < …`), which no process can import."""
    script = sys.modules["__main__"]
    name = getattr(script, "__file__", None)
    if name is None or os.path.exists(name):  # noqa: PTH110 - any text may stand there
        yield
        return
    script.__file__ = None
    try:
        yield
    finally:
        script.__file__ = name


def _unpack(body: bytes) -> Any:
    try:
        return pickle.loads(body)
    except Exception as error:  # noqa: BLE001 - an error class that cannot be rebuilt here
        return RuntimeError(f"its answer cannot be read ({error})")
