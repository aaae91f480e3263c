"""Exports of annotation platforms: V7 Darwin JSON 1.0 and 2.0, and Cytomine's JSON.

Darwin: docs.v7labs.com, "Darwin JSON Format" and "(Legacy) Darwin JSON 1.0". Cytomine: what its API
answers for the annotations of an image, with `location` as WKT whose y counts from the bottom, as
its Python client has it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.annotation import (
    JSON_SUFFIXES,
    PEEK_BYTES,
    Affine,
    Annotation,
    AnnotationBuilder,
    as_ascii,
    keep_areas,
    read_text,
)
from wsi_pipeline.labels.geojson import WITHOUT_AREA, read_export
from wsi_pipeline.labels.imagescope_xml import inscribe_ellipse

FEATURE = re.compile(rb'"(?:Feature|FeatureCollection)"')
DARWIN = re.compile(rb'"annotations"\s*:')
CYTOMINE = re.compile(rb'"location"\s*:\s*"')
EXPORT_AGAIN = "export it again"
DARWIN_WITHOUT_AREA = ("keypoint", "line", "skeleton", "tag", "string", "graph", "link", "table")


def is_darwin(path: Path) -> bool:
    """Return whether a file is an export of V7 Darwin."""
    return _holds_only(path, DARWIN)


def is_cytomine(path: Path) -> bool:
    """Return whether a file is a list of annotations from Cytomine."""
    return _holds_only(path, CYTOMINE)


def _holds_only(path: Path, sign: re.Pattern[bytes]) -> bool:
    if path.suffix.lower() not in JSON_SUFFIXES:
        return False
    with path.open("rb") as stream:  # most JSON is GeoJSON, and says so at once
        if FEATURE.search(as_ascii(stream.read(PEEK_BYTES))):
            return False
    text = as_ascii(read_text(path))
    return FEATURE.search(text) is None and sign.search(text) is not None


def read_darwin(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of a Darwin export; a class is an annotation's name. Raises LabelError."""
    value = read_export(path, EXPORT_AGAIN)
    builder = AnnotationBuilder(path, is_strict)
    try:
        for annotation in value["annotations"]:
            _add_darwin(path, builder, annotation)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _broken(path, "Darwin JSON", error) from error
    return builder.finish()


def _add_darwin(path: Path, builder: AnnotationBuilder, annotation: dict[str, Any]) -> None:
    name = str(annotation.get("name") or "")
    shape = annotation.get("polygon") or annotation.get("complex_polygon")
    if shape:
        _add_paths(path, builder, name, list(_list_paths(shape)))
    elif ellipse := annotation.get("ellipse"):
        builder.add_polygon(name, _draw_ellipse(ellipse))
    elif box := annotation.get("bounding_box"):
        x, y, width, height = (float(box[key]) for key in "xywh")
        builder.add_polygon(
            name, [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        )
    else:
        kinds = [kind for kind in DARWIN_WITHOUT_AREA if kind in annotation]
        builder.ignored[kinds[0] if kinds else "object without geometry"] += 1


def _list_paths(shape: dict[str, Any]) -> Iterator[list[tuple[float, float]]]:
    """Yield the rings of a polygon of Darwin 1.0 (`path`) or 2.0 (`paths`)."""
    paths = [*(shape.get("paths") or []), *(shape.get("additional_paths") or [])]
    if path := shape.get("path"):
        paths += path if isinstance(path[0], list) else [path]
    for ring in paths:
        yield [(float(point["x"]), float(point["y"])) for point in ring]


def _add_paths(
    path: Path, builder: AnnotationBuilder, name: str, rings: Iterable[list[tuple[float, float]]]
) -> None:
    """Add the rings of one polygon: what lies in an odd number of them is inside."""
    each = AnnotationBuilder(path, is_strict=builder.is_strict)
    for ring in rings:
        each.add_polygon(name, ring)
    area: BaseGeometry = shapely.MultiPolygon()
    for part in each.regions:
        area = shapely.symmetric_difference(area, part.geometry)
    builder.ignored += each.ignored
    builder.repaired += each.repaired
    if each.regions:
        builder.add_geometry(name, keep_areas(area))


def _draw_ellipse(ellipse: dict[str, Any]) -> list[tuple[float, float]]:
    """Return an ellipse of Darwin, whose angle is in radians, as a polygon."""
    x, y = (float(ellipse["center"][axis]) for axis in "xy")
    rx, ry = (float(ellipse["radius"][axis]) for axis in "xy")
    angle = float(ellipse.get("angle") or 0)
    if not abs(angle) <= 2 * np.pi:
        raise ValueError(f"an ellipse is turned by {angle:g}, which is not an angle in radians")
    u, v = np.array(inscribe_ellipse([(-rx, -ry), (rx, ry)])).T
    cos, sin = np.cos(angle), np.sin(angle)
    corners = np.stack([x + u * cos - v * sin, y + u * sin + v * cos], axis=1)
    return [(float(each[0]), float(each[1])) for each in corners]


def read_cytomine(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of Cytomine's annotations; a class is a term, by its number or name.

    Annotations of several terms have their numbers joined by a comma. Raises LabelError.
    """
    value = read_export(path, EXPORT_AGAIN)
    builder = AnnotationBuilder(path, is_strict)
    try:
        entries = value["collection"] if isinstance(value, dict) else value
        images = {entry.get("image") for entry in entries}
        if len(images) > 1:
            raise LabelError(
                f"{path}: holds the annotations of {len(images)} images; export each by itself"
            )
        for entry in entries:
            _add_cytomine(builder, entry)
    except (TypeError, ValueError, LookupError, AttributeError, shapely.GEOSException) as error:
        raise _broken(path, "Cytomine JSON", error) from error
    return builder.finish(place=_flip)


def _add_cytomine(builder: AnnotationBuilder, entry: dict[str, Any]) -> None:
    geometry = shapely.from_wkt(str(entry["location"]))
    terms = entry.get("term") or []
    terms = terms if isinstance(terms, list) else [terms]
    name = ", ".join(str(term.get("name") if isinstance(term, dict) else term) for term in terms)
    parts = list(shapely.get_parts(geometry))
    if geometry.geom_type in WITHOUT_AREA or not parts:
        builder.ignored[geometry.geom_type if parts else "object without geometry"] += 1
        return
    builder.add_polygons(
        name,
        [
            [ring.coords for ring in (part.exterior, *part.interiors)]
            for part in parts
            if part.geom_type == "Polygon"
        ],
    )


def _flip(slide: SlideInfo) -> Affine:
    """Return the way from coordinates whose y counts from the bottom to level-0 pixels."""
    return (1.0, 0.0, 0.0, -1.0, 0.0, float(slide.size_l0[1]))


def _broken(path: Path, what: str, error: Exception) -> LabelError:
    reason = " ".join(str(error).split())[:120]
    return LabelError(f"{path}: broken {what} ({reason}); {EXPORT_AGAIN}")
