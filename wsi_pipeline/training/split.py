"""Splitting patients into training, validation and test; patches of a patient stay together.

`split_at_random` is the exception: it measures how much a leak inflates the metrics, and marks its
result. Published splits are three lists of patients in a folder, or the split.json of a run.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from wsi_pipeline.core.choices import SPLIT_PARTS
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.slides.sheet import show_names
from wsi_pipeline.training.data import LabelledPatches
from wsi_pipeline.training.metrics import Labels, Names

FINEST_FOLDS = 20
ENDING_MARKS = ",;\t "
"""Empty columns behind a name, as spreadsheets leave them."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PatientSplit:
    """Names of the training, validation and test patients."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()
    """Patients used neither for training, nor for choosing an epoch or a threshold."""

    def __post_init__(self) -> None:
        for one, other in ((self.train, self.val), (self.train, self.test), (self.val, self.test)):
            if both := sorted({*one} & {*other}):
                raise ConfigError(
                    f"patients in two parts of the split: {', '.join(both[:5])}; name each in one"
                    " part"
                )

    def keep_present(self, patients: Names) -> "PatientSplit":
        """Return the split without patients who have no patches.

        Raises ConfigError where none is left of the named training or validation patients.
        """
        present = {*patients.tolist()}
        train, val, test = (
            tuple(name for name in part if name in present)
            for part in (self.train, self.val, self.test)
        )
        for part, listed, kept in (("training", self.train, train), ("validation", self.val, val)):
            if listed and not kept:
                raise ConfigError(
                    f"none of the {len(listed)} listed {part} patients has a labelled patch; check"
                    " the names"
                )
        return PatientSplit(train, val, test)

    def divide(self, patients: Names) -> "Division":
        """Return the split of patches from the patient of each patch, (n,)."""
        return Division(
            train=np.flatnonzero(np.isin(patients, self.train)),
            val=np.flatnonzero(np.isin(patients, self.val)),
            record={"train": list(self.train), "val": list(self.val), "test": list(self.test)},
        )


@dataclass(frozen=True, slots=True)
class Division:
    """A split of patches into training and validation."""

    train: NDArray[np.intp]
    """Indices of training patches, rising."""
    val: NDArray[np.intp]
    """Indices of validation patches, rising."""
    record: dict[str, Any]
    """The split as recorded in the checkpoint and split.json."""
    is_leaky: bool = False
    """The same patients are in training and validation, so the metrics are inflated."""

    def check_classes(self, labels: Labels) -> None:
        """Raise ConfigError where training or validation lacks one of the classes."""
        for part, members in (("training", self.train), ("validation", self.val)):
            negatives, positives = np.bincount(labels[members], minlength=2)
            if not (negatives and positives):
                raise ConfigError(
                    f"the {part} patients have {positives} positive and {negatives} negative"
                    " patches; both are needed: choose other validation patients, or another --seed"
                )


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """The user's choice of how to split the patients."""

    val_patients: tuple[str, ...] = ()
    """Named validation patients; none: chosen at random."""
    val_fraction: float = 0.2
    test_patients: tuple[str, ...] = ()
    train_patients: tuple[str, ...] = ()
    """Named training patients; none: all others."""
    ignores_absent: bool = False
    """Ignore named patients without patches, as in a published split of a larger data set."""
    listed: tuple[str, ...] = ()
    """All patients of a sample sheet, also those of no named part."""
    is_random: bool = False
    """Split patches and not patients, which leaks: only for measuring the leak."""

    def divide(self, patches: LabelledPatches, seed: int) -> Division:
        """Return the split. Raises ConfigError where it cannot be made."""
        if self.is_random:
            return split_at_random(patches.patients, patches.labels, self, seed)
        return split_patients(patches.patients, patches.labels, self, seed).divide(patches.patients)


