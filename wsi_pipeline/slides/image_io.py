"""Small pictures in memory: encoding what is shown, decoding what is sent.

Also plain images on disk.
"""

import io
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.base import composite_on_white
from wsi_pipeline.slides.image_reader import IMAGE_FAULTS

SENT_FORMATS = ("PNG", "JPEG")
SENT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
"""Of 8 bits per channel or fewer; Pillow would cut deeper grey off at 255, so that all but black becomes white."""
MAX_JPEG_SIDE = 65_535
JPEG_QUALITY = 85


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """RGB (h, w, 3) as JPEG. Raises SlideError where JPEG holds no picture of that size."""
    if not 0 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= MAX_JPEG_SIDE:
        raise SlideError(
            f"picture: {pixels.shape[1]} × {pixels.shape[0]} px are no JPEG; its sides are 1 to"
            f" {MAX_JPEG_SIDE:,} px"
        )
    # The same library and bytes as Pillow's, in two thirds of the time.
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=quality))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4) as PNG. Raises SlideError where there are no pixels."""
    if not pixels.size:
        raise SlideError(
            f"picture: {pixels.shape[1]} × {pixels.shape[0]} px are no PNG; it needs at least one"
            " pixel"
        )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def read_sent_size(content: bytes) -> tuple[int, int]:
    """(width, height) of a PNG or JPEG from its header, without decoding it. Raises SlideError."""
    with _open(content) as image:
        return image.size


def decode_sent(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels of a PNG or JPEG on white, RGB (h, w, 3).

    Raises SlideError where it is none, broken, deeper than 8 bits per channel, or larger than
    `max_pixels`.
    """
    with _open(content) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise SlideError(
                f"image: {width} × {height} px is more than {max_pixels:,} px; send smaller pieces"
            )
        if image.mode not in SENT_MODES:
            raise SlideError(
                f"image: pixels of type {image.mode!r} are no 8-bit grey or RGB; convert it to"
                " 8-bit RGB"
            )
        try:
            return composite_on_white(np.asarray(image.convert("RGBA")))
        except IMAGE_FAULTS as error:
            raise SlideError(
                f"image: cannot be decoded ({type(error).__name__}); send a whole PNG or JPEG"
            ) from error


def _open(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of large images and odd chunks: the limits here are what counts
            return Image.open(io.BytesIO(content), formats=SENT_FORMATS)
    except IMAGE_FAULTS as error:
        raise SlideError("image: neither PNG nor JPEG; send one of these") from error


def write_grey(path: Path, values: NDArray[np.uint8]) -> None:
    """Write (h, w) uint8 as a grey image of the format that the file's suffix names."""
    Image.fromarray(values).save(path)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB (h, w, 3) as the bytes of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()
