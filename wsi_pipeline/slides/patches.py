"""Patches cut straight from a slide: each macro-tile is read once and cut up in memory."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.buffers import PixelBuffers
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import Grid, block_slice, macro_tile_codes
from wsi_pipeline.core.patch_table import PatchBlock, TiledBlock
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.slides.base import Box, Boxes, Level, SlideReader, choose_level
from wsi_pipeline.slides.scaling import ScaledView


class Cut(NamedTuple):
    """Patches to cut from one level: `positions` (b, 2), (0, 0) at (x, y) of the level."""

    positions: NDArray[np.int32]
    x: int
    y: int
    side: int
    stride: int

    @property
    def box(self) -> Box:
        """The rectangle around all of them."""
        first, last = self.positions.min(axis=0), self.positions.max(axis=0)
        top, left = (int(place) * self.stride for place in first)
        height, width = (int(extent) * self.stride + self.side for extent in last - first)
        return self.x + left, self.y + top, width, height

    @property
    def boxes(self) -> Boxes:
        """Their boxes, (b, 4)."""
        corners = self.positions[:, ::-1].astype(np.int64) * self.stride + [self.x, self.y]
        return np.concatenate([corners, np.full_like(corners, self.side)], axis=1)

    @property
    def is_full(self) -> bool:
        """True where they fill the rectangle around them."""
        rows, cols = np.ptp(self.positions, axis=0) + 1
        return len(self.positions) == int(rows) * int(cols)


@runtime_checkable
class CutsPatches(Protocol):
    """A reader that cuts patches itself, where it can."""

    def cut(self, level: Level, cut: Cut, pixels: NDArray[np.uint8]) -> bool:
        """Fill `pixels` (b, side, side, 3), or return False where `read` must do it.

        Raises SlideError where a tile cannot be decoded by any reader.
        """
        ...

    def lend_tiles(self, level: Level, cut: Cut, buffers: PixelBuffers) -> TiledBlock | None:
        """Return patches as the tiles under them, or None where `cut` or `read` must do it."""
        ...


class TilesUnder(NamedTuple):
    """The tiles under patches, and the patches' places on them; see `TiledBlock`."""

    numbers: NDArray[np.int64]
    """(t,) of the tiles on their level, ascending."""
    is_shared: NDArray[np.bool_]
    """(t,) True where other patches than these may lie on a tile, too."""
    under: NDArray[np.int32]
    corners: NDArray[np.int32]


def find_tiles(cut: Cut, tile: tuple[int, int], across: int) -> TilesUnder:
    """Return the tiles of (width, height), `across` in a row of the level, under patches on it."""
    left, top = cut.boxes[:, :2].T
    cols, x = _tiles_along(left, cut.side, tile[0])
    rows, y = _tiles_along(top, cut.side, tile[1])
    numbers = rows[:, :, None] * across + cols[:, None]  # (b, rows, cols)
    first = int(numbers.min())
    is_touched = _is_next(rows)[:, :, None] & _is_next(cols)[:, None]
    patches = np.bincount(numbers[is_touched] - first)  # on each tile; faster than np.unique
    (found,) = np.nonzero(patches)
    under = (np.cumsum(patches > 0, dtype=np.int32) - 1)[numbers - first]
    row, col = np.divmod(found + first, across)
    possible = _count_over(row * tile[1] - cut.y, tile[1], cut)
    possible *= _count_over(col * tile[0] - cut.x, tile[0], cut)
    corners = np.stack([y, x], axis=1).astype(np.int32)
    return TilesUnder(found + first, patches[found] < possible, under, corners)


