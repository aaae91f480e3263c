"""HALO annotations: layers of regions; a region with NegativeROA is a hole in its layer.

The root is called as in ImageScope's XML, but corners are `V` and types are words. A rectangle and
an ellipse have two opposite corners. The form is that of the files that pyhaloxml reads and writes.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from wsi_pipeline.labels.annotation import (
    Annotation,
    AnnotationBuilder,
    as_ascii,
    peek_root,
    read_corners,
    read_text,
    read_xml,
)
from wsi_pipeline.labels.imagescope_xml import ROOT, cut_holes, inscribe_ellipse, span_rectangle

CORNER = re.compile(rb"<V[\s/>]")
TYPE = re.compile(rb"<Region[^<>]*\sType\s*=\s*[\"'](?:Polygon|Rectangle|Ellipse|Ruler|Pin)[\"']")
WITH_AREA = ("Polygon", "Rectangle", "Ellipse")


def is_halo(path: Path) -> bool:
    """Return whether a file is HALO's and not ImageScope's."""
    if peek_root(path) != ROOT:
        return False
    text = as_ascii(read_text(path))
    return CORNER.search(text) is not None or TYPE.search(text) is not None


def read_halo(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of a HALO file; a class is a layer's name. Raises LabelError."""
    builder = AnnotationBuilder(path, is_strict)
    for layer in read_xml(path, ROOT).iter("Annotation"):
        shapes, holes = AnnotationBuilder(path, is_strict), AnnotationBuilder(path, is_strict)
        for region in layer.iter("Region"):
            _add_region(path, region, layer.attrib.get("Name", ""), shapes, holes)
        cut_holes(builder, shapes, holes)
    return builder.finish()


def _add_region(
    path: Path, region: Element, name: str, shapes: AnnotationBuilder, holes: AnnotationBuilder
) -> None:
    kind = region.attrib.get("Type", "Polygon")
    if kind not in WITH_AREA:
        shapes.ignored[kind.lower()] += 1
        return
    corners = read_corners(path, list(region.iter("V")))
    if kind == "Ellipse" and len(corners) == 2:
        corners = inscribe_ellipse(corners)
    elif kind == "Rectangle" and len(corners) == 2:
        corners = span_rectangle(corners)
    is_hole = region.attrib.get("NegativeROA", "0").lower() in ("1", "true")
    (holes if is_hole else shapes).add_polygon(name, corners)
