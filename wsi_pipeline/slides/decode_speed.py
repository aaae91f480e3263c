"""How fast this machine decodes JPEG tiles, by the very codec that reads slides."""

import time
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.slides.tile_codecs import JPEG, YCBCR, TileFormat, decode_tile

TILE_PX = 256
QUALITY = 87
"""About what scanners write."""
DRAWN_TILES = 8
GRAIN_PX = 8


def draw_tile(seed: int) -> NDArray[np.uint8]:
    """Something like stained tissue, RGB (256, 256, 3): blots in pink and violet with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((TILE_PX // GRAIN_PX, TILE_PX // GRAIN_PX))
    blots = np.kron(coarse, np.ones((GRAIN_PX, GRAIN_PX)))[..., None]
    colours = blots * np.array([220, 130, 190]) + (1 - blots) * np.array([110, 70, 150])
    tile: NDArray[np.uint8] = np.clip(colours + rng.normal(0, 6, (TILE_PX, TILE_PX, 3)), 0, 255).astype(np.uint8)
    return tile


def measure_decoding(seconds: float, threads: int) -> float:
    """Pixels per second that `threads` threads decode together; takes about `seconds`."""
    form = TileFormat(TILE_PX, TILE_PX, JPEG, YCBCR, 1, None)
    tiles = [bytes(imagecodecs.jpeg8_encode(draw_tile(seed), level=QUALITY)) for seed in range(DRAWN_TILES)]

    def decode_until(stop: float) -> int:
        count = 0
        while time.perf_counter() < stop:
            decode_tile(tiles[count % DRAWN_TILES], form)
            count += 1
        return count

    with ThreadPoolExecutor(threads, "measure") as pool:
        started = time.perf_counter()
        count = sum(pool.map(decode_until, [started + seconds] * threads))
        return count * TILE_PX * TILE_PX / (time.perf_counter() - started)
