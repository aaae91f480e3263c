"""Tables that people write: sample sheets, and the scales of single slides.

A sample sheet is one CSV for a whole cohort, a slide per line. Columns, of which only `wsi` is
required: wsi (path, relative to the sheet), mpp (µm per level-0 pixel, overrules the file),
patient_id, labels (path of a label file), mask (path of a tissue mask), split (train, val or test),
label (of the whole slide, kept in its store). Any further column is kept with the slide
(`free_columns`).

Tables are read as spreadsheets save them: with commas, semicolons or tabs, a byte order mark, and
empty columns and lines behind the last.
"""

import codecs
import csv
import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from wsi_pipeline.core.choices import SPLIT_PARTS
from wsi_pipeline.core.csv_io import unshield
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import MAX_MPP, MIN_MPP
from wsi_pipeline.slides.found_slide import FoundSlide, locate_files, name_slides
from wsi_pipeline.slides.free_columns import find_free, take_free

COLUMNS = ("wsi", "mpp", "patient_id", "labels", "mask", "split", "label")
SYNONYMS = {
    **dict.fromkeys(("patient", "patients"), "patient_id"),
    **dict.fromkeys(("masks", "maskfile", "maskpath", "tissuemask"), "mask"),
    **dict.fromkeys(("labelfile", "labelpath", "labelsfile", "labelspath"), "labels"),
}
"""Other names of columns, which are refused."""
SEPARATORS = (",", ";", "\t")
"""Of columns; the first that occurs in the header counts."""
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks of what spreadsheets call Unicode text."""
SHOWN = 5
"""Names in a warning."""
logger = logging.getLogger(__name__)


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
    """Return the rows of a sample sheet. Raises ConfigError naming the line and the fault."""
    header, lines = read_table(path)
    free = find_free(path, header, COLUMNS, SYNONYMS)
    if "wsi" not in header:
        raise ConfigError(
            f"{path}: line 1: the columns are {', '.join(header) or 'none'}; wsi must be one, with"
            f" the path of the slide, and {', '.join(COLUMNS[1:])} have a meaning"
        )
    if not lines:
        raise ConfigError(f"{path}: names no slide; add a line for each")
    slides: list[Path] = []
    for at, line in lines.items():
        slide = _find_file(path, at, line, "wsi")
        if slide is None:
            raise ConfigError(f"{at}: the column wsi is empty; name the slide")
        slides.append(slide)
    _check_once(list(lines), slides)
    named = zip(lines.items(), slides, name_slides(slides), strict=True)
    rows = [_read_row(path, at, line, slide, name, free) for (at, line), slide, name in named]
    _check_splits(path, rows)
    return rows


def read_columns(path: Path) -> dict[str, dict[str, str]]:
    """Return the free columns of a sample sheet, by the slide's name. Raises ConfigError."""
    return {row.slide.slide_id: dict(row.slide.columns) for row in read_sheet(path)}


def read_table(path: Path) -> tuple[Sequence[str], dict[str, dict[str, str]]]:
    """Return a table's columns and its lines that are not empty, by `path: line number`.

    Columns without a name hold nothing. Raises ConfigError where the file is no table, a column
    stands twice, or a line has another number of values than the header.
    """
    try:
        text = _read_text(path)
        first = next(iter(text.splitlines()), "")
        separator = next((mark for mark in SEPARATORS if mark in first), SEPARATORS[0])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows = {
            f"{path}: line {reader.line_num}": row for row in reader if any(map(str.strip, row))
        }
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: not a readable CSV file ({error}); save it as CSV in UTF-8"
        ) from error
    names = Counter(filter(None, header))
    if twice := [name for name, times in names.items() if times > 1]:
        raise ConfigError(f"{path}: line 1: the column {twice[0]} appears more than once; keep one")
    return list(names), {at: _read_line(at, header, row) for at, row in rows.items()}


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    return content.decode("utf-16" if content.startswith(WIDE_MARKS) else "utf-8-sig")


