"""The saved state of a training, from which a run that was killed continues.

One safetensors file holds weights, averaged weights, the weights to keep and the optimiser's
tensors, and everything else as JSON. It holds no random state, because the random numbers of every
epoch follow from the seed and the epoch's number.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.recipe import bytes_sha256
from wsi_pipeline.store.files import write_file

DIGEST_BYTES = 64


@dataclass(frozen=True, slots=True)
class SavedState:
    """Named tensors and JSON values from which a run continues."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    plain: Mapping[str, Any]


def save_state(path: Path, state: SavedState) -> None:
    """Write the state behind its SHA-256, completely or not at all.

    Raises EnvironmentFault where the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    # Only this run reads its state, in which a loss may be infinite.
    plain = json.dumps(dict(state.plain), allow_nan=True)
    content = save(tensors, metadata={"plain": plain})
    write_file(path, bytes_sha256(content).encode() + content)


def load_state(path: Path) -> SavedState | None:
    """Return the saved state, None if there is none. Raises ModelError where it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    try:
        if bytes_sha256(content).encode() != digest:
            raise ValueError("checksum")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return SavedState(load(content), json.loads(header["__metadata__"]["plain"]))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: the saved state of this training is damaged ({error}); start again with"
            " --force"
        ) from error


def pack_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's `state_dict()` as named tensors and JSON values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"groups": state["param_groups"], "numbers": {}}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            part = tensors if isinstance(value, Tensor) else plain["numbers"]
            part[f"{index}.{name}"] = value
    return tensors, plain


def unpack_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `state_dict()` that `pack_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *plain["numbers"].items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def prefix(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under `name.` and their own names."""
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `name.`, without it."""
    start = f"{name}."
    return {
        key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)
    }
