"""Layouts of data sets of patches on disk. A layout is one function and one line in LAYOUTS.

Stacks of patches come in NumPy files. Nothing pickled is ever loaded.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import DEFAULT_CLASS_NAMES
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.slides.found_slide import SYSTEM_FOLDERS
from wsi_pipeline.slides.free_columns import find_free, take_free
from wsi_pipeline.slides.sheet import find_named, read_table

IDC_NAME = re.compile(
    r"(?P<patient>[^_]+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])", re.IGNORECASE
)
COPY_BEFORE = re.compile(r"(copy|kopie) (\(\d+\) )?(of|von) ", re.IGNORECASE)
COPY_BEHIND = re.compile(r"(( ?\(\d+\))|([ _-]+(copy|kopie)( ?\(?\d+\)?)?))+", re.IGNORECASE)
"""Ends that file managers and browsers add to the names of copies."""
IDC_CLASS_NAMES = ("non_idc", "idc")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TABLE_COLUMNS = ("path", "patient", "label", "x", "y")
SYNONYMS = {"patientid": "patient"}
"""Other names of columns, which are refused."""
STACK_SUFFIXES = (".npy", ".npz")
IMAGES, LABELS, PATIENTS = ("images", "x"), ("labels", "y"), ("patients",)
ELSEWHERE = "lies where "
MANY = 12
"""Files left out; where there are more, each is named in the table only."""
STACK_FAULTS = (OSError, ValueError, EOFError, KeyError)


class PatchEntry(NamedTuple):
    """A patch of a data set, not opened yet."""

    file: str
    """Relative to the data set's folder."""
    label: int
    x: int | None = None
    """Column of its top-left pixel in the scan it was cut from, from 0; None where unknown."""
    y: int | None = None
    stack_index: int = -1
    """Number of the patch in a stack; -1 where the file is one image."""


class LeftOut(NamedTuple):
    """A file that did not become a patch, and the reason."""

    file: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without what it says of this one file."""
        if self.reason.startswith(ELSEWHERE):
            return "lies where another patch lies"
        size = re.sub(r"^\d+ × \d+ px", "another size", self.reason)
        return re.sub(r"^its place \S+ \(from 0\)", "its place", size)


def summarise(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a line for each file, or for each kind of reason where there are many files."""
    if len(left_out) <= MANY:
        return [f"{entry.file}: {entry.reason}" for entry in left_out]
    counts = Counter(entry.kind for entry in left_out)
    first = {entry.kind: entry.file for entry in reversed(left_out)}
    return [
        f"{count:,} {'files' if count > 1 else 'file'}: {kind} (first: {first[kind]})"
        for kind, count in counts.most_common()
    ]


@dataclass(frozen=True, slots=True)
class PatientPatches:
    """The patches of one patient."""

    patient_id: str
    folder: Path
    entries: tuple[PatchEntry, ...]
    class_names: tuple[str, str] = DEFAULT_CLASS_NAMES
    columns: tuple[tuple[str, str], ...] = ()
    """Name and value of each free column of the table that is not empty."""


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """Facts about a data set that its files do not show."""

    patient_regex: str | None = None
    """Searched in each file's path below the folder; group `patient`, or the first, names it."""
    class_names: tuple[str, str] | None = None
    """(negative, positive)"""

    def __post_init__(self) -> None:
        if self.patient_regex is not None:
            check_regex(self.patient_regex)


class Found(NamedTuple):
    """A data set."""

    patients: list[PatientPatches]
    left_out: list[LeftOut]


