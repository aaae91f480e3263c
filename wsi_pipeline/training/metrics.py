"""Metrics of probabilities against labels, with intervals from resampling patients.

Patches of one patient are alike, so the bootstrap resamples patients; resampling patches would make
the intervals much too narrow.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

CALIBRATION_BINS = 15
"""Equal parts of 0 to 1 that the calibration error is taken over, as in Guo et al. (2017)."""
METRIC_NAMES: dict[str, str] = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "expected_calibration_error": "expected calibration error",
}
"""Names for people of every metric in `Scores` that lies in 0 to 1; for the last two, lower is
better."""
DRAWS = 1000
COVERAGE = 0.95
FEW_PATIENTS = 10
"""With fewer patients an interval is only a rough guide, and reports say so."""

Interval = tuple[float, float]
Labels = NDArray[np.int8]
Floats = NDArray[np.float32]
Names = NDArray[np.str_]
"""Each patch's label, logit or probability, and patient: the types of these in this room."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of probabilities at a threshold; None where undefined, as with one class only."""

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


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predicted and observed share of positives among probabilities from `low` to below `high`."""

    low: float
    high: float
    patches: int
    mean_probability: float | None
    """None where the bin is empty."""
    positive_share: float | None


def score(labels: Labels, probability: Floats, threshold: float) -> Scores:
    """Return the metrics of probabilities (n,) of the positive class for labels (n,) 0 or 1."""
    predicted = probability >= np.float32(threshold)
    tn, fp, fn, tp = (int(count) for count in np.bincount(2 * labels + predicted, minlength=4))
    has_both = bool(tp + fn and tn + fp)
    return Scores(
        patches=len(labels),
        true_negatives=tn,
        false_positives=fp,
        false_negatives=fn,
        true_positives=tp,
        threshold=threshold,
        **measure_ratios(tn, fp, fn, tp),
        auroc=float(roc_auc_score(labels, probability)) if has_both else None,
        average_precision=float(average_precision_score(labels, probability)) if has_both else None,
        brier=brier_score(labels, probability) if len(labels) else None,
        expected_calibration_error=(
            expected_calibration_error(labels, probability) if len(labels) else None
        ),
    )


def measure_ratios(tn: int, fp: int, fn: int, tp: int) -> dict[str, float | None]:
    """Return F1, balanced accuracy, sensitivity and specificity of a confusion matrix."""
    sensitivity = tp / (tp + fn) if tp + fn else None
    specificity = tn / (tn + fp) if tn + fp else None
    return {
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "balanced_accuracy": (
            None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
        ),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def brier_score(labels: Labels, probability: Floats) -> float:
    """Return the mean squared distance of (n,) probabilities from (n,) labels 0 or 1; n >= 1."""
    return float(np.mean((probability.astype(np.float64) - labels) ** 2))


def negative_log_likelihood(labels: Labels, logits: NDArray[np.floating[Any]]) -> float:
    """Return the mean −log of the probability that (n,) logits give to (n,) labels 0 or 1.

    It is finite for any finite logit.
    """
    z = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0, z) - labels * z))


def expected_calibration_error(labels: Labels, probability: Floats) -> float:
    """Return the mean distance between predicted probability and observed share of positives.

    Over 15 equally wide bins of the positive class's probability, weighted by their patches; from 0
    to 1.
    """
    distance = probability.astype(np.float64) - labels
    gaps = np.bincount(calibration_bins(probability), distance, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_bins(probability: Floats) -> NDArray[np.int64]:
    """Return the bin of each probability, 0 to 14; lower edges belong to it, 1 to the last."""
    bins = (probability.astype(np.float64) * CALIBRATION_BINS).astype(np.int64)
    return np.minimum(bins, CALIBRATION_BINS - 1)


def measure_reliability(labels: Labels, probability: Floats) -> tuple[ReliabilityBin, ...]:
    """Return the 15 bins of the reliability diagram, empty ones too."""
    bins = calibration_bins(probability)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    predicted = np.bincount(bins, probability.astype(np.float64), CALIBRATION_BINS)
    positive = np.bincount(bins, labels, CALIBRATION_BINS)
    return tuple(
        ReliabilityBin(
            low=index / CALIBRATION_BINS,
            high=(index + 1) / CALIBRATION_BINS,
            patches=int(count),
            mean_probability=float(predicted[index] / count) if count else None,
            positive_share=float(positive[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    )


def describe_scores(scores: Scores) -> str:
    """Return AUROC, F1 and balanced accuracy in one line."""
    names = ("auroc", "f1", "balanced_accuracy")
    return ", ".join(f"{METRIC_NAMES[name]} {show_metric(getattr(scores, name))}" for name in names)


def show_metric(value: float | None) -> str:
    """Return a metric with three decimals, or a dash if it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def format_confusion(scores: Scores, class_names: tuple[str, str]) -> str:
    """Return the confusion matrix as text, with a row for each true class."""
    width = max(12, *(len(name) + 2 for name in class_names))
    rows = (
        ("truth \\ predicted", *class_names),
        (class_names[0], scores.true_negatives, scores.false_positives),
        (class_names[1], scores.false_negatives, scores.true_positives),
    )
    return "\n".join(f"{name:<20}{one:>{width}}{other:>{width}}" for name, one, other in rows)


