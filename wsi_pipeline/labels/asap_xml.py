"""ASAP XML, as in Camelyon: Polygon, Rectangle or Spline, each in a group, its class."""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels.annotation import Annotation, AnnotationBuilder, read_corners, read_xml

ROOT = "ASAP_Annotations"
NO_GROUP = "None"
WITHOUT_AREA = ("Dot", "PointSet", "Measurement")
SPLINE_STEPS = 16
"""Points on a spline between two of its knots."""


def read_asap(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of an ASAP file; a class is a group's name, else its own.

    A group may lie in another one, whose meaning it has where it has none of its own. Raises
    LabelError.
    """
    builder = AnnotationBuilder(path, is_strict)
    root = read_xml(path, ROOT)
    around = {each.attrib.get("Name", ""): _group_of(each) for each in root.iter("Group")}
    for annotation in root.iter("Annotation"):
        kind = annotation.attrib.get("Type", "")
        if kind in WITHOUT_AREA:
            builder.ignored[kind] += 1
            continue
        corners = _corners_in_order(path, annotation)
        if kind == "Spline" and len(corners) > 2:
            corners = close_spline(corners)
        elif kind not in ("Polygon", "Rectangle", "Spline"):
            raise LabelError(
                f"{path}: an annotation of type {kind!r}; only Polygon, Rectangle and Spline have"
                " an area"
            )
        name, *groups = _list_names(annotation, around)
        builder.add_polygon(name, corners, groups=tuple(groups))
    return builder.finish()


def _list_names(annotation: Element, around: dict[str, str]) -> list[str]:
    """Return the group of an annotation and those around it; its own name where it has none."""
    group = _group_of(annotation)
    names: list[str] = []
    while group != NO_GROUP and group not in names:  # a file may let two groups hold each other
        names.append(group)
        group = around.get(group, NO_GROUP)
    return names or [annotation.attrib.get("Name", "")]


def _group_of(element: Element) -> str:
    return element.attrib.get("PartOfGroup") or NO_GROUP


def _corners_in_order(path: Path, annotation: Element) -> list[tuple[float, float]]:
    coordinates = list(annotation.iter("Coordinate"))
    try:
        coordinates.sort(key=lambda element: float(element.attrib.get("Order", "0")))
    except ValueError as error:
        raise LabelError(
            f"{path}: an Order that is not a number ({error}); export it again"
        ) from error
    return read_corners(path, coordinates)


def close_spline(knots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the closed periodic cubic spline through the knots, as in ASAP, as a polygon."""
    # Here, because it takes most of a worker's start and few files need it.
    from scipy.interpolate import CubicSpline

    ring = np.array([*knots, knots[0]], dtype=np.float64)
    if not np.isfinite(ring).all():
        return knots  # refused with its reason where every ring is checked
    curve = CubicSpline(np.arange(len(ring)), ring, bc_type="periodic")
    places = np.arange(len(knots) * SPLINE_STEPS) / SPLINE_STEPS
    return [(float(x), float(y)) for x, y in curve(places)]
