"""Annotated regions of a slide, from any program: named polygons in level-0 pixels.

Also the reading of untrusted text and XML: no document types, no entities, nothing fetched.
"""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from wsi_pipeline.core.slide import SlideInfo

JSON_SUFFIXES = (".geojson", ".json")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
XML_SUFFIXES = (".xml", ".annotations", ".ndpa")
DATABASE_SUFFIXES = (".sqlite", ".sqlite3")
LABEL_SUFFIXES = (*JSON_SUFFIXES, *XML_SUFFIXES, *DATABASE_SUFFIXES, *IMAGE_SUFFIXES)

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
    """Polygon or MultiPolygon, valid, in pixels of the slide or as `Annotation.place` has it."""
    groups: tuple[str, ...] = ()
    """Groups that the class lies in, innermost first."""


Affine = tuple[float, float, float, float, float, float]
"""x' = a x + b y + e and y' = c x + d y + f, as (a, b, c, d, e, f)."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Everything annotated on one slide that has an area, and counts of the rest."""

    regions: tuple[Region, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Number of objects that were passed over, by kind: points, lines, cells, broken polygons."""
    repaired: int = 0
    """Polygons that crossed themselves and were made valid."""
    mpp: float | None = None
    """µm per pixel that the file states for its slide."""
    place: Callable[[SlideInfo], Affine] | None = None
    """From the file's coordinates to level-0 pixels of a slide; None: they are pixels.

    Raises LabelError where the slide does not say what is needed.
    """


class AnnotationBuilder:
    """Collects regions while a file is read, and repairs or ignores invalid ones."""

    def __init__(self, path: Path, is_strict: bool) -> None:
        self._path = path
        self.is_strict = is_strict
        self.regions: list[Region] = []
        self.ignored: Counter[str] = Counter()
        self.repaired = 0

    def add_polygon(
        self,
        class_name: str,
        shell: Ring,
        holes: Iterable[Ring] = (),
        groups: tuple[str, ...] = (),
    ) -> None:
        """Add a polygon from its corners (x, y). Raises LabelError for invalid coordinates."""
        self.add_polygons(class_name, [[shell, *holes]], groups)

    def add_polygons(
        self, class_name: str, polygons: Iterable[Sequence[Ring]], groups: tuple[str, ...] = ()
    ) -> None:
        """Add one region of polygons, each a shell and its holes. Raises LabelError."""
        parts: list[Polygon] = []
        for rings in polygons:
            shell, *holes = map(self._check_ring, rings or [[]])
            if len(shell) < MIN_VERTICES:
                self._refuse_or_ignore(f"polygon of {len(shell)} points")
                continue
            parts.append(Polygon(shell, [hole for hole in holes if len(hole) >= MIN_VERTICES]))
        if parts:
            region = parts[0] if len(parts) == 1 else MultiPolygon(parts)
            self.add_geometry(class_name, region, groups)

    def add_geometry(
        self, class_name: str, geometry: BaseGeometry, groups: tuple[str, ...] = ()
    ) -> None:
        """Add a Polygon or MultiPolygon, made valid where it crosses itself."""
        if not geometry.is_valid:
            if self.is_strict:
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
        self.regions.append(Region(class_name or UNCLASSIFIED, geometry, groups))

    def finish(
        self, mpp: float | None = None, place: Callable[[SlideInfo], Affine] | None = None
    ) -> Annotation:
        """Return the annotation. Raises LabelError where it has no region.

        What cannot be read must not pass for a slide on which nothing is drawn.
        """
        if not self.regions:
            passed = count_objects(self.ignored)
            what = f"no region in it has an area ({passed})" if passed else "holds no annotation"
            raise LabelError(
                f"{self._path}: {what}; export regions, or, where nothing is drawn on the slide,"
                " give a label image that is 0 everywhere"
            )
        return Annotation(tuple(self.regions), dict(self.ignored), self.repaired, mpp, place)

    def _check_ring(self, ring: Ring) -> list[tuple[float, float]]:
        try:
            corners = [(float(point[0]), float(point[1])) for point in ring]
        except (TypeError, ValueError, LookupError, OverflowError) as error:
            raise LabelError(
                f"{self._path}: a corner is not a pair of numbers ({error}); export it again"
            ) from error
        if not np.isfinite(corners).all():
            raise LabelError(f"{self._path}: a corner is not finite; export the annotation again")
        is_closed = len(corners) > 1 and corners[0] == corners[-1]
        return corners[:-1] if is_closed else corners

    def _refuse_or_ignore(self, kind: str) -> None:
        if self.is_strict:
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


WORDS = {
    "Point": "point",
    "MultiPoint": "group of points",
    "Dot": "point",
    "PointSet": "group of points",
    "LineString": "line",
    "MultiLineString": "group of lines",
    "Measurement": "measurement",
    "tma_core": "TMA-core",
}
"""Objects that are passed over, as people call them; others have such a name already."""


def count_objects(numbers: Mapping[str, int]) -> str:
    """Return numbers of objects by kind as text: `4 points, 1 polygon of 2 points`."""
    by_word: Counter[str] = Counter()
    for kind, number in numbers.items():
        by_word[WORDS.get(kind, kind)] += number
    return ", ".join(count_things(number, word) for word, number in by_word.items())


def count_things(number: int, word: str) -> str:
    """Return a number and its noun, of which the first word takes the plural."""
    noun, space, rest = word.partition(" ")
    return f"{number:,} {noun if number == 1 else f'{noun}s'}{space}{rest}"


def describe(annotation: Annotation) -> dict[str, Any]:
    """Return the record of an annotation for the store that it labelled."""
    return {
        "regions": dict(Counter(region.class_name for region in annotation.regions)),
        "ignored": dict(annotation.ignored),
        "repaired": annotation.repaired,
    }


def describe_regions(description: Mapping[str, Any]) -> str:
    """Return what was read of a file as text, by the record that `describe` made of it.

    Such as `3 regions, 2 tumour, 1 ignored; 4 points passed over`.
    """
    regions = [count_things(sum(description["regions"].values()), "region")]
    regions += [f"{number:,} {name}" for name, number in description.get("meanings", {}).items()]
    if description["repaired"]:
        regions.append(f"{description['repaired']:,} of them invalid and repaired")
    passed = count_objects(description["ignored"])
    return ", ".join(regions) + (f"; {passed} passed over" if passed else "")


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
    if path.suffix.lower() not in XML_SUFFIXES:
        return None
    with path.open("rb") as stream:
        found = ROOT_ELEMENT.search(as_ascii(stream.read(PEEK_BYTES)))
    return found[1].decode() if found else None


def as_ascii(text: bytes) -> bytes:
    """Return the ASCII characters of a text in UTF-8 or, by its byte order mark, in UTF-16."""
    return text.replace(b"\0", b"") if text.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else text


def read_corners(path: Path, elements: list[Element]) -> list[tuple[float, float]]:
    """(x, y) of elements with attributes X and Y. Raises LabelError."""
    try:
        return [(float(element.attrib["X"]), float(element.attrib["Y"])) for element in elements]
    except (KeyError, ValueError) as error:
        raise LabelError(
            f"{path}: a corner without numbers X and Y ({error}); export the annotation again"
        ) from error
