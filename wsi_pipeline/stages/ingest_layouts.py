"""Layouts of data sets of patches on disk. A layout is one function and one line in LAYOUTS.

Stacks of patches come in NumPy files. Nothing pickled is ever loaded.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import DEFAULT_CLASS_NAMES
from wsi_pipeline.core.errors import ConfigError

IDC_NAME = re.compile(
    r"(?P<patient>[^_]+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])\.png", re.IGNORECASE
)
IDC_CLASS_NAMES = ("non_idc", "idc")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TABLE_COLUMNS = ("path", "patient", "label", "x", "y")
STACK_SUFFIXES = (".npy", ".npz")
IMAGES, LABELS, PATIENTS = ("images", "x"), ("labels", "y"), ("patients",)
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
    """Which patch of a stack; -1 where the file is one image."""


class LeftOut(NamedTuple):
    """A file that did not become a patch, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class PatientPatches:
    """The patches of one patient."""

    patient_id: str
    folder: Path
    entries: tuple[PatchEntry, ...]
    class_names: tuple[str, str] = DEFAULT_CLASS_NAMES


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

    X is the column and Y the row of the top-left pixel, counted from 1.
    """
    by_patient: defaultdict[str, list[PatchEntry]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if match := IDC_NAME.fullmatch(path.name):
            entry = PatchEntry(
                _relative(path, folder),
                int(match["label"]),
                int(match["x"]) - 1,
                int(match["y"]) - 1,
            )
            by_patient[match["patient"]].append(entry)
    if not by_patient:
        raise ConfigError(
            f"{folder}: no files called <patient>_idx5_x<X>_y<Y>_class<0|1>.png below it; give the"
            " data set's folder or another --layout"
        )
    return _gather(folder, by_patient, options.class_names or IDC_CLASS_NAMES, [])


def find_folders(folder: Path, options: LayoutOptions) -> Found:
    """Find one folder per class with images at any depth; `patient_regex` finds the patient."""
    if options.patient_regex is None:
        raise ConfigError(
            f"{folder}: class folders do not name patients; say where they stand with"
            " --patient-regex"
        )
    class_names = options.class_names or _class_folders(folder)
    by_patient: defaultdict[str, list[PatchEntry]] = defaultdict(list)
    left_out: list[LeftOut] = []
    for label, name in enumerate(class_names):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            relative = _relative(path, folder)
            patient = find_patient(options.patient_regex, relative)
            if patient is None:
                left_out.append(LeftOut(relative, "its path does not match --patient-regex"))
            else:
                by_patient[patient].append(PatchEntry(relative, label))
    if not by_patient:
        raise ConfigError(
            f"{folder}: no image of {' or '.join(class_names)} matches --patient-regex; check both"
        )
    return _gather(folder, by_patient, class_names, left_out)


def find_stacks(folder: Path, options: LayoutOptions) -> Found:
    """Find NPZ files with `images` and `labels`, or pairs of NPY files.

    Pairs are `<name>_images.npy` and `<name>_labels.npy`, or `X.npy` and `Y.npy`. A third
    array, `patients`, names the patient of each patch; without it each file is one patient.
    """
    by_patient: defaultdict[str, list[PatchEntry]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in STACK_SUFFIXES and (table := read_stack_table(path)) is not None:
            for index, (patient, label) in enumerate(
                zip(table.patients, table.labels, strict=True)
            ):
                by_patient[patient].append(
                    PatchEntry(_relative(path, folder), label, stack_index=index)
                )
    if not by_patient:
        raise ConfigError(
            f"{folder}: no NPZ with images and labels, nor a pair of NPY files; see `wsi ingest"
            " --help`"
        )
    return _gather(folder, by_patient, options.class_names or DEFAULT_CLASS_NAMES, [])


def find_table(table: Path, options: LayoutOptions) -> Found:
    """Find the patches of a CSV with the columns path, patient, label, and perhaps x and y.

    Paths are relative to the CSV; labels are 0, 1 or a class name; x and y count from 0.
    """
    class_names = options.class_names or DEFAULT_CLASS_NAMES
    by_patient: defaultdict[str, list[PatchEntry]] = defaultdict(list)
    for number, line in _read_table(table):
        by_patient[line["patient"]].append(_read_line(table, number, line, class_names))
    return _gather(table.parent, by_patient, class_names, [])


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
    if not (place.is_file() if layout == "csv" else place.is_dir()):
        raise ConfigError(
            f"{place}: not a {'CSV file' if layout == 'csv' else 'folder'}; the layout {layout!r}"
            " needs one"
        )
    return LAYOUTS[layout](place, options)


def _gather(
    folder: Path,
    by_patient: Mapping[str, Sequence[PatchEntry]],
    class_names: tuple[str, str],
    left_out: list[LeftOut],
) -> Found:
    patients = [
        PatientPatches(patient, folder, tuple(entries), class_names)
        for patient, entries in sorted(by_patient.items())
    ]
    return Found(patients, left_out)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _class_folders(folder: Path) -> tuple[str, str]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if len(names) != 2:
        raise ConfigError(
            f"{folder}: has {len(names)} folders ({', '.join(names[:5])}), two classes are needed;"
            " name two with --class-names"
        )
    return names[0], names[1]


def check_regex(regex: str) -> None:
    """Raise ConfigError where an expression is none, or has no group for the patient."""
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ConfigError(f"patient regex {regex!r} is no regular expression ({error})") from error
    if groups < 1:
        raise ConfigError(
            f"patient regex {regex!r} has no group; put the patient's part in parentheses"
        )


def find_patient(regex: str, relative: str) -> str | None:
    """Return the patient that group `patient`, or the first, matches in a path; None if none."""
    match = re.search(regex, relative)
    if match is None:
        return None
    found: str | None = match.groupdict().get("patient") or match.group(1)
    return found


def _read_table(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = reader.fieldnames or []
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{table}: not a readable CSV file ({error}); save it as CSV in UTF-8"
        ) from error
    if not {"path", "patient", "label"} <= set(header) <= set(TABLE_COLUMNS):
        raise ConfigError(
            f"{table}: line 1: the columns are {', '.join(header) or 'none'}; path, patient and"
            " label are needed, x and y allowed"
        )
    if not lines:
        raise ConfigError(f"{table}: names no patch; add a line for each")
    for number, line in lines:
        if None in line or None in line.values():
            raise ConfigError(
                f"{table}: line {number}: has another number of cells than the header; mend it"
            )
        yield number, line


def _read_line(
    table: Path, number: int, line: dict[str, str], class_names: tuple[str, str]
) -> PatchEntry:
    if not (line["path"] and line["patient"]):
        raise ConfigError(f"{table}: line {number}: path or patient is empty; fill both in")
    text = line["label"].strip()
    if text not in ("0", "1", *class_names):
        raise ConfigError(
            f"{table}: line {number}: label is {text!r}; it must be 0, 1, {class_names[0]} or"
            f" {class_names[1]}"
        )
    label = int(text) if text in ("0", "1") else class_names.index(text)
    try:
        x, y = (int(line[name]) if line.get(name, "").strip() else None for name in ("x", "y"))
    except ValueError as error:
        raise ConfigError(f"{table}: line {number}: x or y is no whole number ({error})") from error
    if (x is None) != (y is None):
        raise ConfigError(f"{table}: line {number}: x and y must both be there, or neither")
    return PatchEntry(line["path"], label, x, y)


class StackTable(NamedTuple):
    """Patients and labels of the patches in a stack."""

    patients: list[str]
    labels: list[int]


def read_stack_table(path: Path) -> StackTable | None:
    """Return the patients and labels of a file's images; None where it holds no images.

    Raises ConfigError where the arrays do not fit together.
    """
    shape = stack_shape(path)
    if shape is None:
        return None
    labels = _companion(path, LABELS)
    if labels is None:
        raise ConfigError(
            f"{path}: has no labels beside its images; add an array `labels`, or <name>_labels.npy"
        )
    patients = _companion(path, PATIENTS)
    count = shape[0]
    if labels.shape != (count,) or not np.isin(labels, (0, 1)).all():
        raise ConfigError(
            f"{path}: its labels {labels.shape} are not one 0 or 1 for each of {count} images"
        )
    if patients is not None and patients.shape != (count,):
        raise ConfigError(
            f"{path}: its patients {patients.shape} are not one for each of {count} images"
        )
    names = [_name_of(path)] * count if patients is None else [str(patient) for patient in patients]
    return StackTable(names, [int(label) for label in labels])


def stack_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape (n, side, side, 3) of the images in a file; None where it holds none.

    Raises ConfigError for images of another kind.
    """
    images = open_images(path)
    if images is None:
        return None
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ConfigError(
            f"{path}: its images are {images.dtype} {images.shape}; they must be uint8 (n, side,"
            " side, 3)"
        )
    return images.shape


