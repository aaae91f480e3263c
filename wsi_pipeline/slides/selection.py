"""The slides of a run: folders, patterns, sample sheets, their names, shards of array jobs, scales.

A sample sheet is one CSV for a whole cohort, a slide per line. Columns, of which only `wsi` is
required: wsi (path, relative to the sheet), mpp (µm per level-0 pixel, overrules the file),
patient_id, labels (path of a label file), split (train, val or test), label (of the whole slide,
kept in its store).
"""

import csv
import glob
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from wsi_pipeline.core.choices import (
    HIDDEN,
    LABELS_SUFFIX,
    MANIFEST,
    MASK_SUFFIX,
    SPLIT_PARTS,
    WRITTEN,
)
from wsi_pipeline.core.csv_io import unshield
from wsi_pipeline.core.errors import ConfigError, machine_fault
from wsi_pipeline.core.geometry import MAX_MPP, MIN_MPP
from wsi_pipeline.core.recipe import TOOL
from wsi_pipeline.slides.found_slide import FoundSlide, name_slides

SHEET_SUFFIX = ".csv"
COLUMNS = ("wsi", "mpp", "patient_id", "labels", "split", "label")
SIDECAR_SUFFIXES = frozenset({".csv", ".dat", ".geojson", ".json", ".md", ".xml", ".yaml", ".yml"})
"""Files beside slides (annotations, tables, MIRAX data) that are ignored in a folder."""

SHARD = re.compile(r"\.\d+-of-\d+(?=\.\w+$)")
HEAD_BYTES = 256
"""Of a manifest; the tool that made it stands in its first lines."""
MAPPING_CSV, MAPPING_COLUMNS = "mapping.csv", ("kind", "name", "pseudonym", "path")
"""The table that marks a folder of links under pseudonyms; its slides belong to other folders."""
LINKS_SUFFIX = ".links"
"""Of such folders of earlier versions, which lie beside their key."""
NO_USERS = "lost+found"
"""The file system's own folder, which only root may enter."""


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
    found = [path for place in places for path in _list_place(place, recursive)]
    once: dict[tuple[str, str], Path] = {}
    for path, entry in zip(found, _locate(found), strict=True):
        once.setdefault(entry, path)
    if not once:
        where = ", ".join(map(str, places))
        raise ConfigError(f"{where}: no slide files; name a folder that holds some")
    paths = list(once.values())
    return [FoundSlide(name, path) for name, path in zip(name_slides(paths), paths, strict=True)]


