"""The speed at which one worker reads patches, measured on a slide that is drawn for it."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import BLOCK_PATCHES, PatchSpec, all_positions, lay_grid
from wsi_pipeline.runs.synthetic_slides import TILE_PX, UM_PER_CM
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches

DRAWN_TILES, TILES_ACROSS = 8, 16
GRAIN_PX = 8
QUALITY = 87
"""About what scanners write."""


def measure_reading(spec: PatchSpec, threads: int, seconds: float) -> float:
    """Return patches per second that the threads of one worker decode and cut together.

    As a worker reads a slide scanned at the patches' own scale, whose file is in the cache of the
    system. Takes about `seconds`, and two more to draw the slide.
    """
    side = max(TILES_ACROSS * TILE_PX, -(-spec.side_px // TILE_PX) * TILE_PX)
    with TemporaryDirectory(prefix="wsi-doctor-") as folder:
        path = Path(folder) / "drawn.tiff"
        _write_slide(path, draw_tissue(side), spec.mpp)
        with closing(open_slide(path)) as reader:
            grid = lay_grid((0, 0, side, side), Fraction(1), spec)
            source = SlidePatches(reader, grid, all_positions(grid), BLOCK_PATCHES)
            return _read_repeatedly(source, threads, seconds)


def _write_slide(path: Path, pixels: NDArray[np.uint8], mpp: float) -> None:
    """Write RGB as one level of JPEG tiles with halved chroma, as scanners do."""
    tifffile.imwrite(
        path,
        pixels,
        photometric="ycbcr",
        tile=(TILE_PX, TILE_PX),
        compression="jpeg",
        compressionargs={"level": QUALITY},
        resolution=(UM_PER_CM / mpp, UM_PER_CM / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def _read_repeatedly(source: SlidePatches, threads: int, seconds: float) -> float:
    def read_until(stop: float) -> int:
        count = 0
        while not count or time.perf_counter() < stop:
            count += len(source.read_block(0).pixels)
        return count

    source.read_block(0)  # the first one makes everything ready
    with ThreadPoolExecutor(threads, "measure") as pool:
        started = time.perf_counter()
        count = sum(pool.map(read_until, [started + seconds] * threads))
        return count / (time.perf_counter() - started)


def draw_tissue(side: int) -> NDArray[np.uint8]:
    """Return synthetic stained tissue, RGB (side, side, 3), `side` a multiple of a tile's."""
    tiles = [_draw_tile(seed) for seed in range(DRAWN_TILES)]
    across = side // TILE_PX
    rows = [
        np.concatenate([tiles[(row + col) % DRAWN_TILES] for col in range(across)], axis=1)
        for row in range(across)
    ]
    return np.concatenate(rows)


def _draw_tile(seed: int) -> NDArray[np.uint8]:
    """Return pink and violet blots with grain, RGB (256, 256, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((TILE_PX // GRAIN_PX, TILE_PX // GRAIN_PX))
    blots = np.kron(coarse, np.ones((GRAIN_PX, GRAIN_PX)))[..., None]
    colours = blots * np.array([220, 130, 190]) + (1 - blots) * np.array([110, 70, 150])
    grain = rng.normal(0, 6, (TILE_PX, TILE_PX, 3))
    return np.asarray(np.clip(colours + grain, 0, 255).astype(np.uint8))
