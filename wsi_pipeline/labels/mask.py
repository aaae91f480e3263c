"""Images that lie over a slide: label images, and the user's own tissue masks.

A label image gives the class of each pixel. A tissue mask is an image whose pixels above 0 are
tissue, or regions drawn in QuPath.
"""

import re
import warnings
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.affinity import translate

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import MAX_MPP, UM_PER_INCH, Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.labels.annotation import IMAGE_SUFFIXES, JSON_SUFFIXES
from wsi_pipeline.labels.assignment import PatchLabels, covered_shares, decide
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.labels.rules import LabelRules

MAX_PIXELS = 170_000_000
FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
"""Pillow reads dozens of other formats, and most of its faults were in those."""
IMAGE_DESCRIPTION_TAG = 270
PHYSICAL_SIZE = re.compile(r'PhysicalSizeX="([0-9.eE+-]+)"')
"""OME-TIFF's µm per pixel."""


class LabelImage(NamedTuple):
    """A label image and the scale that its file states."""

    values: NDArray[np.uint8]
    """(h, w)"""
    mpp: float | None


def read_mask(path: Path) -> LabelImage:
    """Return an 8-bit grey or palette image; of a palette image, the indices. Raises LabelError."""
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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LabelError(
            f"{path}: not a readable label image ({error}); give a PNG or TIFF"
        ) from error


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images; MAX_PIXELS is the limit that counts.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _stated_mpp(image: Image.Image) -> float | None:
    """Return the file's µm per pixel by OME-XML or resolution tags; None: nothing plausible."""
    tags = getattr(image, "tag_v2", {})
    if described := PHYSICAL_SIZE.search(str(tags.get(IMAGE_DESCRIPTION_TAG, ""))):
        mpp = float(described[1])
    else:
        dpi = float((image.info.get("dpi") or [0])[0])
        mpp = UM_PER_INCH / dpi if dpi > 0 else 0.0
    return mpp if 0 < mpp <= 100 * MAX_MPP else None


def assign_mask(
    path: Path, slide: SlideInfo, grid: Grid, positions: NDArray[np.int32], rules: LabelRules
) -> PatchLabels:
    """Label positions (n, 2) by the share of each class's pixels under them.

    Raises LabelError where the image does not fit the slide.
    """
    image = read_mask(path)
    boxes = positions_to_boxes_l0(positions, grid) / register_image(path, image, slide)
    values = (rules.mask_values.negative, rules.mask_values.positive)
    negative, positive = (_covered(image.values == value, boxes) for value in values)
    if rules.outside == "negative":
        negative = 1 - positive
    labels, fraction = decide((negative, positive), rules)
    counts = {str(value): int(np.count_nonzero(image.values == value)) for value in values}
    return PatchLabels(labels, fraction, {"mask_pixels": counts})


def register_image(path: Path, image: LabelImage, slide: SlideInfo) -> float:
    """Return level-0 pixels per image pixel.

    The image shows the whole slide, or states its own µm per pixel. Raises LabelError otherwise.
    """
    (height, width), (width_l0, height_l0) = image.values.shape, slide.size_l0
    scale: float = width_l0 / width
    if scale >= 1 and abs(height_l0 / scale - height) <= 1:
        return scale
    stated = (image.mpp or 0.0) / slide.mpp
    if stated >= 0.5 and (width - 1) * stated <= width_l0 and (height - 1) * stated <= height_l0:
        return stated
    raise LabelError(
        f"{path}: an image of {width} × {height} px does not lie over a slide of {width_l0} ×"
        f" {height_l0} px; it must show the whole slide, not enlarged, or state its µm per pixel"
    )


