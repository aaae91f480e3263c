"""Regions that a person draws, relabels or erases, as QuPath GeoJSON.

What is drawn last holds: it is cut out of regions of other classes, and joined to those of its own
class that it overlaps. Regions are known by their place in the file.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.annotation import keep_areas
from wsi_pipeline.labels.geojson import COLORS, read_geojson
from wsi_pipeline.labels.sent_areas import MAX_CORNERS

MAX_REGIONS = 5_000


@dataclass(frozen=True, slots=True)
class Correction:
    """One region."""

    class_name: str
    area: BaseGeometry
    """Polygon or MultiPolygon, valid, in level-0 pixels of the slide."""


Corrections = tuple[Correction, ...]


def read_corrections(path: Path, slide: SlideInfo) -> Corrections:
    """Return the regions in a file, which QuPath may have changed; none without a file.

    Raises LabelError.
    """
    if not path.exists():
        return ()
    left, top = slide.bounds_l0[:2]
    return tuple(
        Correction(each.class_name, translate(each.geometry, left, top))
        for each in read_geojson(path, False).regions
    )


def corrections_to_geojson(
    corrections: Corrections, slide: SlideInfo, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Return a FeatureCollection in QuPath's pixels, from the corner of the scanned area."""
    left, top = slide.bounds_l0[:2]
    colors = {name: COLORS[label] for label, name in enumerate(class_names)}
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{each.class_name}/{each.area.wkt}")),
            "geometry": shapely.geometry.mapping(translate(each.area, -left, -top)),
            "properties": {
                "objectType": "annotation",
                "classification": {
                    "name": each.class_name,
                    "color": colors.get(each.class_name, [128, 128, 128]),
                },
            },
        }
        for each in corrections
    ]
    return {"type": "FeatureCollection", "features": features}


def draw(corrections: Corrections, class_name: str, area: BaseGeometry) -> Corrections:
    """Return the regions with one more, which holds where it overlaps others."""
    same = [each for each in corrections if each.class_name == class_name]
    joined = [each for each in same if shapely.intersects(each.area, area)]
    whole = keep_areas(shapely.union_all([area, *(each.area for each in joined)]))
    rest = tuple(each for each in corrections if each not in joined)
    kept = tuple(each for each in rest if each.class_name == class_name)
    cut = _cut([each for each in rest if each.class_name != class_name], area)
    return check_size((*kept, *cut, Correction(class_name, whole)))


def erase(corrections: Corrections, area: BaseGeometry) -> Corrections:
    """Return what of the regions lies outside an area."""
    return check_size(tuple(_cut(corrections, area)))


def relabel(corrections: Corrections, number: int, class_name: str) -> Corrections:
    """Return the regions with one of another class. Raises LabelError."""
    chosen = _take(corrections, number)
    return draw(remove(corrections, number), class_name, chosen.area)


def remove(corrections: Corrections, number: int) -> Corrections:
    """Return the regions without one. Raises LabelError."""
    chosen = _take(corrections, number)
    return tuple(each for each in corrections if each is not chosen)


def _take(corrections: Corrections, number: int) -> Correction:
    if not 0 <= number < len(corrections):
        raise LabelError(f"there is no region {number}; reload the page")
    return corrections[number]


def _cut(corrections: Iterable[Correction], area: BaseGeometry) -> list[Correction]:
    left = [(each.class_name, shapely.difference(each.area, area)) for each in corrections]
    kept = [Correction(name, keep_areas(rest)) for name, rest in left]
    return [each for each in kept if not each.area.is_empty]


def check_size(corrections: Corrections) -> Corrections:
    """Return the regions. Raises LabelError for more than a page can show."""
    corners = sum(shapely.get_num_coordinates(each.area) for each in corrections)
    if len(corrections) > MAX_REGIONS or corners > MAX_CORNERS:
        most = f"{MAX_REGIONS:,} regions and {MAX_CORNERS:,} corners"
        raise LabelError(f"a slide has at most {most}; draw more coarsely")
    return corrections
