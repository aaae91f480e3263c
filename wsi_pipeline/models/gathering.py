"""Patches gathered from decoded tiles, on any device: the very pixels that a store holds."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.patch_table import TiledBlock


class TiledPatches(NamedTuple):
    """Some patches of a `TiledBlock`, on a device."""

    tiles: Tensor
    """uint8 (t, height, width, 3)"""
    under: Tensor
    """int32 (b, rows, cols)"""
    corners: Tensor
    """int32 (b, 2)"""

    def gather(self, side_px: int) -> Tensor:
        """Return the pixels, uint8 (b, side, side, 3)."""
        _, height, width, channels = self.tiles.shape
        count, rows, cols = self.under.shape
        device, dtype = self.tiles.device, torch.int32
        along = torch.arange(side_px, dtype=dtype, device=device)
        y, x = self.corners[:, :1] + along, self.corners[:, 1:] + along  # (b, side)
        step = rows * cols
        first = torch.arange(0, count * step, step, dtype=dtype, device=device)[:, None]
        place = (first + y // height * cols)[:, :, None] + (x // width)[:, None]  # (b, side, side)
        tile = self.under.reshape(-1).index_select(0, place.view(-1)).view(place.shape)
        pixel = (tile * height + (y % height)[:, :, None]) * width + (x % width)[:, None]
        pixels = self.tiles.view(-1, channels).index_select(0, pixel.view(-1))
        return pixels.view(count, side_px, side_px, channels)


def cut_patches(
    block: TiledBlock, chosen: NDArray[np.intp] | slice = slice(None)
) -> NDArray[np.uint8]:
    """Return the pixels of some patches of a block, or of all: (k, side, side, 3)."""
    under, corners = block.under[chosen], block.corners[chosen]
    patches = TiledPatches(*map(torch.from_numpy, (block.tiles, under, corners)))
    pixels: NDArray[np.uint8] = patches.gather(block.side_px).numpy()
    return pixels
