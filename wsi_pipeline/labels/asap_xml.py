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

    Raises LabelError.
    """
    builder = AnnotationBuilder(path, is_strict)
    for annotation in read_xml(path, ROOT).iter("Annotation"):
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
        builder.add_polygon(_class_of(annotation), corners)
    return builder.finish()


def _corners_in_order(path: Path, annotation: Element) -> list[tuple[float, float]]:
    coordinates = list(annotation.iter("Coordinate"))
    try:
        coordinates.sort(key=lambda element: float(element.attrib.get("Order", "0")))
    except ValueError as error:
        raise LabelError(
            f"{path}: an Order that is not a number ({error}); export it again"
        ) from error
    return read_corners(path, coordinates)


def _class_of(annotation: Element) -> str:
    group = annotation.attrib.get("PartOfGroup", NO_GROUP)
    return annotation.attrib.get("Name", "") if group == NO_GROUP else group


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
