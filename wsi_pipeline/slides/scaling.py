"""Reading a slide at any scale: the pixels of the virtual image at a given downsample, by exact area averaging.

Each pixel of the virtual image is the mean of the level's pixels under it, weighted by the area that they share. All sums are of
integers, so a pixel's value depends on its place alone, never on how a read was split.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.slides.base import Level, SlideReader

MAX_STEP_DENOMINATOR = 4096
MAX_ORIGIN_DENOMINATOR = 16
"""Steps and origins are rounded to ratios with at most these denominators: off by less than 0.02 px over 250,000 px, and all sums of
areas times 255 stay below 2⁶³ for reductions of up to 1,280 times."""


class Edges(NamedTuple):
    """Boundaries of consecutive virtual pixels along one axis, in level pixels, as integers over `unit`."""

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

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGB (height, width, 3) at (x, y) in the view's pixels. Raises SlideError."""
        x_edges = self._edges(self.origin_xy_l0[0], x, width)
        y_edges = self._edges(self.origin_xy_l0[1], y, height)
        source = self._read_level(x_edges.first, y_edges.first, x_edges.stop, y_edges.stop)
        return average_areas(source, _relative(y_edges), _relative(x_edges))

    def _edges(self, origin_l0: int, start: int, count: int) -> Edges:
        step = self.reduction.limit_denominator(MAX_STEP_DENOMINATOR)
        origin = (Fraction(origin_l0) / self.level.downsample).limit_denominator(MAX_ORIGIN_DENOMINATOR)
        unit = math.lcm(step.denominator, origin.denominator)
        places = np.arange(start, start + count + 1, dtype=np.int64)
        return Edges(int(origin * unit) + places * int(step * unit), unit)

    def _read_level(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """Level pixels x0…x1, y0…y1; beyond a level that was cut short by a pixel, its last column or row goes on."""
        width, height = self.level.size
        x_stop, y_stop = min(x1, width), min(y1, height)
        x_start, y_start = min(x0, x_stop - 1), min(y0, y_stop - 1)
        pixels = self.reader.read(self.level, x_start, y_start, x_stop - x_start, y_stop - y_start)
        if (x_start, y_start, x_stop, y_stop) == (x0, y0, x1, y1):
            return pixels
        rows = np.clip(np.arange(y0, y1) - y_start, 0, y_stop - y_start - 1)
        cols = np.clip(np.arange(x0, x1) - x_start, 0, x_stop - x_start - 1)
        return pixels[np.ix_(rows, cols)]


def _relative(edges: Edges) -> Edges:
    return Edges(edges.values - edges.first * edges.unit, edges.unit)


def average_areas(pixels: NDArray[np.uint8], y_edges: Edges, x_edges: Edges) -> NDArray[np.uint8]:
    """Area means of (h, w, 3) between the edges, rounded to the nearest integer, halves up."""
    y_step, x_step = _whole_step(y_edges), _whole_step(x_edges)
    if y_step == x_step == 1:
        return pixels
    if y_step and x_step:
        return _average_whole(pixels, y_step, x_step)
    columns = _sum_between(pixels.astype(np.int64), y_edges)
    total = np.swapaxes(_sum_between(np.swapaxes(columns, 0, 1), x_edges), 0, 1)
    area = int(y_edges.values[1] - y_edges.values[0]) * int(x_edges.values[1] - x_edges.values[0])
    means: NDArray[np.uint8] = ((2 * total + area) // (2 * area)).astype(np.uint8)
    return means


def _whole_step(edges: Edges) -> int:
    """Level pixels per virtual pixel where that is a whole number and the edges lie on pixel edges; else 0."""
    step = int(edges.values[1] - edges.values[0])
    is_whole = step % edges.unit == 0 and int(edges.values[0]) % edges.unit == 0
    return step // edges.unit if is_whole else 0


def _average_whole(pixels: NDArray[np.uint8], y_step: int, x_step: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[0] // y_step, pixels.shape[1] // x_step
    cut = pixels[: height * y_step, : width * x_step]
    total = cut.reshape(height, y_step, width, x_step, 3).sum(axis=(1, 3), dtype=np.uint64)
    area = np.uint64(y_step * x_step)
    means: NDArray[np.uint8] = ((2 * total + area) // (2 * area)).astype(np.uint8)
    return means


def _sum_between(values: NDArray[np.int64], edges: Edges) -> NDArray[np.int64]:
    """Integrals of `values` along axis 0 between neighbouring edges, in units of 1/unit of a pixel."""
    whole, rest = np.divmod(edges.values, edges.unit)
    zero = np.zeros((1, *values.shape[1:]), dtype=np.int64)
    before = np.concatenate([zero, np.cumsum(values, axis=0)])
    under = np.concatenate([values, zero])
    integral = before[whole] * edges.unit + under[whole] * rest[:, None, None]
    sums: NDArray[np.int64] = np.diff(integral, axis=0)
    return sums
