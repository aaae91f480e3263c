"""Counts against true numbers: errors, means and intervals, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from tests.measured import measure
from tests.written_results import write_result
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.training.counts import (
    Count,
    Counts,
    MeanErrors,
    count_patients,
    find_interval,
    judge_count,
)
from wsi_pipeline.training.metrics import Scores, score


def call(patches: int, true: int, counted: int) -> Scores:
    """The scores of so many patches; the first ones are positive and the first ones are called."""
    labels, calls = np.zeros((2, patches))
    labels[:true], calls[:counted] = 1, 1
    return score(labels.astype(np.int8), calls.astype(np.float32), 0.5)


def make_counts(*rows: Count) -> Counts:
    return Counts(200.0, 0.5, rows, patients=len(rows))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> SlideSummary:
    """One of four patches counted, with the interval 0 to 3 from validation."""
    folder = tmp_path_factory.mktemp("counts") / "slide"
    summary = write_result(folder, [0.9, 0.1, 0.2, 0.3])
    return replace(summary, positives_low=0.0, positives_high=3.0, interval_source="validation")


def test_an_error_is_counted_minus_true() -> None:
    count = Count("s", call(patches=10, true=1, counted=3), call(patches=10, true=1, counted=0))
    assert (count.counted, count.true, count.error, count.counted_alone) == (3, 1, 2, 0)
    assert count.share_errors == (0.2, -0.1)


def test_bias_keeps_the_sign_and_the_absolute_error_does_not() -> None:
    rows = Count("a", call(10, 1, 3)), Count("b", call(4, 3, 2))
    final, alone = make_counts(*rows).errors()
    assert final.bias == pytest.approx(-0.025)
    assert final.mean_absolute_error == pytest.approx(0.225)
    assert alone == MeanErrors(0, None, None)


def test_slides_of_a_hundred_patches_have_means_of_their_own() -> None:
    counts = make_counts(Count("a", call(100, 20, 30)), Count("b", call(99, 0, 99)))
    record = counts.to_json()
    assert record["large"] == {
        "slides": 1,
        "bias": pytest.approx(0.1),
        "mean_absolute_error": pytest.approx(0.1),
    }
    assert record["all"]["mean_absolute_error"] == pytest.approx(0.55)
    assert counts.sentences[1].startswith("2 slides of 2 patients: mean absolute error 55.0%")
    assert counts.sentences[2].startswith("1 slide, each with 100 labelled patches or more: ")


def test_a_slide_without_assessed_patches_has_no_error() -> None:
    counts = make_counts(Count("a", call(0, 0, 0)))
    assert counts.rows[0].share_errors == (None, None)
    assert counts.errors()[0].slides == 0
    assert len(counts.sentences) == 1


def test_an_interval_holds_what_lies_on_its_ends() -> None:
    count = Count("s", call(10, true=3, counted=5), interval=(3.0, 7.0))
    assert count.holds is True
    assert count.interval_text == "3 to 7"
    assert replace(count, interval=(3.1, 7.0)).holds is False
    assert replace(count, interval=(3.1, 7.0)).interval_text == "3 to 7 (missed)"
    assert replace(count, interval=None).holds is None


def test_coverage_is_of_the_intervals_that_can_be_judged() -> None:
    count = Count("s", call(10, true=3, counted=5), interval=(3.0, 7.0))
    missed, without = replace(count, interval=(4.0, 7.0)), replace(count, interval=None)
    record = make_counts(count, missed, missed, missed, without).to_json()
    assert (record["intervals"], record["intervals_that_hold"], record["coverage"]) == (4, 1, 0.25)
    assert make_counts(without).to_json()["coverage"] is None


def test_where_all_patches_are_labelled_the_interval_is_that_of_the_results(
    counted: SlideSummary,
) -> None:
    assert find_interval(counted, labelled=4, counted=1) == (0.0, 3.0)
    assert find_interval(replace(counted, interval_source="review"), 4, 1) == (0.0, 3.0)


def test_where_some_are_labelled_the_interval_of_a_share_moves_to_theirs(
    counted: SlideSummary,
) -> None:
    # In the arcsine a quarter is 30°, three quarters are 60°, the upper end lies 30° up; a third is
    # 35.26°, so the end moves to 65.26°, of which sin² is 0.8249.
    low, high = find_interval(counted, labelled=3, counted=1) or (-1.0, -1.0)
    assert low == 0.0
    assert high == pytest.approx(3 * 0.8249, abs=1e-3)


def test_a_review_is_not_judged_where_some_patches_have_no_label(counted: SlideSummary) -> None:
    for source in ("review", "sample"):
        assert find_interval(replace(counted, interval_source=source), 3, 1) is None


def test_results_without_an_interval_have_none_to_judge(counted: SlideSummary) -> None:
    assert find_interval(replace(counted, positives_low=None, positives_high=None), 4, 1) is None


def test_at_another_threshold_only_a_review_is_judged(counted: SlideSummary) -> None:
    count = Count("s", replace(call(4, 1, 1), threshold=0.7))
    assert judge_count(count, counted).interval is None
    assert judge_count(count, replace(counted, interval_source="review")).interval == (0.0, 3.0)
    assert judge_count(Count("s", call(4, 1, 1)), counted).interval_source == "validation"


def test_patients_of_a_training_are_counted_without_intervals() -> None:
    labels = np.array([1, 0, 1, 1], dtype=np.int8)
    logits = np.array([1, 1, -1, 1], dtype=np.float32)
    counts = count_patients(measure(labels, logits, np.array(["a", "a", "b", "b"])), 200.0)
    assert [(row.name, row.counted, row.true) for row in counts.rows] == [("a", 2, 1), ("b", 1, 2)]
    assert (counts.judged, counts.has_alone) == (0, False)
    assert "2 patients: mean absolute error 50.0% of the patches, bias +0.0%." in counts.sentences