def _locate(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (real folder, name) of each path, the same for every spelling; links stay distinct."""
    # Not Path.resolve, which raises where links form a circle.
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return [(folders[path.parent], path.name) for path in paths]


def _list_place(place: Path | str, recursive: bool) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        return _list_folder(path, recursive)
    if path.exists() or path.is_symlink():
        return [path]
    # Not Path.glob: patterns may be absolute.
    matching = sorted(map(Path, glob.glob(str(place), recursive=recursive)))  # noqa: PTH207
    if not matching:
        raise ConfigError(f"{place}: no such file or folder, and no pattern that anything matches")
    parents = {parent for match in matching for parent in match.parents}
    products = set(filter(is_work_of_wsi, parents))
    found: list[Path] = []
    for match in matching:
        if match.is_dir() and products.isdisjoint(match.parents):
            found += _list_folder(match, recursive)
        elif products.isdisjoint(match.parents) and not is_written(match.name):
            found.append(match)
    return found


def _list_folder(folder: Path, recursive: bool) -> list[Path]:
    """Return every file of a folder that may be a slide, sorted.

    These are visible files, without sidecars and files written by wsi; `recursive` includes the
    folders within. Raises EnvironmentFault where a folder may not be entered.
    """
    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=_refuse):
        if is_work_of_wsi(Path(where)) or _holds_pseudonyms(Path(where), folder):
            folders.clear()
            continue
        folders[:] = [name for name in folders if recursive and _may_be_entered(name, files)]
        found += [Path(where, name) for name in files if _may_be_slide(name)]
    return sorted(found)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder deleted meanwhile is empty
        raise machine_fault(error.filename, error) or error


def _may_be_entered(name: str, files: Sequence[str]) -> bool:
    """Return whether a folder beside `files` may hold slides other than pseudonyms' links."""
    are_links = name.endswith(LINKS_SUFFIX) and name.removesuffix(LINKS_SUFFIX) in files
    return not (name.startswith(".") or name == NO_USERS or are_links)


def _holds_pseudonyms(folder: Path, top: Path) -> bool:
    """Return True for a folder of `wsi pseudonymize` below `top`, whose slides are elsewhere."""
    header = ",".join(MAPPING_COLUMNS).encode()
    try:
        with (folder / MAPPING_CSV).open("rb") as stream:
            return folder != top and stream.read(len(header)) == header
    except OSError:
        return False


def _may_be_slide(name: str) -> bool:
    is_sidecar = Path(name).suffix.lower() in SIDECAR_SUFFIXES
    return not (name.startswith(".") or is_sidecar or is_written(name))


def is_written(name: str) -> bool:
    """Return whether wsi writes files of that name beside its products."""
    return name.endswith((MASK_SUFFIX, LABELS_SUFFIX)) or SHARD.sub("", name) in WRITTEN


def is_work_of_wsi(folder: Path) -> bool:
    """Return True for a product of wsi, or for work under way: no file in such a folder is a slide.

    Another program's `manifest.json` does not count, unlike in the store, which must not replace
    what it cannot read.
    """
    if folder.name == HIDDEN:
        return True
    manifest = folder / MANIFEST
    try:
        if not manifest.is_file():
            return False
        with manifest.open("rb") as stream:
            return f'"tool": "{TOOL} '.encode() in stream.read(HEAD_BYTES)
    except OSError:
        return False


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
    if "wsi" not in header or not set(header) <= set(COLUMNS):
        raise ConfigError(
            f"{path}: line 1: the columns are {', '.join(header) or 'none'}; they may be"
            f" {', '.join(COLUMNS)}, and wsi must be one"
        )
    if not lines:
        raise ConfigError(f"{path}: names no slide; add a line for each")
    slides: list[Path] = []
    for at, line in lines.items():
        if None in line or None in line.values():
            raise ConfigError(f"{at}: has another number of values than the header; correct it")
        slide = _find_file(path, at, line, "wsi")
        if slide is None:
            raise ConfigError(f"{at}: the column wsi is empty; name the slide")
        slides.append(slide)
    _check_once(list(lines), slides)
    named = zip(lines.items(), slides, name_slides(slides), strict=True)
    rows = [_read_row(path, at, line, slide, name) for (at, line), slide, name in named]
    _check_splits(path, rows)
    return rows


def read_table(path: Path) -> tuple[Sequence[str], dict[str, dict[str, str]]]:
    """Return a table's header and its lines that are not empty, by `path: line number`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = reader.fieldnames or []
            lines = {f"{path}: line {reader.line_num}": row for row in reader if any(row.values())}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: not a readable CSV file ({error}); save it as CSV in UTF-8"
        ) from error
    names = Counter(name.strip() for name in header if name.strip())
    if twice := [name for name, times in names.items() if times > 1]:
        raise ConfigError(f"{path}: line 1: the column {twice[0]} appears more than once; keep one")
    return header, lines


def _check_once(lines: Sequence[str], slides: Sequence[Path]) -> None:
    """Raise ConfigError where two lines name one slide, however they spell its path."""
    first: dict[tuple[str, str], str] = {}
    for at, slide, entry in zip(lines, slides, _locate(slides), strict=True):
        if (other := first.setdefault(entry, at)) != at:
            raise ConfigError(
                f"{at}: {slide} is named more than once, first in {other.rpartition(': ')[2]};"
                " keep one line"
            )


def _read_row(path: Path, at: str, line: dict[str, str], slide: Path, name: str) -> SheetRow:
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
        slide_label=unshield(line.get("label", "").strip()) or None,
        mpp_source=f"user ({path.name})",
    )
    return SheetRow(found, split)


def _parse_mpp(at: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        mpp = float(text)
    except ValueError as error:
        raise ConfigError(
            f"{at}: mpp is {text!r}, which is not a number; write it with a point"
        ) from error
    if not (math.isfinite(mpp) and MIN_MPP <= mpp <= MAX_MPP):
        limits = f"{MIN_MPP:g} to {MAX_MPP:g} µm per pixel"
        raise ConfigError(f"{at}: mpp is {text}; a slide has {limits}")
    return mpp


def _find_file(path: Path, at: str, line: dict[str, str], column: str) -> Path | None:
    text = line.get(column, "").strip()
    if not text:
        return None
    found = path.parent / text
    if not (found.exists() or found.is_symlink()):  # a link that leads nowhere fails its own slide
        raise ConfigError(f"{at}: {column}: {text}: no such file; paths are relative to the sheet")
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
        name, mpp = (line["wsi"] or "").strip(), _parse_mpp(at, line["mpp"] or "")
        if not name or mpp is None:
            raise ConfigError(f"{at}: names no slide or no mpp; fill in both or remove the line")
        if scales.setdefault(Path(name).name, mpp) != mpp:
            raise ConfigError(f"{at}: {name} was given another mpp above; keep one line")
    return scales


def scale_slides(slides: Sequence[FoundSlide], path: Path) -> list[FoundSlide]:
    """Return the slides with the scales of a table, found by file name, or without suffix.

    A scale in a sample sheet overrules them.
    """
    scales = read_mpp_csv(path)
    scaled = []
    for slide in slides:
        mpp = scales.get(slide.path.name, scales.get(slide.path.stem))
        is_scaled = mpp is not None and slide.slide_mpp is None
        source = f"user ({path.name})"
        scaled.append(replace(slide, slide_mpp=mpp, mpp_source=source) if is_scaled else slide)
    return scaled
