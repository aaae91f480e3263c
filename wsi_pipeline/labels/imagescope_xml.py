"""Aperio ImageScope XML: layers of regions; a region with NegativeROA is a hole in its layer."""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels.annotation import (
    Annotation,
    AnnotationBuilder,
    keep_areas,
    read_corners,
    read_xml,
)

ROOT = "Annotations"
ELLIPSE = "2"
LINES = {"3": "arrow", "4": "ruler", "5": "counter"}
ELLIPSE_CORNERS = 256


def read_imagescope(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of an ImageScope file; a class is a layer's name. Raises LabelError."""
    root = read_xml(path, ROOT)
    builder = AnnotationBuilder(path, is_strict)
    for layer in root.iter("Annotation"):
        _add_layer(path, builder, layer, is_strict)
    return builder.finish(_read_mpp(path, root))


def _add_layer(path: Path, builder: AnnotationBuilder, layer: Element, is_strict: bool) -> None:
    shapes = AnnotationBuilder(path, is_strict)
    holes = AnnotationBuilder(path, is_strict)
    for region in layer.iter("Region"):
        kind = region.attrib.get("Type", "0")
        if kind in LINES:
            builder.ignored[LINES[kind]] += 1
            continue
        corners = read_corners(path, list(region.iter("Vertex")))
        if kind == ELLIPSE and 2 <= len(corners) <= 4:
            corners = inscribe_ellipse(corners)
        elif len(corners) == 2:
            corners = span_rectangle(corners)
        is_hole = region.attrib.get("NegativeROA", "0") == "1"
        (holes if is_hole else shapes).add_polygon(_name_of(layer), corners)
    cut_holes(builder, shapes, holes)


def cut_holes(
    builder: AnnotationBuilder, shapes: AnnotationBuilder, holes: AnnotationBuilder
) -> None:
    """Add a layer's shapes without its holes; a shape within a hole is an island and stays."""
    for shape in shapes.regions:
        rest = shape.geometry
        cuts = [hole.geometry for hole in holes.regions if not _holds(hole.geometry, rest)]
        if cuts:
            rest = keep_areas(shapely.difference(rest, shapely.union_all(cuts)))
        builder.add_geometry(shape.class_name, rest)
    if holes.regions and not shapes.regions:
        builder.ignored["hole of no region"] += len(holes.regions)
    builder.ignored += shapes.ignored + holes.ignored
    builder.repaired += shapes.repaired + holes.repaired


def _holds(hole: BaseGeometry, shape: BaseGeometry) -> bool:
    return bool(hole.area > shape.area and shapely.covers(hole, shape))


def span_rectangle(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the four corners of a rectangle from two opposite ones."""
    (x0, y0), (x1, y1) = corners
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _name_of(layer: Element) -> str:
    """Return the layer's name, else what its attributes say, else its number."""
    for attribute in layer.iter("Attribute"):
        value, name = attribute.attrib.get("Value", ""), attribute.attrib.get("Name", "")
        if named := value or ("" if name == "Description" else name):
            return layer.attrib.get("Name") or named
    return layer.attrib.get("Name") or f"layer {layer.attrib.get('Id', '?')}"


def inscribe_ellipse(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the ellipse in the box around the corners: a polygon of 256 corners, same area."""
    box = np.array(corners, dtype=np.float64)
    centre, radii = (box.max(axis=0) + box.min(axis=0)) / 2, (box.max(axis=0) - box.min(axis=0)) / 2
    angle = 2 * np.pi * np.arange(ELLIPSE_CORNERS) / ELLIPSE_CORNERS
    # A polygon with its corners on the ellipse is smaller by sin(2π/n) / (2π/n).
    step = 2 * np.pi / ELLIPSE_CORNERS
    grown = radii * np.sqrt(step / np.sin(step))
    corners = centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * grown
    return [(float(x), float(y)) for x, y in corners]


def _read_mpp(path: Path, root: Element) -> float | None:
    text = root.attrib.get("MicronsPerPixel")
    try:
        return float(text) if text else None
    except ValueError as error:
        raise LabelError(
            f"{path}: MicronsPerPixel is {text!r}, which is not a number; export it again"
        ) from error
