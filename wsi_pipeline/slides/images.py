"""Plain images (PNG, JPEG, BMP, flat TIFF): as slides of one level, and in memory.

As slides they serve small exports, and tests as a second reader. In memory, images are encoded for
display and decoded from requests.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import UM_PER_INCH
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.slides.base import (
    Boxes,
    DeclaredScale,
    Level,
    UserScale,
    composite_on_white,
    fingerprint_file,
    resolve_levels,
    resolve_mpp,
    show_reader,
)
from wsi_pipeline.slides.colour_profile import describe_profile, make_conversion
from wsi_pipeline.slides.jpeg_tiles import find_complaint
from wsi_pipeline.slides.stated_scale import (
    describe_instead,
    read_description,
    read_magnification,
)
from wsi_pipeline.slides.tiff_structure import BrokenTiff, read_structure

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MODES = ("RGB", "RGBA", "L", "LA")
SENT_FORMATS = ("PNG", "JPEG")
SENT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
"""Modes of at most 8 bits per channel; Pillow would clip deeper grey at 255, to white."""
DESCRIPTION, RESOLUTION, RESOLUTION_UNIT = 270, (282, 283), 296
"""Tags of a TIFF."""
MAX_PIXELS = 200_000_000
"""A plain image is decoded whole; one larger than this belongs in a pyramid."""

IMAGE_FAULTS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class ImageReader:
    """A plain image as a slide; decoded once, when it is opened."""

    fallbacks = 0
    """A plain image is decoded whole, or not at all."""

    __repr__ = show_reader

    def __init__(self, path: Path, slide_id: str, scale: UserScale | None = None) -> None:
        with _opened(path) as image:
            _check_decodable(path, image)
            # Before anything is decoded.
            mpp, mpp_source = resolve_mpp(path, _declared_scale(image), scale)
            _check_whole(path, image)
            self._pixels = composite_on_white(np.asarray(image.convert("RGBA")))
            self._profile: bytes | None = image.info.get("icc_profile")
        self._path = path
        height, width = self._pixels.shape[:2]
        profile = describe_profile(self._profile)
        self.levels = resolve_levels([(width, height)])
        self.info = SlideInfo(
            slide_id=slide_id,
            path=str(path),
            size_l0=(width, height),
            mpp=mpp,
            mpp_source=mpp_source,
            level_downsamples=(self.levels[0].downsample,),
            bounds_l0=(0, 0, width, height),
            fingerprint=fingerprint_file(path),
            icc_name=profile and profile.name,
            icc_digest=profile and profile.digest,
        )

    def use_srgb(self) -> None:
        """Give pixels in sRGB from now on, where the image has a profile. Raises SlideError."""
        if self._profile:
            self._pixels = make_conversion(self._path, self._profile)(self._pixels)

    def read(
        self, level: Level, x: int, y: int, width: int, height: int, only: Boxes | None = None
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y); pixels outside the image are white."""
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        inside = self._pixels[y0 : max(y + height, 0), x0 : max(x + width, 0)]
        region[y0 - y : y0 - y + inside.shape[0], x0 - x : x0 - x + inside.shape[1]] = inside
        return region

    def close(self) -> None:
        """Nothing to release: the pixels go with the object."""


