"""Writing plain images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_grey(path: Path, values: NDArray[np.uint8]) -> None:
    """Write (h, w) uint8 as a grey image of the format that the file's suffix names."""
    Image.fromarray(values).save(path)
