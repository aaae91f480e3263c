"""The domain of a model: the colours of its training patches, and its own features of them.

A slide far from it is unlike the patches that the model was trained on and judged by. That says
nothing of how good its predictions are: only that no figure of the model speaks for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.core.calibration import read_limits
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.outcome import Distance, Limits
from wsi_pipeline.models.card import DOMAIN_PREFIX, STAIN_MEASURES
from wsi_pipeline.models.ensemble import average_limits

Floats = NDArray[np.float32]
AGAIN = "train it again"
TRIED = 8
"""Patches with which a network is tried."""


class LinearWithInput(nn.Module):
    """The last linear layer of a network, with its input: (b, d) → (b, logits + d)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.linear(x), x], dim=1)


def find_last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and layer of a network's last linear layer. Raises ModelError for none."""
    layers = [(n, part) for n, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise ModelError(
            f"{type(network).__name__}: has no linear layer, so no features to compare"
        )
    return layers[-1]


def show_features(network: nn.Module) -> nn.Module:
    """Make a network give its features beside its logits, and return it: (b, logits + d).

    Features are the input of its last linear layer. Raises ModelError for a network without one.
    """
    name, linear = find_last_linear(network)
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, LinearWithInput(linear))
    return network


def gives_features(network: nn.Module, side_px: int) -> bool:
    """Return whether the last linear layer of a network gives its logits; the network is changed.

    Of networks that users wrote that is not known beforehand.
    """
    linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
    if not linear:
        return False
    logits = linear[-1].out_features
    # Plain colours, far apart: features of one sign alone can hide what is done with the logits.
    colours = 3 * torch.randn(TRIED, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    x = colours.expand(-1, -1, side_px, side_px).contiguous()
    try:
        with torch.inference_mode():
            plain = network.eval()(x).reshape(TRIED, -1)
            output = show_features(network)(x)
    except (RuntimeError, ValueError):
        return False
    is_whole = tuple(output.shape) == (TRIED, logits + linear[-1].in_features)
    return is_whole and torch.equal(output[:, :logits], plain)


@dataclass(frozen=True)
class Domain:
    """Stains and features of training patches, and the limits for a slide's distance from them."""

    stain_center: Tensor
    """float32 (9,) mean over the training patients of each patient's median stains."""
    stain_scale: Tensor
    """float32 (9, 9): times a deviation from the centre, a deviation of unit covariance."""
    means: Tensor
    """float32 (2, d) of the features of each class."""
    axes: Tensor
    """float32 (k, d) orthonormal directions of the largest variances within the classes."""
    variances: Tensor
    """float32 (k + 1,) along the axes, and in every direction beside them."""
    limits: Limits = field(default=Limits())

    def __post_init__(self) -> None:
        size, axes = self.means.shape[-1], len(self.axes)
        shapes = [tuple(part.shape) for part in self.to_tensors().values()]
        stains = STAIN_MEASURES
        if shapes != [(stains,), (stains, stains), (2, size), (axes, size), (axes + 1,)]:
            raise ModelError(f"the statistics of its training patches do not fit together; {AGAIN}")
        if not bool((self.variances > 0).all()):
            raise ModelError(f"a variance of its features is not positive; {AGAIN}")

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the statistics by the names that a checkpoint has them under."""
        names = ("stain_center", "stain_scale", "means", "axes", "variances")
        return {f"{DOMAIN_PREFIX}{name}": getattr(self, name) for name in names}

    @classmethod
    def take(cls, tensors: dict[str, Tensor], limits: Mapping[str, Any] | None) -> "Domain | None":
        """Return the domain among a checkpoint's tensors, removed from them. Raises ModelError."""
        names = [name for name in tensors if name.startswith(DOMAIN_PREFIX)]
        found = {name.removeprefix(DOMAIN_PREFIX): tensors.pop(name) for name in names}
        if limits is None and not found:
            return None
        try:
            own = {name: tensor.float() for name, tensor in found.items()}
            return cls(**own, limits=read_limits(limits or {}))
        except TypeError as error:
            raise ModelError(f"a statistic of its training patches is missing; {AGAIN}") from error

    def compare_features(self, features: Tensor) -> Floats:
        """Return the Mahalanobis distance float32 (b,) of features (b, d), over the root of d.

        From the nearer class, with one covariance for both (Lee et al. 2018), whose largest
        directions have variances of their own (Tipping & Bishop 1999).
        """
        own, rest = self.variances[:-1].double(), self.variances[-1].double()
        off = features.double()[:, None] - self.means.double()  # (b, 2, d)
        along = off @ self.axes.double().T  # (b, 2, k)
        beside = (off**2).sum(2) - (along**2).sum(2)  # (b, 2)
        squared = (along**2 / own).sum(2) + beside.clamp(min=0) / rest
        nearest = squared.min(dim=1).values / self.means.shape[1]
        return np.asarray(nearest.sqrt().numpy(), dtype=np.float32)

    def measure(self, stains: Floats, distances: Floats) -> Distance:
        """Return a slide's distance by stains (k, 9) and distances (k,) of some patches.

        Of its median stains, the Mahalanobis distance over the root of 9; of its features, the
        median. A slide like the training patches has about 1 in both.
        """
        known = np.isfinite(distances)
        if not known.any():
            return Distance()
        off = (
            np.median(stains[known].astype(np.float64), axis=0) - self.stain_center.double().numpy()
        )
        colour = np.sqrt(np.mean((self.stain_scale.double().numpy() @ off) ** 2))
        return Distance(float(colour), float(np.median(distances[known].astype(np.float64))))


@dataclass(frozen=True)
class Domains:
    """The domains of an ensemble's members: means of their distances and limits."""

    members: tuple[Domain, ...]

    @property
    def limits(self) -> Limits:
        return average_limits([member.limits for member in self.members]) or Limits()

    def compare_features(self, features: Tensor) -> Floats:
        sizes = [member.means.shape[1] for member in self.members]
        parts = zip(self.members, features.split(sizes, dim=1), strict=True)
        distances = [member.compare_features(part) for member, part in parts]
        return np.asarray(np.mean(distances, axis=0), dtype=np.float32)

    def measure(self, stains: Floats, distances: Floats) -> Distance:
        found = [member.measure(stains, distances) for member in self.members]
        return Distance(*(_mean(column) for column in zip(*found, strict=True)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
