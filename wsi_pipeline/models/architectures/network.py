"""The base class of networks, and weights to start from.

A network takes patches and gives one or two logits; its head may have its own learning rate.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.models.card import SELF_TEST_PREFIX
from wsi_pipeline.models.outlines import DENSE_WIDTH, NetworkOptions


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
        name = type(self).__name__
        raise ModelError(f"{name}: no weights are published; give a file, or train fresh ones")


def squeeze_logits(x: Tensor) -> Tensor:
    """(b, 1) → (b,); (b, 2) stays."""
    return x.squeeze(1)


def positive_logit(output: Tensor) -> Tensor:
    """Return the logit (b,), for a sigmoid, of the positive class from output (b,) or (b, 2)."""
    return output if output.ndim == 1 else output[:, 1] - output[:, 0]


def find_head(network: nn.Module) -> nn.Module:
    """Return the head of a network. Raises ModelError for one that wsi did not build."""
    return check_network(network).head


def check_network(network: nn.Module) -> Network:
    """Return a network of `build_network` as such. Raises ModelError for any other."""
    if isinstance(network, Network):
        return network
    raise ModelError(f"{type(network).__name__}: not a network of wsi; build it with build_network")


def make_head(features: int, options: NetworkOptions) -> nn.Module:
    """From pooled features (b, features) to logits (b, 1 or 2)."""
    if options.head == "linear":
        return nn.Linear(features, options.logits)
    hidden, last = nn.Linear(features, DENSE_WIDTH), nn.Linear(DENSE_WIDTH, options.logits)
    return nn.Sequential(hidden, nn.ReLU(), last)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def fits_patches(network: nn.Module, side_px: int) -> str | None:
    """Return the reason why a network on the meta device cannot take such patches, or None."""
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, 3, side_px, side_px, device="meta"))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return one_line(error)
    return None


PICKLED = (".pth", ".pt", ".bin")
UNPICKLING_FAULTS = (
    pickle.UnpicklingError, AssertionError, AttributeError, EOFError, LookupError, OSError,
    RuntimeError, struct.error, TypeError, ValueError,
)  # fmt: skip
"""Errors that torch's reader raises for bytes that are not weights."""
SAVE = "save the state_dict, best as .safetensors"
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Entries under which training programs keep a network's weights."""
COUNTER = "num_batches_tracked"
PARALLEL = "module."
"""Prefix that data-parallel training puts before each name."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a .safetensors or a .pth file. Raises ModelError for any other."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise ModelError(f"{path}: weights are read from .safetensors and .pth files; give one")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = f"{path}: not a whole safetensors file ({error}); copy it again"
        raise ModelError(reason) from error
    # A checkpoint of wsi has its self-test beside the weights.
    return {name: tensors[name] for name in tensors if not name.startswith(SELF_TEST_PREFIX)}


def _read_pickled(path: Path) -> dict[str, Tensor]:
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols other than its own.
            warnings.simplefilter("ignore", UserWarning)
            # Tensors only: no code of the file is run.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UNPICKLING_FAULTS as error:
        raise ModelError(
            f"{path}: not a file of weights alone ({one_line(error)}); {SAVE}"
        ) from error
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = found.values() if isinstance(found, Mapping) else ()
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ModelError(f"{path}: holds no table of tensors; {SAVE}")
    return {str(name).removeprefix(PARALLEL): tensor for name, tensor in found.items()}


def _refuse_compressed(path: Path) -> None:
    """Raise ModelError for a compressed zip file, which torch never writes."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            types = {entry.compress_type for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a whole file of weights ({error}); copy it again") from error
    if types - {zipfile.ZIP_STORED}:
        raise ModelError(f"{path}: holds compressed entries, which torch never writes; {SAVE}")


def fit_weights(network: Network, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network; its head keeps fresh ones where they do not fit.

    Raises ModelError naming weights of the body that are missing, unknown, or of another shape; the
    network is then unchanged.
    """
    own, given = network.state_dict(), network.rename_weights(weights)
    part = network.head
    head = next(f"{name}." for name, module in network.named_modules() if module is part)
    fitting = {
        key: given[key] for key in own if key in given and own[key].shape == given[key].shape
    }
    # Counters of old files that a network may lack decide nothing.
    wanted = [key for key in own if not key.startswith(head) and not key.endswith(COUNTER)]
    faults = {
        "are missing": [key for key in wanted if key not in given],
        "have another shape": [key for key in wanted if key in given and key not in fitting],
        "are unknown to it": [key for key in given if key not in own and not key.startswith(head)],
    }
    for fault, keys in faults.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"{source}: weights do not fit this network: {', '.join(keys[:3])}{more} {fault};"
                " give weights of this architecture and patch size"
            )
    if bad := [key for key, tensor in fitting.items() if not bool(torch.isfinite(tensor).all())]:
        raise ModelError(f"{source}: weights {bad[0]} are not finite; give another file")
    network.load_state_dict(own | fitting)
