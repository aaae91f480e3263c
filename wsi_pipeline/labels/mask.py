"""Label masks: images that lie over a slide and say of each pixel which class it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsi_pipeline.errors import ConfigError, LabelError
from wsi_pipeline.geometry import Grid, cells_to_boxes_l0

UNKNOWN = -1
NEGATIVE = 0
POSITIVE = 1

LABEL_SUFFIX = "_labels"
MAX_PIXELS = 400_000_000


@dataclass(frozen=True, slots=True)
class MaskValues:
    """Which pixel value means which class; every other value means unknown."""

    negative: int = 100
    positive: int = 200

    def __post_init__(self) -> None:
        if self.negative == self.positive or not (0 <= self.negative <= 255 and 0 <= self.positive <= 255):
            raise ConfigError(
                f"mask values {self.negative} and {self.positive} do not tell two classes apart; give two numbers from 0 to 255"
            )


def read_mask(path: Path) -> NDArray[np.uint8]:
    """An 8-bit grey image as uint8 (h, w). Raises LabelError."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise LabelError(f"{path}: {image.width} × {image.height} px is too large for a label mask; reduce it")
            if image.mode not in ("L", "P", "1"):
                raise LabelError(f"{path}: a label mask holds one 8-bit value per pixel, this has {image.mode!r}; save it as 8-bit grey")
            return np.array(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise LabelError(f"{path}: not a readable label image ({error}); give a PNG or TIFF") from error


def label_cells(path: Path, cells: NDArray[np.int32], grid: Grid, size_l0: tuple[int, int], values: MaskValues) -> NDArray[np.int8]:
    """Label of each cell, int8 (n,): the class that covers at least half of it, else -1 (unknown).

    The mask is registered by size: it shows the whole slide of `size_l0`, at any whole or broken reduction. Raises LabelError.
    """
    mask = read_mask(path)
    scale = _register(path, mask.shape, size_l0)
    boxes = cells_to_boxes_l0(cells, grid) / scale
    labels = np.full(len(cells), UNKNOWN, dtype=np.int8)
    for label, value in ((NEGATIVE, values.negative), (POSITIVE, values.positive)):
        labels[_covered(mask == value, boxes) >= 0.5] = label
    return labels


def _register(path: Path, shape: tuple[int, ...], size_l0: tuple[int, int]) -> float:
    """Level-0 pixels per mask pixel."""
    height, width = shape
    scale = size_l0[0] / width
    if scale < 1 or abs(size_l0[1] / scale - height) > 1:
        raise LabelError(
            f"{path}: a mask of {width} × {height} px does not lie over a slide of {size_l0[0]} × {size_l0[1]} px; "
            "it must show the whole slide, at the same or a smaller size"
        )
    return scale


def _covered(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each box (n, 4: x, y, width, height in mask pixels) where the mask is True, edges to the nearest pixel."""
    height, width = mask.shape
    integral = np.zeros((height + 1, width + 1), dtype=np.int64)
    integral[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    x0, y0 = np.floor(boxes[:, 0] + 0.5).astype(np.int64), np.floor(boxes[:, 1] + 0.5).astype(np.int64)
    x1 = np.clip(np.floor(boxes[:, 0] + boxes[:, 2] + 0.5).astype(np.int64), x0 + 1, None)
    y1 = np.clip(np.floor(boxes[:, 1] + boxes[:, 3] + 0.5).astype(np.int64), y0 + 1, None)
    x0, x1 = np.clip(x0, 0, width), np.clip(x1, 0, width)
    y0, y1 = np.clip(y0, 0, height), np.clip(y1, 0, height)
    inside = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return inside / np.maximum((x1 - x0) * (y1 - y0), 1)


def list_masks(places: Iterable[Path]) -> list[Path]:
    """The label images of files and folders: of a folder, every `*_labels.png` or `.tif`. Raises LabelError where there is none."""
    masks: list[Path] = []
    for place in places:
        if place.is_dir():
            masks += sorted(p for p in place.iterdir() if p.stem.endswith(LABEL_SUFFIX) and p.suffix.lower() in (".png", ".tif", ".tiff"))
        elif place.exists():
            masks.append(place)
        else:
            raise LabelError(f"{place}: no such file or folder; check the path")
    if not masks:
        raise LabelError(f"{', '.join(map(str, places))}: no *{LABEL_SUFFIX}.png among them; name the label images")
    return masks


def match_mask(slide_id: str, masks: Sequence[Path]) -> Path | None:
    """The mask of a slide: its stem without `_labels` is the slide's name, or the name's beginning up to `_`, `-` or `.`.

    So `idc_8863_labels.png` belongs to `idc_8863_mosaic`. The longest match wins; raises LabelError where two are as long.
    """
    fitting = [(len(stem), mask) for mask in masks if _belongs(stem := mask.stem.removesuffix(LABEL_SUFFIX), slide_id)]
    if not fitting:
        return None
    longest = max(length for length, _ in fitting)
    best = [mask for length, mask in fitting if length == longest]
    if len(best) > 1:
        raise LabelError(f"{slide_id}: both {best[0]} and {best[1]} could be its labels; name one of them")
    return best[0]


def _belongs(stem: str, slide_id: str) -> bool:
    return stem != "" and (slide_id == stem or (slide_id.startswith(stem) and slide_id[len(stem)] in "_-."))