def split_patients(
    patients: Names, labels: Labels, choice: SplitChoice, seed: int = 0
) -> PatientSplit:
    """Split the patients of labelled patches (n,) (n,).

    Validation patients are those named, or are chosen at random for about `val_fraction` of the
    patches with about the same share of positives (StratifiedGroupKFold). Raises ConfigError where
    a part is empty or has only one class, or a named patient has no patches.
    """
    named = PatientSplit(choice.train_patients, choice.val_patients, choice.test_patients)
    if choice.ignores_absent:
        _warn_of_others(named, choice.listed, {*patients.tolist()})
        named = named.keep_present(patients)
    rest = _leave_out(patients, named.test, [*named.train, *named.val])
    val = tuple(sorted({*named.val})) or _choose_share(
        patients[rest], labels[rest], choice.val_fraction, seed
    )
    train = tuple(sorted({*named.train} or {*patients[rest].tolist()} - {*val}))
    split = PatientSplit(train, val, tuple(sorted({*named.test})))
    split.divide(patients).check_classes(labels)
    return split


def _warn_of_others(split: PatientSplit, others: Sequence[str], present: set[str]) -> None:
    """Name the listed patients who have no patches, and those with patches whom no list has."""
    names = list(dict.fromkeys((*split.train, *split.val, *split.test, *others)))
    if absent := [name for name in names if name not in present]:
        what = "listed patients have no labelled patch"
        logger.warning("split: %d of %d %s: %s", len(absent), len(names), what, show_names(absent))
    if split.train and (unlisted := sorted(present - {*names})):
        what = "patients with labelled patches are in no part of it, and not used"
        logger.warning("split: %d %s: %s", len(unlisted), what, show_names(unlisted))


def split_folds(
    patients: Names, labels: Labels, folds: int, *, test_patients: Sequence[str] = (), seed: int = 0
) -> list[PatientSplit]:
    """Return `folds` splits in which every patient validates once, test patients never.

    Raises ConfigError as `split_patients` does.
    """
    rest = _leave_out(patients, test_patients)
    count = len(np.unique(patients[rest]))
    if not 2 <= folds <= count:
        raise ConfigError(
            f"{folds} folds of {count} patients; there must be at least 2 folds and a patient for"
            " each"
        )
    return [
        split_patients(
            patients, labels, SplitChoice(val_patients=val, test_patients=tuple(test_patients))
        )
        for val in _choose_folds(patients[rest], labels[rest], folds, seed)
    ]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A split without the patients of one group."""

    value: str
    """The group's value of the column."""
    split: PatientSplit
    """Its test patients are those of the group, and those that are kept out of everything."""
    members: NDArray[np.intp]
    """Indices of the group's patches."""


def hold_out_groups(
    patches: LabelledPatches,
    column: str,
    columns: Sequence[Mapping[str, str]],
    choice: SplitChoice,
    seed: int = 0,
) -> list[HeldOut]:
    """Return a split for each value of a column, by value; `columns` are those of each store.

    A patient with slides in several groups is in training or validation of none of them, and in
    each group with its own slides. Validation patients are drawn from the other groups. Slides
    without a value are trained on and never held out. Raises ConfigError for fewer than two groups.
    """
    values = np.array([own.get(column, "") for own in columns])[patches.places[:, 0]]
    is_free = ~np.isin(patches.patients, list(choice.test_patients))
    groups = sorted({*values[is_free].tolist()} - {""})
    if len(groups) < 2:
        known = show_names(sorted({name for own in columns for name in own})) or "none"
        raise ConfigError(
            f"--hold-out-by {column}: {len(groups)} group of it has labelled patches, two are"
            f" needed; the columns of the stores are {known}; name the sheet with --sheet"
        )
    found = []
    for value in groups:
        members = np.flatnonzero((values == value) & is_free)
        tested = {*patches.patients[members].tolist(), *choice.test_patients}
        own = SplitChoice(val_fraction=choice.val_fraction, test_patients=tuple(sorted(tested)))
        split = split_patients(patches.patients, patches.labels, own, seed)
        found.append(HeldOut(value, split, members))
    return found