def bootstrap_intervals(
    labels: Labels,
    probability: Floats,
    patients: Names,
    threshold: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the 95 % interval of every metric from `draws` samples of patients with replacement.

    labels (n,) 0 or 1, probability (n,), patients (n,) names. Samples in which a metric is
    undefined (one class only) are left out for that metric. A metric that is undefined in more than
    half of the samples has no interval, and with one patient none has.
    """
    names, codes = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        return {}
    resampled = ResampledMetrics(labels, probability, codes, len(names), threshold)
    values = np.stack([resampled(row) for row in resample_patients(len(names), draws, seed)])
    intervals = zip(METRIC_NAMES, map(find_interval, values.T), strict=True)  # (metrics, draws)
    return {name: interval for name, interval in intervals if interval is not None}


def resample_patients(patients: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Return how often each patient was drawn, (draws, patients); rows add up to the patients."""
    return np.random.default_rng(seed).multinomial(
        patients, np.full(patients, 1 / patients), size=draws
    )


def find_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return the middle 95 % of values (draws,), NaN left out; None if more than half are NaN."""
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values) or len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


class ResampledMetrics:
    """The metrics of `METRIC_NAMES` for any number of copies of each patient.

    Patches are sorted once, so that each sample costs one pass over them.
    """

    def __init__(
        self,
        labels: Labels,
        probability: Floats,
        codes: NDArray[np.intp],
        patients: int,
        threshold: float,
    ) -> None:
        """Take labels (n,), probability (n,) and codes (n,): each patch's patient, by number."""
        order = np.lexsort((labels, codes, -probability))
        labels, probability, codes = labels[order], probability[order], codes[order]
        self._codes = codes
        self._positive = labels.astype(np.float64)
        # Patches of equal probability are called together: only the last is a point of the curve.
        self._ends = np.flatnonzero(np.append(np.diff(probability) != 0, True))
        self._totals = _total_by_patient(labels, probability, codes, patients, threshold)

    def __call__(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return metrics in the order of `METRIC_NAMES`, NaN if undefined; weights (patients,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array([*self._rank_metrics(weights), *self._count_metrics(weights)])

    def _rank_metrics(self, weights: NDArray[np.int64]) -> tuple[float, float]:
        """Return AUROC and average precision."""
        copies = weights[self._codes].astype(np.float64)
        called = np.cumsum(copies)[self._ends]
        true = np.cumsum(copies * self._positive)[self._ends]
        positives, negatives = true[-1], called[-1] - true[-1]
        new_true, new_false = np.diff(true, prepend=0), np.diff(called - true, prepend=0)
        auroc = np.sum(new_false * (true - new_true / 2)) / (positives * negatives)
        precision = np.sum(new_true * true / np.maximum(called, 1))
        return float(auroc), float(precision / (positives if negatives else np.nan))

    def _count_metrics(self, weights: NDArray[np.int64]) -> tuple[np.float64, ...]:
        # The last bits of a matrix product would depend on the number of threads.
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
    labels: Labels, probability: Floats, codes: NDArray[np.intp], patients: int, threshold: float
) -> NDArray[np.float64]:
    """Return each patient's confusion matrix, squared distances and gaps in each calibration bin.

    (5 + bins, patients).
    """
    outcome = 2 * labels.astype(np.intp) + (probability >= np.float32(threshold))
    distance = probability.astype(np.float64) - labels
    counts = np.bincount(4 * codes + outcome, minlength=4 * patients).reshape(patients, 4)
    squared = np.bincount(codes, distance**2, patients)
    bins = CALIBRATION_BINS * codes + calibration_bins(probability)
    gaps = np.bincount(bins, distance, CALIBRATION_BINS * patients).reshape(patients, -1)
    return np.column_stack([counts, squared, gaps]).T
