"""Safetensors of strangers: what a file declares is looked at before any of it is taken into memory."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wsi_pipeline.errors import ModelError
from wsi_pipeline.strict_json import parse_json

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Names and shapes of tensors, and the card: some hundred bytes for each patient."""
LENGTH_BYTES = 8
TYPES = ("F64", "F32", "F16", "BF16", "I64", "U8")


def read_safetensors_card(path: Path, key: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The JSON object under a key of the file's metadata, and the shape of every tensor. Raises ModelError; reads no tensor."""
    try:
        _check_header_size(path)
        with safe_open(path, framework="pt") as stored:
            card = parse_json((stored.metadata() or {})[key])
            if not isinstance(card, dict):
                raise ValueError("its card is no JSON object")
            return card, {name: _read_shape(name, stored.get_slice(name)) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except KeyError as error:
        raise ModelError(f"{path}: no checkpoint of wsi (it has no card); give a model.safetensors of `wsi train`") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}); copy it again or train anew") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file whose shapes are known to be right. Raises ModelError."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}); copy it again or train anew") from error


def _check_header_size(path: Path) -> None:
    """Raise ValueError where the header is longer than any of ours: it is parsed as a whole."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, more than {MAX_HEADER_BYTES}")


def _read_shape(name: str, tensor: Any) -> tuple[int, ...]:
    if tensor.get_dtype() not in TYPES:
        raise ValueError(f"{name[:80]} is of type {tensor.get_dtype()}, and weights are floating-point numbers")
    return tuple(tensor.get_shape())
