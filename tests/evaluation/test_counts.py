"""Counts of evaluated results: per slide, with intervals, beside those of each patch alone."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import make_table
from tests.commands import SUMMARY, run
from tests.written_results import write_result
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.counting.site import SiteCalibration
from wsi_pipeline.evaluation import evaluate_results
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import Aggregation

pytestmark = pytest.mark.usefixtures("plots_left_out")

ERRORS = (0.1,) * 19
"""The count's error at 19 patients: just enough for an interval of 95 %."""
NEIGHBOURS = ModelTerms(Terms(context_um=200.0), Terms(count=0.6), count_errors=ERRORS)
"""Context over one stride; each patch alone counts from 0.6 on."""


def write_slide(
    folder: Path, probability: list[float], labels: list[int], view: View = SUMMARY
) -> Path:
    """Results of one row of patches of 200 µm, whose probabilities are of each patch alone."""
    table = make_table(
        [(0, col) for col in range(len(labels))],
        labels=labels,
        slide_id=folder.name,
        mpp=4.0,
        block_size=10,
    )
    write_result(folder, probability, table=table, view=view, terms=NEIGHBOURS)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A slide whose middle patch is called positive by its neighbours alone, and a negative one."""
    write_slide(tmp_path / "r" / "a", [0.9, 0.9, 0.4, 0.9, 0.9], [1, 1, 1, 1, 0])
    write_slide(tmp_path / "r" / "b", [0.1, 0.1, 0.55], [0, 0, 1])
    return tmp_path / "r"


def read_rows(results: Path) -> dict[str, dict[str, str]]:
    with (results / "evaluation.csv").open(newline="") as stream:
        return {row["slide_id"]: row for row in csv.DictReader(stream)}


def test_each_slide_and_all_together_have_counts(results: Path) -> None:
    evaluate_results(results)
    rows = read_rows(results)
    names = ("counted", "true", "error", "counted_alone")
    assert [rows["a"][name] for name in names] == ["5", "4", "1", "4"]
    assert [rows["b"][name] for name in names] == ["0", "1", "-1", "0"]
    assert [rows["all slides"][name] for name in names] == ["5", "5", "0", "4"]
    assert float(rows["a"]["share_error"]) == pytest.approx(0.2)


def test_the_mean_errors_show_what_context_brings(results: Path) -> None:
    # Final: +1/5 and −1/3. Alone: 0 and −1/3.
    evaluate_results(results)
    counts = json.loads((results / "evaluation.json").read_text())["counts"]
    assert counts["all"]["bias"] == pytest.approx((1 / 5 - 1 / 3) / 2)
    assert counts["all"]["mean_absolute_error"] == pytest.approx((1 / 5 + 1 / 3) / 2)
    assert counts["alone"]["all"]["mean_absolute_error"] == pytest.approx(1 / 6)
    assert (counts["patch_um"], counts["patients"], counts["large"]["slides"]) == (200.0, 2, 0)


def test_the_interval_of_the_results_is_judged(results: Path) -> None:
    # All of `a` is counted: sin²(π/2 − 0.1) of 5 patches is 4.95, above the 4 true ones. Nothing of
    # `b` is counted: sin²(0.1) of 3 patches is 0.03, below the true one.
    evaluate_results(results)
    rows = read_rows(results)
    assert float(rows["a"]["interval_low"]) == pytest.approx(4.95, abs=0.001)
    assert float(rows["b"]["interval_high"]) == pytest.approx(0.03, abs=0.001)
    assert {rows[name]["interval_holds"] for name in "ab"} == {"False"}
    assert rows["a"]["interval_source"] == "validation"
    assert rows["all slides"]["interval_holds"] == ""


def test_the_calibration_error_is_of_the_slides_own_patches(tmp_path: Path) -> None:
    # Without context, 0.9 and 0.9 of which one is true, and 0.1 of which none is.
    view = replace(SUMMARY, aggregation=Aggregation(context_um=0.0))
    write_slide(tmp_path / "r" / "a", [0.9, 0.9, 0.1], [1, 0, 0], view)
    write_slide(tmp_path / "r" / "b", [0.9, 0.9], [1, 1], view)
    evaluate_results(tmp_path / "r")
    rows = read_rows(tmp_path / "r")
    assert float(rows["a"]["expected_calibration_error"]) == pytest.approx((0.8 + 0.1) / 3)
    assert float(rows["b"]["expected_calibration_error"]) == pytest.approx(0.1)
    assert float(rows["b"]["calibration_error_alone"]) == pytest.approx(0.1)


def test_the_terminal_shows_counts_and_what_they_are_of(results: Path) -> None:
    lines = run("evaluate", results).stdout.splitlines()
    words = lines[0].split()
    assert words[words.index("counted") :][:3] == ["counted", "true", "interval"]
    assert lines[1].split()[3:8] == ["5", "4", "5", "to", "5"]
    assert (
        "A count is the number of patches of 200 µm at or above 0.500, of those that were assessed"
        " and labelled; it counts patches, not cells, and is no grade." in lines
    )
    assert "0 of 2 intervals hold the true number: 0%; they are made to hold 95%." in lines


def test_the_page_has_counts_of_each_slide(results: Path) -> None:
    evaluate_results(results)
    text = (results / "evaluation.html").read_text()
    assert "<h2>Counts</h2>" in text
    assert "<td>a</td><td>5</td><td>5</td><td>4</td><td>+1</td>" in text
    assert "each patch alone" in text


def test_a_threshold_of_the_results_is_that_of_the_evaluation(results: Path) -> None:
    assert run("aggregate", results, "--threshold", "0.8", "--outputs", "summary").exit_code == 0
    evaluation = evaluate_results(results)
    assert evaluation.metrics.scores.threshold == 0.8
    assert evaluation.metrics.alone.threshold == 0.8
    assert evaluation.counts.judged == 0


def test_results_without_context_are_judged_without(results: Path) -> None:
    assert run("aggregate", results, "--context", "none", "--outputs", "summary").exit_code == 0
    evaluation = evaluate_results(results)
    assert evaluation.slides[0].count.counted == 4
    assert evaluation.metrics.alone == evaluation.metrics.scores
    assert evaluation.metrics.scores.threshold == 0.6


def test_another_threshold_leaves_intervals_of_validation_out(results: Path) -> None:
    assert run("evaluate", results, "--threshold", "0.7").exit_code == 0
    assert read_rows(results)["a"]["interval_source"] == "none"


def test_slides_that_show_different_views_are_refused(results: Path) -> None:
    shutil.rmtree(results / "b")
    other = replace(SUMMARY, aggregation=Aggregation(threshold=0.7))
    write_slide(results / "b", [0.1, 0.1, 0.9], [0, 0, 1], other)
    with pytest.raises(StoreError, match="aggregated in 2 ways; run `wsi aggregate` on it first"):
        evaluate_results(results)


def test_a_slide_whose_summary_was_changed_is_refused(results: Path) -> None:
    (results / "a" / "summary.json").write_text("{}")
    with pytest.raises(StoreError, match=r"summary\.json"):
        evaluate_results(results)


def test_reviews_that_calibrated_the_results_are_named(tmp_path: Path) -> None:
    site = SiteCalibration("d" * 64, Calibration(1.0, 0.5), (-0.1, 0.0, 0.0, 0.1), answers=80)
    view = replace(SUMMARY, aggregation=Aggregation(site=site))
    write_slide(tmp_path / "r" / "a", [0.9, 0.1], [1, 0], view)
    [warning] = evaluate_results(tmp_path / "r").warnings
    assert "calibrated on 80 answers of reviews (wsi calibrate)" in warning