def split_at_random(
    patients: Names, labels: Labels, choice: SplitChoice, seed: int = 0
) -> Division:
    """Split patches without regard to patients, as some published code does; this leaks.

    Only for measuring the leak: the result, the checkpoint and the report are marked as leaky.
    """
    val_fraction = choice.val_fraction
    _check_share(val_fraction)
    rest = _leave_out(patients, choice.test_patients)
    rarer = min(np.bincount(labels[rest], minlength=2))
    if rarer * val_fraction < 1 or rarer < 2:
        raise ConfigError(
            f"{rarer} patches of the rarer class cannot be split at {val_fraction}; add stores or"
            " raise --val-fraction"
        )
    train, val = train_test_split(
        rest, test_size=val_fraction, random_state=seed, stratify=labels[rest]
    )
    record = {
        "random": True,
        "seed": seed,
        "val_fraction": val_fraction,
        "patients_on_both_sides": np.intersect1d(patients[train], patients[val]).tolist(),
        "test": sorted({*choice.test_patients}),
    }
    division = Division(np.sort(train), np.sort(val), record, is_leaky=True)
    division.check_classes(labels)
    return division


def _leave_out(
    patients: Names, test_patients: Sequence[str], others: Sequence[str] = ()
) -> NDArray[np.intp]:
    """Return the patches of all but test patients. Raises ConfigError where a name has none."""
    if missing := sorted({*test_patients, *others} - {*patients.tolist()}):
        raise ConfigError(
            f"patients without a labelled patch: {', '.join(missing[:5])}; check the list against"
            " the stores"
        )
    return np.flatnonzero(~np.isin(patients, list(test_patients)))


def _check_share(val_fraction: float) -> None:
    if not 0 < val_fraction <= 0.5:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be above 0 and at most 0.5")


def _choose_share(
    patients: Names, labels: Labels, val_fraction: float, seed: int
) -> tuple[str, ...]:
    """Return the patients of as many folds as come nearest to the share of patches.

    There are twenty folds at most, and fewer where the share is 1/k.
    """
    _check_share(val_fraction)
    whole = round(1 / val_fraction)
    wanted = whole if abs(1 / val_fraction - whole) < 0.01 else FINEST_FOLDS
    parts = min(wanted, len(np.unique(patients)))
    folds = _choose_folds(patients, labels, parts, seed)
    taken = max(1, min(round(val_fraction * parts), parts - 1))
    return tuple(sorted(name for fold in folds[:taken] for name in fold))


def _choose_folds(patients: Names, labels: Labels, folds: int, seed: int) -> list[tuple[str, ...]]:
    count = len(np.unique(patients))
    if count < 2:
        raise ConfigError(
            f"{count} patient with labelled patches; training needs at least two, one of them for"
            " validation"
        )
    rarer = min(np.bincount(labels, minlength=2))
    if rarer == 0:
        raise ConfigError("all labelled patches are of one class; add stores that hold the other")
    if rarer < folds:
        raise ConfigError(
            f"{rarer} patches of the rarer class are too few to split the patients into {folds}"
            " parts; name validation patients with --val-patients (with --folds: ask for fewer)"
        )
    splitter = StratifiedGroupKFold(n_splits=min(folds, count), shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(labels)), labels, groups=patients)
    return [tuple(sorted({*patients[val].tolist()})) for _, val in parts]


def read_split_file(path: Path) -> PatientSplit:
    """Return a published split; its patients may have no patches.

    A folder holds one text file per part whose name ends in train, val or test, with a patient per
    line; the test list may be absent. Raises ConfigError where a list is missing, empty or
    unreadable, or a patient is in two parts.
    """
    try:
        lists = _read_folder(path) if path.is_dir() else _read_json(path)
        return PatientSplit(**{part: tuple(dict.fromkeys(names)) for part, names in lists.items()})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a split ({error}); give a folder of three lists, or a"
            " split.json"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_folder(folder: Path) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for part in SPLIT_PARTS:
        found = sorted(file for file in folder.glob("*.txt") if file.stem.lower().endswith(part))
        if len(found) > 1 or (not found and part != "test"):
            raise ConfigError(
                f"{len(found)} files end in {part}.txt; there must be one list for each of"
                f" {', '.join(SPLIT_PARTS)}"
            )
        lines = found[0].read_text(encoding="utf-8-sig").splitlines() if found else []
        names = [line.strip().rstrip(ENDING_MARKS) for line in lines]
        lists[part] = list(filter(None, names))
        if not lists[part] and part != "test":
            raise ConfigError(f"its {part} list is empty; name at least one patient")
    return lists


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        return {part: [str(name) for name in value[part]] for part in SPLIT_PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"it holds no split by patient ({type(error).__name__}: {error}); it must have lists"
            " train, val and test"
        ) from error
