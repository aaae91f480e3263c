"""Sample sheets: one CSV for a whole cohort, a slide per line.

Columns, of which only `wsi` is required: wsi (path, relative to the sheet), mpp (µm per level-0
pixel, overrules the file), patient_id, labels (path of a label file), split (train, val or test),
label (of the whole slide, kept in its store).
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.choices import SPLIT_PARTS
from wsi_pipeline.core.csv_io import unshield
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import MAX_MPP, MIN_MPP
from wsi_pipeline.slides.discovery import FoundSlide, locate, name_slides

COLUMNS = ("wsi", "mpp", "patient_id", "labels", "split", "label")


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One slide of a cohort."""

    slide: FoundSlide
    split: str | None

    @property
    def patient_id(self) -> str:
        """The patient; where none is named, every slide counts as a patient of its own."""
        return self.slide.patient_id or self.slide.slide_id


def read_sheet(path: Path) -> list[SheetRow]:
    """The rows of a sample sheet. Raises ConfigError naming the line and the fault."""
    lines = _read_lines(path)
    paths = [_find_file(path, number, line, "wsi") for number, line in lines]
    if missing := [
        str(number) for (number, _), found in zip(lines, paths, strict=True) if found is None
    ]:
        raise ConfigError(f"{path}: line {missing[0]}: the column wsi is empty; name the slide")
    slides = [found for found in paths if found is not None]
    _check_once(path, [number for number, _ in lines], slides)
    rows = [
        _read_row(path, number, line, slide, name)
        for (number, line), slide, name in zip(lines, slides, name_slides(slides), strict=True)
    ]
    _check_splits(path, rows)
    return rows


def _check_once(path: Path, numbers: Sequence[int], slides: Sequence[Path]) -> None:
    """Raise ConfigError where two lines name one slide, however they spell its path."""
    first: dict[tuple[str, str], int] = {}
    for number, slide, entry in zip(numbers, slides, locate(slides), strict=True):
        if (other := first.setdefault(entry, number)) != number:
            raise ConfigError(
                f"{path}: line {number}: {slide} is named more than once, first in line {other};"
                " keep one line"
            )


def _read_lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells) of every line that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = reader.fieldnames or []
            lines = [(reader.line_num, line) for line in reader if any(line.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: not a readable CSV file ({error}); save it as CSV in UTF-8"
        ) from error
    if "wsi" not in header or not set(header) <= set(COLUMNS):
        raise ConfigError(
            f"{path}: line 1: the columns are {', '.join(header) or 'none'}; they may be"
            f" {', '.join(COLUMNS)}, and wsi must be one"
        )
    check_header(path, header)
    if not lines:
        raise ConfigError(f"{path}: names no slide; add a line for each")
    for number, line in lines:
        if None in line or None in line.values():
            raise ConfigError(
                f"{path}: line {number}: has another number of cells than the header; mend it"
            )
    return lines


def check_header(path: Path, header: Sequence[str]) -> None:
    """Raise ConfigError where a column of a table stands there twice; columns without a name are nobody's."""
    names = [name.strip() for name in header if name.strip()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"{path}: line 1: the column {twice[0]} stands there more than once; keep one"
        )


def _read_row(path: Path, number: int, line: dict[str, str], slide: Path, name: str) -> SheetRow:
    split = line.get("split", "").strip() or None
    if split is not None and split not in SPLIT_PARTS:
        raise ConfigError(
            f"{path}: line {number}: split is {split!r}; it must be one of {', '.join(SPLIT_PARTS)}, or"
            " empty"
        )
    found = FoundSlide(
        slide_id=name,
        path=slide,
        slide_mpp=parse_mpp(path, number, line.get("mpp", "")),
        patient_id=line.get("patient_id", "").strip() or None,
        label_file=_find_file(path, number, line, "labels"),
        slide_label=unshield(line.get("label", "").strip()) or None,
        mpp_source=f"user ({path.name})",
    )
    return SheetRow(found, split)


def parse_mpp(path: Path, number: int, text: str) -> float | None:
    """µm per pixel in a cell of a table; None where it is empty. Raises ConfigError naming the line."""
    if not text.strip():
        return None
    try:
        mpp = float(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}: line {number}: mpp is {text!r}, which is no number; write it with a point"
        ) from error
    if not (math.isfinite(mpp) and MIN_MPP <= mpp <= MAX_MPP):
        raise ConfigError(
            f"{path}: line {number}: mpp is {text}; a slide has {MIN_MPP:g} to {MAX_MPP:g} µm per"
            " pixel"
        )
    return mpp


def _find_file(path: Path, number: int, line: dict[str, str], column: str) -> Path | None:
    text = line.get(column, "").strip()
    if not text:
        return None
    found = path.parent / text
    if not (found.exists() or found.is_symlink()):  # a link that leads nowhere fails its own slide
        raise ConfigError(
            f"{path}: line {number}: {column}: {text}: no such file; paths are relative to the"
            " sheet"
        )
    return found


def _check_splits(path: Path, rows: Sequence[SheetRow]) -> None:
    """Raise ConfigError where a patient stands on two sides."""
    sides: dict[str, str | None] = {}
    for row in rows:
        if sides.setdefault(row.patient_id, row.split) != row.split:
            raise ConfigError(
                f"{path}: patient {row.patient_id} stands on two sides of the split; each belongs"
                " on one"
            )
