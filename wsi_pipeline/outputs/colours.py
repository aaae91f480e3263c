"""Maps as pixels: the colours of every picture, one pixel per cell."""

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from wsi_pipeline.heatmap import find_positive
from wsi_pipeline.outputs.result import COLORMAPS


def colour_table(name: str = COLORMAPS[0]) -> NDArray[np.uint8]:
    """RGB (256, 3) of a colormap: colour number k stands for probabilities from k/256 on."""
    return np.asarray(colormaps[name](np.arange(256), bytes=True), dtype=np.uint8)[:, :3]


def paint_map(probability: NDArray[np.float32], threshold: float | None = None) -> NDArray[np.uint8]:
    """RGBA (rows, cols, 4): opaque where assessed, transparent elsewhere and, where a threshold is given, below it."""
    is_shown = ~np.isnan(probability) if threshold is None else find_positive(probability, threshold)
    number = np.minimum(np.nan_to_num(probability) * 256, 255).astype(np.uint8)
    alpha = np.where(is_shown, 255, 0).astype(np.uint8)
    return np.concatenate([colour_table()[number], alpha[..., None]], axis=-1)
