"""Metrics of probabilities against labels, by hand."""

import numpy as np
import pytest

from wsi_pipeline.training.calibrate import parse_threshold_rule
from wsi_pipeline.training.metrics import describe_scores, format_confusion, score

YOUDEN = parse_threshold_rule("youden")


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1], dtype=np.int8)
    scores = score(labels, np.array([0.1, 0.6, 0.2, 0.7, 0.4], dtype=np.float32), threshold=0.5)
    counts = (
        scores.true_negatives,
        scores.false_positives,
        scores.false_negatives,
        scores.true_positives,
    )
    assert counts == (2, 1, 1, 1)
    assert scores.f1 == pytest.approx(0.5)  # 2 · 1 / (2 · 1 + 1 + 1)
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.auroc == pytest.approx(5 / 6)  # of 6 pairs only (0.6, 0.4) is the wrong way round


def test_undefined_metrics_are_none() -> None:
    scores = score(
        np.zeros(3, dtype=np.int8), np.array([0.1, 0.2, 0.3], dtype=np.float32), threshold=0.5
    )
    assert (scores.auroc, scores.f1, scores.balanced_accuracy, scores.sensitivity) == (
        None,
        None,
        None,
        None,
    )
    assert scores.specificity == 1.0
    assert describe_scores(scores) == "AUROC –, F1 –, balanced accuracy –"


def test_no_patches_have_no_scores() -> None:
    scores = score(np.empty(0, dtype=np.int8), np.empty(0, dtype=np.float32), threshold=0.5)
    assert (scores.patches, scores.auroc, scores.f1) == (0, None, None)


def test_the_threshold_lies_halfway_between_the_classes() -> None:
    labels = np.array([0, 0, 1, 1], dtype=np.int8)
    assert YOUDEN.choose(labels, np.array([0.1, 0.3, 0.5, 0.9], dtype=np.float32)) == pytest.approx(
        0.4
    )


@pytest.mark.parametrize(
    "probability", [[1e-7, 4e-7], [0.9999997, 0.9999999], [0.0, 1e-45], [0.5, 0.50000006]]
)
def test_the_threshold_divides_even_neighbouring_numbers(probability: list[float]) -> None:
    labels, values = np.array([0, 1], dtype=np.int8), np.array(probability, dtype=np.float32)
    assert score(labels, values, YOUDEN.choose(labels, values)).balanced_accuracy == 1.0


def test_the_threshold_does_not_turn_on_the_share_of_positives() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1], dtype=np.int8)
    probability = np.array([0.1, 0.35, 0.6, 0.3, 0.7, 0.9], dtype=np.float32)
    many = np.concatenate([np.repeat(labels[:3], 50), labels[3:]])
    assert YOUDEN.choose(labels, probability) == YOUDEN.choose(
        many, np.concatenate([np.repeat(probability[:3], 50), probability[3:]])
    )


def test_the_confusion_matrix_reads_truth_down() -> None:
    scores = score(
        np.array([0, 1, 1], dtype=np.int8), np.array([0.9, 0.9, 0.1], dtype=np.float32), 0.5
    )
    rows = [line.split() for line in format_confusion(scores, ("benign", "tumour")).splitlines()]
    assert rows[1:] == [["benign", "0", "1"], ["tumour", "1", "1"]]
