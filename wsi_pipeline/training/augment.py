"""Changes to training patches that leave their class as it is, made in batches on the device."""

import torch
from torch import Tensor

BRIGHTNESS = 0.1
CONTRAST = 0.1


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each patch of (b, 3, side, side) turned and mirrored at random (8 ways), brightness and contrast shifted a little.

    `generator` lives on the CPU, so that a seed gives the same changes on every device.
    """
    return shift_tone(turn(x, generator), generator)


def turn(x: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square for each patch; tissue has no up."""
    ways = torch.randint(0, 8, (len(x),), generator=generator).to(x.device)
    turned = torch.empty_like(x)
    for way in range(8):
        chosen = ways == way
        part = torch.rot90(x[chosen], way % 4, dims=(2, 3))
        turned[chosen] = part.flip(3) if way >= 4 else part
    return turned


def shift_tone(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised values times 1 ± CONTRAST plus ± BRIGHTNESS, one draw per patch."""
    draws = torch.rand((2, len(x), 1, 1, 1), generator=generator).to(x.device) * 2 - 1
    return x * (1 + CONTRAST * draws[0]) + BRIGHTNESS * draws[1]
