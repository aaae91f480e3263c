"""Metrics of probabilities against labels, with intervals from resampling patients."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

CALIBRATION_BINS = 15
"""Equal parts of 0 to 1 that the calibration error is taken over, as Guo et al. (2017) have it."""

FIGURES: dict[str, str] = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "expected_calibration_error": "expected calibration error",
}
"""Every figure of `Scores` that is a number from 0 to 1, with the name that people read; the last two are better when lower."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How probabilities at a threshold compare with labels; None where a figure has no meaning (one class only, or nothing)."""

    patches: int
    true_negatives: int
    false_positives: int
    false_negatives: int
    true_positives: int
    threshold: float
    f1: float | None
    balanced_accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    auroc: float | None
    average_precision: float | None
    brier: float | None
    expected_calibration_error: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """What was promised and what came true where the probability lies from `low` to below `high`."""

    low: float
    high: float
    patches: int
    mean_probability: float | None
    """None where the bin is empty."""
    positive_share: float | None


def score(labels: NDArray[np.int8], probability: NDArray[np.float32], threshold: float) -> Scores:
    """Scores of (n,) probabilities of the positive class against (n,) labels 0 or 1; neither may hold unknowns."""
    predicted = probability >= np.float32(threshold)
    tn, fp, fn, tp = (int(count) for count in np.bincount(2 * labels + predicted, minlength=4))
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    both = sensitivity is not None and specificity is not None
    return Scores(
        patches=len(labels),
        true_negatives=tn,
        false_positives=fp,
        false_negatives=fn,
        true_positives=tp,
        threshold=threshold,
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        balanced_accuracy=(
            (sensitivity + specificity) / 2
            if sensitivity is not None and specificity is not None
            else None
        ),
        sensitivity=sensitivity,
        specificity=specificity,
        auroc=float(roc_auc_score(labels, probability)) if both else None,
        average_precision=float(average_precision_score(labels, probability)) if both else None,
        brier=brier_score(labels, probability) if len(labels) else None,
        expected_calibration_error=(
            expected_calibration_error(labels, probability) if len(labels) else None
        ),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def brier_score(labels: NDArray[np.int8], probability: NDArray[np.float32]) -> float:
    """Mean squared distance of (n,) probabilities from (n,) labels 0 or 1; n is at least 1."""
    return float(np.mean((probability.astype(np.float64) - labels) ** 2))


def negative_log_likelihood(labels: NDArray[np.int8], logits: NDArray[np.floating[Any]]) -> float:
    """Mean −log of the probability that (n,) logits give to (n,) labels 0 or 1; finite for any finite logit."""
    z = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0, z) - labels * z))


def expected_calibration_error(labels: NDArray[np.int8], probability: NDArray[np.float32]) -> float:
    """Mean distance between promised probability and share of positives, over 15 equally wide bins weighted by their patches.

    A number from 0 (every promise kept) to 1. It is of the positive class's probability, not of the
    likelier class's confidence.
    """
    gaps = np.bincount(
        calibration_bins(probability), probability.astype(np.float64) - labels, CALIBRATION_BINS
    )
    return float(np.abs(gaps).sum() / len(labels))


def calibration_bins(probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each probability, 0 to 14: a bin takes in its lower edge, the last one also 1."""
    return np.minimum(
        (probability.astype(np.float64) * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1
    )


def measure_reliability(
    labels: NDArray[np.int8], probability: NDArray[np.float32]
) -> tuple[ReliabilityBin, ...]:
    """The 15 bins of the reliability diagram, empty ones too."""
    bins = calibration_bins(probability)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    promised = np.bincount(bins, probability.astype(np.float64), CALIBRATION_BINS)
    positive = np.bincount(bins, labels, CALIBRATION_BINS)
    return tuple(
        ReliabilityBin(
            low=index / CALIBRATION_BINS,
            high=(index + 1) / CALIBRATION_BINS,
            patches=int(count),
            mean_probability=float(promised[index] / count) if count else None,
            positive_share=float(positive[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    )


def describe_scores(scores: Scores) -> str:
    """One line: AUROC, F1, balanced accuracy."""
    figures = (
        ("AUROC", scores.auroc),
        ("F1", scores.f1),
        ("balanced accuracy", scores.balanced_accuracy),
    )
    return ", ".join(
        f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in figures
    )


def draw_confusion(scores: Scores, class_names: tuple[str, str]) -> str:
    """The confusion matrix as text, truth down, prediction across."""
    width = max(12, *(len(name) + 2 for name in class_names))
    rows = (
        ("truth \\ predicted", *class_names),
        (class_names[0], str(scores.true_negatives), str(scores.false_positives)),
        (class_names[1], str(scores.false_negatives), str(scores.true_positives)),
    )
    return "\n".join(
        f"{row[0]:<20}" + "".join(f"{position:>{width}}" for position in row[1:]) for row in rows
    )


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
