"""Context: a patch's logit averaged with its neighbours' on the grid."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TRUNCATE = 4.0
"""Standard deviations beyond which a neighbour has no weight."""


def find_reach(sigma_patches: float) -> int:
    """Return how many patches away, along an axis, the last neighbour with a weight is.

    The rounding is that of scipy's `gaussian_filter`.
    """
    return int(TRUNCATE * sigma_patches + 0.5)


def add_context(drawn: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return the positions (rows, cols) that are drawn, or within `reach` of a drawn one."""
    from scipy.ndimage import maximum_filter

    widened: NDArray[np.bool_] = maximum_filter(drawn, 2 * reach + 1, mode="constant")
    return widened


def average_context(logits: Floats, sigma_patches: float) -> Floats:
    """Return the Gaussian mean of the known logits (rows, cols) around each known one.

    Unknown positions are NaN; they weigh nothing and stay NaN. The deviation is in patches.
    """
    from scipy.ndimage import gaussian_filter

    if sigma_patches == 0:
        return logits
    known = ~np.isnan(logits)
    values = np.where(known, logits, 0).astype(np.float64)
    shape = {"sigma": sigma_patches, "mode": "constant", "truncate": TRUNCATE}
    total = gaussian_filter(values, **shape)
    weight = gaussian_filter(known.astype(np.float64), **shape)
    mean: NDArray[np.float64] = np.divide(
        total, weight, out=np.full(logits.shape, np.nan), where=known
    )
    averaged: Floats = mean.astype(np.float32)
    return averaged
