"""Scores of probabilities against labels, and the threshold that divides them best."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve


@dataclass(frozen=True, slots=True)
class Scores:
    """How probabilities at a threshold compare with labels; None where a figure has no meaning (one class only)."""

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

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


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
        balanced_accuracy=(sensitivity + specificity) / 2 if sensitivity is not None and specificity is not None else None,
        sensitivity=sensitivity,
        specificity=specificity,
        auroc=float(roc_auc_score(labels, probability)) if both else None,
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def choose_threshold(labels: NDArray[np.int8], probability: NDArray[np.float32]) -> float:
    """The threshold with the highest balanced accuracy (Youden's J), halfway between two probabilities that occur.

    Balanced accuracy, because it does not turn on the share of positives, which among hand-picked training patches is another than
    on whole slides; F1 does. Halfway, because a threshold that is exactly some patch's probability turns on that patch's last bit.
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(labels, probability, drop_intermediate=False)
    best = int(np.argmax(true_positive_rate - false_positive_rate))
    lowest_called = float(thresholds[best])
    below = probability[probability < np.float32(lowest_called)]
    highest_spared = float(below.max()) if len(below) else 0.0
    lowest_called = min(lowest_called, 1.0)
    halfway = (lowest_called + highest_spared) / 2
    return halfway if np.float32(highest_spared) < np.float32(halfway) else lowest_called


def describe_scores(scores: Scores) -> str:
    """One line: AUROC, F1, balanced accuracy."""
    figures = (("AUROC", scores.auroc), ("F1", scores.f1), ("balanced accuracy", scores.balanced_accuracy))
    return ", ".join(f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in figures)


def draw_confusion(scores: Scores, class_names: tuple[str, str]) -> str:
    """The confusion matrix as text, truth down, prediction across."""
    width = max(12, *(len(name) + 2 for name in class_names))
    rows = (
        ("truth \\ predicted", *class_names),
        (class_names[0], str(scores.true_negatives), str(scores.false_positives)),
        (class_names[1], str(scores.false_negatives), str(scores.true_positives)),
    )
    return "\n".join(f"{row[0]:<20}" + "".join(f"{cell:>{width}}" for cell in row[1:]) for row in rows)
