"""A few drawn patches with known answers: who computes something else is found before any slide is opened."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.geometry import PatchSpec

PATCHES = 12
GRAINS_PX = (2, 6, 20)
"""Sides of the blots that patches are drawn with."""
HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)
"""Absorption of red, green and blue (Ruifrok & Johnston 2001)."""

PREFIX = "self_test."
"""How its tensors are named beside the weights."""


@dataclass(frozen=True)
class SelfTest:
    """Patches, and the probabilities that the plain network gives for them in fp32 on a CPU."""

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


class Tested(Protocol):
    """What a self-test is made of."""

    @property
    def spec(self) -> PatchSpec: ...

    def network(self) -> nn.Module: ...

    def probability(self, output: Tensor) -> Tensor: ...


def make_self_test(model: Tested) -> SelfTest:
    """Drawn patches and what the plain network gives for them; nobody's tissue is in it."""
    pixels = draw_patches(model.spec.side_px)
    return SelfTest(pixels, compute_plainly(model, pixels))


def compute_plainly(model: Tested, pixels: Tensor) -> Tensor:
    """The probabilities (b,) that define what a model gives: its network as it is, fp32, on one thread of the CPU."""
    network = model.network()

    def compute() -> Tensor:
        torch.set_num_threads(
            1
        )  # of this thread alone: the last bits would depend on the number of cores
        with torch.inference_mode():
            return model.probability(network(pixels).float())

    with ThreadPoolExecutor(1, "plain") as pool:
        # A clone, for what inference mode makes cannot be used outside it.
        return pool.submit(compute).result().clone()


def draw_patches(side_px: int) -> Tensor:
    """uint8 (12, side, side, 3): blots of haematoxylin and eosin of several sizes, from pale to dark, the same every time."""
    generator = torch.Generator().manual_seed(0)
    stains = torch.zeros(PATCHES, 2, side_px, side_px)
    for grain in GRAINS_PX:
        positions = -(-side_px // grain) + 1
        blots = torch.rand(PATCHES, 2, positions, positions, generator=generator)
        stains += interpolate(blots, (side_px, side_px), mode="bilinear", align_corners=True) / len(
            GRAINS_PX
        )
    strength = torch.linspace(0.2, 6.0, PATCHES).view(-1, 1, 1, 1)
    density = torch.einsum(
        "bshw,sc->bhwc", strength * stains**2, torch.tensor([HAEMATOXYLIN, EOSIN])
    )
    return (torch.exp(-density) * 243).round().to(torch.uint8)  # (b, side, side, 3)
