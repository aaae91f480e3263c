"""Decoding one tile of a TIFF: exactly the pixels that OpenSlide gives for it, or a fault.

OpenSlide decodes JPEG with libjpeg-turbo's defaults (slow integer DCT, fancy upsampling), lossless
codecs with libtiff and JPEG 2000 with OpenJPEG. imagecodecs calls the same libraries with the same
settings. What it does otherwise is left out here, and OpenSlide reads it: JPEG 2000 whose colours
are YCbCr (Aperio's 33003), tiles with alpha, planes apart, more than 8 bits.

How fast this machine decodes JPEG tiles is measured with the same codec.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

JPEG, LZW, DEFLATE, OLD_DEFLATE, UNCOMPRESSED, JPEG_2000_RGB = 7, 5, 8, 32946, 1, 33005
"""Compression schemes, by TIFF's numbers; the last is Aperio's own."""

RGB, YCBCR = 2, 6
"""Photometric interpretations, by TIFF's numbers."""

DIFFERENCES = 2
"""The predictor that stores differences between neighbouring pixels."""

DECODER_FAULTS = (RuntimeError, ValueError, TypeError, OSError, MemoryError)
"""What imagecodecs raises for data that are not what they say; its own errors are RuntimeErrors."""
TILE_PX = 256
QUALITY = 87
"""About what scanners write."""
DRAWN_TILES = 8
GRAIN_PX = 8


class TileFault(Exception):
    """A tile could not be decoded here; OpenSlide is asked for it."""


class TileFormat(NamedTuple):
    """How the tiles of one level are stored."""

    width: int
    height: int
    compression: int
    photometric: int
    predictor: int
    jpeg_tables: bytes | None


def can_decode(form: TileFormat) -> bool:
    """Whether tiles of this format come out exactly as OpenSlide gives them."""
    if form.compression == JPEG:
        return form.photometric in (RGB, YCBCR)
    return (
        form.compression in DECODERS
        and form.photometric == RGB
        and form.predictor in (1, DIFFERENCES)
    )


def decode_tile(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    """The pixels of a tile, RGB (height, width, 3). Raises TileFault.

    The result's memory is set aside beforehand, so that a tile that claims to be larger than its
    level's tiles is a fault.
    """
    try:
        pixels = DECODERS[form.compression](content, form)
    except DECODER_FAULTS as error:
        raise TileFault(f"{type(error).__name__}: {error}") from error
    if pixels.shape != (form.height, form.width, 3) or pixels.dtype != np.uint8:
        raise TileFault(
            f"a tile of {pixels.shape} {pixels.dtype} instead of {form.height} × {form.width} RGB"
        )
    return pixels


def _empty(form: TileFormat) -> NDArray[np.uint8]:
    return np.empty((form.height, form.width, 3), dtype=np.uint8)


def _decode_jpeg(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    colors = (
        "YCBCR" if form.photometric == YCBCR else "RGB"
    )  # TIFF's word counts, as for OpenSlide, whatever markers say
    pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(
        content, tables=form.jpeg_tables, colorspace=colors, outcolorspace="RGB", out=_empty(form)
    )
    return pixels


def _decode_deflate(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    return _to_pixels(imagecodecs.zlib_decode(content, out=form.height * form.width * 3), form)


def _decode_lzw(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    return _to_pixels(imagecodecs.lzw_decode(content, out=form.height * form.width * 3), form)


def _take_uncompressed(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    return _to_pixels(content, form)


def _to_pixels(content: bytes | bytearray, form: TileFormat) -> NDArray[np.uint8]:
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(form.height, form.width, 3)
    if form.predictor == DIFFERENCES:
        return np.add.accumulate(pixels, axis=1, dtype=np.uint8)
    return pixels


CODESTREAM_SIZE_AT = 8
"""JPEG 2000 begins with the markers SOC and SIZ; width, height and their offsets, 32 bits each, follow here."""


def _decode_jpeg_2000(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    size = np.frombuffer(content, dtype=">u4", count=4, offset=CODESTREAM_SIZE_AT)
    if content[:4] != b"\xff\x4f\xff\x51" or size.tolist() != [form.width, form.height, 0, 0]:
        raise TileFault("a JPEG 2000 codestream of another size than its tile")
    pixels: NDArray[np.uint8] = imagecodecs.jpeg2k_decode(content)
    return pixels


DECODERS: dict[int, Callable[[bytes, TileFormat], NDArray[np.uint8]]] = {
    JPEG: _decode_jpeg,
    LZW: _decode_lzw,
    DEFLATE: _decode_deflate,
    OLD_DEFLATE: _decode_deflate,
    UNCOMPRESSED: _take_uncompressed,
    JPEG_2000_RGB: _decode_jpeg_2000,
}


def draw_tile(seed: int) -> NDArray[np.uint8]:
    """Something like stained tissue, RGB (256, 256, 3): blots in pink and violet with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((TILE_PX // GRAIN_PX, TILE_PX // GRAIN_PX))
    blots = np.kron(coarse, np.ones((GRAIN_PX, GRAIN_PX)))[..., None]
    colours = blots * np.array([220, 130, 190]) + (1 - blots) * np.array([110, 70, 150])
    tile: NDArray[np.uint8] = np.clip(
        colours + rng.normal(0, 6, (TILE_PX, TILE_PX, 3)), 0, 255
    ).astype(np.uint8)
    return tile


def measure_decoding(seconds: float, threads: int) -> float:
    """Pixels per second that `threads` threads decode together; takes about `seconds`."""
    form = TileFormat(TILE_PX, TILE_PX, JPEG, YCBCR, 1, None)
    tiles = [
        bytes(imagecodecs.jpeg8_encode(draw_tile(seed), level=QUALITY))
        for seed in range(DRAWN_TILES)
    ]

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
