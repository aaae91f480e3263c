"""Dividing patients between training, validation and test. Patches of one patient never stand on two sides.

`split_at_random` is the exception: it exists to measure how much a leak inflates the figures, and
marks what it returns.

Published splits are three lists of patients in a folder, or the split.json of an earlier training
run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from wsi_pipeline.core.choices import SIDES
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.data import LabelledPatches

FINEST_FOLDS = 20
Labels = NDArray[np.int8]
Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class PatientSplit:
    """Who is on which side."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()
    """Held out from everything: neither trained on, nor used to stop or to choose a threshold."""

    def __post_init__(self) -> None:
        for one, other in ((self.train, self.val), (self.train, self.test), (self.val, self.test)):
            if both := sorted({*one} & {*other}):
                raise ConfigError(
                    f"patients on two sides of the split: {', '.join(both[:5])}; each belongs"
                    " on one"
                )

    def keep_present(self, patients: Names) -> "PatientSplit":
        """Only those who have patches. Raises ConfigError where of a side that was named nobody is left."""
        present = {*patients.tolist()}
        train, val, test = (
            tuple(name for name in side if name in present)
            for side in (self.train, self.val, self.test)
        )
        for side, listed, kept in (("training", self.train, train), ("validation", self.val, val)):
            if listed and not kept:
                raise ConfigError(
                    f"none of the {len(listed)} listed {side} patients has a labelled patch; check"
                    " the names"
                )
        return PatientSplit(train, val, test)

    def divide(self, patients: Names) -> "Division":
        """The patches (n,) of these patients, each on its patient's side."""
        return Division(
            train=np.flatnonzero(np.isin(patients, self.train)),
            val=np.flatnonzero(np.isin(patients, self.val)),
            record={"train": list(self.train), "val": list(self.val), "test": list(self.test)},
        )


@dataclass(frozen=True, slots=True)
class Division:
    """Which patches are trained on and which judge."""

    train: NDArray[np.intp]
    """Indices of training patches, rising."""
    val: NDArray[np.intp]
    """Indices of validation patches, rising."""
    record: dict[str, Any]
    """What the checkpoint and the report say about it."""
    is_leaky: bool = False
    """Patients stand on both sides: the figures are inflated."""

    def check_classes(self, labels: Labels) -> None:
        """Raise ConfigError where a side lacks one of the classes."""
        for side, members in (("training", self.train), ("validation", self.val)):
            negatives, positives = np.bincount(labels[members], minlength=2)[:2]
            if not (negatives and positives):
                raise ConfigError(
                    f"the {side} patients have {positives} positive and {negatives} negative"
                    " patches; both are needed: choose other patients with --val-patients or"
                    " --seed"
                )


def split_patients(
    patients: Names,
    labels: Labels,
    *,
    train_patients: Sequence[str] = (),
    val_patients: Sequence[str] = (),
    val_fraction: float = 0.2,
    test_patients: Sequence[str] = (),
    seed: int = 0,
) -> PatientSplit:
    """Divide the patients of labelled patches (n,) (n,); named validation patients, or about `val_fraction` of the others.

    Without named training patients everybody else is trained on. The drawn ones have about the same
    share of positive patches (StratifiedGroupKFold). Raises ConfigError where a side is empty or
    has only one class, or a named patient has no patches.
    """
    _check_known(patients, [*train_patients, *val_patients, *test_patients])
    rest = ~np.isin(patients, list(test_patients))
    named = tuple(sorted({*val_patients}))
    val = named or _draw_share(patients[rest], labels[rest], val_fraction, seed)
    train = tuple(sorted({*train_patients} or {*patients[rest].tolist()} - {*val}))
    split = PatientSplit(train=train, val=val, test=tuple(sorted({*test_patients})))
    split.divide(patients).check_classes(labels)
    return split


def split_folds(
    patients: Names, labels: Labels, folds: int, *, test_patients: Sequence[str] = (), seed: int = 0
) -> list[PatientSplit]:
    """Every patient but the held-out ones in exactly one of `folds` validation sides. Raises ConfigError as `split_patients` does."""
    _check_known(patients, test_patients)
    rest = ~np.isin(patients, list(test_patients))
    count = len(np.unique(patients[rest]))
    if not 2 <= folds <= count:
        raise ConfigError(
            f"{folds} folds of {count} patients; there must be at least 2 folds and a patient for"
            " each"
        )
    return [
        split_patients(patients, labels, val_patients=val, test_patients=test_patients)
        for val in _draw_folds(patients[rest], labels[rest], folds, seed)
    ]


