"""From stored pixels to what a network takes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsi_pipeline.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation per RGB channel, of pixels scaled to 0–1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        is_finite = all(
            isinstance(value, int | float) and math.isfinite(value)
            for value in (*self.mean, *self.std)
        )
        if len(self.mean) != 3 or len(self.std) != 3 or not is_finite or min(self.std) <= 0:
            raise ModelError(
                f"normalisation {self.mean} / {self.std} is not three means and three positive"
                " deviations"
            )


def normalise(pixels: Tensor, normalisation: Normalisation) -> Tensor:
    """uint8 (b, side, side, 3) → float32 (b, 3, side, side), zero mean and unit deviation per channel, on the same device."""
    mean = torch.tensor(normalisation.mean, device=pixels.device) * 255
    std = torch.tensor(normalisation.std, device=pixels.device) * 255
    x = (pixels.float() - mean) / std  # (b, side, side, 3)
    return x.permute(0, 3, 1, 2)  # (b, 3, side, side), channels last in memory


class PatchNetwork(nn.Module):
    """A network with its normalisation before it: uint8 (b, side, side, 3) → what the network gives for them."""

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
        output: Tensor = self.network(
            x.permute(0, 3, 1, 2)
        )  # (b, 3, side, side), channels last in memory
        return output


def measure_normalisation(pixels: Tensor) -> Normalisation:
    """Mean and deviation of uint8 patches (n, side, side, 3), exactly."""
    return normalisation_of(count_levels(pixels))


def count_levels(pixels: Tensor) -> Tensor:
    """How often each value 0 … 255 occurs in each channel of uint8 patches (n, side, side, 3): int64 (3, 256) on the CPU."""
    return torch.stack(
        [
            torch.bincount(pixels[..., channel].reshape(-1), minlength=256).cpu()
            for channel in range(3)
        ]
    )


def normalisation_of(counts: Tensor) -> Normalisation:
    """Mean and deviation per channel of pixels whose values were counted (3, 256)."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in counts.double():
        share = channel / channel.sum()
        mean = float((share * levels).sum())
        variance = float((share * (levels - mean) ** 2).sum())
        means.append(mean)
        deviations.append(max(variance**0.5, 1 / 255))
    return Normalisation(
        mean=(means[0], means[1], means[2]), std=(deviations[0], deviations[1], deviations[2])
    )
