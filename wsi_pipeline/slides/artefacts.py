"""Folds of tissue and air bubbles, on a thumbnail: they are flagged, and stay tissue.

A fold is two layers or more: a ribbon far denser than the tissue around. A bubble's rim is a thin
closed ring without colour.
"""

import numpy as np
from scipy import ndimage

from wsi_pipeline.slides.masks import (
    COARSE,
    Mask,
    Plane,
    box,
    drop_small,
    enlarge,
    parts_of,
    ribbon_length,
)

AROUND_UM = 300.0
"""Width of the window that a fold is compared with."""
FOLD_EXCESS, FOLD_LENGTH = 1.5, 2.5
"""Density of a fold over that of the tissue around, and its length in widths."""
LEAST_FOLD, LEAST_FOLD_UM2 = 0.15, 4_000.0
"""OD, and area."""
LEAST_BUBBLE_UM = 120.0
RIM_OD, RIM_PX = 0.05, 7
"""A bubble's rim over tissue: darker by so much in every channel, and narrower."""


def find_folds(mean_od: Plane, tissue: Mask, mpp: float) -> Mask:
    """Return the folds in tissue; `mean_od` is the mean of the three channels."""
    stained = tissue & (mean_od > 0.06)
    if not stained.any():
        return stained
    around = _median_around(mean_od, stained, mpp)
    usual = float(np.median(mean_od[stained]))
    dense = box(mean_od, 3) > np.maximum(FOLD_EXCESS * around, max(LEAST_FOLD, 1.2 * usual))
    found = np.zeros_like(tissue)
    for place, part in parts_of(drop_small(dense & stained, LEAST_FOLD_UM2 / mpp**2)):
        if ribbon_length(part) >= FOLD_LENGTH:
            found[place] |= part
    return found


def _median_around(mean_od: Plane, stained: Mask, mpp: float) -> Plane:
    """Return the median density of the stained tissue around every pixel."""
    few = slice(None, None, COARSE)
    weight = stained[few, few].astype(np.float32)
    small = (mean_od * stained)[few, few]
    sigma = AROUND_UM / 4 / mpp / COARSE
    smooth = ndimage.gaussian_filter(small, sigma)
    smooth /= np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-3)
    side = max(3, round(AROUND_UM / mpp / COARSE) | 1)
    filled = np.where(weight > 0, small, smooth)
    return np.asarray(enlarge(ndimage.median_filter(filled, side), mean_od.shape))


def find_bubbles(thin: Mask, mpp: float) -> Mask:
    """Return the bubbles whose rims are closed rings among `thin` pixels, with their insides."""
    found = np.zeros_like(thin)
    for place, ring in parts_of(drop_small(thin, 2 * LEAST_BUBBLE_UM / mpp, corners=True)):
        height, width = ring.shape
        if min(height, width) * mpp < LEAST_BUBBLE_UM or not 0.75 < height / width < 1.34:
            continue
        y, x = np.nonzero(ring)
        away = np.hypot((y - height / 2) / height, (x - width / 2) / width)
        angles = np.arctan2(y - height / 2, x - width / 2)
        sectors = np.histogram(angles, 12, (-np.pi, np.pi))[0]
        if np.mean(away > 0.35) > 0.9 and sectors.all():
            found[place] |= ndimage.binary_fill_holes(ring)
    return found


def find_rims(weakest_od: Plane, tissue: Mask) -> Mask:
    """Return thin dark lines in tissue; `weakest_od` is the smallest of the three channels."""
    if not tissue.any():
        return tissue
    smooth = box(weakest_od, 3)
    return np.asarray((smooth - ndimage.grey_opening(smooth, RIM_PX) > RIM_OD) & tissue)
