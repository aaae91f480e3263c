"""Messages between the server and its decoding processes: a JSON header and raw bytes, never pickles.

Frame: 4 bytes length of the header, 8 bytes length of the payload (big-endian), header, payload. A decoding process that was taken over by
a hostile file can send back wrong pixels; it cannot make the server run anything.
"""

import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

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
