"""The stains of patches, and the sample of a slide's patches that is compared."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)
"""Absorption of red, green and blue (Ruifrok & Johnston 2001)."""
QUANTILES = (0.1, 0.5, 0.9)
MOST_PIXELS = 625
"""Pixels of a patch that are looked at, evenly spread."""
MOST_SAMPLED = 200
"""Patches of a slide that are looked at, evenly spread."""


def _unmix() -> NDArray[np.float64]:
    """Return the matrix (3, 3) from optical densities of RGB to haematoxylin, eosin and rest."""
    stains = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    return np.linalg.inv(stains / np.linalg.norm(stains, axis=1, keepdims=True))


UNMIX = _unmix()
DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)
"""Optical density of each value of a channel."""


def measure_stains(pixels: NDArray[np.uint8]) -> Floats:
    """Return float32 (b, 9) of uint8 patches (b, side, side, 3).

    Three quantiles each of haematoxylin, eosin and the rest, as optical densities (colour
    deconvolution by Ruifrok & Johnston 2001).
    """
    flat = pixels.reshape(len(pixels), -1, 3)
    density = DENSITY[flat[:, :: -(-flat.shape[1] // MOST_PIXELS)]] @ UNMIX  # (b, pixels, 3)
    found = np.quantile(density, QUANTILES, axis=1)  # (3, b, 3)
    return np.asarray(found.transpose(1, 2, 0).reshape(len(pixels), -1), dtype=np.float32)


def sample_patches(count: int, most: int = MOST_SAMPLED) -> NDArray[np.intp]:
    """Return the indices of at most so many of a slide's patches, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
