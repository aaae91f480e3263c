"""The interface of trained models: normalisation of patches, self-test, terms of use."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.outcome import Distance, Limits
from wsi_pipeline.models.card import ModelFacts, Normalisation
from wsi_pipeline.models.stains import EOSIN, HAEMATOXYLIN


def normalise(pixels: Tensor, normalisation: Normalisation) -> Tensor:
    """Return uint8 (b, side, side, 3) as float32 (b, 3, side, side), zero mean, unit deviation.

    Mean and deviation are per channel; the result stays on the same device.
    """
    mean = torch.tensor(normalisation.mean, device=pixels.device) * 255
    std = torch.tensor(normalisation.std, device=pixels.device) * 255
    x = (pixels.float() - mean) / std  # (b, side, side, 3)
    return x.permute(0, 3, 1, 2)  # (b, 3, side, side), channels last in memory


class PatchNetwork(nn.Module):
    """A network preceded by its normalisation; it takes uint8 (b, side, side, 3)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.normalisation = normalisation
        self.register_buffer("mean", torch.tensor(normalisation.mean) * 255)
        self.register_buffer("std", torch.tensor(normalisation.std) * 255)

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.float() - self.mean) / self.std  # (b, side, side, 3)
        # (b, 3, side, side), channels last in memory
        output: Tensor = self.network(x.permute(0, 3, 1, 2))
        return output


def count_levels(pixels: Tensor) -> Tensor:
    """Return the count of each value of uint8 patches (n, side, side, 3): int64 (3, 256), CPU."""
    channels = pixels.reshape(-1, 3).T
    return torch.stack([torch.bincount(channel, minlength=256).cpu() for channel in channels])


def normalisation_of(counts: Tensor) -> Normalisation:
    """Return mean and deviation per channel of pixels whose values were counted (3, 256)."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in counts.double():
        share = channel / channel.sum()
        mean = float((share * levels).sum())
        variance = float((share * (levels - mean) ** 2).sum())
        means.append(mean)
        deviations.append(max(variance**0.5, 1 / 255))
    (red, green, blue), (red_std, green_std, blue_std) = means, deviations
    return Normalisation((red, green, blue), (red_std, green_std, blue_std))


PATCHES = 12
GRAINS_PX = (2, 6, 20)
"""Sizes of the blots that make up the synthetic patches."""


@dataclass(frozen=True)
class SelfTest:
    """Patches with the probabilities of the reference network, each patch alone: fp32, CPU."""

    pixels: Tensor
    """uint8 (k, side, side, 3)"""
    probability: Tensor
    """float32 (k,)"""

    def __post_init__(self) -> None:
        count = self.pixels.shape[0] if self.pixels.ndim == 4 else 0
        if (
            self.pixels.dtype != torch.uint8
            or self.probability.dtype != torch.float32
            or self.probability.shape != (count,)
            or not count
        ):
            raise ModelError("its self-test is not patches with a probability each; train it again")


def make_self_test(model: "Model") -> SelfTest:
    """Return synthetic patches with the probabilities of the reference network."""
    pixels = make_test_patches(model.spec.side_px)
    return SelfTest(pixels, compute_reference(model, pixels))


def compute_reference(model: "Model", pixels: Tensor) -> Tensor:
    """Return the reference probabilities (b,): the unchanged network, fp32, one CPU thread."""
    network = model.network()

    def compute() -> Tensor:
        # Of this thread alone: the last bits would depend on the number of cores.
        torch.set_num_threads(1)
        with torch.inference_mode():
            return model.logit(network(pixels).float())

    with ThreadPoolExecutor(1, "plain") as pool:
        logits = pool.submit(compute).result().numpy()
    return torch.from_numpy(model.terms.alone.calibration.apply(logits))


def make_test_patches(side_px: int) -> Tensor:
    """Return uint8 (12, side, side, 3): blots of haematoxylin and eosin, always the same.

    They come in several sizes, from pale to dark.
    """
    generator = torch.Generator().manual_seed(0)
    stains = torch.zeros(PATCHES, 2, side_px, side_px)
    for grain in GRAINS_PX:
        count = -(-side_px // grain) + 1
        blots = torch.rand(PATCHES, 2, count, count, generator=generator)
        fine = interpolate(blots, (side_px, side_px), mode="bilinear", align_corners=True)
        stains += fine / len(GRAINS_PX)
    strength = torch.linspace(0.2, 6.0, PATCHES).view(-1, 1, 1, 1)
    colors = torch.tensor([HAEMATOXYLIN, EOSIN])
    density = torch.einsum("bshw,sc->bhwc", strength * stains**2, colors)
    return (torch.exp(-density) * 243).round().to(torch.uint8)  # (b, side, side, 3)


class DomainLike(Protocol):
    """A domain as a run uses it: one model's, or an ensemble's."""

    @property
    def limits(self) -> Limits: ...

    def compare_features(self, features: Tensor) -> NDArray[np.float32]:
        """Return the distance float32 (b,) of patches' features (b, d)."""

    def measure(self, stains: NDArray[np.float32], distances: NDArray[np.float32]) -> Distance:
        """Return a slide's distance by stains (k, 9) and distances (k,) of some patches."""


class Model(ModelFacts, Protocol):
    """A trained network with its terms of use: a checkpoint, or a WSInfer zoo folder."""

    @property
    def self_test(self) -> SelfTest | None:
        """Patches with the probabilities recorded when the model was made; None: not stored."""

    @property
    def is_script(self) -> bool:
        """True if its network is TorchScript, whose code cannot be traced again."""

    @property
    def resizes_patches(self) -> bool:
        """True if its network resizes patches first."""

    @property
    def domain(self) -> DomainLike | None:
        """Colours and features of its training patches; None: not known."""

    def network(self, *, has_features: bool = False) -> nn.Module:
        """Return a new network on the CPU: uint8 (b, side, side, 3) → (b,) or (b, outputs).

        With features, those that its domain compares follow the logits; without a domain, none.
        """

    def logit(self, output: Tensor) -> Tensor:
        """Return the logit (b,) of the positive class from the network's output, float32."""

    def spread(self, output: Tensor) -> Tensor | None:
        """Return the standard deviation (b,) of an ensemble's logits, float32; None: one model."""

    def features(self, output: Tensor) -> Tensor | None:
        """Return the features (b, d) in the output of a network that gives them, else None."""
