"""Tiles of a TIFF's levels: their places, and their pixels exactly as OpenSlide gives them.

OpenSlide decodes JPEG with libjpeg-turbo's defaults (slow integer DCT, fancy upsampling), lossless
codecs with libtiff and JPEG 2000 with OpenJPEG. simplejpeg and imagecodecs call the same libraries
with the same settings, or raise where OpenSlide may. OpenSlide reads the rest: JPEG 2000 in YCbCr
(Aperio's 33003), tiles with alpha, separate planes, more than 8 bits. Places are compared with the
file's size first, so that a hostile file costs little.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.slides.base import Box, Boxes, Level, tiles_touched
from wsi_pipeline.slides.jpeg_tiles import can_share, decode_jpeg
from wsi_pipeline.slides.tiff_pages import find_page
from wsi_pipeline.slides.tiff_structure import (
    BITS,
    COMPRESSION,
    FILL_ORDER,
    IMAGE_DEPTH,
    ORIENTATION,
    PHOTOMETRIC,
    PLANES,
    PREDICTOR,
    SAMPLE_FORMAT,
    SAMPLES,
    TILE_DEPTH,
    BrokenTiff,
    TiffPage,
    TiffStructure,
    read_structure,
)

JPEG, LZW, DEFLATE, OLD_DEFLATE, ZSTD, UNCOMPRESSED = 7, 5, 8, 32946, 50000, 1
JPEG_2000_YCBCR, JPEG_2000_RGB = 33003, 33005
"""Compression schemes, by TIFF's numbers; the last two are Aperio's own."""

RGB, YCBCR = 2, 6
"""Photometric interpretations, by TIFF's numbers."""

DIFFERENCES = 2
"""The predictor that stores differences between neighbouring pixels."""

DECODER_FAULTS = (RuntimeError, ValueError, TypeError, OSError, MemoryError)
"""Errors of the decoders for invalid data: imagecodecs raises RuntimeErrors, simplejpeg
ValueErrors."""


class TileFault(Exception):
    """A tile cannot be decoded here; OpenSlide reads it."""


class ForgedTile(TileFault):
    """A tile must not be given to OpenSlide, which would show what lies in memory behind it."""


class TileFormat(NamedTuple):
    """The format of the tiles of one level."""

    width: int
    height: int
    compression: int
    photometric: int
    predictor: int
    jpeg_tables: bytes | None


def can_decode(form: TileFormat) -> bool:
    """Return whether tiles of this format come out exactly as OpenSlide gives them."""
    if form.compression == JPEG:
        return form.photometric in (RGB, YCBCR) and can_share(form.jpeg_tables)
    is_simple = form.photometric == RGB and form.predictor in (1, DIFFERENCES)
    return is_simple and form.compression in DECODERS