def _covered(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each box (n, 4: x, y, width, height in mask pixels) that is True.

    Edges are rounded to the nearest pixel.
    """
    height, width = mask.shape
    integral = np.pad(mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    (x0, x1), (y0, y1) = (_nearest_pixels(boxes[:, axis], boxes[:, axis + 2]) for axis in (0, 1))
    area = (x1 - x0) * (y1 - y0)  # what lies beyond the image belongs to no class
    x0, x1 = np.clip(x0, 0, width), np.clip(x1, 0, width)
    y0, y1 = np.clip(y0, 0, height), np.clip(y1, 0, height)
    inside = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return np.asarray(inside / area)


def _nearest_pixels(
    start: NDArray[np.float64], extent: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first pixel and the one after the last.

    Where both edges are rounded to the same place, the pixel that holds their middle.
    """
    first, behind = np.floor(start + 0.5), np.floor(start + extent + 0.5)
    first = np.where(behind > first, first, np.floor(start + extent / 2))
    return first.astype(np.int64), np.maximum(behind, first + 1).astype(np.int64)


MASK_ENDING = re.compile(r"[_.-]mask\Z")
ROWS_AT_ONCE = 256


def list_masks(folder: Path) -> list[Path]:
    """Return the masks in a folder, or the one mask that is named. Raises LabelError for none."""
    if folder.is_file():
        return [folder]
    suffixes = (*IMAGE_SUFFIXES, *JSON_SUFFIXES)
    files = [path for path in folder.iterdir() if path.is_file()]
    found = sorted(path for path in files if path.suffix.lower() in suffixes)
    if not found:
        raise LabelError(
            f"{folder}: no masks; give a folder of PNG, TIFF or GeoJSON named like the slides"
        )
    return found


def match_mask(stem: str, masks: Iterable[Path]) -> Path:
    """Return the mask whose name is the slide's, with or without `_mask` at its end.

    Raises LabelError where there is none, or several.
    """
    fitting = [path for path in masks if MASK_ENDING.sub("", path.stem) == stem]
    if len(fitting) != 1:
        names = ", ".join(path.name for path in fitting)
        what = f"several masks ({names})" if names else "no mask of that name"
        raise LabelError(
            f"{stem}: {what}; name one of the masks {stem}.png, .tif or .geojson, or leave"
            " --mask out"
        )
    return fitting[0]


class TissueMask:
    """A tissue mask over a slide: an image for exact areas, or regions."""

    def __init__(self, path: Path, slide: SlideInfo) -> None:
        """Read the mask. Raises LabelError where it is damaged or of another slide."""
        self.path = path
        self.thumbnail: Thumbnail | None = None
        """The mask image over the slide, its pixels (h, w, 1) 0 or 1; None for regions."""
        self._regions: shapely.Geometry | None = None
        if path.suffix.lower() in JSON_SUFFIXES:
            self._regions = _read_regions(path, slide)
        else:
            image = read_mask(path)
            scale = Fraction(register_image(path, image, slide)).limit_denominator(10_000)
            pixels = (image.values > 0).astype(np.uint8)[..., None]
            self.thumbnail = Thumbnail(pixels, scale, (0, 0))

    def region_fraction(self, grid: Grid) -> NDArray[np.float32]:
        """Return the share of every patch inside the regions, float32 (rows, cols)."""
        fraction = np.zeros((grid.rows, grid.cols), dtype=np.float32)
        for top in range(0, grid.rows, ROWS_AT_ONCE):
            rows, cols = np.indices((min(ROWS_AT_ONCE, grid.rows - top), grid.cols), dtype=np.int32)
            positions = np.stack([rows.ravel() + top, cols.ravel()], axis=1)
            shares = covered_shares(self._regions, positions_to_boxes_l0(positions, grid))
            fraction[top : top + len(rows)] = shares.reshape(rows.shape)
        return fraction

    def mask_thumbnail(self, other: Thumbnail) -> NDArray[np.bool_]:
        """Return the tissue in a thumbnail, by the centres of its pixels: bool (height, width)."""
        y, x = (
            float(other.downsample) * (np.arange(extent) + 0.5) + origin
            for extent, origin in zip(other.pixels.shape[:2], other.origin_xy_l0[::-1], strict=True)
        )
        if self.thumbnail is None:
            return self._contains(x, y)
        height, width = self.thumbnail.pixels.shape[:2]
        downsample = float(self.thumbnail.downsample)
        col, row = ((places / downsample).astype(np.int64) for places in (x, y))
        nearest = np.ix_(np.minimum(row, height - 1), np.minimum(col, width - 1))
        mask: NDArray[np.bool_] = self.thumbnail.pixels[..., 0][nearest] > 0
        mask[row >= height], mask[:, col >= width] = False, False
        return mask

    def _contains(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        mask = np.zeros((len(y), len(x)), dtype=np.bool_)
        shapely.prepare(self._regions)
        for top in range(0, len(y), ROWS_AT_ONCE):
            points = np.meshgrid(x, y[top : top + ROWS_AT_ONCE])
            mask[top : top + ROWS_AT_ONCE] = shapely.contains_xy(self._regions, *points)
        return mask


def _read_regions(path: Path, slide: SlideInfo) -> shapely.Geometry:
    left, top = slide.bounds_l0[:2]  # QuPath counts from the scanned area
    found = read_geojson(path, is_strict=False).regions
    regions = shapely.union_all([translate(region.geometry, left, top) for region in found])
    width, height = slide.size_l0
    if not shapely.intersects(regions, shapely.box(0, 0, width, height)):
        raise LabelError(
            f"{path}: nothing of it lies on the slide of {width} × {height} px; this looks like"
            " another slide's mask"
        )
    return regions
