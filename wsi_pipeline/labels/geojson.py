"""QuPath GeoJSON, 0.2 to 0.6: a FeatureCollection, a list of Features, or a single Feature.

What an object is stands in `objectType` since 0.4, in `object_type` in 0.3, in `id` in 0.2; only
annotations are regions. Objects within objects (`childObjects`) are read too.

Labels of a store are written as such too: patches of one class, joined to regions that QuPath
opens.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.core.json_io import parse_exported_json
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.labels.annotation import Annotation, AnnotationBuilder, read_text
from wsi_pipeline.labels.rules import NEGATIVE, POSITIVE

WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
ANNOTATION = "annotation"
KINDS = {
    "PathAnnotationObject": ANNOTATION,
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": "root",
}
"""Kinds of objects by the `id` that QuPath 0.2 gave them. Later ids are names of the object."""
COLORS = {NEGATIVE: [44, 127, 184], POSITIVE: [217, 95, 14]}
EXPORT_AGAIN = "export it again from QuPath as GeoJSON"


def read_geojson(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of a QuPath export, in pixels as QuPath shows them. Raises LabelError."""
    builder = AnnotationBuilder(path, is_strict)
    pending = _list_features(path, read_export(path, EXPORT_AGAIN))[::-1]
    while pending:
        feature = pending.pop()
        try:
            _add_feature(path, builder, feature)
            children = feature.get("childObjects") or []
            pending += [child for each in children for child in _list_features(path, each)][::-1]
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise LabelError(f"{path}: a broken Feature ({reason}); {EXPORT_AGAIN}") from error
    return builder.finish()


def read_export(path: Path, remedy: str) -> Any:
    """Return the value of a JSON file that a program exported. Raises LabelError."""
    try:
        return parse_exported_json(read_text(path))
    except ValueError as error:
        raise LabelError(f"{path}: not JSON ({error}); {remedy}") from error


def _list_features(path: Path, value: Any) -> list[dict[str, Any]]:
    is_collection = isinstance(value, dict) and value.get("type") == "FeatureCollection"
    features = value.get("features") if is_collection else value
    features = features if isinstance(features, list) else [features]
    if not all(isinstance(each, dict) and each.get("type") == "Feature" for each in features):
        raise LabelError(f"{path}: not GeoJSON Features; {EXPORT_AGAIN}")
    return features


def _add_feature(path: Path, builder: AnnotationBuilder, feature: dict[str, Any]) -> None:
    properties = feature.get("properties") or {}
    kind = _kind_of(feature, properties)
    if kind != ANNOTATION:
        builder.ignored[kind] += 1
        return
    polygons = list(_find_polygons(path, builder, feature.get("geometry")))
    if polygons:
        builder.add_polygons(_class_of(properties), polygons)


def _kind_of(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """Return what an object of QuPath is; an annotation where nothing says what."""
    stated = properties.get("objectType") or properties.get("object_type")
    if not stated:
        return KINDS.get(str(feature.get("id")), ANNOTATION)
    kind = KINDS.get(str(stated), str(stated).casefold())
    return kind if kind in KINDS.values() else f"object of kind {kind!r}"


def _find_polygons(path: Path, builder: AnnotationBuilder, geometry: Any) -> Iterator[Any]:
    """Yield the rings of each polygon of a geometry; count what has no area."""
    if not geometry:
        builder.ignored["object without geometry"] += 1
        return
    kind = geometry.get("type")
    if kind in WITHOUT_AREA:
        builder.ignored[kind] += 1
    elif kind == "Polygon":
        yield geometry.get("coordinates") or [[]]
    elif kind == "MultiPolygon":
        yield from geometry.get("coordinates") or [[[]]]
    elif kind == "GeometryCollection":
        parts = geometry.get("geometries") or [None]
        for part in parts:
            yield from _find_polygons(path, builder, part)
    else:
        raise LabelError(
            f"{path}: a Feature of type {kind!r}; only polygons, lines and points are known"
        )


def _class_of(properties: dict[str, Any]) -> str:
    """Return QuPath's class: `{"name": …}`, or `{"names": […]}` for derived classes."""
    classification = properties.get("classification")
    if not isinstance(classification, dict):
        return classification if isinstance(classification, str) else ""
    names = classification.get("names")
    joined = ": ".join(map(str, names)) if isinstance(names, list) else ""
    return str(classification.get("name") or joined)


def labels_to_geojson(table: PatchTable) -> dict[str, Any]:
    """Return a FeatureCollection with one Feature per class that occurs.

    Coordinates are QuPath's pixels, from the corner of the scanned area.
    """
    occurring = [label for label in COLORS if (table.labels == label).any()]
    features = [_make_feature(table, label) for label in occurring]
    return {"type": "FeatureCollection", "features": features}


def write_labels_geojson(table: PatchTable, path: Path) -> None:
    """Write `labels_to_geojson` to a file."""
    path.write_text(json.dumps(labels_to_geojson(table), allow_nan=False) + "\n")


def _make_feature(table: PatchTable, label: int) -> dict[str, Any]:
    positions = table.positions[table.labels == label]
    x, y, width, height = positions_to_boxes_l0(positions, table.grid).astype(np.float64).T
    left, top = table.slide.bounds_l0[:2]
    area = shapely.union_all(shapely.box(x - left, y - top, x - left + width, y - top + height))
    name = table.class_names[label]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{table.slide.fingerprint}/{name}")),
        "geometry": shapely.geometry.mapping(area),
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": COLORS[label]},
            "isLocked": True,
        },
    }
