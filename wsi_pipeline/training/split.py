"""Dividing patients between training, validation and test. Patches of one patient never stand on two sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from wsi_pipeline.errors import ConfigError


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
                raise ConfigError(f"patients on two sides of the split: {', '.join(both[:5])}; each belongs on one")


def split_patients(
    patients: NDArray[np.str_],
    labels: NDArray[np.int8],
    *,
    val_patients: Sequence[str] = (),
    val_fraction: float = 0.2,
    test_patients: Sequence[str] = (),
    seed: int = 0,
) -> PatientSplit:
    """Divide the patients of labelled patches (n,) (n,); named validation patients, or about `val_fraction` of the others.

    The drawn ones have about the same share of positive patches (StratifiedGroupKFold). Raises ConfigError where a side is empty or
    has only one class, or a named patient has no patches.
    """
    _check_known(patients, [*val_patients, *test_patients])
    rest = ~np.isin(patients, list(test_patients))
    named = tuple(sorted({*val_patients}))
    val = named or _draw_patients(patients[rest], labels[rest], val_fraction, seed)
    train = tuple(sorted({*patients[rest].tolist()} - {*val}))
    split = PatientSplit(train=train, val=val, test=tuple(sorted({*test_patients})))
    for side, members in (("training", split.train), ("validation", split.val)):
        _check_both_classes(side, labels[np.isin(patients, list(members))])
    return split


def _check_known(patients: NDArray[np.str_], named: Sequence[str]) -> None:
    if missing := sorted({*named} - {*patients.tolist()}):
        raise ConfigError(f"patients without a labelled patch: {', '.join(missing[:5])}; check the list against the stores")


def _draw_patients(patients: NDArray[np.str_], labels: NDArray[np.int8], val_fraction: float, seed: int) -> tuple[str, ...]:
    if not 0 < val_fraction <= 0.5:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be above 0 and at most 0.5")
    folds = round(1 / val_fraction)
    count = len(np.unique(patients))
    if count < 2:
        raise ConfigError(f"{count} patient with labelled patches; training needs at least two, one of them for validation")
    if min(np.bincount(labels, minlength=2)) == 0:
        raise ConfigError("all labelled patches are of one class; add stores that hold the other")
    if min(np.bincount(labels)) < folds:
        raise ConfigError(
            f"{min(np.bincount(labels))} patches of the rarer class are too few to draw patients by; name them with --val-patients"
        )
    splitter = StratifiedGroupKFold(n_splits=min(folds, count), shuffle=True, random_state=seed)
    _, val = next(splitter.split(np.zeros(len(labels)), labels, groups=patients))
    return tuple(sorted({*patients[val].tolist()}))


def _check_both_classes(side: str, labels: NDArray[np.int8]) -> None:
    negatives, positives = np.bincount(labels, minlength=2)[:2]
    if not (negatives and positives):
        raise ConfigError(
            f"the {side} patients have {positives} positive and {negatives} negative patches; both are needed: "
            "choose other patients with --val-patients or --seed"
        )
