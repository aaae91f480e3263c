"""Patches cut straight from a slide: each macro-tile is read once and cut up in memory.

Memory for the pixels of blocks is used again and again: a block is 31 MB. Fresh memory comes from
the operating system page by page, each cleared first, and on virtual machines that takes longer
than decoding a third of the block; memory that was used before costs nothing.
"""

import threading
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import Grid, block_slice, macro_tile_codes
from wsi_pipeline.core.slide import PatchBlock, SlideInfo
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.cutting import Cut, cut_region
from wsi_pipeline.slides.scaling import ScaledView
from wsi_pipeline.slides.tiff_reader import CutsPatches

MACRO_TILE_LEVEL_PX = 2048
"""About the side of a macro-tile in pixels of the level that is read: 12 MB of RGB, and large against any JPEG tile."""
REDUCED_MACRO_TILE_LEVEL_PX = 1024
"""The same where pixels are averaged, which takes several times the memory."""
KEPT = 4
"""Buffers that wait to be used again: as many as blocks are under way."""


class SlidePatches:
    """The patches of `positions` (n, 2), read from the slide; pixel-identical to what a patch store holds of them."""

    def __init__(
        self, reader: SlideReader, grid: Grid, positions: NDArray[np.int32], block_size: int
    ) -> None:
        self._reader = reader
        self._view = view_grid(reader, grid)
        self._macro_tiles = macro_tiles_per_patch(self._view, grid)
        self.grid = grid
        self.positions = positions
        self.block_size = block_size

    @property
    def slide(self) -> SlideInfo:
        """The slide that the patches are cut from."""
        return self._reader.info

    def read_block(self, block: int) -> PatchBlock:
        """The pixels of block number `block`; patches that cannot be decoded are white and marked unreadable."""
        positions = self.positions[block_slice(block, self.block_size, len(self.positions))]
        codes = macro_tile_codes(positions, self._macro_tiles)
        # Macro-tile by macro-tile, and in each from top left to bottom right: a reader copies runs
        # of neighbours at once.
        order = np.lexsort((positions[:, 1], positions[:, 0], codes))
        if (order[1:] > order[:-1]).all():
            return self._read_in_order(positions, codes)
        place = np.argsort(order, kind="stable")
        pixels, readable, fallbacks = self._read_in_order(positions[order], codes[order])
        return PatchBlock(pixels[place], readable[place], fallbacks)

    def _read_in_order(self, positions: NDArray[np.int32], codes: NDArray[np.uint64]) -> PatchBlock:
        side = self.grid.spec.side_px
        pixels = BUFFERS.take((len(positions), side, side, 3))
        readable = np.ones(len(positions), dtype=np.bool_)
        fallbacks_before = self._reader.fallbacks
        edges = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(positions)]
        for start, stop in pairwise(edges if len(positions) else []):
            try:
                self._read_together(positions[start:stop], pixels[start:stop])
            except SlideError:
                self._read_singly(positions[start:stop], pixels[start:stop], readable[start:stop])
        return PatchBlock(pixels, readable, self._reader.fallbacks - fallbacks_before)

    def _read_together(self, positions: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        """Fill `pixels` (b, side, side, 3) with the patches of cells that lie close together."""
        spec, view = self.grid.spec, self._view
        if isinstance(self._reader, CutsPatches) and (corner := view.corner_on_level()) is not None:
            cut = Cut(positions, *corner, spec.side_px, spec.stride_px)
            if self._reader.cut(view.level, cut, pixels):
                return
        cut = Cut(positions, 0, 0, spec.side_px, spec.stride_px)
        cut_region(view.read(*cut.box, None if cut.is_full else cut.boxes), cut, pixels)

    def _read_singly(
        self, positions: NDArray[np.int32], pixels: NDArray[np.uint8], readable: NDArray[np.bool_]
    ) -> None:
        """Read patch by patch, so that one bad JPEG tile costs only the patches that it lies under."""
        for index in range(len(positions)):
            try:
                self._read_together(positions[index : index + 1], pixels[index : index + 1])
            except SlideError:
                pixels[index] = 255
                readable[index] = False


def view_grid(reader: SlideReader, grid: Grid) -> ScaledView:
    """The slide at the grid's scale, from the nearest level that is not coarser."""
    level = choose_level(reader.levels, grid.downsample)
    return ScaledView(reader, level, grid.downsample, grid.origin_xy_l0)


def macro_tiles_per_patch(view: ScaledView, grid: Grid) -> tuple[Fraction, Fraction]:
    """How much of a macro-tile one step down, and one to the right, is; macro-tiles are whole tiles of the level that is read.

    It depends on the slide alone and not on who reads it, for it decides the order of patches in a
    store.
    """
    step = grid.spec.stride_px * view.reduction
    wanted = MACRO_TILE_LEVEL_PX if view.reduction == 1 else REDUCED_MACRO_TILE_LEVEL_PX
    width, height = (wanted // side * side or wanted for side in view.level.tile or (1, 1))
    return step / height, step / width


class PixelBuffers:
    """Hands out arrays whose memory comes back by itself when the last of their views is gone; safe to share between threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of that shape; its content is arbitrary, as of `numpy.empty`."""
        size = prod(shape)
        return np.asarray(_Lease(self, self._find(size), shape))

    def _find(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            for index, buffer in enumerate(self._free):
                if size <= buffer.nbytes <= 2 * size:
                    return self._free.pop(index)
        return np.empty(size, np.uint8)

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a buffer for the next one who needs its size; the one that waited longest goes."""
        with self._lock:
            self._free.append(buffer)
            del self._free[: -self._kept]


class _Lease:
    """The owner of one array's memory, as NumPy sees it."""

    def __init__(
        self, owner: PixelBuffers, buffer: NDArray[np.uint8], shape: tuple[int, ...]
    ) -> None:
        self._owner = owner
        self._buffer = buffer
        self.__array_interface__: dict[str, Any] = {
            "shape": shape,
            "typestr": "|u1",
            "data": (buffer.ctypes.data, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self._owner.give_back(self._buffer)


BUFFERS = PixelBuffers()
"""Those of this process."""