def decode_tile(
    content: bytes, form: TileFormat, into: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return the pixels of a tile, RGB (height, width, 3). Raises TileFault.

    The result's memory is set aside beforehand, so that a tile that claims to be larger than its
    level's tiles is a fault. JPEG is decoded straight into `into`, where that is given.
    """
    try:
        if form.compression == JPEG:
            pixels = _decode_jpeg(content, form, into)
        else:
            pixels = DECODERS[form.compression](content, form)
    except DECODER_FAULTS as error:
        raise TileFault(f"{type(error).__name__}: {error}") from error
    if pixels.shape != (form.height, form.width, 3) or pixels.dtype != np.uint8:
        raise TileFault(
            f"a tile of {pixels.shape} {pixels.dtype} instead of {form.height} × {form.width} RGB"
        )
    return pixels


def _decode_jpeg(
    content: bytes, form: TileFormat, into: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    # The TIFF's tag counts, as for OpenSlide, not the markers of the JPEG.
    is_ycbcr = form.photometric == YCBCR
    return decode_jpeg(content, form.jpeg_tables, is_ycbcr, (form.width, form.height), into)


def _decode_deflate(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    return _to_pixels(imagecodecs.zlib_decode(content, out=form.height * form.width * 3), form)


def _decode_zstd(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    return _to_pixels(imagecodecs.zstd_decode(content, out=form.height * form.width * 3), form)


LZW_END = 257
"""The code that ends a stream, in nine bits or more; zeros fill its last byte or two."""


def _decode_lzw(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    # imagecodecs invents the last pixel of a stream that lost its end, and libtiff does not.
    tail = int.from_bytes(content[-4:])
    ends = (tail >> unused for unused in range(16) if tail % (1 << unused) == 0)
    if not any(end % 512 == LZW_END for end in ends):
        raise TileFault("an LZW stream without its end")
    return _to_pixels(imagecodecs.lzw_decode(content, out=form.height * form.width * 3), form)


def _to_pixels(content: bytes | bytearray, form: TileFormat) -> NDArray[np.uint8]:
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(form.height, form.width, 3)
    if form.predictor == DIFFERENCES:
        return np.add.accumulate(pixels, axis=1, dtype=np.uint8)
    return pixels


CODESTREAM_SIZE_AT, CODESTREAM_COMPONENTS_AT = 8, 40
"""In JPEG 2000, width, height and their offsets, 32 bits each, follow the markers SOC and SIZ;
after the same of tiles come the number of components, and depth and sampling of each."""
RGB_COMPONENTS = b"\0\3" + b"\7\1\1" * 3
"""Three of 8 bits without a sign, at full size."""


def _decode_jpeg_2000(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    size = np.frombuffer(content, dtype=">u4", count=4, offset=CODESTREAM_SIZE_AT)
    if content[:4] != b"\xff\x4f\xff\x51" or size.tolist() != [form.width, form.height, 0, 0]:
        raise ForgedTile("a JPEG 2000 codestream of another size than its tile")
    if not content.startswith(RGB_COMPONENTS, CODESTREAM_COMPONENTS_AT):
        raise ForgedTile("a JPEG 2000 codestream of other components than RGB")
    return np.asarray(imagecodecs.jpeg2k_decode(content))


def approximate_tile(content: bytes, form: TileFormat) -> NDArray[np.uint8]:
    """Return a tile's pixels as `decode_tile`; those of JPEG 2000 in YCbCr to within a few values.

    Raises TileFault, and where the codec is not known here.
    """
    if form.compression != JPEG_2000_YCBCR:
        if not can_decode(form):
            raise TileFault(f"a tile of codec {form.compression}")
        return decode_tile(content, form)
    rgb = decode_tile(content, form._replace(compression=JPEG_2000_RGB)) @ FROM_YCBCR
    offset = np.array([0, 128, 128]) @ FROM_YCBCR
    return np.asarray(np.clip(rgb - offset, 0, 255).astype(np.uint8))


FROM_YCBCR = np.array([[1, 1, 1], [0, -0.344, 1.772], [1.402, -0.714, 0]])
"""Colours of JPEG: red, green and blue (columns) of luminance and both chromas (rows)."""

DECODERS: dict[int, Callable[[bytes, TileFormat], NDArray[np.uint8]]] = {
    JPEG: _decode_jpeg,
    LZW: _decode_lzw,
    DEFLATE: _decode_deflate,
    OLD_DEFLATE: _decode_deflate,
    ZSTD: _decode_zstd,
    UNCOMPRESSED: _to_pixels,
    JPEG_2000_RGB: _decode_jpeg_2000,
}


MAX_TILE_PX = 4096
MAX_TILE_BYTES = 64 * 1024 * 1024


class LevelLayout(NamedTuple):
    """Places of the tiles of one level."""

    form: TileFormat
    size: tuple[int, int]
    """(width, height) of the level."""
    across: int
    """Tiles in a row."""
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    """Bytes of each tile; 0 where the tile is missing."""

    def corner(self, index: int) -> tuple[int, int]:
        """(x, y) of a tile on its level."""
        row, col = divmod(index, self.across)
        return col * self.form.width, row * self.form.height

    def tiles_under(self, x: int, y: int, width: int, height: int) -> tuple[range, range]:
        """Return rows and columns of the tiles that a region touches, within the level."""
        x_stop, y_stop = min(x + width, self.size[0]), min(y + height, self.size[1])
        rows = range(max(y, 0) // self.form.height, -(-y_stop // self.form.height))
        cols = range(max(x, 0) // self.form.width, -(-x_stop // self.form.width))
        return rows, cols

    def tiles_wanted(self, box: Box, only: Boxes | None) -> list[int]:
        """Return the numbers of the tiles under a box, or under those of `only` (n, 4), by rows."""
        rows, cols = self.tiles_under(*box)
        if only is None or not rows or not cols:
            return [row * self.across + col for row in rows for col in cols]
        tile = self.form.width, self.form.height
        corner = [cols.start * tile[0], rows.start * tile[1], 0, 0]
        row, col = np.nonzero(tiles_touched(only - corner, tile, (len(rows), len(cols))))
        wanted: list[int] = ((row + rows.start) * self.across + col + cols.start).tolist()
        return wanted


def find_layouts(path: Path, levels: Sequence[Level]) -> dict[int, LevelLayout]:
    """Return level number → layout, for the levels that can be read directly.

    Empty where there are none, or the file is not a TIFF.
    """
    found = find_tables(path, levels)
    return {number: layout for number, layout in found.items() if can_decode(layout.form)}


def find_tables(path: Path, levels: Sequence[Level]) -> dict[int, LevelLayout]:
    """Return level number → layout, for the levels of plain RGB in tiles of any codec."""
    try:
        structure = read_structure(path)
    except (BrokenTiff, OSError):
        return {}
    found = {level.number: _layout_of(level, structure) for level in levels}
    return {number: layout for number, layout in found.items() if layout is not None}


def _layout_of(level: Level, structure: TiffStructure) -> LevelLayout | None:
    """Return the layout of the one tiled page of the level's size; None if there is none."""
    page = find_page(structure, level.size)
    if page is None or not is_plain_rgb(page):
        return None
    return lay_out(page, structure.file_size)


def lay_out(page: TiffPage, file_size: int) -> LevelLayout | None:
    """Return the layout of a tiled page; None where its tables do not fit its size or the file."""
    form = TileFormat(
        *page.tile,
        compression=page.number(COMPRESSION, 1),
        photometric=page.number(PHOTOMETRIC, -1),
        predictor=page.number(PREDICTOR, 1),
        jpeg_tables=page.jpeg_tables,
    )
    across, down = -(-page.size[0] // form.width), -(-page.size[1] // form.height)
    if len(page.offsets) != across * down:
        return None
    layout = LevelLayout(form, page.size, across, page.offsets, page.counts)
    return layout if _is_within(layout, file_size) else None


def is_plain_rgb(page: TiffPage) -> bool:
    """Return whether pixels are three adjacent bytes, upright, in tiles of a reasonable size."""
    plain = (PLANES, FILL_ORDER, ORIENTATION, IMAGE_DEPTH, TILE_DEPTH)
    return (
        page.numbers.get(SAMPLES) == (3,)
        and set(page.numbers.get(BITS, (1,))) == {8}
        and set(page.numbers.get(SAMPLE_FORMAT, (1,))) == {1}
        and all(page.number(tag, 1) == 1 for tag in plain)
        and 1 <= min(page.tile) <= max(page.tile) <= MAX_TILE_PX
    )


def _is_within(layout: LevelLayout, file_size: int) -> bool:
    """Return whether every tile lies within the file and has a possible length."""
    if len(layout.offsets) != len(layout.counts):
        return False
    offsets, counts = layout.offsets[layout.counts != 0], layout.counts[layout.counts != 0]
    is_possible = (counts >= 0) & (counts <= MAX_TILE_BYTES)
    return bool((is_possible & (offsets >= 0) & (offsets <= file_size - counts)).all())
