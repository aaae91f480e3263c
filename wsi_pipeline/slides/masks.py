"""Filters of masks (h, w) and planes, by scipy.ndimage: what tissue is looked for with."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]
"""One number a pixel, (h, w)."""

SQUARE = np.ones((3, 3), dtype=np.bool_)
COARSE = 4
"""Slow filters of wide reach work on every so manieth pixel."""


def box(values: NDArray[Any], side: int) -> Plane:
    """Return the mean over squares of `side` pixels; beyond the edge the outermost is repeated."""
    return np.asarray(ndimage.uniform_filter(values, side, np.float32, mode="nearest"))


def enlarge(small: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array of every `COARSE`th pixel at full size, by repetition."""
    return small.repeat(COARSE, 0).repeat(COARSE, 1)[: shape[0], : shape[1]]


def widen(mask: Mask, side: int) -> Mask:
    """Return the mask dilated by a square of `side` pixels."""
    return np.asarray(ndimage.maximum_filter(mask, side))


def open_square(mask: Mask, radius: int) -> Mask:
    """Return what holds a square of 2 × radius + 1 pixels."""
    side = 2 * radius + 1
    return np.asarray(ndimage.maximum_filter(ndimage.minimum_filter(mask, side), side))


def close_octagon(mask: Mask, radius: int) -> Mask:
    """Return the mask with gaps closed that an octagon of `radius` pixels does not fit into.

    Beyond the edges nothing is in the mask.
    """
    side, steps = 2 * (radius // 2) + 1, radius - radius // 2
    wide = np.pad(mask, radius + 1)
    wide = ndimage.binary_dilation(ndimage.maximum_filter(wide, side), iterations=steps)
    wide = ndimage.binary_erosion(ndimage.minimum_filter(wide, side), iterations=steps)
    return np.asarray(wide[radius + 1 : -radius - 1, radius + 1 : -radius - 1])


def drop_small(
    mask: Mask, least_px: float, weights: Mask | None = None, corners: bool = False
) -> Mask:
    """Return the mask without connected parts of at most `least_px` pixels.

    With `weights` (h, w) only pixels that are True there count; with `corners`, pixels that touch
    at a corner are connected.
    """
    labels, count = ndimage.label(mask, SQUARE if corners else None)
    counted = labels if weights is None else labels[weights]
    keep = np.bincount(counted.ravel(), minlength=count + 1) > least_px
    return np.asarray(keep[labels] & mask)


def parts_of(mask: Mask) -> Iterator[tuple[tuple[slice, ...], Mask]]:
    """Yield the bounding box of every connected part, and the part in it."""
    labels, _ = ndimage.label(mask, SQUARE)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        yield place, labels[place] == number


def straight_parts(mask: Mask, least_px: float, most_bends: float = 0.15) -> Mask:
    """Return the connected parts whose outline runs along rows and columns.

    A scanner's outlines do, tissue's do not. `most_bends` is the share of corners in the outline.
    """
    labels, count = ndimage.label(mask)
    quad = [labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]]
    owner = np.maximum.reduce(quad)
    on = np.zeros(owner.shape, dtype=np.uint8)
    for corner in quad:
        on += corner > 0
    outline, bends = (
        np.bincount(owner[where], minlength=count + 1)
        for where in ((on > 0) & (on < 4), (on == 1) | (on == 3))
    )
    is_straight = bends < most_bends * np.maximum(outline, 1)
    is_large = np.bincount(labels.ravel(), minlength=count + 1) >= least_px
    return np.asarray((is_straight & is_large)[labels] & mask)


def ribbon_length(part: Mask) -> float:
    """Return how many times as long as wide a connected part is, if it is bent straight."""
    width = 2 * float(ndimage.distance_transform_edt(np.pad(part, 1)).max())
    return float(part.sum()) / width**2
