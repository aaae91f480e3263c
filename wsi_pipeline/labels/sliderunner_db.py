"""SlideRunner databases (SQLite): polygons, rectangles and circles; a class is the agreed one.

A database may hold many slides: a slide takes what is drawn on the slide of its file name, or on
the only one. The tables are those that SlideRunner's own database module makes.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.annotation import MAX_BYTES, Annotation, AnnotationBuilder
from wsi_pipeline.labels.assignment import PatchLabels, assign_regions
from wsi_pipeline.labels.imagescope_xml import inscribe_ellipse, span_rectangle
from wsi_pipeline.labels.rules import LabelRules

RECTANGLE, POLYGON, CIRCLE = 2, 3, 5
MAX_SHOWN = 5
SPOTS = {1: "point", 4: "point"}
"""Numbers of SlideRunner's types of annotations."""


def assign_sliderunner(
    path: Path, slide: SlideInfo, grid: Grid, positions: NDArray[np.int32], rules: LabelRules
) -> PatchLabels:
    """Label positions (n, 2) by the regions that a database holds of a slide. Raises LabelError."""
    read = partial(_read, Path(slide.path))
    return assign_regions(read, False, path, slide, grid, positions, rules)


def list_slides(path: Path) -> list[str]:
    """Return the file names of the slides that a database holds, sorted. Raises LabelError."""
    with _open(path) as database:
        return sorted(_read_slides(database).values())


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading. Raises LabelError, also for what fails within."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelError(
                f"{path}: larger than {MAX_BYTES >> 20} MB; leave its other slides out"
            )
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.execute("PRAGMA trusted_schema=OFF")
            yield database
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise LabelError(
            f"{path}: not a readable database of SlideRunner ({error}); save it again"
        ) from error


def _read(slide: Path, path: Path, is_strict: bool) -> Annotation:
    builder = AnnotationBuilder(path, is_strict)
    with _open(path) as database:
        _add_slide(path, builder, database, _find_slide(path, database, slide))
    return builder.finish()


def _read_slides(database: sqlite3.Connection) -> dict[int, str]:
    """Return the file name of each slide by its number."""
    rows = database.execute("SELECT uid, filename FROM Slides")
    return {int(number): _last_part(str(name)) for number, name in rows}


def _find_slide(path: Path, database: sqlite3.Connection, slide: Path) -> int:
    """Return the number of a slide in a database. Raises LabelError where it is not there."""
    slides = _read_slides(database)
    named = [number for number, name in slides.items() if slide.name == name]
    found = named or (list(slides) if len(slides) == 1 else [])
    if len(found) != 1:
        shown = ", ".join(sorted(slides.values())[:MAX_SHOWN])
        raise LabelError(
            f"{path}: {len(found)} of its {len(slides)} slides are called {slide.name} ({shown});"
            " name a database of this slide alone"
        )
    return found[0]


def _last_part(name: str) -> str:
    return PureWindowsPath(PurePosixPath(name).name).name


def _add_slide(
    path: Path, builder: AnnotationBuilder, database: sqlite3.Connection, slide: int
) -> None:
    columns = {row[1] for row in database.execute("PRAGMA table_info(Annotations)")}
    undeleted = " AND NOT ifnull(deleted, 0)" if "deleted" in columns else ""
    classes = {
        number: str(name) for number, name in database.execute("SELECT uid, name FROM Classes")
    }
    drawn = database.execute(
        f"SELECT uid, type, agreedClass FROM Annotations WHERE slide = ?{undeleted} ORDER BY uid",
        (slide,),
    ).fetchall()
    for number, kind, named in drawn:
        if kind in SPOTS:
            builder.ignored[SPOTS[kind]] += 1
            continue
        corners = database.execute(
            "SELECT coordinateX, coordinateY FROM Annotations_coordinates WHERE annoId = ?"
            " ORDER BY orderIdx, uid",
            (number,),
        ).fetchall()
        builder.add_polygon(classes.get(named, ""), _outline(path, kind, corners))


def _outline(
    path: Path, kind: int, corners: list[tuple[float, float]]
) -> Sequence[tuple[float, float]]:
    if kind not in (RECTANGLE, POLYGON, CIRCLE):
        raise LabelError(f"{path}: an annotation of type {kind}; types 1 to 5 are known")
    if kind != POLYGON and len(corners) == 2:
        return span_rectangle(corners) if kind == RECTANGLE else inscribe_ellipse(corners)
    return corners
