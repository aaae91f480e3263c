"""A look at a few places, if a slide's levels show the same picture.

The tissue is found on a coarse level, and patches may be cut from another one: where these show
something else than level 0 (another slide, nothing, a mirror image), every result would be about
pixels that are not there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.base import Box, Level, SlideReader
from wsi_pipeline.slides.tiff_pages import find_page
from wsi_pipeline.slides.tiff_structure import BrokenTiff, read_structure

SIDE_L0_PX = 256
"""Side of a place on level 0: a few tiles."""
MIN_SIDE_PX, MAX_SIDE_PX = 8, 64
"""Of the same place on the coarser level."""
GRID = 3
"""Places along each side of the scanned area."""
BUSIEST = 6
"""Tiles of level 0 with the most bytes: where level 0 has tissue."""
CHOSEN = 6
"""Places where patches were chosen: where the coarse level has tissue."""

CELLS = 4
"""Along each side of a place. Their means are compared: JPEG, sharpening, rounding of sizes by a
pixel, and levels made of every fourth pixel change single pixels only."""
MAX_DIFFERENCE = 24
"""Of the means of a cell (0–255). Half of what tissue differs from glass."""
MAX_CELLS, MAX_PLACES = 1 / 4, 1 / 8
"""Shares of cells of a place, and of places of a slide, that may differ more."""


@runtime_checkable
class ReadsAlpha(Protocol):
    """A reader that tells absent pixels from white ones."""

    def read_rgba(self, level: Level, box: Box) -> NDArray[np.uint8]:
        """Return RGBA (height, width, 4) of a box of a level; alpha is 0 where pixels are absent.

        Raises SlideError.
        """
        ...


def check_level(reader: SlideReader, level: Level, chosen_xy_l0: NDArray[np.int64]) -> None:
    """Raise SlideError where a level shows another picture than level 0.

    Some of `chosen_xy_l0` (n, 2), the places of patches, are compared, some of a grid, and some
    with much content. Places that cannot be read, or are absent on either level, say nothing.
    """
    if level is reader.levels[0] or not isinstance(reader, ReadsAlpha):
        return
    compared, differing = 0, []
    for box in _choose_boxes(reader, level, chosen_xy_l0):
        try:
            is_equal = _is_equal(reader, reader.levels[0], level, box)
        except SlideError:
            continue
        compared += is_equal is not None
        differing += [box] if is_equal is False else []
    if len(differing) > MAX_PLACES * compared:
        x, y = (round(place * level.downsample) for place in differing[0][:2])
        raise SlideError(
            f"{reader.info.path}: level {level.number} shows another picture than level 0, as at"
            f" {x},{y}; export or convert the slide again"
        )


def _choose_boxes(
    reader: SlideReader, level: Level, chosen_xy_l0: NDArray[np.int64]
) -> Sequence[Box]:
    """Return different places on the coarser level, in its pixels."""
    wanted = int(SIDE_L0_PX / level.downsample)
    width, height = (
        min(min(max(wanted, MIN_SIDE_PX), MAX_SIDE_PX), extent) for extent in level.size
    )
    centres = [*_grid(reader), *_spread(chosen_xy_l0), *_busiest(reader)]
    corners = [
        (x / level.downsample - width / 2, y / level.downsample - height / 2) for x, y in centres
    ]
    boxes = [
        (
            min(max(int(x), 0), level.size[0] - width),
            min(max(int(y), 0), level.size[1] - height),
            width,
            height,
        )
        for x, y in corners
    ]
    return list(dict.fromkeys(boxes))


def _grid(reader: SlideReader) -> Iterator[tuple[int, int]]:
    x, y, width, height = reader.info.bounds_l0
    steps = [(2 * step + 1) / (2 * GRID) for step in range(GRID)]
    for down in steps:
        for right in steps:
            yield int(x + right * width), int(y + down * height)


def _spread(chosen_xy_l0: NDArray[np.int64]) -> list[tuple[int, int]]:
    picked = chosen_xy_l0[:: max(1, len(chosen_xy_l0) // CHOSEN)][:CHOSEN]
    return [(int(x), int(y)) for x, y in picked]


def _busiest(reader: SlideReader) -> list[tuple[int, int]]:
    """Return the centres of the level-0 tiles with the most bytes; none where that is not known."""
    level = reader.levels[0]
    try:
        page = find_page(read_structure(Path(reader.info.path)), level.size)
    except (BrokenTiff, OSError):
        return []
    if page is None or not min(page.tile):
        return []
    (width, height), across = page.tile, -(-level.size[0] // page.tile[0])
    tiles = np.argsort(page.counts, kind="stable")[::-1][:BUSIEST]
    places = (divmod(int(tile), across) for tile in tiles if page.counts[tile])
    return [(col * width + width // 2, row * height + height // 2) for row, col in places]


def _is_equal(reader: ReadsAlpha, finest: Level, level: Level, box: Box) -> bool | None:
    """Return whether both levels show the same in a box of the coarser; None: one shows nothing."""
    x, y = (round(place * level.downsample) for place in box[:2])
    right, below = (
        min(round((box[axis] + box[axis + 2]) * level.downsample), finest.size[axis])
        for axis in (0, 1)
    )
    pictures = [
        reader.read_rgba(finest, (x, y, right - x, below - y)),
        reader.read_rgba(level, box),
    ]
    if any(picture[..., 3].min() < 255 for picture in pictures):
        return None
    fine, coarse = (_cells(picture[..., :3]) for picture in pictures)
    differences = np.abs(fine - coarse).mean(axis=-1)
    return bool((differences > MAX_DIFFERENCE).mean() <= MAX_CELLS)


def _cells(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean colours of the cells of a place, (rows, cols, 3)."""
    rows = np.array_split(pixels, min(CELLS, pixels.shape[0]))
    split = [np.array_split(row, min(CELLS, pixels.shape[1]), axis=1) for row in rows]
    return np.array([[cell.mean(axis=(0, 1)) for cell in row] for row in split])
