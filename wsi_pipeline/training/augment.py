"""Augmentation of training patches, in batches on the device.

All functions take (b, 3, side, side) float32 RGB from 0 to 1 and draw random numbers on the CPU, so
that a seed gives the same changes on every device.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.device import to_device

STAINS_TO_RGB = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Absorption of red, green and blue by haematoxylin, eosin and DAB (Ruifrok & Johnston 2001)."""
DARKEST = 1 / 255
AFFINE_DEGREES = 15.0
AFFINE_SCALE = 0.1
AFFINE_SHIFT = 0.05


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Kinds of change with their strengths; 0 or False leaves one out."""

    flips: bool = True
    """Mirror half of the patches."""
    turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees; tissue has no up."""
    affine: float = 0.0
    """Turn by up to ±15°, scale by up to ±10 %, shift by up to ±5 % of the side, all times this."""
    brightness: float = 0.1
    """Add up to ± this, the same to all channels."""
    contrast: float = 0.1
    """Stretch about the patch's mean by 1 ± this."""
    hed: float = 0.0
    """Stain jitter: each stain (haematoxylin, eosin, DAB) times 1 ± this, plus ± this, in density.

    After Tellez et al. 2018.
    """

    def __post_init__(self) -> None:
        for name in ("affine", "brightness", "contrast", "hed"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ConfigError(f"augmentation: {name} is {value}; it must lie between 0 and 1")

    def apply(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the patches with every change that is switched on; values stay within 0 to 1."""
        if self.flips or self.turns:
            x = turn(x, generator, flips=self.flips, turns=self.turns)
        if self.affine:
            x = warp(x, self.affine, generator)
        if self.hed:
            x = jitter_stains(x, self.hed, generator)
        if self.brightness or self.contrast:
            x = shift_tone(x, self.brightness, self.contrast, generator)
        return x


NO_AUGMENTATION = Augmentation(flips=False, turns=False, brightness=0.0, contrast=0.0)


def turn(
    x: Tensor, generator: torch.Generator, *, flips: bool = True, turns: bool = True
) -> Tensor:
    """Return each patch in one of the eight symmetries of the square.

    Without flips in one of four turns, without turns in one of two mirror images.
    """
    quarters = torch.randint(0, 4 if turns else 1, (len(x),), generator=generator)
    mirrored = torch.randint(0, 2 if flips else 1, (len(x),), generator=generator)
    ways = to_device(quarters + 4 * mirrored, x.device)
    area = x.shape[2] * x.shape[3]
    starts = torch.arange(len(x), device=x.device) * area
    places = _turned_places(x.shape[2], x.device)[ways] + starts[:, None]  # (b, side · side)
    pixels = x.permute(0, 2, 3, 1)  # (b, side, side, 3), which x is in memory
    turned = pixels.reshape(-1, x.shape[1]).index_select(0, places.reshape(-1))
    return turned.reshape(pixels.shape).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _turned_places(side: int, device: torch.device) -> Tensor:
    """Return (8, side · side): for each symmetry, which pixel comes to each place."""
    places = torch.arange(side * side).view(side, side)
    turned = [torch.rot90(places, way % 4) for way in range(8)]
    ways = [place.flip(1) if way >= 4 else place for way, place in enumerate(turned)]
    return torch.stack(ways).view(8, -1).to(device)


def warp(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift about the centre; pixels from outside are the patch mirrored."""
    draws = _random((4, len(x)), generator) * strength  # turn, scale, shift x, shift y
    angle = draws[0] * math.radians(AFFINE_DEGREES)
    scale = 1 + draws[1] * AFFINE_SCALE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = draws[2:] * 2 * AFFINE_SHIFT  # the grid runs from -1 to 1
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1
    )  # (b, 2, 3)
    grid = affine_grid(to_device(theta, x.device), list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def jitter_stains(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Make each stain stronger or weaker by colour deconvolution."""
    to_rgb, to_stains = _stain_matrices(x.device)
    density = -torch.log(x.clamp_min(DARKEST))  # (b, 3, side, side), natural logarithm
    stains = torch.einsum("bchw,cs->bshw", density, to_stains)
    draws = to_device(_random((2, len(x), 3, 1, 1), generator), x.device) * strength
    stains = stains * (1 + draws[0]) + draws[1]
    return torch.exp(-torch.einsum("bshw,sc->bchw", stains, to_rgb)).clamp(0, 1)


@lru_cache(maxsize=8)
def _stain_matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the absorption (stain, colour) and its inverse, on the device."""
    to_rgb = torch.tensor(STAINS_TO_RGB)
    return to_rgb.to(device), torch.linalg.inv(to_rgb).to(device)


def shift_tone(x: Tensor, brightness: float, contrast: float, generator: torch.Generator) -> Tensor:
    """Stretch each patch about its mean by 1 ± contrast and add ± brightness."""
    draws = to_device(_random((2, len(x), 1, 1, 1), generator), x.device)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast * draws[0]) + mean + brightness * draws[1]).clamp(0, 1)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return uniform random numbers from -1 to 1."""
    return torch.rand(shape, generator=generator) * 2 - 1
