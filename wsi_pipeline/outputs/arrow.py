"""Columns for Arrow, made of their buffers: `pyarrow.array` would import pandas where it is there.

That takes a quarter of a second.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def make_column(values: NDArray[Any], is_missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """Return numbers or booleans (n,) as a column, null where missing."""
    kind = pa.from_numpy_dtype(values.dtype)
    content = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    buffers = [_mark_valid(is_missing), pa.py_buffer(np.ascontiguousarray(content))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def make_text_column(texts: Sequence[str | None]) -> pa.Array:
    """Return texts as a column, null for None."""
    encoded = [(text or "").encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    valid = _mark_valid(np.array([text is None for text in texts], dtype=np.bool_))
    buffers = [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _mark_valid(is_missing: NDArray[np.bool_] | None) -> pa.Buffer | None:
    if is_missing is None:
        return None
    return pa.py_buffer(np.packbits(~is_missing, bitorder="little"))
