"""Untrusted safetensors: what a file declares is checked before any tensor is read into memory."""

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wsi_pipeline.core.errors import EnvironmentFault, ModelError
from wsi_pipeline.core.json_io import parse_json

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Names and shapes of tensors, and the card: some hundred bytes for each patient."""
LENGTH_BYTES = 8
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "U8"})
"""Types of weights and self-tests."""


class Declared(NamedTuple):
    """What a file says of itself."""

    text: str
    """Of the card, as it stands there."""
    card: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """By the names of the tensors."""


def read_safetensors_card(path: Path, key: str) -> Declared:
    """Return the JSON object under a key of the file's metadata, and the shape of every tensor.

    Raises ModelError, and EnvironmentFault where the machine does not let the file be read. Reads
    no tensor.
    """
    try:
        _check_header_size(path)
        # As NumPy, for PyTorch would map the whole file as memory to write to.
        with safe_open(path, framework="numpy") as stored:
            text = (stored.metadata() or {})[key]
            shapes = {name: _read_shape(name, stored.get_slice(name)) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        card = parse_json(text)
        if not isinstance(card, dict):
            raise ValueError("its card is no JSON object")
        return Declared(text, card, shapes)
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be read ({error.strerror or error}); mend that and run the same line"
            " again"
        ) from error
    except KeyError as error:
        raise ModelError(
            f"{path}: no checkpoint of wsi (it has no card); give a model.safetensors of `wsi"
            " train`"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise _broken(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file whose shapes are known to be right. Raises as above."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except RuntimeError as error:  # torch, where it cannot open the file; it names no number
        reason = " ".join(str(error).split())
        raise EnvironmentFault(
            f"{path}: cannot be read ({reason}); mend that and run the same line again"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path}: not a whole safetensors file ({error}); copy it again or train anew"
    )


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
