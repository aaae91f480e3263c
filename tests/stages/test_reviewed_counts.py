"""A person's review takes the place of the model's count, wherever results are listed."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import folder_bytes
from tests.written_results import CASES, write_result
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.counting.review import add_answer, start_review
from wsi_pipeline.counting.review_file import review_path, write_review
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import build_heatmap
from wsi_pipeline.outputs.results import open_results
from wsi_pipeline.outputs.run_files import read_finished
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.stages.aggregate import aggregate_results
from wsi_pipeline.store.slide_results import open_result

VIEW = View(("summary", "csv"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two slides of 6 patches; the model counts 4 of the 5 that could be read, and all 6."""
    write_result(tmp_path / "results" / "a", CASES["mixed"], view=VIEW)
    write_result(tmp_path / "results" / "b", CASES["everything positive"], view=VIEW)
    return tmp_path / "results"


def review(
    results: Path, is_positive: Callable[[int], bool], answers: int = 100, fingerprint: str = ""
) -> Path:
    """A review of slide `a`, of every patch unless fewer are answered. So few patches are one
    stratum, which makes it a plain sample.
    """
    predictions = open_result(results / "a")
    table, path = predictions.table, review_path(results, "a")
    found = start_review(
        "a",
        fingerprint or table.slide.fingerprint,
        table.grid,
        build_heatmap(predictions).probability,
        predictions.model_digest,
        ("non, tumour", "tumour"),
        100,
    )
    while (following := found.list_open("ann")) and answers > 0:
        found = add_answer(found, "ann", following[0], is_positive(following[0]))
        answers -= 1
    write_review(path, found)
    return path


def first_row(number: int) -> bool:
    """The patches at (0, 0) and (0, 1), on a grid of 5 columns."""
    return number < 5


def count_of(summary: SlideSummary) -> tuple[object, ...]:
    return (
        summary.positives,
        summary.positives_estimate,
        summary.positives_low,
        summary.positives_high,
        summary.interval_source,
    )


def test_without_a_review_the_count_is_the_models(results: Path) -> None:
    assert count_of(read_finished(results).summaries[0]) == (4, 4, None, None, "none")


def test_a_review_counts_at_once_wherever_results_are_listed(results: Path) -> None:
    review(results, first_row)
    assert count_of(read_finished(results).summaries[0]) == (4, 2, 2, 2, "sample")
    assert count_of(open_results(results)[0].summary) == (4, 2, 2, 2, "sample")
    assert count_of(read_finished(results).summaries[1]) == (6, 6, None, None, "none")


def test_summary_json_has_it_from_the_next_aggregation_on(results: Path) -> None:
    review(results, first_row)
    other = folder_bytes(results / "b")
    assert read_summary(results / "a").interval_source == "none"
    aggregate_results(results, VIEW)
    assert count_of(read_summary(results / "a")) == (4, 2, 2, 2, "sample")
    assert folder_bytes(results / "b") == other


def test_slides_csv_has_it_too(results: Path) -> None:
    review(results, first_row)
    aggregate_results(results, VIEW)
    with (results / "slides.csv").open(newline="") as stream:
        rows = {row["slide_id"]: row for row in csv.DictReader(stream)}
    columns = ("positives", "positives_estimate", "interval_source")
    assert [rows["a"][name] for name in columns] == ["4", "2.0", "sample"]
    assert [rows["b"][name] for name in columns] == ["6", "6.0", "none"]


def test_the_same_review_is_taken_in_once(results: Path) -> None:
    review(results, first_row)
    aggregate_results(results, VIEW)
    account = aggregate_results(results, VIEW)
    assert all(outcome.is_resumed_whole for outcome in account.outcomes)


def test_other_answers_make_the_outputs_again(results: Path) -> None:
    review(results, first_row)
    aggregate_results(results, VIEW)
    review(results, lambda number: True)
    aggregate_results(results, VIEW)
    assert count_of(read_summary(results / "a")) == (4, 5, 5, 5, "sample")


def test_without_the_review_all_is_as_before(results: Path) -> None:
    before = folder_bytes(results / "a")
    path = review(results, first_row)
    aggregate_results(results, VIEW)
    path.unlink()
    aggregate_results(results, VIEW)
    assert folder_bytes(results / "a") == before


def test_a_review_without_answers_changes_no_count(results: Path) -> None:
    review(results, first_row, answers=0)
    assert count_of(read_finished(results).summaries[0]) == (4, 4, None, None, "none")


def test_a_damaged_review_is_left_out_with_a_warning(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = review(results, first_row)
    path.write_text(json.dumps({"kind": "wsi review", "format_version": 1}))
    with caplog.at_level(logging.WARNING):
        aggregate_results(results, VIEW)
    assert count_of(read_summary(results / "a")) == (4, 4, None, None, "none")
    assert "a.json: damaged" in caplog.text


def test_a_review_of_another_slide_is_left_out_with_a_warning(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    review(results, first_row, fingerprint="of another slide")
    with caplog.at_level(logging.WARNING):
        (summary, _) = read_finished(results).summaries
    assert summary.interval_source == "none"
    assert "left out" in caplog.text
