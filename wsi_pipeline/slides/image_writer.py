"""Writing plain images."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_grey(path: Path, values: NDArray[np.uint8]) -> None:
    """Write (h, w) uint8 as a grey image of the format that the file's suffix names."""
    Image.fromarray(values).save(path)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB (h, w, 3) as the bytes of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return stream.getvalue()