def find_idc(folder: Path, options: LayoutOptions) -> Found:
    """Find the public IDC set: `<patient>_idx5_x<X>_y<Y>_class<C>.png` at any depth.

    X is the column and Y the row of the top-left pixel, counted from 1. Other image formats and
    copies (`… (1).png`) are taken too, originals first; images of other names are left out.
    """
    images = [path for path in _list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    images.sort(key=lambda path: not IDC_NAME.fullmatch(path.stem))  # originals first
    found, left_out = [], []
    for path in images:
        name = _name(path, folder)
        if match := IDC_NAME.fullmatch(_without_copy_marks(path.stem)):
            label, x, y = (int(match[part]) for part in ("label", "x", "y"))
            found.append((match["patient"], PatchEntry(name, label, x - 1, y - 1)))
        else:
            left_out.append(LeftOut(name, "not named <patient>_idx5_x<X>_y<Y>_class<0|1>"))
    if not found:
        what = "no files called <patient>_idx5_x<X>_y<Y>_class<0|1>.png below it"
        raise ConfigError(f"{folder}: {what}; give the data set's folder or another --layout")
    return _gather(folder, found, options.class_names or IDC_CLASS_NAMES, left_out)


def _without_copy_marks(stem: str) -> str:
    bare = stem[match.end() :] if (match := COPY_BEFORE.match(stem)) else stem
    end = re.search(COPY_BEHIND.pattern + "$", bare, re.IGNORECASE)
    return bare[: end.start()] if end else bare


def _list_files(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted, without hidden ones and those of systems."""
    found: list[Path] = []
    for where, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if _is_users(name)]
        found += [Path(where, name) for name in files if _is_users(name)]
    return sorted(found)


def _is_users(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def find_folders(folder: Path, options: LayoutOptions) -> Found:
    """Find one folder per class with images at any depth; `patient_regex` finds the patient."""
    if options.patient_regex is None:
        raise ConfigError(f"{folder}: class folders name no patients; give --patient-regex")
    class_names = options.class_names or _class_folders(folder)
    found: list[tuple[str, PatchEntry]] = []
    left_out: list[LeftOut] = []
    for label, class_name in enumerate(class_names):
        for path in _list_files(folder / class_name):
            name = _name(path, folder)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                left_out.append(LeftOut(name, f"not one of {', '.join(IMAGE_SUFFIXES)}"))
            elif (patient := find_patient(options.patient_regex, name)) is None:
                left_out.append(LeftOut(name, "its path does not match --patient-regex"))
            else:
                found.append((patient, PatchEntry(name, label)))
    if not found:
        classes = " or ".join(class_names)
        raise ConfigError(f"{folder}: no image of {classes} matches --patient-regex; check both")
    return _gather(folder, found, class_names, left_out)


def find_stacks(folder: Path, options: LayoutOptions) -> Found:
    """Find NPZ files with `images` and `labels`, or pairs of NPY files.

    Pairs are `<name>_images.npy` and `<name>_labels.npy`, or `X.npy` and `Y.npy`. A third
    array, `patients`, names the patient of each patch; without it each file is one patient.
    """
    found = []
    for path in _list_files(folder):
        if path.suffix.lower() in STACK_SUFFIXES:
            for index, (patient, label) in enumerate(read_stack_table(path)):
                entry = PatchEntry(_name(path, folder), label, stack_index=index)
                found.append((patient, entry))
    if not found:
        what = "no NPZ with images and labels, nor a pair of NPY files"
        raise ConfigError(f"{folder}: {what}; see `wsi ingest --help`")
    return _gather(folder, found, options.class_names or DEFAULT_CLASS_NAMES)


def find_table(table: Path, options: LayoutOptions) -> Found:
    """Find the patches of a CSV with the columns path, patient, label, and perhaps x and y.

    Paths are relative to the CSV; labels are 0, 1 or a class name; x and y count from 0. Any
    further column is kept; a patient has one value of it.
    """
    class_names = options.class_names or DEFAULT_CLASS_NAMES
    header, lines = read_table(table)
    free = find_free(table, header, TABLE_COLUMNS, SYNONYMS)
    if not {"path", "patient", "label"} <= set(header):
        what = f"line 1: the columns are {', '.join(header) or 'none'}"
        raise ConfigError(f"{table}: {what}; path, patient and label are needed, x and y allowed")
    if not lines:
        raise ConfigError(f"{table}: names no patch; add a line for each")
    folder = table.parent
    found = [
        (line["patient"].strip(), _read_line(at, folder, line, class_names))
        for at, line in lines.items()
    ]
    patients, left_out = _gather(folder, found, class_names)
    columns = _gather_columns(lines, free)
    kept = [replace(each, columns=columns[each.patient_id]) for each in patients]
    return Found(kept, left_out)


def _gather_columns(
    lines: Mapping[str, dict[str, str]], free: Sequence[str]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the free columns of each patient. Raises ConfigError where one has two values."""
    first: dict[str, dict[str, str]] = {}
    for at, line in lines.items():
        own = take_free(at, line, free)
        other = first.setdefault(line["patient"].strip(), own)
        if differing := [name for name in free if own.get(name) != other.get(name)]:
            raise ConfigError(
                f"{at}: its {differing[0]} is another than in the patient's first line; patches of"
                " one patient become one store, so give them one value"
            )
    return {patient: tuple(own.items()) for patient, own in first.items()}


LAYOUTS: dict[str, Callable[[Path, LayoutOptions], Found]] = {
    "idc": find_idc,
    "folders": find_folders,
    "stacks": find_stacks,
    "csv": find_table,
}


def find_patches(place: Path, layout: str, options: LayoutOptions) -> Found:
    """Return the patients of a data set, sorted by name. Raises ConfigError for another layout."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    kind, is_there = ("CSV file", Path.is_file) if layout == "csv" else ("folder", Path.is_dir)
    if not is_there(place):
        raise ConfigError(f"{place}: not a {kind}; the layout {layout!r} needs one")
    return LAYOUTS[layout](place, options)


def _gather(
    folder: Path,
    found: Iterable[tuple[str, PatchEntry]],
    class_names: tuple[str, str],
    left_out: Sequence[LeftOut] = (),
) -> Found:
    by_patient: defaultdict[str, list[PatchEntry]] = defaultdict(list)
    for patient, entry in found:
        by_patient[patient].append(entry)
    patients = [
        PatientPatches(patient, folder, tuple(entries), class_names)
        for patient, entries in sorted(by_patient.items())
    ]
    return Found(patients, list(left_out))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _class_folders(folder: Path) -> tuple[str, str]:
    names = sorted(path.name for path in folder.iterdir() if _is_users(path.name) and path.is_dir())
    if len(names) != 2:
        what = f"has {len(names)} folders ({', '.join(names[:5])}), two classes are needed"
        raise ConfigError(f"{folder}: {what}; name two with --class-names")
    return names[0], names[1]


def check_regex(regex: str) -> None:
    """Raise ConfigError where an expression is none, or has no group for the patient."""
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ConfigError(f"patient regex {regex!r} is no regular expression ({error})") from error
    if groups < 1:
        raise ConfigError(f"patient regex {regex!r} has no group; put the patient in parentheses")


def find_patient(regex: str, relative: str) -> str | None:
    """Return the patient that group `patient`, or the first, matches in a path; None if none."""
    if (match := re.search(regex, relative)) is None:
        return None
    found: str | None = match.groupdict().get("patient") or match.group(1)
    return found


def _read_line(
    at: str, folder: Path, line: dict[str, str], class_names: tuple[str, str]
) -> PatchEntry:
    if not (line["path"].strip() and line["patient"].strip()):
        raise ConfigError(f"{at}: path or patient is empty; fill both in")
    text = line["label"].strip()
    labels = {class_names[0]: 0, class_names[1]: 1, "0": 0, "1": 1}
    if text not in labels:
        one, other = class_names
        raise ConfigError(f"{at}: label is {text!r}; it must be 0, 1, {one} or {other}")
    try:
        x, y = (int(line[name]) if line.get(name, "").strip() else None for name in ("x", "y"))
    except ValueError as error:
        raise ConfigError(f"{at}: x or y is no whole number ({error})") from error
    if (x is None) != (y is None):
        raise ConfigError(f"{at}: x and y must both be there, or neither")
    found = find_named(folder, line["path"].strip())
    file = found.relative_to(folder) if found.is_relative_to(folder) else found
    return PatchEntry(str(file), labels[text], x, y)


def read_stack_table(path: Path) -> list[tuple[str, int]]:
    """Return patient and label of each image of a file, if it holds any. Raises ConfigError."""
    shape = stack_shape(path)
    if shape is None:
        return []
    labels, patients = _load(path, LABELS), _load(path, PATIENTS)
    if labels is None:
        raise ConfigError(f"{path}: has no labels; add an array `labels`, or <name>_labels.npy")
    count = shape[0]
    each = f"for each of {count} images"
    if labels.shape != (count,) or not np.isin(labels, (0, 1)).all():
        raise ConfigError(f"{path}: its labels {labels.shape} are not one 0 or 1 {each}")
    if patients is not None and patients.shape != (count,):
        raise ConfigError(f"{path}: its patients {patients.shape} are not one {each}")
    names = [_name_of(path)] * count if patients is None else map(str, patients)
    return list(zip(names, map(int, labels), strict=True))


def stack_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape (n, side, side, 3) of a file's images, if any. Raises ConfigError."""
    images = open_images(path)
    if images is None:
        return None
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        what = f"its images are {images.dtype} {images.shape}"
        raise ConfigError(f"{path}: {what}; they must be uint8 (n, side, side, 3)")
    return images.shape


@lru_cache(2)
def open_images(path: Path) -> NDArray[Any] | None:
    """Return the images of a file, mapped into memory where it is NPY. Raises ConfigError."""
    is_pair = path.suffix.lower() == ".npy"
    return None if is_pair and not _is_called(path, IMAGES) else _load(path, IMAGES)


def _load(path: Path, names: tuple[str, ...]) -> NDArray[Any] | None:
    """Return the array of one of these names in an NPZ file, or of an NPY file and its pair."""
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                name = next((name for name in arrays if name.lower() in names), None)
                return None if name is None else arrays[name]
        beside = [other for other in path.parent.iterdir() if _stem_of(other) == _stem_of(path)]
        files = [other for other in (path, *beside) if _is_called(other, names)]
        return np.load(files[0], mmap_mode="r", allow_pickle=False) if files else None
    except STACK_FAULTS as error:
        what = f"its {names[0]} cannot be read ({error})"
        raise ConfigError(f"{path}: {what}; save them without pickled objects") from error


def _is_called(path: Path, names: tuple[str, ...]) -> bool:
    return path.suffix.lower() == ".npy" and path.stem.lower().rpartition("_")[2] in names


def _stem_of(path: Path) -> str:
    """Return what a pair shares: `a` of `a_images.npy` and `a_labels.npy`; "" for X.npy, Y.npy."""
    return path.stem.rpartition("_")[0]


def _name_of(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".npz" else _stem_of(path) or path.parent.name
