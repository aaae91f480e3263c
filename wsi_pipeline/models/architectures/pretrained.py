"""Weights that somebody else trained, as the start of a training run."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models.architectures.network import Network
from wsi_pipeline.models.self_test import PREFIX

PICKLED = (".pth", ".pt", ".bin")
UNPICKLING_FAULTS = (
    pickle.UnpicklingError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, struct.error, TypeError,
    ValueError,
)  # fmt: skip
"""What bytes that are no weights make the reader of weights raise."""
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Entries under which training programs keep a network's weights."""
PARALLEL = "module."
"""What data-parallel training puts before each name."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file, or in a .pth file that holds nothing but tensors. Raises ModelError for others."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise ModelError(
        f"{path}: weights are read from .safetensors and .pth files; give one of these"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # A checkpoint of ours has its self-test beside the weights.
        return {
            name: tensor for name, tensor in load_file(path).items() if not name.startswith(PREFIX)
        }
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); copy it again"
        ) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of other pickle protocols than torch's own
            found = torch.load(
                path, map_location="cpu", weights_only=True
            )  # nothing but tensors: no code of the file is run
    except UNPICKLING_FAULTS as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{path}: not a file of weights alone ({reason}); save the state_dict, best as"
            " .safetensors"
        ) from error
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not (
        isinstance(found, Mapping)
        and found
        and all(isinstance(tensor, Tensor) for tensor in found.values())
    ):
        raise ModelError(f"{path}: holds no table of tensors; save the network's state_dict")
    return {str(name).removeprefix(PARALLEL): tensor for name, tensor in found.items()}


def _refuse_compressed(path: Path) -> None:
    """Raise ModelError where a zipped file would unpack to more than it is: torch itself never compresses."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            is_plain = all(
                entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist()
            )
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a whole file of weights ({error}); copy it again") from error
    if not is_plain:
        raise ModelError(
            f"{path}: holds compressed entries, which no file of torch does; save the state_dict,"
            " best as .safetensors"
        )


def fit_weights(network: Network, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network; the head keeps its fresh ones where the others are absent or of another shape.

    Raises ModelError naming what of the body is missing, too much, or of another shape; the network
    is then as it was.
    """
    own, head = network.state_dict(), _head_prefix(network)
    given = network.rename_weights(weights)
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if name in own and own[name].shape == tensor.shape
    }
    # Counters of old files that a network may lack decide nothing.
    wanted = [
        name
        for name in own
        if not name.startswith(head) and not name.endswith("num_batches_tracked")
    ]
    faults = {
        "are missing": [name for name in wanted if name not in given],
        "have another shape": [name for name in wanted if name in given and name not in fitting],
        "are unknown to it": [
            name for name in given if name not in own and not name.startswith(head)
        ],
    }
    for fault, names in faults.items():
        if names:
            listed = ", ".join(names[:3]) + (
                f" and {len(names) - 3} more" if len(names) > 3 else ""
            )
            raise ModelError(
                f"{source}: weights do not fit this network: {listed} {fault}; give weights of this"
                " architecture and patch size"
            )
    if bad := [name for name, tensor in fitting.items() if not bool(torch.isfinite(tensor).all())]:
        raise ModelError(f"{source}: weights {bad[0]} are not finite; give another file")
    network.load_state_dict(own | fitting)


def _head_prefix(network: Network) -> str:
    """What the names of the head's weights begin with."""
    head = network.head
    return next(f"{name}." for name, module in network.named_modules() if module is head)
