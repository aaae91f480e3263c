"""Safetensors of strangers: what a file declares is looked at before any of it is taken, or mapped, into memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wsi_pipeline.core.errors import EnvironmentFault, ModelError
from wsi_pipeline.core.json_io import parse_json

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Names and shapes of tensors, and the card: some hundred bytes for each patient."""
LENGTH_BYTES = 8
METADATA = "__metadata__"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
"""Types that weights and self-tests have."""


class Declared(NamedTuple):
    """What a file says of itself."""

    text: str
    """Of the card, as it stands there."""
    card: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """By the names of the tensors."""


def read_safetensors_card(path: Path, key: str) -> Declared:
    """The JSON object under a key of the file's metadata, and the shape of every tensor.

    Raises ModelError, and EnvironmentFault where the machine does not let the file be read. Reads
    no tensor.
    """
    try:
        header = _read_header(path)
        text = header.get(METADATA, {})[key]
        card = parse_json(text)
        if not isinstance(card, dict):
            raise ValueError("its card is no JSON object")
        return Declared(
            text,
            card,
            {name: _read_shape(name, entry) for name, entry in header.items() if name != METADATA},
        )
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be read ({error.strerror}); mend that and run the same line again"
        ) from error
    except KeyError as error:
        raise ModelError(
            f"{path}: no checkpoint of wsi (it has no card); give a model.safetensors of `wsi"
            " train`"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); copy it again or train anew"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file whose shapes are known to be right. Raises ModelError, and EnvironmentFault as above."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except RuntimeError as error:  # torch, where it cannot open the file; it names no number
        reason = " ".join(str(error).split())
        raise EnvironmentFault(
            f"{path}: cannot be read ({reason}); mend that and run the same line again"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); copy it again or train anew"
        ) from error


def _read_header(path: Path) -> Mapping[str, Any]:
    """What the file says of its tensors, none of it longer than the file. Raises ValueError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes, more than {MAX_HEADER_BYTES}")
        header = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    end = max(
        (entry["data_offsets"][1] for name, entry in header.items() if name != METADATA), default=0
    )
    if LENGTH_BYTES + length + end != size:
        raise ValueError(f"it should have {LENGTH_BYTES + length + end} bytes and has {size}")
    return header


def _read_shape(name: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ValueError(
            f"{name[:80]} is of type {str(dtype)[:20]}, and weights are floating-point numbers"
        )
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name[:80]} is not as long as its shape")
    return tuple(shape)