@lru_cache(2)
def open_images(path: Path) -> NDArray[np.uint8] | None:
    """Return the images of a file, mapped into memory where it is NPY. Raises ConfigError."""
    try:
        if path.suffix.lower() == ".npy":
            return (
                np.load(path, mmap_mode="r", allow_pickle=False)
                if _is_called(path, IMAGES)
                else None
            )
        with np.load(path, allow_pickle=False) as arrays:
            name = _pick(list(arrays), IMAGES)
            return None if name is None else arrays[name]
    except STACK_FAULTS as error:
        raise ConfigError(
            f"{path}: not a readable NumPy file ({error}); save it again, without pickled objects"
        ) from error


def _companion(path: Path, names: tuple[str, ...]) -> NDArray[np.generic] | None:
    """Return the labels or patients that belong to a file of images."""
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                name = _pick(list(arrays), names)
                return None if name is None else arrays[name]
        beside = [
            other
            for other in path.parent.iterdir()
            if _stem_of(other) == _stem_of(path) and _is_called(other, names)
        ]
        return np.load(beside[0], allow_pickle=False) if beside else None
    except STACK_FAULTS as error:
        raise ConfigError(
            f"{path}: its {names[0]} cannot be read ({error}); save them again, without pickled"
            " objects"
        ) from error


def _is_called(path: Path, names: tuple[str, ...]) -> bool:
    return path.suffix.lower() == ".npy" and path.stem.lower().rpartition("_")[2] in names


def _stem_of(path: Path) -> str:
    """Return what a pair shares: `a` of `a_images.npy` and `a_labels.npy`; "" for X.npy, Y.npy."""
    return path.stem.rpartition("_")[0]


def _name_of(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".npz" else _stem_of(path) or path.parent.name


def _pick(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in names if name.lower() in wanted), None)
