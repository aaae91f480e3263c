"""Small pictures that the pages show."""

import numpy as np
from numpy.typing import NDArray

TISSUE_RGBA = (0, 130, 110, 60)
EDGE_RGBA = (0, 110, 95, 255)


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """RGB (h, w, 3) reduced a whole number of times, so that its longer side has at most `side` pixels; a rest at the edge is left out."""
    step = max(1, -(-max(pixels.shape[:2]) // side))  # 1 of no pixels at all
    height, width = pixels.shape[0] // step, pixels.shape[1] // step
    if step == 1 or not (height and width):
        return pixels[::step, ::step]
    cut = pixels[: height * step, : width * step].reshape(height, step, width, step, 3)
    means: NDArray[np.uint8] = cut.mean(axis=(1, 3)).round().astype(np.uint8)
    return means


def draw_tissue(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask (h, w) as RGBA: tinted inside, a line along its edge, clear elsewhere."""
    picture = np.zeros((*mask.shape, 4), dtype=np.uint8)
    picture[mask] = TISSUE_RGBA
    padded = np.pad(mask, 1)
    is_inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    picture[mask & ~is_inner] = EDGE_RGBA
    return picture
