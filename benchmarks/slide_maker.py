"""Synthetic slides of any size for the benchmarks: JPEG tiles, levels reduced 4, 16 and 64 times.

python benchmarks/slide_maker.py OUT WIDTH HEIGHT [--tissue 0.36]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.filters import gaussian

from wsi_pipeline.runs.synthetic_slides import draw_phantom

TILE = 256
PERIOD = 2048
FACTORS = (1, 4, 16, 64)
GLASS = 243


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument(
        "--tissue", type=float, default=0.36, help="share of the slide that is tissue"
    )
    options = parser.parse_args()
    make_slide(options.out, options.width, options.height, options.tissue)


def make_slide(
    path: Path,
    width: int,
    height: int,
    tissue: float,
    mpp: float = 0.25,
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> None:
    """Write a slide: tissue in blobs, made of one texture that repeats, on glass.

    The texture has gaps; `tint` is the light that it lets through besides, by which all of it can
    be made tissue.
    """
    mask = _draw_blobs(-(-height // TILE), -(-width // TILE), tissue)
    texture = (draw_phantom(PERIOD, PERIOD, seed=1).pixels * tint).astype(np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in FACTORS:
            size = (-(-height // factor), -(-width // factor))
            if factor > 1 and min(size) < TILE:
                break
            writer.write(
                _tiles(mask, texture, factor, size),
                shape=(*size, 3),
                dtype="uint8",
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(2, 2),
                subfiletype=int(factor > 1),
                resolution=(10_000 / (mpp * factor), 10_000 / (mpp * factor)),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
            )


def _draw_blobs(rows: int, cols: int, share: float) -> NDArray[np.bool_]:
    noise = gaussian(np.random.default_rng(0).standard_normal((rows, cols)), min(rows, cols) / 10)
    blobs: NDArray[np.bool_] = noise >= np.quantile(noise, 1 - share)
    return blobs


def _tiles(
    mask: NDArray[np.bool_], texture: NDArray[np.uint8], factor: int, size: tuple[int, int]
) -> Iterator[bytes]:
    side = PERIOD // factor
    reduced = texture.reshape(side, factor, side, factor, 3).mean(axis=(1, 3)).astype(np.uint8)
    tiled = np.tile(reduced, (TILE // side + 2, TILE // side + 2, 1))
    made: dict[tuple[int, int, bytes], bytes] = {}
    for row in range(-(-size[0] // TILE)):
        for col in range(-(-size[1] // TILE)):
            part = np.zeros((factor, factor), dtype=np.bool_)
            found = mask[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            part[: found.shape[0], : found.shape[1]] = found
            y, x = (row * TILE % side, col * TILE % side) if part.any() else (0, 0)
            key = (y, x, part.tobytes())
            if key not in made:
                is_tissue = np.kron(part, np.ones((TILE // factor, TILE // factor), dtype=np.bool_))
                pixels = np.where(
                    is_tissue[..., None], tiled[y : y + TILE, x : x + TILE], np.uint8(GLASS)
                )
                made[key] = imagecodecs.jpeg8_encode(
                    np.ascontiguousarray(pixels), level=87, subsampling="420"
                )
            yield made[key]


if __name__ == "__main__":
    main()
