"""Tissue by the user's word: a picture over the slide whose pixels above 0 are tissue, or regions drawn in QuPath."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.labels import IMAGE_SUFFIXES, JSON_SUFFIXES
from wsi_pipeline.labels.assignment import covered_shares
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.labels.mask import read_mask, register_image

MASK_ENDINGS = ("_mask", ".mask", "-mask")
ROWS_AT_ONCE = 256


def list_masks(folder: Path) -> list[Path]:
    """The masks in a folder, PNG, TIFF and GeoJSON files, or the one mask that is named. Raises LabelError where there is none."""
    if folder.is_file():
        return [folder]
    found = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in (*IMAGE_SUFFIXES, *JSON_SUFFIXES)
    )
    if not found:
        raise LabelError(
            f"{folder}: no masks; give a folder of PNG, TIFF or GeoJSON files that are named like"
            " the slides"
        )
    return found


def match_mask(stem: str, masks: Iterable[Path]) -> Path:
    """The mask whose name is the slide's, with or without `_mask` at its end. Raises LabelError where there is none, or several."""
    fitting = [path for path in masks if _without_ending(path.stem) == stem]
    if len(fitting) != 1:
        what = (
            "no mask of that name"
            if not fitting
            else f"several masks ({', '.join(path.name for path in fitting)})"
        )
        raise LabelError(
            f"{stem}: {what}; name one of the masks {stem}.png, .tif or .geojson, or leave"
            " --mask out"
        )
    return fitting[0]


def _without_ending(stem: str) -> str:
    return next(
        (stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem
    )


class MaskPicture:
    """A mask that lies over a slide: a picture for exact areas, or regions."""

    def __init__(self, path: Path, slide: SlideInfo) -> None:
        """Raises LabelError where the mask cannot be read, or is not of this slide."""
        self.path = path
        self._slide = slide
        self.thumbnail: Thumbnail | None = None
        """The picture as something that lies over the slide, its pixels (h, w, 1) 0 or 1; None where the mask is drawn."""
        self._regions: shapely.Geometry | None = None
        if path.suffix.lower() in JSON_SUFFIXES:
            left, top = slide.bounds_l0[:2]  # QuPath counts from the scanned area
            drawn = [
                translate(region.geometry, left, top)
                for region in read_geojson(path, is_strict=False).regions
            ]
            self._regions = shapely.union_all(drawn)
            self._check_regions()
        else:
            image = read_mask(path)
            scale = Fraction(register_image(path, image, slide)).limit_denominator(10_000)
            self.thumbnail = Thumbnail(
                (image.values > 0).astype(np.uint8)[..., None], scale, (0, 0)
            )

    def annotated_fraction(self, grid: Grid) -> NDArray[np.float32]:
        """Share of every cell that lies in the drawn regions, float32 (rows, cols)."""
        fraction = np.zeros((grid.rows, grid.cols), dtype=np.float32)
        for top in range(0, grid.rows, ROWS_AT_ONCE):
            rows, cols = np.indices((min(ROWS_AT_ONCE, grid.rows - top), grid.cols), dtype=np.int32)
            boxes = positions_to_boxes_l0(
                np.stack([rows.ravel() + top, cols.ravel()], axis=1), grid
            )
            fraction[top : top + len(rows)] = covered_shares(self._regions, boxes).reshape(
                rows.shape
            )
        return fraction

    def lie_over(self, other: Thumbnail) -> NDArray[np.bool_]:
        """What of a thumbnail of the slide is tissue, by the centres of its pixels: (height, width)."""
        rows, cols = (np.arange(extent) + 0.5 for extent in other.pixels.shape[:2])
        x, y = (
            float(other.downsample) * places + origin
            for places, origin in zip((cols, rows), other.origin_xy_l0, strict=True)
        )
        if self.thumbnail is None:
            return self._contains(x, y)
        height, width = self.thumbnail.pixels.shape[:2]
        col, row = (
            (places / float(self.thumbnail.downsample)).astype(np.int64) for places in (x, y)
        )
        mask: NDArray[np.bool_] = (
            self.thumbnail.pixels[..., 0][
                np.ix_(np.minimum(row, height - 1), np.minimum(col, width - 1))
            ]
            > 0
        )
        mask[row >= height], mask[:, col >= width] = False, False
        return mask

    def _contains(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        mask = np.zeros((len(y), len(x)), dtype=np.bool_)
        shapely.prepare(self._regions)
        for top in range(0, len(y), ROWS_AT_ONCE):
            mask[top : top + ROWS_AT_ONCE] = shapely.contains_xy(
                self._regions, *np.meshgrid(x, y[top : top + ROWS_AT_ONCE])
            )
        return mask

    def _check_regions(self) -> None:
        width, height = self._slide.size_l0
        if self._regions is None or not shapely.intersects(
            self._regions, shapely.box(0, 0, width, height)
        ):
            raise LabelError(
                f"{self.path}: nothing of it lies on the slide of {width} × {height} px; this looks"
                " like another slide's mask"
            )
