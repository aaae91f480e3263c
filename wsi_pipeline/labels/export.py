"""The labels of a store as regions that QuPath opens: patches of one class, joined, as GeoJSON."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_pipeline.core.geometry import cells_to_boxes_l0
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.labels.rules import NEGATIVE, POSITIVE

COLORS = {NEGATIVE: [44, 127, 184], POSITIVE: [217, 95, 14]}
LOCKED = True


def labels_to_geojson(table: PatchTable) -> dict[str, Any]:
    """A FeatureCollection with one Feature per class that occurs, in pixels from the scanned area's corner, as QuPath counts."""
    features = [_make_feature(table, label) for label in (NEGATIVE, POSITIVE) if (table.labels == label).any()]
    return {"type": "FeatureCollection", "features": features}


def write_labels_geojson(table: PatchTable, path: Path) -> None:
    """Write `labels_to_geojson` to a file."""
    path.write_text(json.dumps(labels_to_geojson(table), allow_nan=False) + "\n")


def _make_feature(table: PatchTable, label: int) -> dict[str, Any]:
    boxes = cells_to_boxes_l0(table.cells[table.labels == label], table.grid).astype(np.float64)
    x, y, width, height = boxes.T
    left, top = table.slide.bounds_l0[:2]
    area = shapely.union_all(shapely.box(x - left, y - top, x - left + width, y - top + height))
    name = table.class_names[label]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{table.slide.fingerprint}/{name}")),
        "geometry": shapely.geometry.mapping(area),
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": COLORS[label]}, "isLocked": LOCKED},
    }
