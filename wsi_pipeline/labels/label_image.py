"""Images that lie over a slide, as files have them: values, palettes, colours, and their scale.

Images of up to 170 million pixels are read by Pillow, larger TIFFs row of tiles by row of tiles.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import MAX_MPP, UM_PER_INCH

MAX_PIXELS = 170_000_000
"""Pixels that are held at once; an image with more of them is read by rows of tiles."""
BAND_PIXELS = 1 << 22
FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
"""Pillow reads dozens of other formats, and most of its faults were in those."""
TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_DESCRIPTION_TAG = 270
PHYSICAL_SIZE = re.compile(r'PhysicalSizeX="([0-9.eE+-]+)"')
"""OME-TIFF's µm per pixel."""
UM_PER_UNIT = {2: UM_PER_INCH, 3: 10_000.0}
"""By TIFF's number of the unit of its resolution."""
MODES = {"1": "L", "L": "L", "LA": "L", "P": "P", "RGB": "RGB", "RGBA": "RGBA", "PA": "RGBA"}
"""Pillow's modes of label images, and as what they are read."""
INTEGER_MODES = ("I", "I;16", "I;16L", "I;16B")
MAX_VALUE = 65_535
MIN_IS_WHITE, PALETTE = 0, 3
"""TIFF's photometric interpretations."""

Keys = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


class GreyImage(NamedTuple):
    """An image of one 8-bit value per pixel and the scale that its file states."""

    values: NDArray[np.uint8]
    """(h, w)"""
    mpp: float | None


class LabelImage(NamedTuple):
    """A label image: a key per pixel, which is its value, or its colour as 0xRRGGBB."""

    size: tuple[int, int]
    """(width, height)"""
    mpp: float | None
    is_colour: bool
    palette: tuple[int, ...]
    """The colour, 0xRRGGBB, of each value of a palette image; empty for others."""
    bands: Callable[[], Iterator[tuple[int, Keys]]]
    """The image in bands of whole rows, from the top: the first row, and keys (rows, width)."""


