"""How far figures would move had other patients been drawn: the bootstrap over whole patients.

Patches of one patient are alike, so they are no independent witnesses; resampling patches would
make intervals far too narrow.
"""

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.training.metrics import CALIBRATION_BINS, FIGURES, calibration_bins

DRAWS = 1000
COVERAGE = 0.95
FEW_PATIENTS = 10
"""With fewer patients than this an interval is a hint at most, and reports say so."""

Interval = tuple[float, float]


def bootstrap_intervals(
    labels: NDArray[np.int8],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    threshold: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % intervals of every figure: the 2.5th and 97.5th percentile over `draws` samples of whole patients with replacement.

    labels (n,) 0 or 1, probability (n,), patients (n,) names. A draw in which a figure has no
    meaning (one class only) is left out of that figure; a figure without meaning in more than half
    of the draws has no interval, and with one patient none has.
    """
    names, codes = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        return {}
    figures = ResampledFigures(labels, probability, codes, len(names), threshold)
    drawn = np.stack(
        [figures(weights) for weights in draw_patients(len(names), draws, seed)]
    )  # (draws, figures)
    intervals = {name: find_interval(drawn[:, index]) for index, name in enumerate(FIGURES)}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def draw_patients(patients: int, draws: int, seed: int) -> NDArray[np.int64]:
    """How often each patient was drawn, (draws, patients): each row adds up to the number of patients."""
    return np.random.default_rng(seed).multinomial(
        patients, np.full(patients, 1 / patients), size=draws
    )


def find_interval(values: NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of drawn values (draws,), NaN left out; None where more than half are NaN."""
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values) or len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


class ResampledFigures:
    """The figures of `FIGURES` for any number of copies of each patient; sorts once, so that a draw costs one pass over the patches."""

    def __init__(
        self,
        labels: NDArray[np.int8],
        probability: NDArray[np.float32],
        codes: NDArray[np.intp],
        patients: int,
        threshold: float,
    ) -> None:
        """From labels (n,), probability (n,) and codes (n,), the number of each patch's patient, below `patients`."""
        order = np.lexsort((labels, codes, -probability))
        labels, probability, codes = labels[order], probability[order], codes[order]
        self._codes = codes
        self._positive = labels.astype(np.float64)
        # Patches of one probability are called together: only the last of them is a point of the
        # curve.
        self._ends = np.flatnonzero(np.append(np.diff(probability) != 0, True))
        self._totals = _total_by_patient(labels, probability, codes, patients, threshold)

    def __call__(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Figures in the order of `FIGURES`, NaN where one has no meaning; weights (patients,) copies of each."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array([*self._rank_figures(weights), *self._count_figures(weights)])

    def _rank_figures(self, weights: NDArray[np.int64]) -> tuple[float, float]:
        """AUROC and average precision."""
        copies = weights[self._codes].astype(np.float64)
        called = np.cumsum(copies)[self._ends]
        true = np.cumsum(copies * self._positive)[self._ends]
        positives, negatives = true[-1], called[-1] - true[-1]
        new_true, new_false = np.diff(true, prepend=0), np.diff(called - true, prepend=0)
        auroc = np.sum(new_false * (true - new_true / 2)) / (positives * negatives)
        average_precision = np.sum(new_true * true / np.maximum(called, 1)) / (
            positives if negatives else np.nan
        )
        return float(auroc), float(average_precision)

    def _count_figures(self, weights: NDArray[np.int64]) -> tuple[np.float64, ...]:
        # Not a matrix product: its last bits depend on the number of threads.
        tn, fp, fn, tp, squared, *gaps = (self._totals * weights).sum(axis=1)
        sensitivity, specificity, patches = tp / (tp + fn), tn / (tn + fp), tn + fp + fn + tp
        return (
            2 * tp / (2 * tp + fp + fn),
            (sensitivity + specificity) / 2,
            sensitivity,
            specificity,
            squared / patches,
            np.abs(gaps).sum() / patches,
        )


def _total_by_patient(
    labels: NDArray[np.int8],
    probability: NDArray[np.float32],
    codes: NDArray[np.intp],
    patients: int,
    threshold: float,
) -> NDArray[np.float64]:
    """What adds up over patients, (5 + bins, patients): true and false calls, squared distances, gaps in each calibration bin."""
    outcome = 2 * labels.astype(np.intp) + (probability >= np.float32(threshold))
    distance = probability.astype(np.float64) - labels
    counts = np.bincount(4 * codes + outcome, minlength=4 * patients).reshape(patients, 4).T
    squared = np.bincount(codes, distance**2, patients)
    gaps = np.bincount(
        CALIBRATION_BINS * codes + calibration_bins(probability),
        distance,
        CALIBRATION_BINS * patients,
    )
    return np.concatenate(
        [counts.astype(np.float64), squared[None], gaps.reshape(patients, CALIBRATION_BINS).T]
    )