def _read_line(at: str, header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    """Return a line's values by column. Raises ConfigError where it has more or fewer."""
    line = dict(zip(header, row, strict=False))
    unnamed = [*row[len(header) :], *(v for n, v in zip(header, row, strict=False) if not n)]
    if any(map(str.strip, unnamed)) or not {*filter(None, header)} <= set(line):
        raise ConfigError(f"{at}: has another number of values than the header; correct it")
    return {name: value for name, value in line.items() if name}


def _check_once(lines: Sequence[str], slides: Sequence[Path]) -> None:
    """Raise ConfigError where two lines name one slide, however they spell its path."""
    first: dict[tuple[str, str], str] = {}
    for at, slide, entry in zip(lines, slides, locate_files(slides), strict=True):
        if (other := first.setdefault(entry, at)) != at:
            raise ConfigError(
                f"{at}: {slide} is named more than once, first in {other.rpartition(': ')[2]};"
                " keep one line"
            )


def _read_row(
    path: Path, at: str, line: dict[str, str], slide: Path, name: str, free: Sequence[str]
) -> SheetRow:
    split = line.get("split", "").strip() or None
    if split is not None and split not in SPLIT_PARTS:
        raise ConfigError(
            f"{at}: split is {split!r}; it is one of {', '.join(SPLIT_PARTS)}, or empty"
        )
    found = FoundSlide(
        slide_id=name,
        path=slide,
        slide_mpp=_parse_mpp(at, line.get("mpp", "")),
        patient_id=line.get("patient_id", "").strip() or None,
        label_file=_find_file(path, at, line, "labels"),
        mask_file=_find_file(path, at, line, "mask"),
        slide_label=unshield(line.get("label", "").strip()) or None,
        mpp_source=f"user ({path.name})",
        columns=tuple(take_free(at, line, free).items()),
    )
    return SheetRow(found, split)


def _parse_mpp(at: str, text: str) -> float | None:
    """Return µm per pixel; a comma before the decimals counts as a point."""
    if not text.strip():
        return None
    try:
        mpp = float(text.replace(",", ".", 1))
    except ValueError as error:
        raise ConfigError(
            f"{at}: mpp is {text!r}, which is not a number; write it with a point"
        ) from error
    if not (math.isfinite(mpp) and MIN_MPP <= mpp <= MAX_MPP):
        limits = f"{MIN_MPP:g} to {MAX_MPP:g} µm per pixel"
        raise ConfigError(f"{at}: mpp is {text}; a slide has {limits}")
    return mpp


def find_named(folder: Path, text: str) -> Path:
    """Return the path that a table names, relative to its folder, in either system's spelling."""
    found = folder / text
    if "\\" in text and not (found.exists() or found.is_symlink()):
        return folder / PureWindowsPath(text).as_posix()
    return found


def _find_file(path: Path, at: str, line: dict[str, str], column: str) -> Path | None:
    text = line.get(column, "").strip()
    if not text:
        return None
    found = find_named(path.parent, text)
    if not (found.exists() or found.is_symlink()):  # a link that leads nowhere fails its own slide
        raise ConfigError(f"{at}: {column}: {text}: no such file; paths are relative to the sheet")
    if column != "wsi" and found.is_dir():
        raise ConfigError(f"{at}: {column}: {text} is a folder; name the file in it")
    return found


def _check_splits(path: Path, rows: Sequence[SheetRow]) -> None:
    """Raise ConfigError where a patient is in two parts of the split."""
    sides: dict[str, str | None] = {}
    for row in rows:
        if sides.setdefault(row.patient_id, row.split) != row.split:
            raise ConfigError(
                f"{path}: patient {row.patient_id} is in two parts of the split; keep each patient"
                " in one"
            )


def read_mpp_csv(path: Path) -> dict[str, float]:
    """Return µm per pixel by slide, from the columns wsi and mpp. Raises ConfigError."""
    header, lines = read_table(path)
    if not {"wsi", "mpp"} <= set(header):
        columns = ", ".join(header) or "none"
        raise ConfigError(
            f"{path}: line 1: the columns are {columns}; wsi and mpp must be among them"
        )
    scales: dict[str, float] = {}
    for at, line in lines.items():
        name, mpp = line["wsi"].strip(), _parse_mpp(at, line["mpp"])
        if not name or mpp is None:
            raise ConfigError(f"{at}: names no slide or no mpp; fill in both or remove the line")
        # A Windows path is one long name elsewhere.
        if scales.setdefault(PureWindowsPath(name).name, mpp) != mpp:
            raise ConfigError(f"{at}: {name} was given another mpp above; keep one line")
    return scales


def scale_slides(slides: Sequence[FoundSlide], path: Path) -> list[FoundSlide]:
    """Return the slides with the scales of a table, found by file name, or without suffix.

    Where no line has a slide's exact name, upper and lower case make no difference. A scale in a
    sample sheet overrules the table's. Lines that mean no slide are named in a warning.
    """
    scales = read_mpp_csv(path)
    folded = {name.casefold(): name for name in scales}
    scaled, unused = [], dict(scales)
    for slide in slides:
        names = (slide.path.name, slide.path.stem)
        meant = [name for name in names if name in scales]
        meant += [folded[name.casefold()] for name in names if name.casefold() in folded]
        mpp = scales[meant[0]] if meant else None
        unused.pop(meant[0] if meant else "", None)
        is_scaled = mpp is not None and slide.slide_mpp is None
        source = f"user ({path.name})"
        scaled.append(replace(slide, slide_mpp=mpp, mpp_source=source) if is_scaled else slide)
    if unused:
        what = "slides of this table that are not in the run, or already scaled by another line"
        logger.warning("%s: %d %s: %s", path, len(unused), what, show_names(unused))
    return scaled


def show_names(names: Iterable[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
