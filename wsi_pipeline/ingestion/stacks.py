"""Stacks of patches in NumPy files. Nothing pickled is ever loaded."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError

STACK_SUFFIXES = (".npy", ".npz")
IMAGES, LABELS, PATIENTS = ("images", "x"), ("labels", "y"), ("patients",)
STACK_FAULTS = (OSError, ValueError, EOFError, KeyError)


class StackTable(NamedTuple):
    """Whose patches a stack holds, and their labels."""

    patients: list[str]
    labels: list[int]


def read_stack_table(path: Path) -> StackTable | None:
    """What belongs to the images of a file; None where it holds no images. Raises ConfigError where the arrays do not fit together."""
    shape = stack_shape(path)
    if shape is None:
        return None
    labels = _companion(path, LABELS)
    if labels is None:
        raise ConfigError(f"{path}: has no labels beside its images; add an array `labels`, or <name>_labels.npy")
    patients = _companion(path, PATIENTS)
    count = shape[0]
    if labels.shape != (count,) or not np.isin(labels, (0, 1)).all():
        raise ConfigError(f"{path}: its labels {labels.shape} are not one 0 or 1 for each of {count} images")
    if patients is not None and patients.shape != (count,):
        raise ConfigError(f"{path}: its patients {patients.shape} are not one for each of {count} images")
    names = [_name_of(path)] * count if patients is None else [str(patient) for patient in patients]
    return StackTable(names, [int(label) for label in labels])


def stack_shape(path: Path) -> tuple[int, ...] | None:
    """Shape of the images (n, side, side, 3) in a file; None where it holds none. Raises ConfigError for images of another kind."""
    images = open_images(path)
    if images is None:
        return None
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ConfigError(f"{path}: its images are {images.dtype} {images.shape}; they must be uint8 (n, side, side, 3)")
    return images.shape


@lru_cache(2)
def open_images(path: Path) -> NDArray[np.uint8] | None:
    """The images of a file, mapped into memory where it is NPY. Raises ConfigError."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False) if _is_called(path, IMAGES) else None
        with np.load(path, allow_pickle=False) as arrays:
            name = _pick(list(arrays), IMAGES)
            return None if name is None else arrays[name]
    except STACK_FAULTS as error:
        raise ConfigError(f"{path}: not a readable NumPy file ({error}); save it again, without pickled objects") from error


def _companion(path: Path, names: tuple[str, ...]) -> NDArray[np.generic] | None:
    """The labels or patients that belong to a file of images."""
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                name = _pick(list(arrays), names)
                return None if name is None else arrays[name]
        beside = [other for other in path.parent.iterdir() if _stem_of(other) == _stem_of(path) and _is_called(other, names)]
        return np.load(beside[0], allow_pickle=False) if beside else None
    except STACK_FAULTS as error:
        raise ConfigError(f"{path}: its {names[0]} cannot be read ({error}); save them again, without pickled objects") from error


def _is_called(path: Path, names: tuple[str, ...]) -> bool:
    return path.suffix.lower() == ".npy" and path.stem.lower().rpartition("_")[2] in names


def _stem_of(path: Path) -> str:
    """`a_images.npy` and `a_labels.npy` belong together by `a`, X.npy and Y.npy by nothing."""
    return path.stem.rpartition("_")[0]


def _name_of(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".npz" else _stem_of(path) or path.parent.name


def _pick(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in names if name.lower() in wanted), None)
