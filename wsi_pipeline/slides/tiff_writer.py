"""Writing pixels as a tiled, pyramidal TIFF that OpenSlide, QuPath and our own readers open."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.slides.scaling import Edges, average_areas

TILE_PX = 256
SMALLEST_LEVEL_PX = 256
UM_PER_CM = 10_000


def write_pyramid(path: Path, pixels: NDArray[np.uint8], mpp: float, compression: str = "deflate") -> None:
    """Write RGB (height, width, 3) at `mpp` µm/px with levels reduced 2, 4, 8… times, the scale in the resolution tags."""
    with tifffile.TiffWriter(path) as writer:
        level, level_mpp = pixels, mpp
        while True:
            writer.write(
                level,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression=compression,
                resolution=(UM_PER_CM / level_mpp, UM_PER_CM / level_mpp),
                resolutionunit="CENTIMETER",
                subfiletype=int(level is not pixels),
                metadata=None,
                software=False,
            )
            if min(level.shape[:2]) < 2 * SMALLEST_LEVEL_PX:
                return
            level, level_mpp = _halve(level), level_mpp * 2


def _halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    y_edges = Edges(np.arange(0, 2 * height + 1, 2, dtype=np.int64), 1)
    x_edges = Edges(np.arange(0, 2 * width + 1, 2, dtype=np.int64), 1)
    return average_areas(pixels[: 2 * height, : 2 * width], y_edges, x_edges)
