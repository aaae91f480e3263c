"""Slides at any scale: the virtual image at a given downsample, by exact area averaging.

Each pixel of the virtual image is the mean of the level's pixels under it, weighted by the area
that they share. All sums are of integers, so a pixel's value depends on its place alone, not on how
a read was split. A thumbnail is read in pieces, so that memory stays bounded.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import downsample_between
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.slides.base import Box, Boxes, Level, SlideReader, choose_level

MAX_STEP_DENOMINATOR = 4096
MAX_ORIGIN_DENOMINATOR = 16
"""Largest denominators of steps and origins.

Rounding errs by less than 0.02 px over 250,000 px, and sums of areas times 255 stay below 2⁶³ for
reductions up to 1,280.
"""


class Edges(NamedTuple):
    """Edges of consecutive virtual pixels along one axis, in level pixels over `unit`."""

    values: NDArray[np.int64]
    """(count + 1,)"""
    unit: int

    @property
    def first(self) -> int:
        """First level pixel that is touched."""
        return int(self.values[0]) // self.unit

    @property
    def stop(self) -> int:
        """One past the last level pixel that is touched."""
        return -(-int(self.values[-1]) // self.unit)


class ScaledView(NamedTuple):
    """A slide as the virtual image of one scale."""

    reader: SlideReader
    level: Level
    downsample: Fraction
    """Level-0 pixels per pixel of the view."""
    origin_xy_l0: tuple[int, int]

    @property
    def reduction(self) -> Fraction:
        """Level pixels per pixel of the view, along one axis."""
        return self.downsample / self.level.downsample

    def corner_on_level(self) -> tuple[int, int] | None:
        """Return the view's corner on its level, (x, y); None where the pixels differ."""
        corner = [Fraction(origin) / self.level.downsample for origin in self.origin_xy_l0]
        if self.reduction != 1 or any(place.denominator != 1 for place in corner):
            return None
        return int(corner[0]), int(corner[1])

    def read(
        self, x: int, y: int, width: int, height: int, only: Boxes | None = None
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y) in the view's pixels. Raises SlideError.

        Pixels outside all boxes of `only` need not be read.
        """
        x_edges = self._edges(self.origin_xy_l0[0], x, width)
        y_edges = self._edges(self.origin_xy_l0[1], y, height)
        parts = None if only is None else self._boxes_on_level(only, (x, y), x_edges, y_edges)
        source = self._read_level(x_edges, y_edges, parts)
        return average_areas(source, y_edges, x_edges)

    def _boxes_on_level(
        self, boxes: Boxes, corner: tuple[int, int], x_edges: Edges, y_edges: Edges
    ) -> Boxes | None:
        """Return the level's pixels under boxes of the view; None where some lie beyond the level.

        There the last row or column is repeated.
        """
        if x_edges.stop > self.level.size[0] or y_edges.stop > self.level.size[1]:
            return None
        sides = []
        for axis, edges in enumerate((x_edges, y_edges)):
            start = boxes[:, axis] - corner[axis]
            first = edges.values[start] // edges.unit
            stop = -(-edges.values[start + boxes[:, axis + 2]] // edges.unit)
            sides.append((first, stop - first))
        (left, width), (top, height) = sides
        return np.stack([left, top, width, height], axis=1)

    def _edges(self, origin_l0: int, start: int, count: int) -> Edges:
        step = self.reduction.limit_denominator(MAX_STEP_DENOMINATOR)
        origin = Fraction(origin_l0) / self.level.downsample
        origin = origin.limit_denominator(MAX_ORIGIN_DENOMINATOR)
        unit = math.lcm(step.denominator, origin.denominator)
        places = np.arange(start, start + count + 1, dtype=np.int64)
        return Edges(int(origin * unit) + places * int(step * unit), unit)

    def _read_level(self, x_edges: Edges, y_edges: Edges, only: Boxes | None) -> NDArray[np.uint8]:
        """Return the level's pixels that are touched; beyond it, the last ones are repeated."""
        x0, x1, y0, y1 = x_edges.first, x_edges.stop, y_edges.first, y_edges.stop
        x_stop, y_stop = min(x1, self.level.size[0]), min(y1, self.level.size[1])
        x, y = min(x0, x_stop - 1), min(y0, y_stop - 1)
        pixels = self.reader.read(self.level, x, y, x_stop - x, y_stop - y, only)
        if (x, y, x_stop, y_stop) == (x0, y0, x1, y1):
            return pixels
        rows = np.clip(np.arange(y0, y1) - y, 0, y_stop - y - 1)
        cols = np.clip(np.arange(x0, x1) - x, 0, x_stop - x - 1)
        return pixels[np.ix_(rows, cols)]


def average_areas(pixels: NDArray[np.uint8], y_edges: Edges, x_edges: Edges) -> NDArray[np.uint8]:
    """Return area means of (h, w, 3) between the edges, to the nearest integer, halves up.

    The first pixel of `pixels` is the first that the edges touch.
    """
    y_step, x_step = _whole_step(y_edges), _whole_step(x_edges)
    if y_step == x_step == 1:
        return pixels
    if y_step and x_step:
        return _average_whole(pixels, y_step, x_step)
    y_side, x_side = (int(edges.values[1] - edges.values[0]) for edges in (y_edges, x_edges))
    area = y_side * x_side
    # Twice the largest sum, with the pixels at both edges whole.
    largest = 511 * (y_side + 2 * y_edges.unit) * (x_side + 2 * x_edges.unit)
    dtype = np.dtype(np.uint32 if largest < 2**32 else np.uint64)
    columns = _sum_between(pixels, y_edges, dtype)
    total = _sum_between(np.ascontiguousarray(np.swapaxes(columns, 0, 1)), x_edges, dtype)
    return _divide(np.swapaxes(total, 0, 1), area)


