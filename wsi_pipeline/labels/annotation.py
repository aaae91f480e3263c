"""Annotated regions of a slide, from any program: named polygons in level-0 pixels.

Also the reading of untrusted text and XML: no document types, no entities, nothing fetched.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError

JSON_SUFFIXES = (".geojson", ".json")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
LABEL_SUFFIXES = (*JSON_SUFFIXES, ".xml", *IMAGE_SUFFIXES)

UNCLASSIFIED = "unclassified"
"""Name of regions without a class."""

Ring = Sequence[Sequence[float]]
"""Corners (x, y) of a polygon."""
MIN_VERTICES = 3
MAX_BYTES = 512 * 1024 * 1024
"""A larger annotation file cannot be one of regions."""


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated region."""

    class_name: str
    geometry: BaseGeometry
    """Polygon or MultiPolygon in level-0 pixels, valid."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Everything annotated on one slide that has an area, and counts of the rest."""

    regions: tuple[Region, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Number of ignored objects by kind: points, lines, polygons of fewer than three points."""
    repaired: int = 0
    """Polygons that crossed themselves and were made valid."""
    mpp: float | None = None
    """µm per pixel that the file states for its slide."""


class AnnotationBuilder:
    """Collects regions while a file is read, and repairs or ignores invalid ones."""

    def __init__(self, path: Path, is_strict: bool) -> None:
        self._path = path
        self._is_strict = is_strict
        self.regions: list[Region] = []
        self.ignored: Counter[str] = Counter()
        self.repaired = 0

    def add_polygon(self, class_name: str, shell: Ring, holes: Iterable[Ring] = ()) -> None:
        """Add a polygon from its corners (x, y). Raises LabelError for invalid coordinates."""
        corners = self._check_ring(shell)
        if len(corners) < MIN_VERTICES:
            self._refuse_or_ignore(f"polygon of {len(corners)} points")
            return
        rings = [ring for ring in map(self._check_ring, holes) if len(ring) >= MIN_VERTICES]
        self.add_geometry(class_name, Polygon(corners, rings))

    def add_geometry(self, class_name: str, geometry: BaseGeometry) -> None:
        """Add a Polygon or MultiPolygon, made valid where it crosses itself."""
        if not geometry.is_valid:
            if self._is_strict:
                reason = shapely.is_valid_reason(geometry)
                raise LabelError(
                    f"{self._path}: an invalid region of class {class_name!r} ({reason}); correct"
                    " it, or leave out --strict"
                )
            valid = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
            geometry = keep_areas(valid)
            self.repaired += 1
        if geometry.is_empty or geometry.area == 0:
            self._refuse_or_ignore("region without area")
            return
        self.regions.append(Region(class_name or UNCLASSIFIED, geometry))

    def finish(self, mpp: float | None = None) -> Annotation:
        """Return the annotation. Raises LabelError where it is empty."""
        if not self.regions and not self.ignored:
            raise LabelError(f"{self._path}: holds no annotation; export it again")
        return Annotation(tuple(self.regions), dict(self.ignored), self.repaired, mpp)

    def _check_ring(self, ring: Ring) -> list[tuple[float, float]]:
        try:
            corners = [(float(point[0]), float(point[1])) for point in ring]
        except (TypeError, ValueError, IndexError) as error:
            raise LabelError(
                f"{self._path}: a corner is not a pair of numbers ({error}); export it again"
            ) from error
        if not np.isfinite(corners).all():
            raise LabelError(f"{self._path}: a corner is not finite; export the annotation again")
        is_closed = len(corners) > 1 and corners[0] == corners[-1]
        return corners[:-1] if is_closed else corners

    def _refuse_or_ignore(self, kind: str) -> None:
        if self._is_strict:
            raise LabelError(f"{self._path}: a {kind}; correct it, or leave out --strict")
        self.ignored[kind] += 1


def keep_areas(geometry: BaseGeometry) -> BaseGeometry:
    """Return the parts of a geometry that have an area."""
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type.endswith("Polygon")]
    return shapely.union_all(parts) if parts else MultiPolygon()


def read_text(path: Path) -> bytes:
    """Return a whole annotation file. Raises LabelError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelError(
                f"{path}: larger than {MAX_BYTES >> 20} MB; export regions, not single cells"
            )
        content = path.read_bytes()
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not content.strip():
        raise LabelError(f"{path}: the file is empty; export the annotation again")
    return content


def describe(annotation: Annotation) -> dict[str, Any]:
    """Return the record of an annotation for the store that it labelled."""
    return {
        "regions": dict(Counter(region.class_name for region in annotation.regions)),
        "ignored": dict(annotation.ignored),
        "repaired": annotation.repaired,
    }


def describe_repairs(description: Mapping[str, Any]) -> str:
    """Return the repaired and ignored objects of a description as text; empty where none."""
    repaired, ignored = description.get("repaired", 0), sum(description.get("ignored", {}).values())
    repaired_text = f", {repaired} invalid regions repaired" if repaired else ""
    return repaired_text + (f", {ignored} objects without area ignored" if ignored else "")


ROOT_ELEMENT = re.compile(rb"<([A-Za-z_][\w.-]*)[\s>/]")
PEEK_BYTES = 4096


def read_xml(path: Path, root_tag: str) -> Element:
    """Return the root of an XML file. Raises LabelError for a dangerous or another one."""
    try:
        root: Element = fromstring(read_text(path), forbid_dtd=True)
    except DefusedXmlException as error:
        raise LabelError(
            f"{path}: its XML declares a document type or entities, which no annotation needs; it"
            " was not read"
        ) from error
    except (ParseError, ValueError) as error:
        raise LabelError(f"{path}: not whole XML ({error}); export it again") from error
    if root.tag != root_tag:
        raise LabelError(
            f"{path}: XML of <{root.tag}>, expected <{root_tag}>; this is another program's file"
        )
    return root


def peek_root(path: Path) -> str | None:
    """Return the first element's name in an XML file; None where the file is none."""
    if path.suffix.lower() != ".xml":
        return None
    with path.open("rb") as stream:
        found = ROOT_ELEMENT.search(stream.read(PEEK_BYTES))
    return found[1].decode() if found else None


def read_corners(path: Path, elements: list[Element]) -> list[tuple[float, float]]:
    """(x, y) of elements with attributes X and Y. Raises LabelError."""
    try:
        return [(float(element.attrib["X"]), float(element.attrib["Y"])) for element in elements]
    except (KeyError, ValueError) as error:
        raise LabelError(
            f"{path}: a corner without numbers X and Y ({error}); export the annotation again"
        ) from error
