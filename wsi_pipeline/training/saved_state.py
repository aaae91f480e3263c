"""A training run's state on disk after every epoch, so that a killed run goes on as if nothing had happened.

One safetensors file, renamed into place: weights, averaged weights, best weights and the
optimiser's tensors, and as JSON what is no tensor. No random state is kept, for none is carried
over: every epoch's draws follow from the seed and the epoch's number.
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
    """What a run needs to go on: named tensors, and the rest as JSON values."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    plain: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix.`, without it."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


def save_state(path: Path, state: SavedState) -> None:
    """Write the state whole or not at all, behind the SHA-256 of what follows. Raises EnvironmentFault where the disk is full."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    content = save(tensors, metadata={"plain": json.dumps(dict(state.plain))})
    write_file(path, bytes_sha256(content).encode() + content)


def load_state(path: Path) -> SavedState | None:
    """The state that was saved; None where none was. Raises ModelError where it is damaged."""
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
            f"{path}: the state of this training run is damaged ({error}); begin anew with --force"
        ) from error


def pack_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's `state_dict()` as named tensors and JSON values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"groups": state["param_groups"], "numbers": {}}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain["numbers"][f"{index}.{name}"] = value
    return tensors, plain


def unpack_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict()` that `pack_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *plain["numbers"].items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}
