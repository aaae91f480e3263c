"""The user's own tissue: images whose pixels above 0 are tissue, or drawn regions."""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.labels import read_regions
from wsi_pipeline.labels.annotation import IMAGE_SUFFIXES, LABEL_SUFFIXES
from wsi_pipeline.labels.assignment import covered_shares
from wsi_pipeline.labels.label_image import GreyImage, Keys, LabelImage, read_mask
from wsi_pipeline.labels.mask import Cover, register_image

MASK_ENDING = re.compile(r"[_.-]mask\Z")
ROWS_AT_ONCE = 256
TISSUE = "tissue"


def list_masks(folder: Path) -> list[Path]:
    """Return the masks in a folder, or the one mask that is named. Raises LabelError for none."""
    if folder.is_file():
        return [folder]
    files = [path for path in folder.iterdir() if path.is_file()]
    found = sorted(path for path in files if path.suffix.lower() in LABEL_SUFFIXES)
    if not found:
        raise LabelError(
            f"{folder}: no masks; give a folder of images or annotations named like the slides"
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
        """The mask image over the slide, its pixels (h, w, 1) 0 or 1; None for regions, and for an
        image that is too large to be held at once."""
        self._regions: shapely.Geometry | None = None
        self._large: LabelImage | None = None
        self._downsample = Fraction(1)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            self._regions = read_regions(path, slide)
        else:
            self._take_image(read_mask(path), slide)

    def _take_image(self, image: GreyImage | LabelImage, slide: SlideInfo) -> None:
        if isinstance(image, LabelImage):
            size, self._large = image.size, image
        else:
            size = image.values.shape[1], image.values.shape[0]
        scale = register_image(self.path, size, image.mpp, slide)
        self._downsample = Fraction(scale).limit_denominator(10_000)
        if isinstance(image, GreyImage):
            pixels = (image.values > 0).astype(np.uint8)[..., None]
            self.thumbnail = Thumbnail(pixels, self._downsample, (0, 0))

    def fraction(self, grid: Grid) -> NDArray[np.float32]:
        """Return the share of every patch inside the regions or a large image, (rows, cols).

        Patches of a large image begin and end with the nearest of its pixels. Raises LabelError
        where it is damaged.
        """
        if self._large is not None:
            return self._image_fraction(self._large, grid)
        fraction = np.zeros((grid.rows, grid.cols), dtype=np.float32)
        for top in range(0, grid.rows, ROWS_AT_ONCE):
            rows, cols = np.indices((min(ROWS_AT_ONCE, grid.rows - top), grid.cols), dtype=np.int32)
            positions = np.stack([rows.ravel() + top, cols.ravel()], axis=1)
            shares = covered_shares(self._regions, positions_to_boxes_l0(positions, grid))
            fraction[top : top + len(rows)] = shares.reshape(rows.shape)
        return fraction

    def _image_fraction(self, image: LabelImage, grid: Grid) -> NDArray[np.float32]:
        positions = np.indices((grid.rows, grid.cols), dtype=np.int32).reshape(2, -1).T
        boxes = positions_to_boxes_l0(positions, grid) / float(self._downsample)
        cover = Cover.over(boxes, image.size)
        for top, keys in image.bands():
            cover.add(TISSUE, top, keys > 0)
        return cover.share(TISSUE).astype(np.float32).reshape(grid.rows, grid.cols)

    def mask_thumbnail(self, other: Thumbnail) -> NDArray[np.bool_]:
        """Return the tissue in a thumbnail, by the centres of its pixels: bool (height, width)."""
        y, x = (
            float(other.downsample) * (np.arange(extent) + 0.5) + origin
            for extent, origin in zip(other.pixels.shape[:2], other.origin_xy_l0[::-1], strict=True)
        )
        if self.thumbnail is not None:
            bands: Iterator[tuple[int, Keys]] = iter([(0, self.thumbnail.pixels[..., 0])])
        elif self._large is not None:
            bands = self._large.bands()
        else:
            return self._contains(x, y)
        col, row = ((places / float(self._downsample)).astype(np.int64) for places in (x, y))
        mask = np.zeros((len(row), len(col)), dtype=np.bool_)
        for top, values in bands:
            rows, cols = (row >= top) & (row < top + len(values)), col < values.shape[1]
            mask[np.ix_(rows, cols)] = values[np.ix_(row[rows] - top, col[cols])] > 0
        return mask

    def _contains(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        mask = np.zeros((len(y), len(x)), dtype=np.bool_)
        shapely.prepare(self._regions)
        for top in range(0, len(y), ROWS_AT_ONCE):
            points = np.meshgrid(x, y[top : top + ROWS_AT_ONCE])
            mask[top : top + ROWS_AT_ONCE] = shapely.contains_xy(self._regions, *points)
        return mask
