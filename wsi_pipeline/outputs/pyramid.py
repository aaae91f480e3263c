"""The map as an image with one pixel per patch: its place in µm, its reductions, its labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.outputs.result import SlideResult

SMALLEST_SIDE = 64
"""Reductions end when both sides are this small."""
NOT_ASSESSED, NEGATIVE, POSITIVE = range(3)
"""Values of the labels."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of an image's pixels on the slide, in µm from the slide's corner."""

    pixel_um: float
    center_um: tuple[float, float]
    """x, y of the centre of the first pixel."""

    def reduce(self, factor: int) -> "Place":
        """Return the place of the image made of squares of `factor` pixels."""
        shift = (factor - 1) / 2 * self.pixel_um
        return Place(self.pixel_um * factor, (self.center_um[0] + shift, self.center_um[1] + shift))


def find_place(grid: Grid, slide_mpp: float) -> Place:
    """Return the place of the map: a pixel is as wide as the stride, its centre the patch's."""
    patch_px_um = float(grid.downsample) * slide_mpp
    half_um = grid.spec.side_px / 2 * patch_px_um
    x, y = (origin * slide_mpp + half_um for origin in grid.origin_xy_l0)
    return Place(grid.spec.stride_px * patch_px_um, (x, y))


def image_of(result: SlideResult) -> NDArray[np.float32]:
    """Return the probabilities (rows, cols); an empty grid becomes one pixel, NaN."""
    probability = result.heatmap.probability
    return probability if probability.size else np.full((1, 1), np.nan, dtype=np.float32)


def labels_of(result: SlideResult) -> NDArray[np.uint8]:
    """0 not assessed, 1 negative, 2 positive (rows, cols)."""
    image = image_of(result)
    labels = np.where(np.isnan(image), NOT_ASSESSED, NEGATIVE).astype(np.uint8)
    if result.positive.size:
        labels[result.positive] = POSITIVE
    return labels


def reduce_image(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return half the size: means of the assessed pixels of 2 × 2; NaN where none was."""
    quads = _quads(image, np.nan)
    known = ~np.isnan(quads)
    count = known.sum(axis=0)
    total = np.where(known, quads, 0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def reduce_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return half the size: the highest of 2 × 2 pixels, so that no positive patch vanishes."""
    reduced: NDArray[np.uint8] = _quads(labels, 0).max(axis=0)
    return reduced


def _quads(image: NDArray[Any], fill: float) -> NDArray[Any]:
    """Return the four pixels of each square of 2 × 2, (4, ⌈rows / 2⌉, ⌈cols / 2⌉)."""
    rows, cols = image.shape
    padded = np.pad(image, ((0, rows % 2), (0, cols % 2)), constant_values=fill)
    return np.stack([padded[row::2, col::2] for row in (0, 1) for col in (0, 1)])


def build_pyramid(image: NDArray[Any], reduce: Any) -> list[NDArray[Any]]:
    """Return the image and its reductions, each half the size of the one before."""
    levels = [image]
    while max(levels[-1].shape) > SMALLEST_SIDE:
        levels.append(reduce(levels[-1]))
    return levels
