"""The slides of a run: folders, patterns, sample sheets, shards of array jobs, scales.

A sample sheet is one CSV for a whole cohort, a slide per line. Columns, of which only `wsi` is
required: wsi (path, relative to the sheet), mpp (µm per level-0 pixel, overrules the file),
patient_id, labels (path of a label file), split (train, val or test), label (of the whole slide,
kept in its store).
"""

import csv
import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from wsi_pipeline.core.choices import SPLIT_PARTS
from wsi_pipeline.core.csv_io import unshield
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import MAX_MPP, MIN_MPP
from wsi_pipeline.slides.discovery import (
    FoundSlide,
    is_work_of_wsi,
    is_written,
    list_folder,
    list_found,
    locate,
    name_slides,
)

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
    """Return the rows of a sample sheet. Raises ConfigError naming the line and the fault."""
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
    """Return (line number, values) of every line that is not empty."""
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
                f"{path}: line {number}: has another number of values than the header; correct it"
            )
    return lines


def check_header(path: Path, header: Sequence[str]) -> None:
    """Raise ConfigError for a repeated column of a table; columns without a name are ignored."""
    names = [name.strip() for name in header if name.strip()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: line 1: the column {twice[0]} appears more than once; keep one")


def _read_row(path: Path, number: int, line: dict[str, str], slide: Path, name: str) -> SheetRow:
    split = line.get("split", "").strip() or None
    if split is not None and split not in SPLIT_PARTS:
        raise ConfigError(
            f"{path}: line {number}: split is {split!r}; it must be one of"
            f" {', '.join(SPLIT_PARTS)}, or empty"
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
    """Return the µm per pixel in a table; None where empty. Raises ConfigError with the line."""
    if not text.strip():
        return None
    try:
        mpp = float(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}: line {number}: mpp is {text!r}, which is not a number; write it with a point"
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
    """Raise ConfigError where a patient is in two parts of the split."""
    sides: dict[str, str | None] = {}
    for row in rows:
        if sides.setdefault(row.patient_id, row.split) != row.split:
            raise ConfigError(
                f"{path}: patient {row.patient_id} is in two parts of the split; keep each patient"
                " in one"
            )


SHEET_SUFFIX = ".csv"


@dataclass(frozen=True, slots=True)
class Shard:
    """One share of a divided run: every `count`-th slide from number `number`, counted from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"shard {self.number}/{self.count} is impossible; give I/N with I from 1 to N"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that `I/N` means. Raises ConfigError."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text.strip())):
            raise ConfigError(f"shard {text!r} is not of the form I/N, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    def take(self, slides: Sequence[FoundSlide]) -> list[FoundSlide]:
        """Return this share's slides; all shares together are all slides, each once."""
        return list(slides[self.number - 1 :: self.count])

    @property
    def suffix(self) -> str:
        """Suffix of this share's tables."""
        return f".{self.number}-of-{self.count}"


def find_slides(
    places: Sequence[Path | str] = (), *, recursive: bool = False, sheet: Path | None = None
) -> list[FoundSlide]:
    """Return the slides among files, folders and patterns (`scans/*.svs`), or of a sample sheet.

    A `.csv` among `places` is a sample sheet too. Each `slide_id` is the file's stem where that is
    unique and safe as a file name, else stem and a hash of the path. `recursive` includes folders
    within folders. Files written by wsi are taken only where they are named. Raises ConfigError
    where a place does not exist or nothing is found, and EnvironmentFault where a folder may not be
    entered.
    """
    sheets = [Path(place) for place in places if str(place).lower().endswith(SHEET_SUFFIX)]
    if sheets and len(places) > 1:
        raise ConfigError(
            f"{sheets[0]}: a sample sheet names all slides of a run; give nothing beside it"
        )
    if sheet or sheets:
        return [row.slide for row in read_sheet(sheet or sheets[0])]
    return list_found(places, (path for place in places for path in _list_place(place, recursive)))


def _list_place(place: Path | str, recursive: bool) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        return list_folder(path, recursive)
    if path.exists() or path.is_symlink():
        return [path]
    # Not Path.glob: patterns may be absolute.
    matching = sorted(map(Path, glob.glob(str(place), recursive=recursive)))  # noqa: PTH207
    if not matching:
        raise ConfigError(
            f"{place}: no such file or folder, and no pattern that anything matches; check the path"
        )
    products = {
        folder
        for folder in {parent for match in matching for parent in match.parents}
        if is_work_of_wsi(folder)
    }
    others = [match for match in matching if products.isdisjoint(match.parents)]
    return [found for match in others for found in _list_match(match, recursive)]


def _list_match(match: Path, recursive: bool) -> list[Path]:
    if match.is_dir():
        return list_folder(match, recursive)
    return [] if is_written(match.name) else [match]


def read_mpp_csv(path: Path) -> dict[str, float]:
    """Return µm per pixel by slide, from the columns wsi and mpp. Raises ConfigError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            lines = [(reader.line_num, line) for line in reader if any(line.values())]
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: not a readable CSV file ({error}); save it as CSV in UTF-8"
        ) from error
    if not {"wsi", "mpp"} <= set(header):
        raise ConfigError(
            f"{path}: line 1: the columns are {', '.join(header) or 'none'}; wsi and mpp must be"
            " among them"
        )
    check_header(path, header)
    scales: dict[str, float] = {}
    for number, line in lines:
        name, mpp = (line["wsi"] or "").strip(), parse_mpp(path, number, line["mpp"] or "")
        if not name or mpp is None:
            raise ConfigError(
                f"{path}: line {number}: names no slide or no mpp; fill in both or remove the line"
            )
        if scales.setdefault(Path(name).name, mpp) != mpp:
            raise ConfigError(
                f"{path}: line {number}: {name} was given another mpp above; keep one line"
            )
    return scales


def scale_slides(slides: Sequence[FoundSlide], path: Path) -> list[FoundSlide]:
    """Return the slides with the scales of a table, found by file name, or without suffix.

    A scale in a sample sheet overrules them.
    """
    scales = read_mpp_csv(path)
    source = f"user ({path.name})"
    scaled = []
    for slide in slides:
        mpp = scales.get(slide.path.name, scales.get(slide.path.stem))
        scaled.append(
            slide
            if mpp is None or slide.slide_mpp is not None
            else replace(slide, slide_mpp=mpp, mpp_source=source)
        )
    return scaled
