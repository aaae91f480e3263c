"""Label images: pictures that lie over a slide and say of each pixel which class it is."""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import MAX_MPP, UM_PER_INCH, Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.assignment import PatchLabels, decide
from wsi_pipeline.labels.rules import LabelRules

MAX_PIXELS = 170_000_000
FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
"""Pillow knows dozens of others, and most of its faults have been in those."""
IMAGE_DESCRIPTION_TAG = 270
PHYSICAL_SIZE = re.compile(r'PhysicalSizeX="([0-9.eE+-]+)"')
"""OME-TIFF's µm per pixel."""


class LabelImage(NamedTuple):
    """A label image and the scale that its file states."""

    values: NDArray[np.uint8]
    """(h, w)"""
    mpp: float | None


def read_mask(path: Path) -> LabelImage:
    """An 8-bit grey or palette image; of a palette image, the indices. Raises LabelError."""
    try:
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise LabelError(
                    f"{path}: {image.width} × {image.height} px is too large for a label image;"
                    " reduce it"
                )
            if image.mode not in ("L", "P", "1"):
                raise LabelError(
                    f"{path}: a label image holds one 8-bit value per pixel, this has"
                    f" {image.mode!r}; save it as 8-bit grey"
                )
            values = np.array(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
            return LabelImage(values, _stated_mpp(image))
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise LabelError(
            f"{path}: not a readable label image ({error}); give a PNG or TIFF"
        ) from error


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images; MAX_PIXELS is the limit that counts.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _stated_mpp(image: Image.Image) -> float | None:
    """µm per pixel by OME-XML or the resolution tags; None where nothing plausible is stated."""
    tags = getattr(image, "tag_v2", {})
    described = PHYSICAL_SIZE.search(str(tags.get(IMAGE_DESCRIPTION_TAG, "")))
    dpi = image.info.get("dpi")
    mpp = (
        float(described[1])
        if described
        else (UM_PER_INCH / float(dpi[0]) if dpi and float(dpi[0]) > 0 else 0.0)
    )
    return mpp if 0 < mpp <= 100 * MAX_MPP else None


def assign_mask(
    path: Path, slide: SlideInfo, grid: Grid, positions: NDArray[np.int32], rules: LabelRules
) -> PatchLabels:
    """Label cells (n, 2) by the share of each class's pixels under them. Raises LabelError where the image does not fit the slide."""
    image = read_mask(path)
    boxes = positions_to_boxes_l0(positions, grid) / register_image(path, image, slide)
    values = rules.mask_values
    negative, positive = (
        _covered(image.values == value, boxes) for value in (values.negative, values.positive)
    )
    if rules.outside == "negative":
        negative = 1 - positive
    labels, fraction = decide((negative, positive), rules)
    counts = {
        str(value): int(np.count_nonzero(image.values == value))
        for value in (values.negative, values.positive)
    }
    return PatchLabels(labels, fraction, {"mask_pixels": counts})


def register_image(path: Path, image: LabelImage, slide: SlideInfo) -> float:
    """Level-0 pixels per image pixel: the image shows the whole slide, or states its own µm per pixel. Raises LabelError."""
    height, width = image.values.shape
    scale: float = slide.size_l0[0] / width
    if scale >= 1 and abs(slide.size_l0[1] / scale - height) <= 1:
        return scale
    if image.mpp is not None and _fits_within(image.mpp / slide.mpp, image, slide):
        return image.mpp / slide.mpp
    raise LabelError(
        f"{path}: an image of {width} × {height} px does not lie over a slide of {slide.size_l0[0]}"
        f" × {slide.size_l0[1]} px; it must show the whole slide, at the same or a smaller size, or"
        " state its µm per pixel"
    )


def _fits_within(scale: float, image: LabelImage, slide: SlideInfo) -> bool:
    height, width = image.values.shape
    return (
        scale >= 0.5
        and (width - 1) * scale <= slide.size_l0[0]
        and (height - 1) * scale <= slide.size_l0[1]
    )


def _covered(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each box (n, 4: x, y, width, height in mask pixels) where the mask is True, edges to the nearest pixel."""
    height, width = mask.shape
    integral = np.zeros((height + 1, width + 1), dtype=np.int64)
    integral[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    (x0, x1), (y0, y1) = (_nearest_pixels(boxes[:, axis], boxes[:, axis + 2]) for axis in (0, 1))
    area = (x1 - x0) * (y1 - y0)  # what lies beyond the image belongs to no class
    x0, x1 = np.clip(x0, 0, width), np.clip(x1, 0, width)
    y0, y1 = np.clip(y0, 0, height), np.clip(y1, 0, height)
    inside = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    shares: NDArray[np.float64] = inside / area
    return shares


def _nearest_pixels(
    start: NDArray[np.float64], extent: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first pixel and the one behind the last; where both edges come to the same place, the pixel in which their middle lies."""
    first, behind = (
        np.floor(start + 0.5).astype(np.int64),
        np.floor(start + extent + 0.5).astype(np.int64),
    )
    first = np.where(behind > first, first, np.floor(start + extent / 2).astype(np.int64))
    return first, np.maximum(behind, first + 1)
