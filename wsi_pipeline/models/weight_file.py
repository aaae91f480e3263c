"""Reading safetensors files without torch: the header of an untrusted file, and its weights.

The header is checked before any tensor is read; no pickle is.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from wsi_pipeline.core.errors import EnvironmentFault, ModelError
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.models.outlines import Shapes

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Names and shapes of tensors, and the card: some hundred bytes for each patient."""
LENGTH_BYTES = 8
READ_BYTES = 16 * 1024 * 1024
COPY = "copy it again or train it again"
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "U8": "uint8",
}
"""Types of weights, self-tests and domains by their names in a header, and torch's names."""
BF16_EXPONENT = 0x7F80
"""Bits that are all set in an infinity and in NaN."""


class Declared(NamedTuple):
    """Card and tensor shapes declared in the header of a safetensors file."""

    text: str
    """The card as it is written."""
    card: dict[str, Any]
    shapes: Shapes


def read_safetensors_card(path: Path, key: str) -> Declared:
    """Return the JSON object under a key of the file's metadata, and the shape of every tensor.

    Reads no tensor. Raises ModelError, and EnvironmentFault where the file cannot be read.
    """
    try:
        _check_header_size(path)
        # As NumPy, for PyTorch would map the whole file as memory to write to.
        with safe_open(path, framework="numpy") as stored:
            text = (stored.metadata() or {})[key]
            names = list(stored.keys())
            shapes = {name: _read_shape(name, stored.get_slice(name)) for name in names}
        card = parse_json(text)
        if not isinstance(card, dict):
            raise ValueError("its card is not a JSON object")
        return Declared(text, card, shapes)
    except OSError as error:
        raise unreadable_file(path, error.strerror or error) from error
    except KeyError as error:
        raise ModelError(
            f"{path}: not a checkpoint of wsi (no card); give a model.safetensors of `wsi train`"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise broken_file(path, error) from error


def unreadable_file(path: Path, reason: object) -> EnvironmentFault:
    """Return the error for a file that the machine does not give."""
    return EnvironmentFault(
        f"{path}: cannot be read ({reason}); fix that and run the same line again"
    )


def broken_file(path: Path, error: Exception) -> ModelError:
    """Return the error for a file whose form is not that of safetensors."""
    return ModelError(f"{path}: not a whole safetensors file ({error}); {COPY}")


def _check_header_size(path: Path) -> None:
    """Raise ValueError for a header that no checkpoint has; the library reads up to 100 MB."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, more than {MAX_HEADER_BYTES}")


def _read_shape(name: str, tensor: Any) -> tuple[int, ...]:
    dtype = tensor.get_dtype()
    if dtype not in DTYPES:
        raise ValueError(f"{name[:80]} is of type {dtype}, and weights are floating-point numbers")
    return tuple(tensor.get_shape())


def check_weights(path: Path, digest: str) -> None:
    """Raise ModelError where the tensors are damaged or not finite; they are read once."""
    sha256, is_finite = hashlib.sha256(), True
    try:
        with path.open("rb") as stream:
            start = LENGTH_BYTES + int.from_bytes(stream.read(LENGTH_BYTES), "little")
            header = json.loads(stream.read(start - LENGTH_BYTES))
            header.pop("__metadata__", None)
            for name in sorted(header):
                entry = header[name]
                dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
                sha256.update(f"{name}:torch.{dtype}:{shape}:".encode())
                for part in _read_parts(stream, start, *entry["data_offsets"]):
                    sha256.update(part)
                    is_finite = is_finite and _is_finite(part, dtype)
    except OSError as error:
        raise unreadable_file(path, error.strerror or error) from error
    if digest != sha256.hexdigest():
        raise ModelError(f"{path}: its weights are damaged (checksum); {COPY}")
    if not is_finite:
        raise ModelError(f"{path}: weights are not finite; train it again with a lower --lr")


def _read_parts(stream: BinaryIO, start: int, first: int, end: int) -> Iterator[bytes]:
    """Return the bytes of a tensor in parts of whole numbers."""
    stream.seek(start + first)
    left = end - first
    while left:
        part = stream.read(min(left, READ_BYTES))
        if not part:
            raise OSError("it ends before its last tensor")
        left -= len(part)
        yield part


def _is_finite(part: bytes, dtype: str) -> bool:
    if dtype == "bfloat16":
        exponents = np.frombuffer(part, "<u2") & BF16_EXPONENT
        return not bool((exponents == BF16_EXPONENT).any())
    return not dtype.startswith("float") or bool(np.isfinite(np.frombuffer(part, dtype)).all())
