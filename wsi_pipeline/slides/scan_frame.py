"""Parts of a thumbnail beside the glass: fill that was never scanned, and borders of the scanner.

Both are told by their straight outlines: fill is white without noise, or nearly black; a border is
smooth, has no colour and runs along the picture's edge, but is not all of the picture.
"""

import numpy as np
from scipy import ndimage

from wsi_pipeline.slides.glass import Density, Picture
from wsi_pipeline.slides.masks import SQUARE, Mask, straight_parts, widen

WHITE, BLACK = 248, 28
"""From here up, or down, every channel of fill lies; no stain is as dark."""
SAME_WHITE = 0.8
"""Share of white pixels that have one value: glass has noise."""
LEAST_FILL_PX = 64
SMOOTH, GREYISH = 5, 14
"""A border's texture in grey levels, and how far its channels lie apart."""
FAINTEST_BORDER = 0.03
"""OD."""
BORDER_SHARE = 0.15
"""Of the picture's shorter side, the least that a border takes of the edge."""
LARGEST_BORDER = 0.9
"""Share of the picture: what is all of it borders nothing."""


def find_fill(picture: Picture) -> Mask:
    """Return what was never scanned, (h, w)."""
    least, most = picture.least, picture.most
    white = ndimage.binary_opening(least >= WHITE, SQUARE)
    if white.any() and np.bincount(least[white]).max() < SAME_WHITE * white.sum():
        white[:] = False
    black = ndimage.binary_opening(most <= BLACK, SQUARE)
    return straight_parts(white, LEAST_FILL_PX) | straight_parts(black, LEAST_FILL_PX)


def find_border(picture: Picture, density: Density, fill: Mask) -> Mask:
    """Return the scanner's borders, (h, w)."""
    spread = picture.most - picture.least
    dense = (density.strongest > FAINTEST_BORDER) & ~fill
    flat = ndimage.binary_opening((spread <= GREYISH) & (picture.texture < SMOOTH) & dense, SQUARE)
    labels, count = ndimage.label(flat)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    is_long = np.bincount(edge, minlength=count + 1) > BORDER_SHARE * min(labels.shape)
    is_long[0] = False
    parts = straight_parts(is_long[labels], max(16, labels.size // 1000), most_bends=0.3)
    if parts.mean() > LARGEST_BORDER:
        return np.zeros_like(parts)
    return widen(parts, 7) & dense
