"""The whole slide as one small picture, read piece by piece so that memory stays bounded."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import downsample_between
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.scaling import ScaledView

MAX_SIDE_PX = 4096
"""A thumbnail is never larger, however large the slide: the scale gives way."""

PIECE_LEVEL_PX = 1024
SMALLEST_PIECE_PX = 16


class ThumbnailRead(NamedTuple):
    """A thumbnail, and where nothing could be decoded."""

    thumbnail: Thumbnail
    unreadable: NDArray[np.bool_]
    """(height, width); True pixels are white in the thumbnail and may hide tissue."""


def read_thumbnail(reader: SlideReader, mpp: float) -> ThumbnailRead:
    """The slide's scanned area at `mpp` µm/px, coarser where the slide is coarser or MAX_SIDE_PX demands it.

    Raises SlideError where no pixel of it can be decoded.
    """
    x0, y0, width_l0, height_l0 = reader.info.bounds_l0
    finest = max(mpp, reader.info.mpp, reader.info.mpp * max(width_l0, height_l0) / MAX_SIDE_PX)
    downsample = downsample_between(reader.info.mpp, finest)
    # Rounded up, so that no cell at the right or bottom edge reaches beyond what is seen.
    width = math.ceil(width_l0 / downsample)
    height = math.ceil(height_l0 / downsample)
    view = ScaledView(reader, choose_level(reader.levels, downsample), downsample, (x0, y0))
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    unreadable = np.zeros((height, width), dtype=np.bool_)
    piece = max(1, int(PIECE_LEVEL_PX / view.reduction))
    faults = [
        fault
        for box in _pieces(width, height, piece)
        if (fault := _read_piece(view, box, pixels, unreadable))
    ]
    if unreadable.all():
        raise faults[0]
    return ThumbnailRead(Thumbnail(pixels, downsample, (x0, y0)), unreadable)


def _pieces(width: int, height: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield x, y, min(side, width - x), min(side, height - y)


def _read_piece(
    view: ScaledView,
    box: tuple[int, int, int, int],
    pixels: NDArray[np.uint8],
    unreadable: NDArray[np.bool_],
) -> SlideError | None:
    """Fill one piece; where it cannot be decoded, its quarters, down to pieces too small to matter."""
    x, y, width, height = box
    try:
        pixels[y : y + height, x : x + width] = view.read(x, y, width, height)
    except SlideError as error:
        if max(width, height) <= SMALLEST_PIECE_PX:
            unreadable[y : y + height, x : x + width] = True
            return error
        half = -(-max(width, height) // 2)
        for dx, dy, part_width, part_height in _pieces(width, height, half):
            _read_piece(view, (x + dx, y + dy, part_width, part_height), pixels, unreadable)
        return error
    return None
