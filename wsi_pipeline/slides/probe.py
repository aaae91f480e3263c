"""Opening a slide in a limited process of its own first, so that a file which crashes, hangs or bloats a library harms nobody else.

Worker processes of a run are limited themselves and need none of this; a process that a user
started is not.
"""

import atexit
import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from wsi_pipeline.core.errors import EnvironmentFault, SlideError

DEADLINE_S = 30.0
START_S = 120.0
"""The process starts in a third of a second, but not on a drive or a machine that is overloaded."""
MEMORY_BYTES = 6 * 1024**3
"""A plain image of the largest size that is read takes about 5.5 GB while it is decoded; whatever is in tiles takes far less."""
PIECE_BYTES = 1 << 16


def is_limited() -> bool:
    """Whether this process may take only so much memory: a worker's, a server's decoder, or a shell's under `ulimit`."""
    return any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    )


class Probe:
    """The limited process, started when it is first needed, and anew after it died."""

    def __init__(self, deadline_s: float = DEADLINE_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def try_open(self, path: Path, **request: Any) -> None:
        """Open and close a slide there. Raises SlideError where it cannot be opened, and where the process did not survive it.

        Raises EnvironmentFault where there can be no such process.
        """
        line = (
            json.dumps(
                {"path": str(path.absolute()), "name": str(path), **request}, allow_nan=False
            ).encode()
            + b"\n"
        )
        with self._lock:
            process = self._start()
            try:
                answer = self._ask(process, line)
            except TimeoutError as error:
                self._end()
                raise SlideError(
                    f"{path}: is not open after {self._deadline_s:g} s; copy it to another drive,"
                    " or leave it out"
                ) from error
            except OSError as error:
                self._end()
                raise SlideError(
                    f"{path}: a process that opened it crashed; copy it again or leave it out"
                ) from error
            if answer.get("is_last"):
                self._end()
        if "error" in answer:
            raise SlideError(str(answer["error"]))

    def _ask(self, process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()
        return self._read_answer(process, self._deadline_s)

    def _read_answer(self, process: subprocess.Popen[bytes], deadline_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        content = b""
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while not content.endswith(b"\n"):
            if not poll.poll(deadline_s * 1000):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), PIECE_BYTES)
            if not piece:
                raise BrokenPipeError
            content += piece
        answer: dict[str, Any] = json.loads(content)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # A process that was forked off meanwhile must not speak over its parent's pipes.
        if self._process is not None and self._owner == os.getpid():
            return self._process
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "wsi_pipeline.slides.probing",
                    str(self._memory_bytes),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
            self._owner = os.getpid()
            self._read_answer(self._process, START_S)
        except OSError as error:
            self._end()
            reason = error.strerror or "it ended at once: Too many open files, or no memory"
            raise EnvironmentFault(
                f"the process that tries slides first: cannot be started ({reason}); see ulimit -a"
                " and run the same line again"
            ) from error
        return self._process

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


PROBE = Probe()
"""The one of this process."""
atexit.register(PROBE.close)
