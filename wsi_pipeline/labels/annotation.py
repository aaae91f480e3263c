"""Drawn regions of a slide, whatever program drew them: named polygons in level-0 pixels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError

UNCLASSIFIED = "unclassified"
"""Name of regions to which nobody gave a class."""

MIN_VERTICES = 3
MAX_BYTES = 512 * 1024 * 1024
"""An annotation file larger than this is no annotation of regions."""


@dataclass(frozen=True, slots=True)
class Region:
    """One drawn region."""

    class_name: str
    geometry: BaseGeometry
    """Polygon or MultiPolygon in level-0 pixels, valid."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Everything drawn on one slide that has an area, and what was passed over."""

    regions: tuple[Region, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Kind of object without area → how many: points, lines, polygons of fewer than three points."""
    repaired: int = 0
    """Polygons that crossed themselves and were made valid."""
    mpp: float | None = None
    """µm per pixel that the file states for its slide."""

    @property
    def class_names(self) -> list[str]:
        """Every class that occurs, sorted."""
        return sorted({region.class_name for region in self.regions})


class AnnotationBuilder:
    """Collects regions while a file is read, and settles what cannot be taken as it is."""

    def __init__(self, path: Path, is_strict: bool) -> None:
        self._path = path
        self._is_strict = is_strict
        self._regions: list[Region] = []
        self._ignored: Counter[str] = Counter()
        self._repaired = 0

    @property
    def regions(self) -> tuple[Region, ...]:
        """What was added so far."""
        return tuple(self._regions)

    def take_counts(self, other: "AnnotationBuilder") -> None:
        """Add what another builder ignored and repaired to our own counts."""
        self._ignored += other._ignored
        self._repaired += other._repaired

    def ignore(self, kind: str) -> None:
        """Count an object that has no area."""
        self._ignored[kind] += 1

    def add_polygon(
        self,
        class_name: str,
        shell: Sequence[Sequence[float]],
        holes: Iterable[Sequence[Sequence[float]]] = (),
    ) -> None:
        """Add a polygon from its corners (x, y). Raises LabelError for coordinates that are no numbers."""
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
                    f"{self._path}: an invalid region of class {class_name!r} ({reason}); mend it,"
                    " or leave out --strict"
                )
            geometry = keep_areas(
                shapely.make_valid(geometry, method="structure", keep_collapsed=False)
            )
            self._repaired += 1
        if geometry.is_empty or geometry.area == 0:
            self._refuse_or_ignore("region without area")
            return
        self._regions.append(Region(class_name or UNCLASSIFIED, geometry))

    def finish(self, mpp: float | None = None) -> Annotation:
        """The annotation. Raises LabelError where nothing was drawn at all."""
        if not self._regions and not self._ignored:
            raise LabelError(
                f"{self._path}: holds no annotation; export it again from the program that drew it"
            )
        return Annotation(tuple(self._regions), dict(self._ignored), self._repaired, mpp)

    def _check_ring(self, ring: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        try:
            points = np.array(
                [(float(point[0]), float(point[1])) for point in ring], dtype=np.float64
            ).reshape(-1, 2)
        except (TypeError, ValueError, IndexError) as error:
            raise LabelError(
                f"{self._path}: a corner is no pair of numbers ({error}); export the annotation"
                " again"
            ) from error
        if not np.isfinite(points).all():
            raise LabelError(
                f"{self._path}: a corner is not finite (NaN or infinite); export the annotation"
                " again"
            )
        corners = [(float(x), float(y)) for x, y in points]
        is_closed = len(corners) > 1 and corners[0] == corners[-1]
        return corners[:-1] if is_closed else corners

    def _refuse_or_ignore(self, kind: str) -> None:
        if self._is_strict:
            raise LabelError(f"{self._path}: a {kind}; mend it, or leave out --strict")
        self._ignored[kind] += 1


def keep_areas(geometry: BaseGeometry) -> BaseGeometry:
    """The parts of a geometry that have an area."""
    parts = [
        part
        for part in shapely.get_parts(geometry)
        if part.geom_type in ("Polygon", "MultiPolygon")
    ]
    return shapely.union_all(parts) if parts else MultiPolygon()


def read_text(path: Path) -> bytes:
    """A whole annotation file. Raises LabelError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelError(
                f"{path}: larger than {MAX_BYTES >> 20} MB; export regions, not single cells"
            )
        content = path.read_bytes()
    except OSError as error:
        raise LabelError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    if not content.strip():
        raise LabelError(f"{path}: the file is empty; export the annotation again")
    return content


def describe(annotation: Annotation) -> dict[str, Any]:
    """What a store records about the annotation that labelled it."""
    return {
        "regions": dict(Counter(region.class_name for region in annotation.regions)),
        "ignored": dict(annotation.ignored),
        "repaired": annotation.repaired,
    }


def describe_oddities(description: Mapping[str, Any]) -> str:
    """What a person should know of an annotation that was used, from `describe`: nothing, or how much was mended and passed over."""
    repaired, ignored = description.get("repaired", 0), sum(description.get("ignored", {}).values())
    mended = f", {repaired} invalid regions mended" if repaired else ""
    return mended + (f", {ignored} objects without area passed over" if ignored else "")
