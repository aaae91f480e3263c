"""QuPath GeoJSON: a FeatureCollection, a list of Features, or a single Feature.

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
from shapely.geometry import shape

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.labels.annotation import Annotation, AnnotationBuilder, read_text
from wsi_pipeline.labels.rules import NEGATIVE, POSITIVE

WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
NOT_REGIONS = ("cell", "detection", "tile", "tma_core")
"""Objects of QuPath with outlines that are not regions; a file may hold thousands."""
COLORS = {NEGATIVE: [44, 127, 184], POSITIVE: [217, 95, 14]}
EXPORT_AGAIN = "export it again from QuPath as GeoJSON"


def read_geojson(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of a QuPath export, in pixels as QuPath shows them. Raises LabelError."""
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise LabelError(f"{path}: not JSON ({error}); {EXPORT_AGAIN}") from error
    builder = AnnotationBuilder(path, is_strict)
    for feature in _list_features(path, value):
        try:
            _add_feature(path, builder, feature)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise LabelError(f"{path}: a broken Feature ({reason}); {EXPORT_AGAIN}") from error
    return builder.finish()


def _list_features(path: Path, value: Any) -> Iterator[dict[str, Any]]:
    is_collection = isinstance(value, dict) and value.get("type") == "FeatureCollection"
    features = value.get("features") if is_collection else value
    for feature in features if isinstance(features, list) else [features]:
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise LabelError(f"{path}: not GeoJSON Features; {EXPORT_AGAIN}")
        yield feature


def _add_feature(path: Path, builder: AnnotationBuilder, feature: dict[str, Any]) -> None:
    properties = feature.get("properties") or {}
    geometry = feature.get("geometry") or {}
    kind = geometry.get("type")
    if properties.get("objectType") in NOT_REGIONS:
        builder.ignored[str(properties["objectType"])] += 1
    elif kind in WITHOUT_AREA:
        builder.ignored[kind] += 1
    elif kind == "Polygon":
        shell, *holes = geometry.get("coordinates") or [[]]
        builder.add_polygon(_class_of(properties), shell, holes)
    elif kind == "MultiPolygon":
        builder.add_geometry(_class_of(properties), shape(geometry))
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
