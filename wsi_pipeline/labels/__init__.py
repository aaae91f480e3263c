"""Labels of patches, from annotation files and label images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely import difference, union_all
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels import (
    asap_xml,
    halo_xml,
    imagescope_xml,
    ndpa_xml,
    platform_json,
    sliderunner_db,
)
from wsi_pipeline.labels.annotation import (
    DATABASE_SUFFIXES,
    IMAGE_SUFFIXES,
    JSON_SUFFIXES,
    Annotation,
    describe_regions,
    peek_root,
)
from wsi_pipeline.labels.assignment import PatchLabels, assign_regions, place_regions
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.labels.mask import assign_mask, describe_pixels
from wsi_pipeline.labels.rules import UNKNOWN, LabelRules

Place = Callable[[Path, SlideInfo, LabelRules], tuple[Annotation, list[BaseGeometry]]]
Assign = Callable[[Path, SlideInfo, Grid, NDArray[np.int32], LabelRules], PatchLabels]


@dataclass(frozen=True, slots=True)
class LabelSource:
    """One format of label files."""

    recognises: Callable[[Path], bool]
    assign: Assign
    place: Place | None = None
    """None: it holds no regions."""


def _of_regions(
    recognises: Callable[[Path], bool], read: Callable[[Path, bool], Annotation], from_bounds: bool
) -> LabelSource:
    """Return the format of files that `read` reads, from the scanned area's corner or not."""
    return LabelSource(
        recognises,
        partial(assign_regions, read, from_bounds),
        partial(place_regions, read, from_bounds),
    )


LABEL_SOURCES: dict[str, LabelSource] = {
    "darwin": _of_regions(platform_json.is_darwin, platform_json.read_darwin, False),
    "cytomine": _of_regions(platform_json.is_cytomine, platform_json.read_cytomine, False),
    # QuPath shows the scanned area only, so its coordinates start at that area's corner; those of
    # the other formats start at the slide's corner.
    "geojson": _of_regions(lambda path: path.suffix.lower() in JSON_SUFFIXES, read_geojson, True),
    "asap": _of_regions(lambda path: peek_root(path) == asap_xml.ROOT, asap_xml.read_asap, False),
    "halo": _of_regions(halo_xml.is_halo, halo_xml.read_halo, False),
    "ndpa": _of_regions(lambda path: peek_root(path) == ndpa_xml.ROOT, ndpa_xml.read_ndpa, False),
    "imagescope": _of_regions(
        lambda path: peek_root(path) == imagescope_xml.ROOT, imagescope_xml.read_imagescope, False
    ),
    "sliderunner": LabelSource(
        lambda path: path.suffix.lower() in DATABASE_SUFFIXES, sliderunner_db.assign_sliderunner
    ),
    "mask": LabelSource(lambda path: path.suffix.lower() in IMAGE_SUFFIXES, assign_mask),
}
"""Tried in this order; the first that recognises a file reads it."""


def label_positions(
    path: Path, slide: SlideInfo, grid: Grid, positions: NDArray[np.int32], rules: LabelRules
) -> PatchLabels:
    """Return the labels of positions (n, 2) by an annotation file or a label image.

    Raises LabelError where the file is of no known format, damaged, or of another slide.
    """
    for source in LABEL_SOURCES.values():
        if source.recognises(path):
            return source.assign(path, slide, grid, positions, rules)
    raise LabelError(
        f"{path}: not a label file of a known kind ({', '.join(LABEL_SOURCES)}); export the"
        " annotation as one of them"
    )


IGNORED = "Ignore*"
"""QuPath's class of what is to be left out."""


def read_regions(path: Path, slide: SlideInfo) -> BaseGeometry:
    """Return what the regions of a file of any format cover, in level-0 pixels.

    Their classes do not matter, but regions of the class `Ignore*` are cut out of the others.
    Raises LabelError where the file holds no others, is damaged, or is of another slide.
    """
    for source in LABEL_SOURCES.values():
        if source.place is not None and source.recognises(path):
            annotation, placed = source.place(path, slide, LabelRules())
            pairs = list(zip(annotation.regions, placed, strict=True))
            inside, outside = (
                [shape for one, shape in pairs if (one.class_name == IGNORED) == is_ignored]
                for is_ignored in (False, True)
            )
            if not inside:
                raise LabelError(f"{path}: all its regions are {IGNORED}; draw where to look")
            return difference(union_all(inside), union_all(outside))
    raise LabelError(f"{path}: holds no regions that can be read; export them as QuPath GeoJSON")


def describe_labels(description: Mapping[str, Any]) -> str:
    """Return which file a store's labels are of, and what was read of it; empty where none was.

    Such as `P1.geojson: 3 regions, 2 tumour, 1 ignored; 4 points passed over`.
    """
    if "file" not in description:
        return ""
    is_image = "mask_pixels" in description
    text = describe_pixels(description) if is_image else describe_regions(description)
    return f"{description['file']}: {text}"


def label_recipe(rules: LabelRules, label_file: Path | None) -> dict[str, Any] | None:
    """Return everything that decides a store's labels; None where it has none."""
    if label_file is None:
        return None
    return {"sha256": file_sha256(label_file), "rules": rules.to_json()}


def label_patches(
    label_file: Path | None,
    slide: SlideInfo,
    grid: Grid,
    positions: NDArray[np.int32],
    rules: LabelRules,
) -> PatchLabels:
    """Return the labels of positions (n, 2) by a file, its digest in their description.

    All are unknown where there is no file. Raises LabelError.
    """
    if label_file is None:
        unknown = np.full(len(positions), UNKNOWN, np.int8)
        return PatchLabels(unknown, np.full(len(positions), np.nan, np.float32), {})
    labels = label_positions(label_file, slide, grid, positions, rules)
    source = {"file": label_file.name, "sha256": file_sha256(label_file)}
    return labels._replace(description=source | labels.description, areas=None)
