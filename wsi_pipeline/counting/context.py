"""Context: a patch's logit averaged with its neighbours' on the grid."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def average_context(logits: Floats, sigma_patches: float) -> Floats:
    """Return the Gaussian mean of the known logits (rows, cols) around each known one.

    Unknown positions are NaN; they weigh nothing and stay NaN. The deviation is in patches.
    """
    from scipy.ndimage import gaussian_filter

    if sigma_patches == 0:
        return logits
    known = ~np.isnan(logits)
    values = np.where(known, logits, 0).astype(np.float64)
    total = gaussian_filter(values, sigma_patches, mode="constant")
    weight = gaussian_filter(known.astype(np.float64), sigma_patches, mode="constant")
    mean: NDArray[np.float64] = np.divide(
        total, weight, out=np.full(logits.shape, np.nan), where=known
    )
    averaged: Floats = mean.astype(np.float32)
    return averaged