def recognises(path: Path) -> bool:
    """Return whether Pillow knows the file as one of FORMATS."""
    try:
        with _open(path, FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except IMAGE_FAULTS:
        return True  # known but broken: opening it names the fault


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a plain image on white, RGB (height, width, 3). Raises SlideError."""
    with _opened(path) as image:
        _check_decodable(path, image)
        _check_whole(path, image)
        return composite_on_white(np.asarray(image.convert("RGBA")))


def read_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from an image's header, without decoding it. Raises SlideError."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a plain image; faults of Pillow within the block become SlideErrors."""
    try:
        with _open(path, FORMATS) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise SlideError(
            f"{path}: too large for a plain image ({error}); convert it to a pyramidal TIFF"
        ) from error
    except (*IMAGE_FAULTS, BrokenTiff) as error:
        raise SlideError(f"{path}: not a whole image ({error}); copy it again") from error


def _open(source: Path | io.BytesIO, formats: tuple[str, ...]) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images and odd chunks; the limits here are what counts.
        warnings.simplefilter("ignore")
        return Image.open(source, formats=formats)


def _check_decodable(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise SlideError(
            f"{path}: {width} × {height} px is too large for a plain image (limit {MAX_PIXELS:,}"
            " px); convert it to a pyramidal TIFF"
        )
    _check_mode(path, image, MODES)


def _check_whole(path: Path, image: Image.Image) -> None:
    """Refuse a JPEG, or a TIFF of JPEG strips, with damaged data, of which Pillow says nothing."""
    complaints: list[str | None] = []
    if image.format == "JPEG":
        complaints = [find_complaint(path.read_bytes())]
    elif image.format == "TIFF" and image.info.get("compression") == "jpeg":
        page = read_structure(path).pages[0]
        with path.open("rb") as stream:
            for offset, count in zip(page.offsets.tolist(), page.counts.tolist(), strict=False):
                stream.seek(offset)
                complaints.append(find_complaint(stream.read(count), page.jpeg_tables))
    for complaint in filter(None, complaints):
        raise SlideError(f"{path}: not a whole image ({complaint}); copy it again")


def _check_mode(name: Path | str, image: Image.Image, modes: tuple[str, ...]) -> None:
    if image.mode not in modes:
        raise SlideError(
            f"{name}: pixels of type {image.mode!r} are not 8-bit grey or RGB; convert it to"
            " 8-bit RGB"
        )


def _declared_scale(image: Image.Image) -> DeclaredScale:
    tags = getattr(image, "tag_v2", {})
    text, resolution = str(tags.get(DESCRIPTION, "")), [str(tags.get(t, "")) for t in RESOLUTION]
    if stated := read_description(text, (resolution[0], resolution[1])):
        return stated
    dpi = image.info.get("dpi")
    if dpi is None or not all(float(value) > 0 for value in dpi):
        is_unitless = tags.get(RESOLUTION_UNIT) == 1
        instead = describe_instead(
            read_magnification(text), None, resolution[0] if is_unitless else ""
        )
        return DeclaredScale("image header", None, None, instead)
    # Headers keep whole dots per metre, so that 4 µm/px comes back as 3.99999….
    mpp_x, mpp_y = (f"{UM_PER_INCH / float(value):.5g}" for value in dpi)
    return DeclaredScale("image header", mpp_x, mpp_y)


MAX_JPEG_SIDE = 65_535
JPEG_QUALITY = 85
PAETH = 0x80
"""libpng's number of the filter that suits slides best."""


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Return RGB (h, w, 3) as JPEG. Raises SlideError for a size that JPEG cannot hold."""
    if not 0 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= MAX_JPEG_SIDE:
        raise SlideError(
            f"image: {pixels.shape[1]} × {pixels.shape[0]} px do not fit a JPEG; its sides are 1"
            f" to {MAX_JPEG_SIDE:,} px"
        )
    # The same library and bytes as Pillow's, in two thirds of the time.
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=quality))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4) as PNG. Raises SlideError if empty."""
    if not pixels.size:
        raise SlideError(
            f"image: {pixels.shape[1]} × {pixels.shape[0]} px do not fit a PNG; it needs at least"
            " one pixel"
        )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pack_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB (h, w, 3), not empty, as PNG in a sixth of the time, a tenth larger.

    Pillow would try every filter on every row, which is half of the time at zlib's level 1.
    """
    content = np.ascontiguousarray(pixels)
    return bytes(imagecodecs.png_encode(content, level=1, filter=PAETH))


def read_sent_size(content: bytes) -> tuple[int, int]:
    """Return (width, height) of a PNG or JPEG from its header. Raises SlideError."""
    with _open_sent(content) as image:
        return image.size


def decode_sent(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return the pixels of a PNG or JPEG on white, RGB (h, w, 3).

    Raises SlideError where it is none, broken, deeper than 8 bits per channel, or larger than
    `max_pixels`.
    """
    with _open_sent(content) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise SlideError(
                f"image: {width} × {height} px is more than {max_pixels:,} px; send smaller pieces"
            )
        _check_mode("image", image, SENT_MODES)
        if image.format == "JPEG" and (complaint := find_complaint(content)) is not None:
            raise SlideError(f"image: damaged ({complaint}); send a whole PNG or JPEG")
        try:
            return composite_on_white(np.asarray(image.convert("RGBA")))
        except IMAGE_FAULTS as error:
            raise SlideError(
                f"image: cannot be decoded ({type(error).__name__}); send a whole PNG or JPEG"
            ) from error


def _open_sent(content: bytes) -> Image.Image:
    try:
        return _open(io.BytesIO(content), SENT_FORMATS)
    except IMAGE_FAULTS as error:
        raise SlideError("image: neither PNG nor JPEG; send one of these") from error


def write_grey(path: Path, values: NDArray[np.uint8]) -> None:
    """Write (h, w) uint8 as a grey image of the format that the file's suffix names."""
    Image.fromarray(values).save(path)
