"""The base class of networks, their options, and weights to start from.

A network takes patches and gives one or two logits; its head may have its own learning rate.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_pipeline.core.choices import HEADS
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.models.model import SELF_TEST_PREFIX

DENSE_WIDTH = 20


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Options of a network apart from its architecture and the size of its patches."""

    dropout: float | None = None
    """Share of activations dropped in training, 0 to below 1; None: the architecture's default."""
    head: str = "linear"
    """"linear": pooled features → logits; "dense20": pooled features → Dense 20 → ReLU → logits."""
    batch_norm: bool = False
    """idc_cnn only: batch normalisation after each convolution; other networks always have it."""
    logits: int = 1
    """1: one, of the positive class, for a sigmoid; 2: one per class, for a softmax."""

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.head not in HEADS:
            raise ConfigError(f"head {self.head!r}; it must be one of {', '.join(HEADS)}")
        if self.logits not in (1, 2):
            raise ConfigError(
                f"{self.logits} logits; there may be 1 or 2, for more than two classes are not"
                " trained yet"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the options as a checkpoint's card records them."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NetworkOptions":
        """Return the options of a card. Raises ModelError for an unknown option."""
        if unknown := sorted({*value} - {*cls.__dataclass_fields__}):
            raise ModelError(
                f"options {', '.join(unknown)} are unknown to this version of wsi; update it, or"
                " train the model again"
            )
        return cls(**value)


class Network(nn.Module):
    """Base class of networks: float patches (b, 3, side, side) → logits (b,) or (b, 2)."""

    @property
    def head(self) -> nn.Module:
        """The last part, from features to logits."""
        raise NotImplementedError

    def rename_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights published for this architecture under the names that this network uses."""
        return dict(weights)

    def download_weights(self) -> Mapping[str, Tensor]:
        """Download published weights. Raises ModelError for none, EnvironmentFault for failure."""
        raise ModelError(
            f"{type(self).__name__}: no weights are published for it; give a file of weights, or"
            " train from fresh ones"
        )


def squeeze_logits(x: Tensor) -> Tensor:
    """(b, 1) → (b,); (b, 2) stays."""
    return x.squeeze(1)


def positive_logit(output: Tensor) -> Tensor:
    """Return the logit (b,) of the positive class from a network's output (b,) or (b, 2).

    Its sigmoid is the softmax of the two.
    """
    return output if output.ndim == 1 else output[:, 1] - output[:, 0]


def find_head(network: nn.Module) -> nn.Module:
    """Return the part of a network of `build_network` that has the head's learning rate.

    Raises ModelError for a network that wsi did not build.
    """
    if not isinstance(network, Network):
        raise ModelError(
            f"{type(network).__name__}: not a network of wsi, so its head is unknown; build it with"
            " build_network"
        )
    return network.head


def make_head(features: int, options: NetworkOptions) -> nn.Module:
    """From pooled features (b, features) to logits (b, 1 or 2)."""
    if options.head == "linear":
        return nn.Linear(features, options.logits)
    return nn.Sequential(
        nn.Linear(features, DENSE_WIDTH), nn.ReLU(), nn.Linear(DENSE_WIDTH, options.logits)
    )


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def fits_patches(network: nn.Module, side_px: int) -> str | None:
    """Return the reason why a network on the meta device cannot take such patches, or None."""
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, 3, side_px, side_px, device="meta"))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return " ".join(str(error).split())[:160]
    return None


PICKLED = (".pth", ".pt", ".bin")
UNPICKLING_FAULTS = (
    pickle.UnpicklingError, AssertionError, AttributeError, EOFError, LookupError, OSError,
    RuntimeError, struct.error, TypeError, ValueError,
)  # fmt: skip
"""Errors that torch's reader raises for bytes that are not weights."""
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Entries under which training programs keep a network's weights."""
PARALLEL = "module."
"""Prefix that data-parallel training puts before each name."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a .safetensors file, or in a .pth file that holds only tensors.

    Raises ModelError for any other file.
    """
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
        # A checkpoint of wsi has its self-test beside the weights.
        return {
            name: tensor
            for name, tensor in load_file(path).items()
            if not name.startswith(SELF_TEST_PREFIX)
        }
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); copy it again"
        ) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols other than its own.
            warnings.simplefilter("ignore", UserWarning)
            # Tensors only: no code of the file is run.
            found = torch.load(path, map_location="cpu", weights_only=True)
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
    """Raise ModelError for a compressed zip file, which torch never writes."""
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
            f"{path}: holds compressed entries, which torch never writes; save the state_dict,"
            " best as .safetensors"
        )


def fit_weights(network: Network, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network; its head keeps fresh ones where they do not fit.

    Raises ModelError naming weights of the body that are missing, unknown, or of another shape; the
    network is then unchanged.
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
    """Return the prefix of the names of the head's weights."""
    head = network.head
    return next(f"{name}." for name, module in network.named_modules() if module is head)
