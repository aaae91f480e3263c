"""Figures of probabilities against labels: plain functions on arrays, which know nothing of patches or patients."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

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


def choose_threshold(labels: NDArray[np.int8], probability: NDArray[np.float32]) -> float:
    """The threshold with the highest balanced accuracy (Youden's J), halfway between two probabilities that occur.

    Balanced accuracy, because it does not turn on the share of positives, which among hand-picked
    training patches is another than on whole slides; F1 does.
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(
        labels, probability, drop_intermediate=False
    )
    # Without the first point, which calls nothing: no threshold up to 1 does that where a
    # probability is 1.
    best = 1 + int(np.argmax((true_positive_rate - false_positive_rate)[1:]))
    return cut_below(probability, float(thresholds[best]))


def cut_below(probability: NDArray[np.float32], lowest_called: float) -> float:
    """A threshold that calls positive what is at least `lowest_called`, halfway to the next lower probability that occurs.

    Halfway, because a threshold that is exactly some patch's probability turns on that patch's last
    bit.
    """
    below = probability[probability < np.float32(lowest_called)]
    highest_spared = float(below.max()) if len(below) else 0.0
    lowest_called = min(lowest_called, 1.0)
    halfway = (lowest_called + highest_spared) / 2
    return halfway if np.float32(highest_spared) < np.float32(halfway) else lowest_called


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
