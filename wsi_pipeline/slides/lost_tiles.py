"""Tiles that an Aperio scanner's file has lost, told from glass that was never stored.

OpenSlide shows a tile of length 0 as background, on coarser levels too: a tile there that covers a
missing one is drawn from the finer level. (Tiles are missing where the scanner's encoder failed, or
the table of tiles was damaged; some programs leave out glass.) The content of the coarser level
tells which: where it shows tissue, the tile is lost. The same is asked of tiles that no scanner
writes: those in the file's header, and several at one place, of which at most one is right.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.base import Box, Level, tiles_touched
from wsi_pipeline.slides.tiff_tiles import LevelLayout, TileFault, approximate_tile, find_tables

VENDOR = "aperio"
"""In OpenSlide's other formats missing tiles mean background, by their makers' word or nobody's."""
HEADER_BYTES = 8
"""Of a TIFF, before anything else."""

MIN_STAIN, MIN_BRIGHTNESS = 0.05, 204
"""Glass is less saturated (0–1) and brighter (0–255), whatever JPEG makes of it."""
MIN_SHARE = 0.02
"""Share of stained pixels from which on a place is tissue."""
MIN_SIDE_PX = 8
"""Of a tile's place on the coarser level that is looked at."""
KEPT_TILES = 16


class LostTiles:
    """The lost tiles of one slide; each is looked at once, when it is touched."""

    def __init__(self, path: Path, vendor: str | None, levels: Sequence[Level]) -> None:
        self._path = path
        self._levels = levels
        self._layouts = find_tables(path, levels) if vendor == VENDOR else {}
        self._missing = {
            number: is_missing
            for number, layout in self._layouts.items()
            if (is_missing := _by_rows(layout, layout.counts == 0)).any()
        }
        finest = self._layouts.get(0)
        self._doubtful = None if finest is None else _by_rows(finest, _is_doubtful(finest))
        self._known: dict[int, bool] = {}
        self._decode = lru_cache(KEPT_TILES)(self._decode_tile)

    def refuse(self, level: Level, parts: Sequence[Box]) -> None:
        """Raise SlideError where a part of the level touches a lost tile."""
        doubtful = self._doubtful if level.number == 0 else self._missing.get(0)
        if doubtful is None or not doubtful.any():
            return
        boxes = np.array([_scale_box(box, float(level.downsample)) for box in parts])
        layout = self._layouts[0]
        touched = tiles_touched(boxes, (layout.form.width, layout.form.height), doubtful.shape)
        for index in np.flatnonzero(touched & doubtful).tolist():
            if self.holds(index):
                x, y = layout.corner(index)
                raise SlideError(
                    f"{self._path}: level 0 at {x},{y}: a tile is missing where a coarser level"
                    " shows tissue; scan or copy it again"
                )

    def holds(self, index: int) -> bool:
        """Return whether a tile of level 0, counted by rows, is lost."""
        if self._doubtful is None or not self._doubtful.flat[index]:
            return False
        if index not in self._known:
            self._known[index] = self._is_lost(index)
        return self._known[index]

    def is_drawn(self, level: Level, index: int) -> bool:
        """Return whether OpenSlide draws a tile of a coarser level from the finer ones.

        It does where the tile, or one of a finer level under it, is missing.
        """
        for other in self._levels if level.number and self._missing else ():
            is_missing = self._missing.get(other.number)
            if is_missing is None or other.downsample > level.downsample:
                continue
            layout, box = self._layouts[other.number], _box_of(self._layouts[level.number], index)
            under = np.array([_scale_box(box, float(level.downsample / other.downsample))])
            tile = layout.form.width, layout.form.height
            if (tiles_touched(under, tile, is_missing.shape) & is_missing).any():
                return True
        return False

    def _is_lost(self, index: int) -> bool:
        box = _box_of(self._layouts[0], index)
        for level in reversed(self._levels[1:]):
            pixels = self._stored_pixels(level, _scale_box(box, float(1 / level.downsample)))
            if len(pixels):
                return shows_tissue(pixels)
        return False

    def _stored_pixels(self, level: Level, box: Box) -> NDArray[np.uint8]:
        """Return what a level itself stores of a box, (n, 3); none where that is nothing."""
        layout = self._layouts.get(level.number)
        x, y, width, height = box
        found = [np.empty((0, 3), np.uint8)]
        if layout is None or min(width, height) < MIN_SIDE_PX:
            return found[0]
        rows, cols = layout.tiles_under(*box)
        for index in (row * layout.across + col for row in rows for col in cols):
            left, top = layout.corner(index)
            tile = self._decode(level.number, index)
            part = tile[max(y - top, 0) : y + height - top, max(x - left, 0) : x + width - left]
            found.append(part.reshape(-1, 3))
        return np.concatenate(found)

    def _decode_tile(self, number: int, index: int) -> NDArray[np.uint8]:
        """Return a stored tile's pixels; none where it is missing or cannot be decoded."""
        layout = self._layouts[number]
        try:
            content = _read_bytes(self._path, int(layout.offsets[index]), int(layout.counts[index]))
            return approximate_tile(content, layout.form)
        except (TileFault, OSError):
            return np.empty((0, 0, 3), np.uint8)


def _is_doubtful(layout: LevelLayout) -> NDArray[np.bool_]:
    _, group, members = np.unique(layout.offsets, return_inverse=True, return_counts=True)
    return np.asarray((layout.counts == 0) | (layout.offsets < HEADER_BYTES) | (members[group] > 1))


def _by_rows(layout: LevelLayout, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return values.reshape(-1, layout.across)


def _box_of(layout: LevelLayout, index: int) -> Box:
    """Return the part of a tile that lies within its level."""
    x, y = layout.corner(index)
    width, height = layout.size
    return x, y, min(layout.form.width, width - x), min(layout.form.height, height - y)


def _scale_box(box: Box, scale: float) -> Box:
    """Return the pixels that a box covers on another level."""
    x, y = (int(place * scale) for place in box[:2])
    right, below = (int(np.ceil((box[axis] + box[axis + 2]) * scale)) for axis in (0, 1))
    return x, y, right - x, below - y


def _read_bytes(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb", buffering=0) as stream:
        return os.pread(stream.fileno(), count, offset)


def shows_tissue(pixels: NDArray[np.uint8]) -> bool:
    """Return whether pixels (n, 3) are stained or dark, and not glass."""
    largest, smallest = (extreme(pixels, axis=-1).astype(int) for extreme in (np.max, np.min))
    is_stained = (largest - smallest > MIN_STAIN * largest) | (largest < MIN_BRIGHTNESS)
    return bool(is_stained.mean() > MIN_SHARE)
