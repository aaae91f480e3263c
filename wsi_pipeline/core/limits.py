"""Limits of processes: CPU cores, memory, files and time.

A hostile or damaged file can make a library take any amount of memory. A process that reads slides
is therefore limited: workers and the user's own process to the memory of the machine, a child
process that only decodes to far less, and it can write no file. Its parent ends it when it takes
too long. Requests and answers between the two are a JSON header and raw bytes, never pickles: a
child that was taken over by a hostile file can send back wrong pixels, but run nothing here.
"""

import ctypes
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

SLIDES_BETWEEN = 16
OPEN_FILES = 256
TICK_S = 0.05
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 29
CONTAINER_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The limit of a container, in version 2 and 1 of Linux's control groups."""
FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Each thread of a library takes address space for its stack."""
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""Of GNU's OpenMP, about a fifth of a millisecond; of Intel's and LLVM's, in milliseconds."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings in its `mallopt`."""
KEPT_BYTES = 2**30
"""Larger allocations, such as all pixels of a training, are mapped by themselves all the same."""
KEPT_TOTAL_BYTES = 2**31 - 1
MAPPED_BYTES = 2**25
"""The highest threshold that glibc chooses by itself."""
_ended = itertools.count(1)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that this process is in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CONTAINER_MEMORY:
        with suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(Path(path).read_text()))
    return min(sizes)


def tidy_memory() -> None:
    """Have glibc return freed memory every few slides; remains would add up over days."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None and next(_ended) % SLIDES_BETWEEN == 0:
        trim(0)


def limit_memory(most_bytes: int) -> None:
    """Let this process take at most so much private memory; beyond it raises MemoryError.

    The limit is RLIMIT_DATA, which counts memory that a process may write to and does not
    share. RLIMIT_AS would count all address space too, of which CUDA reserves hundreds of
    gigabytes that it never uses, and files that are mapped. Only Linux counts so.
    """
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (_lower(most_bytes, resource.RLIMIT_DATA), hard))


def limit_spinning() -> None:
    """Let threads of OpenMP sleep soon after they have nothing to do, unless the user says how.

    Left alone they spin for milliseconds, on cores that other work needs. Libraries read this when
    they are loaded: call it before torch is imported.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", *SHORT_SPIN)):
        os.environ.update(SHORT_SPIN)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc keep freed memory for the next allocation while the block runs.

    Else each large tensor of a training step is mapped, filled with zeros and given back to the
    system: up to a quarter of a step in fp32, less in bf16.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):  # not glibc
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_TOTAL_BYTES)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MAPPED_BYTES)
        libc.malloc_trim(0)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let this process take at most the memory of its machine while the block runs."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(machine_memory())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def confine(memory_bytes: int) -> None:
    """Give up for good what decoding does not need.

    That is address space above the limit, many open files, writing files, and core dumps with
    pixels in them.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        lowered = _lower(value, kind)
        resource.setrlimit(kind, (lowered, lowered))


def _lower(value: int, kind: int) -> int:
    """Return the value, or the limit that holds already where that is smaller."""
    return min([value, *(now for now in resource.getrlimit(kind) if now != resource.RLIM_INFINITY)])


NO_MESSAGE = (EOFError, OSError, ValueError, RecursionError)


class Message(NamedTuple):
    """A request or an answer."""

    header: dict[str, Any]
    payload: bytes = b""


def send_message(connection: Connection, message: Message) -> None:
    """Send a message. Raises OSError where the other side has gone."""
    connection.send_bytes(json.dumps(message.header, allow_nan=False).encode())
    connection.send_bytes(message.payload)


def receive_message(connection: Connection) -> Message:
    """Wait for a message. Raises one of NO_MESSAGE where something else comes, or nothing."""
    header = json.loads(connection.recv_bytes(MAX_HEADER_BYTES))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return Message(header, connection.recv_bytes(MAX_PAYLOAD_BYTES))


class LimitedProcess:
    """A child process under `confine` that answers one request at a time."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        """Start `module`, which calls `answer_requests`."""
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | FEW_THREADS,
            )
        self.process_id = self._process.pid
        self._deadline = math.inf
        self._has_ended = threading.Event()
        threading.Thread(target=self._kill_when_late, daemon=True).start()

    def ask(self, request: Message, timeout_s: float) -> Message:
        """Return the answer to a request.

        Raises TimeoutError where it took too long, ConnectionError where the process ended or sent
        something else; it is of no use then.
        """
        deadline = self._deadline = time.monotonic() + timeout_s
        try:
            send_message(self._connection, request)
            answer = receive_message(self._connection)
        except NO_MESSAGE as error:
            if time.monotonic() > deadline:
                raise TimeoutError from error
            raise ConnectionError(str(error) or "it ended") from error
        finally:
            self._deadline = math.inf
        if time.monotonic() > deadline:
            raise TimeoutError
        return answer

    def _kill_when_late(self) -> None:
        """Watch the deadline; killing the process also ends a send or a receive that waits for it.

        A timer of its own for each request would cost more than the rest of a request.
        """
        while not self._has_ended.wait(TICK_S):
            if time.monotonic() > self._deadline:
                self._process.kill()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._has_ended.set()
        self._process.kill()
        self._process.wait()
        self._connection.close()


def answer_requests(answer: Callable[[Message], Message]) -> None:
    """Confine this child process, then answer its parent until that hangs up.

    An answer with "is_memory" in its header is the last one: libraries that ran out of memory are
    in no known state, and the parent starts another process.
    """
    descriptor, memory_bytes = map(int, sys.argv[1:])
    confine(memory_bytes)
    with Connection(descriptor) as parent, suppress(*NO_MESSAGE):
        is_last = False
        while not is_last:
            reply = answer(receive_message(parent))
            send_message(parent, reply)
            is_last = "is_memory" in reply.header
