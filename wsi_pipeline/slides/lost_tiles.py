"""Tiles that a scanner's file has lost, told from glass that was never stored.

OpenSlide shows a tile of length 0 as background. Scanners of some makes leave glass out in this
way, but a file whose table of tiles is damaged looks the same. A coarser level tells: where it
shows tissue, the tile is lost. The same is asked of tiles that no scanner writes: those that lie in
the file's header, and several at one place, of which at most one is right.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.base import Box, Level, tiles_touched
from wsi_pipeline.slides.tiff_structure import BrokenTiff, TiffPage, find_page, read_structure

SCANNERS = ("aperio", "philips")
"""OpenSlide's formats whose levels are whole pages of tiles, written by a scanner; in other TIFFs,
missing tiles mean background."""
HEADER_BYTES = 8
"""Of a TIFF, before anything else."""

MIN_STAIN, MIN_BRIGHTNESS = 0.05, 204
"""Glass is less saturated (0–1) and brighter (0–255), whatever JPEG makes of it."""
MIN_SHARE = 0.02
"""Share of stained pixels from which on a place is tissue."""

ReadRgba = Callable[[Level, Box], NDArray[np.uint8]]
"""Reads RGBA (height, width, 4); alpha is 0 where pixels are absent."""


class Doubtful(NamedTuple):
    """The tiles of one level that may be lost."""

    tile: tuple[int, int]
    """(width, height)"""
    is_doubtful: NDArray[np.bool_]
    """(rows, cols)"""
    is_missing: NDArray[np.bool_]
    """Those of them that have no content."""

    def box_of(self, index: int, level: Level) -> Box:
        """Return the part of a tile that lies within its level."""
        row, col = divmod(index, self.is_doubtful.shape[1])
        x, y = col * self.tile[0], row * self.tile[1]
        return x, y, min(self.tile[0], level.size[0] - x), min(self.tile[1], level.size[1] - y)


def find_doubtful(path: Path, vendor: str | None, levels: Sequence[Level]) -> dict[int, Doubtful]:
    """Return level number → tiles that may be lost; empty except for scanners' TIFFs."""
    if vendor not in SCANNERS:
        return {}
    try:
        structure = read_structure(path)
    except (BrokenTiff, OSError):
        return {}
    pages = ((level.number, find_page(structure, level.size)) for level in levels)
    found = {number: _doubt(page) for number, page in pages if page is not None}
    return {number: doubtful for number, doubtful in found.items() if doubtful is not None}


def _doubt(page: TiffPage) -> Doubtful | None:
    (width, height), tile = page.size, page.tile
    shape = -(-height // tile[1]), -(-width // tile[0])
    if not len(page.offsets) == len(page.counts) == shape[0] * shape[1]:
        return None
    is_missing = page.counts == 0
    _, group, members = np.unique(page.offsets, return_inverse=True, return_counts=True)
    is_doubtful = is_missing | (page.offsets < HEADER_BYTES) | (members[group] > 1)
    if not is_doubtful.any():
        return None
    return Doubtful(tile, is_doubtful.reshape(shape), is_missing.reshape(shape))


class LostTiles:
    """The lost tiles of one slide, each looked at once."""

    def __init__(self, path: Path, levels: Sequence[Level], vendor: str | None) -> None:
        self._path = path
        self._levels = levels
        self._doubtful = find_doubtful(path, vendor, levels)
        self._known: dict[tuple[int, int], bool] = {}

    def refuse(self, level: Level, parts: Sequence[Box], read: ReadRgba) -> None:
        """Raise SlideError where a part of the level touches a lost tile."""
        if (doubtful := self._doubtful.get(level.number)) is None:
            return
        shape = doubtful.is_doubtful.shape
        touched = tiles_touched(np.array(parts, dtype=np.int64), doubtful.tile, shape)
        for index in np.flatnonzero(touched & doubtful.is_doubtful).tolist():
            if self.holds(level, index, read):
                x, y, *_ = doubtful.box_of(index, level)
                raise SlideError(
                    f"{self._path}: level {level.number} at {x},{y}: a tile is missing where a"
                    " coarser level shows tissue; scan or copy it again"
                )

    def holds(self, level: Level, index: int, read: ReadRgba) -> bool:
        """Return whether a tile of a level, counted by rows, is lost."""
        doubtful = self._doubtful.get(level.number)
        if doubtful is None or not doubtful.is_doubtful.flat[index]:
            return False
        if (level.number, index) not in self._known:
            is_lost = self._is_lost(level, doubtful, index, read)
            self._known[level.number, index] = is_lost
        return self._known[level.number, index]

    def _is_lost(self, level: Level, doubtful: Doubtful, index: int, read: ReadRgba) -> bool:
        box = doubtful.box_of(index, level)
        is_absent = np.ones(box[:1:-1], dtype=np.bool_)
        if doubtful.is_missing.flat[index] and level is not self._levels[0]:
            # OpenSlide draws it from finer levels, as far as these have it.
            is_absent = read(level, box)[..., 3] == 0
        coarser = [other for other in self._levels if other.downsample > level.downsample]
        for other in coarser if is_absent.any() else ():
            shown = _pixels_under(level, box, is_absent, other, read)
            if len(shown):
                return shows_tissue(shown)
        return False


def _pixels_under(
    level: Level, box: Box, is_wanted: NDArray[np.bool_], coarser: Level, read: ReadRgba
) -> NDArray[np.uint8]:
    """Return a coarser level's pixels (n, 3) at the wanted ones of a box; none if unreadable."""
    scale = float(coarser.downsample / level.downsample)
    first = [int(box[axis] / scale) for axis in (0, 1)]
    stop = [
        min(int(np.ceil((box[axis] + box[axis + 2]) / scale)), coarser.size[axis])
        for axis in (0, 1)
    ]
    width, height = (max(stop[axis] - first[axis], 0) for axis in (0, 1))
    try:
        rgba = read(coarser, (first[0], first[1], width, height)) if width and height else None
    except SlideError:
        rgba = None
    if rgba is None:
        return np.empty((0, 3), np.uint8)
    cols, rows = (
        np.clip(
            ((first[axis] + np.arange(count) + 0.5) * scale).astype(int) - box[axis],
            0,
            box[axis + 2] - 1,
        )
        for axis, count in ((0, width), (1, height))
    )
    is_shown = (rgba[..., 3] == 255) & is_wanted[np.ix_(rows, cols)]
    return np.asarray(rgba[is_shown, :3])


def shows_tissue(pixels: NDArray[np.uint8]) -> bool:
    """Return whether pixels (n, 3) are stained or dark, and not glass."""
    largest, smallest = (extreme(pixels, axis=-1).astype(int) for extreme in (np.max, np.min))
    is_stained = (largest - smallest > MIN_STAIN * largest) | (largest < MIN_BRIGHTNESS)
    return bool(is_stained.mean() > MIN_SHARE)