def _tiles_along(
    start: NDArray[np.int64], side: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tiles under patches along one axis, (b, most), the last one again and again.

    And the patches' places (b,) on the first of them.
    """
    first, place = np.divmod(start, length)
    most = (side + length - 2) // length + 1
    last = (start + side - 1) // length
    return np.minimum(first[:, None] + np.arange(most), last[:, None]), place


def _is_next(tiles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a tile (b, most) is another than the one before it."""
    is_next = np.ones(tiles.shape, np.bool_)
    np.not_equal(tiles[:, 1:], tiles[:, :-1], out=is_next[:, 1:])
    return is_next


def _count_over(start: NDArray[np.int64], length: int, cut: Cut) -> NDArray[np.int64]:
    """Return how many rows, or columns, of patches can lie over pixels from `start` on."""
    return -(-(start + length) // cut.stride) - (start - cut.side) // cut.stride - 1


def cut_region(region: NDArray[np.uint8], cut: Cut, pixels: NDArray[np.uint8]) -> None:
    """Fill `pixels` (b, side, side, 3) from the pixels of `cut.box`, RGB (height, width, 3)."""
    region = np.ascontiguousarray(region)
    height, width = region.shape[:2]
    count, side, stride = len(cut.positions), cut.side, cut.stride
    item = np.dtype((np.void, side * 3))
    shape = ((height - side) // stride + 1, (width - side) // stride + 1, side)
    windows: NDArray[np.void] = np.ndarray(
        shape, item, region.data, strides=(stride * width * 3, stride * 3, width * 3)
    )
    rows_of_pixels = pixels.reshape(count, side, side * 3).view(item)[..., 0]
    positions = cut.positions - cut.positions.min(axis=0)
    is_break = (np.diff(positions[:, 0]) != 0) | (np.diff(positions[:, 1]) != 1)
    for start, stop in _runs(is_break):  # neighbours, from left to right
        row, col = positions[start]
        rows_of_pixels[start:stop] = windows[row, col : col + stop - start]


def _runs(is_break: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the runs of n + 1 things between n possible breaks."""
    yield from pairwise([0, *(np.flatnonzero(is_break) + 1).tolist(), len(is_break) + 1])


class Overlap(NamedTuple):
    """The common part of a tile and the patches of one row, or column, along that axis."""

    position: int
    tile_start: int
    patch_start: int
    length: int


class TileCutter:
    """Fills patches from tiles, in any order and from several threads."""

    def __init__(self, cut: Cut, pixels: NDArray[np.uint8]) -> None:
        """`pixels` (b, side, side, 3) is filled."""
        self._cut = cut
        self._first = cut.positions.min(axis=0)
        self._rows = pixels.reshape(len(cut.positions), cut.side, cut.side * 3)
        self._item = np.dtype((np.void, cut.side * 3))
        self._whole_rows = self._rows.view(self._item)[..., 0]  # (b, side)
        self._known: dict[tuple[int, int], list[Overlap]] = {}
        places = np.full(np.ptp(cut.positions, axis=0) + 1, -1, dtype=np.int64)
        places[tuple((cut.positions - self._first).T)] = np.arange(len(cut.positions))
        self._places: list[list[int]] = places.tolist()
        """Number of the patch at each position of the rectangle, -1 where none is wanted."""

    def take(self, tile: NDArray[np.uint8], left: int, top: int) -> None:
        """Copy the patches' part of a tile, RGB (height, width, 3) at (left, top) of the level."""
        height, width = tile.shape[:2]
        rows = self._overlaps(0, top - self._cut.y, height)
        cols = self._overlaps(1, left - self._cut.x, width)
        whole = [overlap for overlap in cols if overlap.length == self._cut.side]
        parts = [overlap for overlap in cols if overlap.length != self._cut.side]
        lines = tile.reshape(height, width * 3)
        for row in rows:
            places = self._places[row.position]
            if whole:
                wanted = places[whole[0].position : whole[-1].position + 1]
                self._take_whole(tile, row, whole[0], wanted)
            for col in parts:
                place = places[col.position]
                if place >= 0:
                    self._take_part(lines, row, col, place)

    def _overlaps(self, axis: int, start: int, length: int) -> list[Overlap]:
        """Return the overlaps of pixels from `start` on with the rows (axis 0) or columns.

        `start` counts from position 0; many tiles have the same overlaps.
        """
        if (axis, start) in self._known:
            return self._known[axis, start]
        first, last = int(self._first[axis]), int(self._cut.positions[:, axis].max())
        side, stride = self._cut.side, self._cut.stride
        lowest = max(first, -((side - 1 - start) // stride))
        overlaps = []
        for position in range(lowest, min(last, (start + length - 1) // stride) + 1):
            corner = position * stride
            begin, end = max(corner, start), min(corner + side, start + length)
            if begin < end:  # else the tile lies in a gap between patches
                overlaps.append(
                    Overlap(position - first, begin - start, begin - corner, end - begin)
                )
        self._known[axis, start] = overlaps
        return overlaps

    def _take_whole(
        self, tile: NDArray[np.uint8], row: Overlap, col: Overlap, places: Sequence[int]
    ) -> None:
        """Copy patches of a row whose width lies within the tile; those of a run are one copy."""
        pitch = tile.shape[1] * 3
        windows: NDArray[np.void] = np.ndarray(
            (len(places), row.length),
            self._item,
            tile.data,
            offset=row.tile_start * pitch + col.tile_start * 3,
            strides=(self._cut.stride * 3, pitch),
        )
        into = slice(row.patch_start, row.patch_start + row.length)
        for start, stop in _runs_of(places):
            patches = slice(places[start], places[start] + stop - start)
            self._whole_rows[patches, into] = windows[start:stop]

    def _take_part(self, lines: NDArray[np.uint8], row: Overlap, col: Overlap, place: int) -> None:
        into_rows = slice(row.patch_start, row.patch_start + row.length)
        into_cols = slice(col.patch_start * 3, (col.patch_start + col.length) * 3)
        part = lines[row.tile_start : row.tile_start + row.length]
        part = part[:, col.tile_start * 3 : (col.tile_start + col.length) * 3]
        self._rows[place, into_rows, into_cols] = part


def _runs_of(places: Sequence[int]) -> list[tuple[int, int]]:
    """Return runs of wanted patches that follow one another, as (start, stop)."""
    if places[0] >= 0 and places[-1] - places[0] == len(places) - 1:
        return [(0, len(places))]
    runs, start = [], 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index] < 0 or places[index - 1] < 0:
            if places[start] >= 0:
                runs.append((start, index))
            start = index
    return runs


MACRO_TILE_LEVEL_PX = 2048
"""Approximate side of a macro-tile in pixels of the level: 12 MB of RGB, many JPEG tiles."""
REDUCED_MACRO_TILE_LEVEL_PX = 1024
"""The same where pixels are averaged, which takes several times the memory."""


class SlidePatches:
    """The patches of `positions` (n, 2), read from the slide; equal to a patch store's."""

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
        """Return the pixels of a block; unreadable patches are white and flagged."""
        return self._read(self._of_block(block))

    def read_some(self, block: int, index: NDArray[np.intp]) -> PatchBlock:
        """Return the pixels of some patches of a block, by their index in it."""
        return self._read(self._of_block(block)[index])

    def _of_block(self, block: int) -> NDArray[np.int32]:
        return self.positions[block_slice(block, self.block_size, len(self.positions))]

    def _read(self, positions: NDArray[np.int32]) -> PatchBlock:
        codes = macro_tile_codes(positions, self._macro_tiles)
        # By macro-tiles, in each from top left to bottom right: a reader copies runs of neighbours.
        order = np.lexsort((positions[:, 1], positions[:, 0], codes))
        if (order[1:] > order[:-1]).all():
            return self._read_in_order(positions, codes)
        place = np.argsort(order, kind="stable")
        pixels, readable, fallbacks = self._read_in_order(positions[order], codes[order])
        return PatchBlock(pixels[place], readable[place], fallbacks)

    def read_tiles(self, block: int, buffers: PixelBuffers) -> TiledBlock | None:
        """Return a block as the decoded tiles under it, or None where `read_block` must cut it.

        It must where pixels are averaged, where the reader decodes no tiles, where a patch lies
        partly beyond the level or over a tile that cannot be decoded, and where patches lie so far
        apart that their tiles take too much memory.
        """
        positions = self._of_block(block)
        spec, view = self.grid.spec, self._view
        corner = view.corner_on_level()
        if corner is None or not len(positions) or not isinstance(self._reader, CutsPatches):
            return None
        cut = Cut(positions, *corner, spec.side_px, spec.stride_px)
        return self._reader.lend_tiles(view.level, cut, buffers)

    def _read_in_order(self, positions: NDArray[np.int32], codes: NDArray[np.uint64]) -> PatchBlock:
        side = self.grid.spec.side_px
        pixels = BUFFERS.take((len(positions), side, side, 3))
        readable = np.ones(len(positions), dtype=np.bool_)
        fallbacks_before = self._reader.fallbacks
        for start, stop in _runs(codes[1:] != codes[:-1]) if len(positions) else ():
            try:
                self._read_together(positions[start:stop], pixels[start:stop])
            except SlideError:
                self._read_singly(positions[start:stop], pixels[start:stop], readable[start:stop])
        return PatchBlock(pixels, readable, self._reader.fallbacks - fallbacks_before)

    def _read_together(self, positions: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        """Fill `pixels` (b, side, side, 3) with patches that lie close together."""
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
        """Read patch by patch, so that one bad JPEG tile costs only the patches over it."""
        for index in range(len(positions)):
            try:
                self._read_together(positions[index : index + 1], pixels[index : index + 1])
            except SlideError:
                pixels[index] = 255
                readable[index] = False


def view_grid(reader: SlideReader, grid: Grid) -> ScaledView:
    """Return the slide at the grid's scale, from the nearest level that is not coarser."""
    level = choose_level(reader.levels, grid.downsample)
    return ScaledView(reader, level, grid.downsample, grid.origin_xy_l0)


def macro_tiles_per_patch(view: ScaledView, grid: Grid) -> tuple[Fraction, Fraction]:
    """Return the shares of a macro-tile that one step down, and one to the right, cover.

    Macro-tiles are whole tiles of the level. The shares depend on the slide alone, not on its
    reader, because they decide the order of patches in a store.
    """
    step = grid.spec.stride_px * view.reduction
    wanted = MACRO_TILE_LEVEL_PX if view.reduction == 1 else REDUCED_MACRO_TILE_LEVEL_PX
    width, height = (wanted // side * side or wanted for side in view.level.tile or (1, 1))
    return step / height, step / width


BUFFERS = PixelBuffers()
"""Those of this process."""