def _divide(total: NDArray[Any], area: int) -> NDArray[np.uint8]:
    """Return total / area to the nearest integer, halves up; `total` is used up."""
    total *= total.dtype.type(2)
    total += total.dtype.type(area)
    total //= total.dtype.type(2 * area)
    return np.ascontiguousarray(total.astype(np.uint8))


def _whole_step(edges: Edges) -> int:
    """Return the whole level pixels per virtual pixel; 0 where the edges do not coincide."""
    step = int(edges.values[1] - edges.values[0])
    is_whole = step % edges.unit == 0 and int(edges.values[0]) % edges.unit == 0
    return step // edges.unit if is_whole else 0


def _average_whole(pixels: NDArray[np.uint8], y_step: int, x_step: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[0] // y_step, pixels.shape[1] // x_step
    cut = pixels[: height * y_step, : width * x_step]
    area = y_step * x_step
    # Sums of slices, in the smallest type that holds twice the largest sum: a reshape and a sum
    # over axes takes five times as long.
    dtype = np.min_scalar_type(2 * 255 * area + area)
    columns = _sum_slices(cut, y_step, dtype)
    total = np.swapaxes(_sum_slices(np.swapaxes(columns, 0, 1), x_step, dtype), 0, 1)
    return _divide(total, area)


def _sum_slices(values: NDArray[Any], step: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the sums of every `step` neighbours along axis 0."""
    total = values[::step].astype(dtype)
    for offset in range(1, step):
        total += values[offset::step]
    return total


def _sum_between(values: NDArray[Any], edges: Edges, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return integrals of `values` along axis 0 between edges, in units of 1/unit of a pixel.

    `dtype` is unsigned: what is taken off again may pass below 0 on the way.
    """
    whole, rest = np.divmod(edges.values - edges.first * edges.unit, edges.unit)
    starts = whole if whole[-1] < len(values) else whole[:-1]
    # All pixels from that under one edge to the last before that under the next; running sums over
    # the whole axis, and their differences, take three to eight times as long.
    total = np.add.reduceat(values, starts, axis=0, dtype=dtype)[: len(whole) - 1]
    total[whole[1:] == whole[:-1]] = 0  # reduceat gives the pixel itself
    total *= dtype.type(edges.unit)
    under = values[np.minimum(whole, len(values) - 1)].astype(dtype)  # by 0 beyond the last
    under *= rest.astype(dtype)[:, None, None]
    total += under[1:]
    total -= under[:-1]
    return total


MAX_SIDE_PX = 4096
"""A thumbnail is never larger, however large the slide: the scale gives way."""

MAX_LEVEL_PX = 3_000_000_000
"""Largest level that is read whole: about a minute on one core, whatever decodes it."""

PIECE_LEVEL_PX = 1024
SMALLEST_PIECE_PX = 16


class ThumbnailRead(NamedTuple):
    """A thumbnail, and where nothing could be decoded."""

    thumbnail: Thumbnail
    unreadable: NDArray[np.bool_]
    """(height, width); True pixels are white in the thumbnail and may hide tissue."""


def read_thumbnail(reader: SlideReader, mpp: float) -> ThumbnailRead:
    """Return the slide's scanned area at `mpp` µm/px, coarser where necessary.

    The slide may be coarser, or MAX_SIDE_PX exceeded. Raises SlideError where no pixel can be
    decoded, and where so many would have to be read that it takes minutes.
    """
    x0, y0, width_l0, height_l0 = reader.info.bounds_l0
    finest = max(mpp, reader.info.mpp, reader.info.mpp * max(width_l0, height_l0) / MAX_SIDE_PX)
    downsample = downsample_between(reader.info.mpp, finest)
    # Rounded up, so that no patch at the right or bottom edge reaches beyond the thumbnail.
    width, height = math.ceil(width_l0 / downsample), math.ceil(height_l0 / downsample)
    view = ScaledView(reader, choose_level(reader.levels, downsample), downsample, (x0, y0))
    _check_effort(view, width, height)
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    unreadable = np.zeros((height, width), dtype=np.bool_)
    piece = max(1, int(PIECE_LEVEL_PX / view.reduction))
    faults = [_read_piece(view, box, pixels, unreadable) for box in _pieces(width, height, piece)]
    if unreadable.all() and faults[0] is not None:
        raise faults[0]
    return ThumbnailRead(Thumbnail(pixels, downsample, (x0, y0)), unreadable)


def _check_effort(view: ScaledView, width: int, height: int) -> None:
    """Raise SlideError where `width` × `height` px of a view are too many of its level."""
    pixels = int(width * height * view.reduction**2)
    if pixels > MAX_LEVEL_PX:
        raise SlideError(
            f"{view.reader.info.path}: no level is coarse enough to find tissue on"
            f" ({pixels / 1e9:,.1f} billion pixels of level {view.level.number} would be read);"
            " convert it to a pyramidal TIFF"
        )


def _pieces(width: int, height: int, side: int) -> Iterator[Box]:
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield x, y, min(side, width - x), min(side, height - y)


def _read_piece(
    view: ScaledView, box: Box, pixels: NDArray[np.uint8], unreadable: NDArray[np.bool_]
) -> SlideError | None:
    """Fill one piece; where it cannot be decoded, its quarters, down to a smallest size."""
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
