"""The server's side of decoding: a fixed number of limited processes, each asked one thing at a time and ended when it takes too long.

Messages between the two are a JSON header and raw bytes, never pickles. Frame: 4 bytes length of
the header, 8 bytes length of the payload (big-endian), header, payload. A decoding process that was
taken over by a hostile file can send back wrong pixels; it cannot make the server run anything.
"""

import json
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from wsi_pipeline.core.errors import WsiError

PIECE_BYTES = 1 << 20
LENGTHS = struct.Struct(">IQ")
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 29


class Message(NamedTuple):
    """One message, in either direction."""

    header: dict[str, Any]
    payload: bytes = b""


class BrokenFrame(Exception):
    """The other side ended, or sent what is no frame."""


def pack_message(message: Message) -> bytes:
    """The bytes of a frame."""
    header = json.dumps(message.header, allow_nan=False).encode()
    return LENGTHS.pack(len(header), len(message.payload)) + header + message.payload


def read_message(read_exactly: Callable[[int], bytes]) -> Message:
    """One frame by a function that returns exactly so many bytes. Raises BrokenFrame."""
    header_bytes, payload_bytes = LENGTHS.unpack(read_exactly(LENGTHS.size))
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise BrokenFrame(f"a frame of {header_bytes} + {payload_bytes} bytes")
    try:
        header = json.loads(read_exactly(header_bytes))
    except ValueError as error:
        raise BrokenFrame("a header that is no JSON") from error
    if not isinstance(header, dict):
        raise BrokenFrame("a header that is no object")
    return Message(header, read_exactly(payload_bytes))


class DecodingError(WsiError):
    """A slide or an image could not be read; the message may hold a path, so it goes to the log and never to a client."""


class TooSlow(DecodingError):
    """The time limit passed; the process was ended."""


class Busy(WsiError):
    """Too much is waiting already; ask again later."""


class Decoder:
    """One decoding process."""

    def __init__(self, memory_bytes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wsi_pipeline.serve.decoding", str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },  # each thread would cost address space
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)

    @property
    def process_id(self) -> int:
        """For whoever watches it."""
        return self._process.pid

    def ask(self, message: Message, timeout_s: float) -> Message:
        """Send a request, wait for the answer. Raises TooSlow or BrokenFrame; the process is then of no use any more."""
        deadline = time.monotonic() + timeout_s
        self._write(pack_message(message), deadline)
        return read_message(lambda count: self._read(count, deadline))

    def end(self) -> None:
        """End the process, however it is."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _write(self, content: bytes, deadline: float) -> None:
        left = memoryview(content)
        while left:
            _wait(self._requests, select.POLLOUT, deadline)
            try:
                left = left[os.write(self._requests, left[:PIECE_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise BrokenFrame("the decoding process ended") from error

    def _read(self, count: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < count:
            _wait(self._answers, select.POLLIN, deadline)
            piece = os.read(self._answers, min(count - len(content), PIECE_BYTES))
            if not piece:
                raise BrokenFrame("the decoding process ended")
            content += piece
        return bytes(content)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TooSlow("decoding: took longer than the limit; the process was ended")


class DecoderPool:
    """Decoding processes, started when first needed and replaced when they die or are ended."""

    def __init__(self, processes: int, memory_bytes: int, waiting: int) -> None:
        self._memory_bytes = memory_bytes
        self._free: queue.LifoQueue[Decoder | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)
        self._places = threading.BoundedSemaphore(processes + waiting)
        self._is_closed = False
        self.replaced = 0
        """Processes that died or were ended, since the start."""

    def ask(self, header: dict[str, Any], payload: bytes = b"", timeout_s: float = 20.0) -> Message:
        """The answer to a request. Raises DecodingError where there is none, Busy where too many wait already."""
        if not self._places.acquire(blocking=False):
            raise Busy("too many reads are waiting; try again in a moment")
        try:
            return self._ask(Message(header, payload), timeout_s)
        finally:
            self._places.release()

    def _ask(self, message: Message, timeout_s: float) -> Message:
        try:
            decoder = self._free.get(timeout=timeout_s)
        except queue.Empty as error:
            raise Busy("every decoding process is busy; try again in a moment") from error
        kept: Decoder | None = None
        try:
            decoder = decoder or Decoder(self._memory_bytes)
            reply = decoder.ask(message, timeout_s)
            if not reply.header.get("is_memory"):
                kept = decoder
        except BrokenFrame as error:
            raise DecodingError(f"decoding: the process died over it ({error})") from error
        finally:
            if kept is None and decoder is not None:
                decoder.end()
                self.replaced += 1
            self._give_back(kept)
        if "error" in reply.header:
            raise DecodingError(str(reply.header["error"]))
        return reply

    def _give_back(self, decoder: Decoder | None) -> None:
        if self._is_closed and decoder is not None:
            decoder.end()
            decoder = None
        self._free.put(decoder)

    def close(self) -> None:
        """End every process; one at work is ended when it comes back."""
        self._is_closed = True
        while True:
            try:
                decoder = self._free.get_nowait()
            except queue.Empty:
                return
            if decoder is not None:
                decoder.end()
