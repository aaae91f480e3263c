"""The inside of a lone worker process: steps come by a pipe, and their answers go back."""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from wsi_pipeline.core.limits import limit_memory
from wsi_pipeline.scheduling.jobs import Deadlines, Step
from wsi_pipeline.scheduling.worker_process import Timed, run_watched

SIGNS_OF_LIFE = 4
"""Signs that a worker gives within the time after which it is given up."""
CONNECTION_LOST = (EOFError, OSError)
NUMBER_BYTES = 8
"""Each message begins with the number of its step, so that it is known whose the rest is."""
ALIVE, READY = -1, -2
"""Numbers of messages that belong to no step."""
HUNG, DONE = b"h", b"d"
FAREWELL = b""


def to_message(number: int, body: bytes) -> bytes:
    """Return a message about a step."""
    return number.to_bytes(NUMBER_BYTES, "big", signed=True) + body


def read_message(message: bytes) -> tuple[int, bytes]:
    """Return the number and the rest of a message."""
    return int.from_bytes(message[:NUMBER_BYTES], "big", signed=True), message[NUMBER_BYTES:]


def work_for(pipe: Connection, threads: int, most_bytes: int, deadlines: Deadlines) -> None:
    """Do the steps of the process at the other end of the pipe, until that is gone."""
    limit_memory(most_bytes)
    worker = _Work(pipe, deadlines.silence_s / SIGNS_OF_LIFE)
    for _ in range(threads):
        threading.Thread(target=worker.do_steps, daemon=True).start()
    threading.Thread(target=worker.show_life, daemon=True).start()
    worker.say(READY, b"")
    with suppress(*CONNECTION_LOST):
        while (message := pipe.recv_bytes()) != FAREWELL:
            worker.take(message)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)  # at once: what is on disk is whole at any moment


class _Work:
    """The inside of a worker process."""

    def __init__(self, pipe: Connection, every_s: float) -> None:
        self._steps: SimpleQueue[tuple[int, tuple[Any, ...]]] = SimpleQueue()
        self._pipe = pipe
        self._every_s = every_s
        self._lock = threading.Lock()

    def say(self, number: int, body: bytes) -> None:
        """Send a message; nothing is done where nobody listens any more."""
        with self._lock, suppress(*CONNECTION_LOST):
            self._pipe.send_bytes(to_message(number, body))

    def show_life(self) -> None:
        """Send a sign of life every so often."""
        while True:
            time.sleep(self._every_s)
            self.say(ALIVE, b"")

    def take(self, message: bytes) -> None:
        """Queue a step. It is read in the main thread, where modules expect to be imported."""
        number, packed = read_message(message)
        try:
            self._steps.put((number, pickle.loads(packed)))
        except BaseException as error:  # noqa: BLE001 - a step that cannot be read fails
            self.say(number, DONE + _pack(error))

    def do_steps(self) -> None:
        """Do one step after another; a thread that breaks off, without memory, ends its worker."""
        try:
            while True:
                number, work = self._steps.get()
                self.say(number, DONE + _pack(self._do(number, *work)))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # else nobody would ever answer for its step

    def _do(
        self,
        number: int,
        step: Step,
        deadline_s: float,
        deadlines: Deadlines,
        function: Callable[..., Any],
        *arguments: Any,
    ) -> Timed | BaseException:
        def report_hang(seconds: float) -> None:
            self.say(number, HUNG + str(seconds).encode())

        try:
            return run_watched(step, deadline_s, deadlines, report_hang, function, *arguments)
        except BaseException as error:  # noqa: BLE001 - a fault is the step's result, also an exit
            return error


def _pack(result: Timed | BaseException) -> bytes:
    """Pickle a result; an error that cannot be rebuilt elsewhere is sent as its text.

    So is one that ends a program, a library's sys.exit or a panic of Rust: it ends a step here.
    """
    try:
        if not isinstance(result, Timed | Exception):
            raise RuntimeError
        packed = pickle.dumps(result)
        pickle.loads(packed)
    except Exception as error:  # noqa: BLE001 - any error class may refuse
        said = result if isinstance(result, BaseException) else error
        packed = pickle.dumps(RuntimeError(_describe(said)))
    return packed


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - any error class may refuse
        return type(error).__name__
