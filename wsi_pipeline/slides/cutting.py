"""Cutting patches out of pixels: out of a region that was read as a whole, or out of JPEG tiles one by one as they are decoded.

Bytes are moved in rows of patches, not pixel by pixel. From a tile straight into the patches they
move once, while the tile is still in the processor's cache; by way of a region it would be twice.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cut(NamedTuple):
    """Patches to be cut from one level: `positions` (b, 2: row, col) in raster order, the cell (0, 0) at (x, y) of the level."""

    positions: NDArray[np.int32]
    x: int
    y: int
    side: int
    stride: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The rectangle around all of them, as x, y, width, height."""
        first, last = self.positions.min(axis=0), self.positions.max(axis=0)
        top, left = (int(place) * self.stride for place in first)
        height, width = (int(extent) * self.stride + self.side for extent in last - first)
        return self.x + left, self.y + top, width, height

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Where each lies, (b, 4) as x, y, width, height."""
        corners = self.positions[:, ::-1].astype(np.int64) * self.stride + [self.x, self.y]
        return np.concatenate([corners, np.full_like(corners, self.side)], axis=1)

    @property
    def is_full(self) -> bool:
        """Whether they fill the rectangle around them."""
        first, last = self.positions.min(axis=0), self.positions.max(axis=0)
        rows, cols = last - first + 1
        return len(self.positions) == int(rows) * int(cols)


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
    for start, stop in _runs(positions):
        row, col = positions[start]
        rows_of_pixels[start:stop] = windows[row, col : col + stop - start]


def _runs(positions: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Where cells follow one another from left to right, as (start, stop)."""
    is_break = (np.diff(positions[:, 0]) != 0) | (np.diff(positions[:, 1]) != 1)
    yield from pairwise([0, *(np.flatnonzero(is_break) + 1).tolist(), len(positions)])


class Overlap(NamedTuple):
    """What a tile and the cells of one row, or column, share along that axis."""

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

    @cached_property
    def _places(self) -> list[list[int]]:
        """Number of the patch of each cell of the rectangle, -1 where none is wanted."""
        rows, cols = self._cut.positions.max(axis=0) - self._first + 1
        places = np.full((rows, cols), -1, dtype=np.int64)
        row, col = (self._cut.positions - self._first).T
        places[row, col] = np.arange(len(self._cut.positions))
        listed: list[list[int]] = places.tolist()
        return listed

    def take(self, tile: NDArray[np.uint8], left: int, top: int) -> None:
        """Copy what a tile, RGB (height, width, 3) whose corner is at (left, top) of the level, has of the patches."""
        height, width = tile.shape[:2]
        rows = self._overlaps(0, top - self._cut.y, height)
        cols = self._overlaps(1, left - self._cut.x, width)
        whole = [overlap for overlap in cols if overlap.length == self._cut.side]
        parts = [overlap for overlap in cols if overlap.length != self._cut.side]
        lines = tile.reshape(height, width * 3)
        for row in rows:
            places = self._places[row.position]
            if whole:
                self._take_whole(
                    tile, row, whole[0], places[whole[0].position : whole[-1].position + 1]
                )
            for col in parts:
                place = places[col.position]
                if place >= 0:
                    self._take_part(lines, row, col, place)

    def _overlaps(self, axis: int, start: int, length: int) -> list[Overlap]:
        """What pixels from `start` on, counted from cell 0, share with the cells of rows (axis 0) or columns; the same for many tiles."""
        if (axis, start) not in self._known:
            first, last = int(self._first[axis]), int(self._cut.positions[:, axis].max())
            side, stride = self._cut.side, self._cut.stride
            overlaps = []
            for position in range(
                max(first, -((side - 1 - start) // stride)),
                min(last, (start + length - 1) // stride) + 1,
            ):
                begin, end = (
                    max(position * stride, start),
                    min(position * stride + side, start + length),
                )
                if begin < end:  # else the tile lies in a gap between cells
                    overlaps.append(
                        Overlap(
                            position - first, begin - start, begin - position * stride, end - begin
                        )
                    )
            self._known[axis, start] = overlaps
        return self._known[axis, start]

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
            self._whole_rows[places[start] : places[start] + stop - start, into] = windows[
                start:stop
            ]

    def _take_part(self, lines: NDArray[np.uint8], row: Overlap, col: Overlap, place: int) -> None:
        self._rows[
            place,
            row.patch_start : row.patch_start + row.length,
            col.patch_start * 3 : (col.patch_start + col.length) * 3,
        ] = lines[
            row.tile_start : row.tile_start + row.length,
            col.tile_start * 3 : (col.tile_start + col.length) * 3,
        ]


def _runs_of(places: Sequence[int]) -> list[tuple[int, int]]:
    """Where patches that are wanted follow one another, as (start, stop)."""
    if places[0] >= 0 and places[-1] - places[0] == len(places) - 1:
        return [(0, len(places))]
    runs, start = [], 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index] < 0 or places[index - 1] < 0:
            if places[start] >= 0:
                runs.append((start, index))
            start = index
    return runs