def split_at_random(
    patients: Names,
    labels: Labels,
    *,
    val_fraction: float = 0.2,
    test_patients: Sequence[str] = (),
    seed: int = 0,
) -> Division:
    """Patches drawn without regard to patients, as published code does: the same patient stands on both sides, and it leaks.

    For measuring the leak only; the result says that it leaks, and so do checkpoint and report.
    """
    _check_known(patients, test_patients)
    _check_share(val_fraction)
    rest = np.flatnonzero(~np.isin(patients, list(test_patients)))
    rarer = min(np.bincount(labels[rest], minlength=2))
    if rarer * val_fraction < 1 or rarer < 2:
        raise ConfigError(
            f"{rarer} patches of the rarer class cannot be divided at {val_fraction}; add stores or"
            " raise --val-fraction"
        )
    train, val = train_test_split(
        rest, test_size=val_fraction, random_state=seed, stratify=labels[rest]
    )
    both = sorted({*patients[train].tolist()} & {*patients[val].tolist()})
    record = {
        "random": True,
        "seed": seed,
        "val_fraction": val_fraction,
        "patients_on_both_sides": both,
        "test": sorted({*test_patients}),
    }
    division = Division(np.sort(train), np.sort(val), record, is_leaky=True)
    division.check_classes(labels)
    return division


def _check_known(patients: Names, named: Sequence[str]) -> None:
    if missing := sorted({*named} - {*patients.tolist()}):
        raise ConfigError(
            f"patients without a labelled patch: {', '.join(missing[:5])}; check the list against"
            " the stores"
        )


def _check_share(val_fraction: float) -> None:
    if not 0 < val_fraction <= 0.5:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be above 0 and at most 0.5")


def _draw_share(patients: Names, labels: Labels, val_fraction: float, seed: int) -> tuple[str, ...]:
    """The patients of as many twentieths (or fewer, larger folds) as come nearest to the share of patches wanted."""
    _check_share(val_fraction)
    parts = (
        round(1 / val_fraction)
        if abs(1 / val_fraction - round(1 / val_fraction)) < 0.01
        else FINEST_FOLDS
    )
    parts = min(parts, len(np.unique(patients)))
    folds = _draw_folds(patients, labels, parts, seed)
    taken = max(1, min(round(val_fraction * parts), parts - 1))
    return tuple(sorted(name for fold in folds[:taken] for name in fold))


def _draw_folds(patients: Names, labels: Labels, folds: int, seed: int) -> list[tuple[str, ...]]:
    count = len(np.unique(patients))
    if count < 2:
        raise ConfigError(
            f"{count} patient with labelled patches; training needs at least two, one of them for"
            " validation"
        )
    if min(np.bincount(labels, minlength=2)) == 0:
        raise ConfigError("all labelled patches are of one class; add stores that hold the other")
    if min(np.bincount(labels)) < folds:
        raise ConfigError(
            f"{min(np.bincount(labels))} patches of the rarer class are too few to draw {folds}"
            " parts of patients by; ask for fewer --folds, or name patients with --val-patients"
        )
    splitter = StratifiedGroupKFold(n_splits=min(folds, count), shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(labels)), labels, groups=patients)
    return [tuple(sorted({*patients[val].tolist()})) for _, val in parts]


def read_split_file(path: Path) -> PatientSplit:
    """Who is on which side, whether they have patches or not.

    A folder holds one text file per side whose name ends in train, val or test, with a patient per
    line; the test list may be absent. Raises ConfigError where a list is missing, empty or
    unreadable, or a patient is on two sides.
    """
    try:
        lists = _read_folder(path) if path.is_dir() else _read_json(path)
        return PatientSplit(**{side: tuple(dict.fromkeys(names)) for side, names in lists.items()})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a split ({error}); give a folder of three lists, or a"
            " split.json"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_folder(folder: Path) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for side in SIDES:
        found = sorted(file for file in folder.glob("*.txt") if file.stem.lower().endswith(side))
        if len(found) > 1 or (not found and side != "test"):
            raise ConfigError(
                f"{len(found)} files end in {side}.txt; there must be one list for each of"
                f" {', '.join(SIDES)}"
            )
        lists[side] = (
            [
                line.strip()
                for line in found[0].read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
            if found
            else []
        )
        if not lists[side] and side != "test":
            raise ConfigError(f"its {side} list is empty; name at least one patient")
    return lists


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        lists = {side: [str(name) for name in value[side]] for side in SIDES}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"no split by patient in it ({type(error).__name__}: {error}); it must have lists"
            " train, val and test"
        ) from error
    return lists


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """How the user wants the patients divided."""

    val_patients: tuple[str, ...] = ()
    """Named validation patients; none: drawn."""
    val_fraction: float = 0.2
    test_patients: tuple[str, ...] = ()
    train_patients: tuple[str, ...] = ()
    """Named training patients; none: all others."""
    ignores_absent: bool = False
    """Named patients who have no patches are passed over: a published split of a larger data set."""
    is_random: bool = False
    """Divide patches and not patients, which leaks: for measuring how much."""

    def divide(self, patches: LabelledPatches, seed: int) -> Division:
        """Training and validation patches. Raises ConfigError where the split cannot be made."""
        if self.is_random:
            return split_at_random(
                patches.patients,
                patches.labels,
                val_fraction=self.val_fraction,
                test_patients=self.test_patients,
                seed=seed,
            )
        sides = PatientSplit(self.train_patients, self.val_patients, self.test_patients)
        if self.ignores_absent:
            sides = sides.keep_present(patches.patients)
        return split_patients(
            patches.patients,
            patches.labels,
            train_patients=sides.train,
            val_patients=sides.val,
            val_fraction=self.val_fraction,
            test_patients=sides.test,
            seed=seed,
        ).divide(patches.patients)