def read_mask(path: Path) -> GreyImage | LabelImage:
    """Return an 8-bit grey or palette image; of a palette image, the indices.

    A TIFF that is too large to be held at once is given in bands. Raises LabelError.
    """
    try:
        if path.suffix.lower() in TIFF_SUFFIXES and (large := open_large(path)):
            return _refuse_colour(path, large)
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, image.size)
            if image.mode not in ("L", "P", "1"):
                raise _no_mask(path, image.mode)
            values = np.array(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
            return GreyImage(values, _stated_mpp(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _refuse_colour(path: Path, image: LabelImage) -> LabelImage:
    if image.is_colour:
        raise _no_mask(path, "RGB")
    return image


def _no_mask(path: Path, mode: str) -> LabelError:
    return LabelError(
        f"{path}: a mask holds one 8-bit value per pixel, this has {mode!r}; save it as 8-bit grey"
    )


def read_label_image(path: Path) -> LabelImage:
    """Return a label image, of which larger TIFFs are decoded while it is read.

    Raises LabelError where it is damaged, too large, or neither grey, palette nor colour.
    """
    try:
        if path.suffix.lower() in TIFF_SUFFIXES and (large := open_large(path)):
            return large
        with _open(path) as image:
            if _is_large(image.width, image.height, len(image.getbands())):
                raise _too_large(path, image.size)
            return _hold(path, image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _is_large(width: int, height: int, samples: int) -> bool:
    """Return whether an image is too large to be held at once, by its bytes."""
    return width * height * samples > MAX_PIXELS * (1 if samples == 1 else 2)


def _too_large(path: Path, size: tuple[int, int]) -> LabelError:
    return LabelError(
        f"{path}: {size[0]} × {size[1]} px is too large for a label image; reduce it, or save it as"
        " a tiled TIFF"
    )


def _unreadable(path: Path, error: Exception) -> LabelError:
    return LabelError(f"{path}: not a readable label image ({error}); give a PNG or TIFF")


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images; MAX_PIXELS is the limit that counts.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _hold(path: Path, image: Image.Image) -> LabelImage:
    """Return an image of Pillow, decoded."""
    size, mpp, palette = image.size, _stated_mpp(image), _read_palette(image)
    if image.mode in INTEGER_MODES:
        pixels = np.array(image)
        if pixels.min() < 0 or pixels.max() > MAX_VALUE:
            raise LabelError(
                f"{path}: holds values from {pixels.min()} to {pixels.max()}; a label image has"
                f" values from 0 to {MAX_VALUE}"
            )
    elif image.mode in MODES:
        mode = MODES[image.mode]
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    else:
        raise LabelError(
            f"{path}: a label image holds a value or a colour per pixel, this has {image.mode!r};"
            " save it as 8-bit grey or RGB"
        )
    is_colour = pixels.ndim == 3
    return LabelImage(size, mpp, is_colour, palette, partial(_cut_bands, pixels))


def _read_palette(image: Image.Image) -> tuple[int, ...]:
    if image.mode != "P":
        return ()
    channels = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    return tuple(pack_colours(channels).tolist())


def _cut_bands(pixels: NDArray[Any]) -> Iterator[tuple[int, Keys]]:
    rows = max(1, BAND_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        yield top, make_keys(pixels[top : top + rows])


def make_keys(pixels: NDArray[Any]) -> Keys:
    """Return the key of each pixel: of values (h, w), or of colours (h, w, 3 or 4).

    What is wholly transparent has the key 0, as what is black.
    """
    if pixels.ndim == 2:
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)
    keys = pack_colours(pixels[..., :3])
    return np.where(pixels[..., 3] == 0, np.uint32(0), keys) if pixels.shape[2] == 4 else keys


def pack_colours(channels: NDArray[Any]) -> NDArray[np.uint32]:
    """Return colours (…, 3) as 0xRRGGBB."""
    red, green, blue = np.moveaxis(channels.astype(np.uint32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue, dtype=np.uint32)


def _stated_mpp(image: Image.Image) -> float | None:
    """Return the file's µm per pixel by OME-XML or resolution tags; None: nothing plausible."""
    tags = getattr(image, "tag_v2", {})
    dpi = float((image.info.get("dpi") or [0])[0])
    return _plausible_mpp(str(tags.get(IMAGE_DESCRIPTION_TAG, "")), UM_PER_INCH, dpi)


def _plausible_mpp(description: str, um_per_unit: float, px_per_unit: float) -> float | None:
    described = PHYSICAL_SIZE.search(description)
    if described:
        mpp = float(described[1])
    else:
        mpp = um_per_unit / px_per_unit if px_per_unit > 0 else 0.0
    return mpp if 0 < mpp <= 100 * MAX_MPP else None


def open_large(path: Path) -> LabelImage | None:
    """Return a TIFF with more pixels than are held at once; None for others.

    Raises LabelError where it cannot be read by rows of tiles or strips.
    """
    # Here, because few label images need it.
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
            if not _is_large(width, height, samples):
                return None
            rows = page.tilelength if page.is_tiled else page.rowsperstrip
            is_known = page.dtype in (np.uint8, np.uint16, np.bool_) and samples in (1, 3, 4)
            if not is_known or width * rows * samples > MAX_PIXELS or page.planarconfig != 1:
                raise _too_large(path, (width, height))
            palette: tuple[int, ...] = ()
            if page.photometric == PALETTE and page.colormap is not None:
                palette = tuple(pack_colours(np.moveaxis(page.colormap >> 8, 0, -1)).tolist())
            unit = UM_PER_UNIT.get(int(page.resolutionunit), 0.0)
            mpp = _plausible_mpp(str(page.description), unit, float(page.resolution[0]))
            bands = partial(_decode_bands, path)
            return LabelImage((width, height), mpp, samples > 1, palette, bands)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _decode_bands(path: Path) -> Iterator[tuple[int, Keys]]:
    """Yield a large TIFF by rows of tiles, or strips. Raises LabelError for a damaged one."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            rows = page.tilelength if page.is_tiled else page.rowsperstrip
            shape = (rows, page.imagewidth, page.samplesperpixel)
            top, band = 0, np.zeros(shape, page.dtype)
            for tile, (_, _, y, x, _), _ in page.segments(maxworkers=1):
                if y != top:
                    yield top, _keys_of(page, band)
                    top, band = y, np.zeros(shape, page.dtype)
                if tile is not None:
                    part = tile[0, : page.imagelength - y, : page.imagewidth - x]
                    band[: part.shape[0], x : x + part.shape[1]] = part
            yield top, _keys_of(page, band[: page.imagelength - top])
    except (tifffile.TiffFileError, OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _keys_of(page: Any, band: NDArray[Any]) -> Keys:
    values = band if page.samplesperpixel > 1 else band[..., 0]
    if page.dtype == np.bool_:
        values = np.where(values, np.uint8(255), np.uint8(0))
    if page.photometric == MIN_IS_WHITE:
        values = np.iinfo(values.dtype).max - values
    return make_keys(values)
