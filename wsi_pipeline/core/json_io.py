"""Untrusted JSON: only what RFC 8259 allows, limited in size and depth; written by those rules."""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_DIGITS = 19
MAX_RECORD_BYTES = 1024**3
"""Limit of a record that a run leaves to be read again; a slide takes some kilobytes of it."""
LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half a character; the 128 that stand for bytes of a file name in no UTF-8 are allowed."""


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ValueError for anything else: NaN, numbers beyond float64 or int64, halves of characters,
    brackets that nest too deep.
    """
    text = content if isinstance(content, str) else content.decode()
    return _parse(
        text, parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int
    )


def parse_exported_json(content: bytes) -> Any:
    """Return the value of a JSON file that a program exported, in UTF-8, UTF-16 or UTF-32.

    A byte order mark is allowed, and so are NaN, infinities and numbers beyond float64, which some
    programs write among measurements: whoever reads a number of it looks if it is finite. Raises
    ValueError for anything else.
    """
    return _parse(content.decode(json.detect_encoding(content)))


def _parse(text: str, **parsers: Any) -> Any:
    try:
        value = json.loads(text, **parsers)
        written = json.dumps(value, ensure_ascii=False, allow_nan=True) if "\\u" in text else ""
        if LONE_SURROGATE.search(written):
            raise ValueError("a text in it has half a character")
    except RecursionError as error:
        raise ValueError("its brackets nest too deep") from error
    return value


def format_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text. Raises ValueError for NaN and infinities."""
    return json.dumps(value, indent=indent, allow_nan=False)


def read_json(path: Path, max_bytes: int) -> Any:
    """Return the JSON value of a file, as `read_bounded` reads it. Raises OSError, ValueError."""
    return parse_json(read_bounded(path, max_bytes))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises OSError, and ValueError for another kind of file or a larger one. A link is not followed,
    and a pipe or a device is not waited for.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"{path.name} has {status.st_size} bytes, more than {max_bytes}")
        with open(handle, "rb", closefd=False) as stream:
            return stream.read(max_bytes)
    finally:
        os.close(handle)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_int(text: str) -> int:
    value = int(text) if len(text) <= MAX_DIGITS + 1 else 2**63
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text[:20]} is beyond any number")
    return value


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value
