"""Patches cut straight from a slide: each macro-tile is read once and cut up in memory."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Grid, block_slice
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.scaling import ScaledView
from wsi_pipeline.sources import PatchBlock, SlideInfo

MACRO_TILE_LEVEL_PX = 1000
"""Side of a macro-tile in pixels of the level that is read: 3 MB of RGB, and large against any JPEG tile."""


class SlidePatches:
    """The patches of `cells` (n, 2), read from the slide; pixel-identical to what a patch store holds of them."""

    def __init__(self, reader: SlideReader, grid: Grid, cells: NDArray[np.int32], block_size: int) -> None:
        self._reader = reader
        self._view = view_grid(reader, grid)
        self._tile_cells = macro_tile_cells(self._view, grid)
        self.grid = grid
        self.cells = cells
        self.block_size = block_size

    @property
    def slide(self) -> SlideInfo:
        """The slide that the patches are cut from."""
        return self._reader.info

    def read_block(self, block: int) -> PatchBlock:
        """The pixels of block number `block`; patches that cannot be decoded are white and marked unreadable."""
        cells = self.cells[block_slice(block, self.block_size, len(self.cells))]
        side = self.grid.spec.side_px
        result = PatchBlock(
            pixels=np.full((len(cells), side, side, 3), 255, dtype=np.uint8),
            readable=np.ones(len(cells), dtype=np.bool_),
        )
        for members in _group_by_macro_tile(cells, self._tile_cells):
            try:
                result.pixels[members] = self._read_together(cells[members])
            except SlideError:
                self._read_singly(cells, members, result)
        return result

    def _read_together(self, cells: NDArray[np.int32]) -> NDArray[np.uint8]:
        """One read of the rectangle around the cells, cut into patches (b, side, side, 3)."""
        side, stride = self.grid.spec.side_px, self.grid.spec.stride_px
        first, last = cells.min(axis=0), cells.max(axis=0)
        rows, cols = (int(extent) for extent in last - first + 1)
        y, x = (int(start) * stride for start in first)
        region = self._view.read(x, y, (cols - 1) * stride + side, (rows - 1) * stride + side)
        windows = np.lib.stride_tricks.sliding_window_view(region, (side, side), axis=(0, 1))
        on_grid = windows[::stride, ::stride]  # (rows, cols, 3, side, side)
        row, col = (cells - first).T
        patches: NDArray[np.uint8] = on_grid[row, col].transpose(0, 2, 3, 1)  # (b, side, side, 3)
        return patches

    def _read_singly(self, cells: NDArray[np.int32], members: NDArray[np.intp], result: PatchBlock) -> None:
        """Read patch by patch, so that one bad JPEG tile costs only the patches that it lies under."""
        for member in members:
            try:
                result.pixels[member] = self._read_together(cells[member][None])[0]
            except SlideError:
                result.readable[member] = False


def view_grid(reader: SlideReader, grid: Grid) -> ScaledView:
    """The slide at the grid's scale, from the nearest level that is not coarser."""
    level = choose_level(reader.levels, grid.downsample)
    return ScaledView(reader, level, grid.downsample, grid.origin_xy_l0)


def macro_tile_cells(view: ScaledView, grid: Grid) -> int:
    """Cells along one side of a macro-tile."""
    return max(1, int(MACRO_TILE_LEVEL_PX / (grid.spec.stride_px * view.reduction)))


def _group_by_macro_tile(cells: NDArray[np.int32], tile_cells: int) -> Iterator[NDArray[np.intp]]:
    """Indices of the cells of each macro-tile in turn."""
    if len(cells) == 0:
        return
    tiles = cells // np.int32(tile_cells)
    _, owner = np.unique(tiles, axis=0, return_inverse=True)
    order = np.argsort(owner.ravel(), kind="stable")
    starts = np.flatnonzero(np.diff(owner.ravel()[order])) + 1
    yield from np.split(order, starts)
