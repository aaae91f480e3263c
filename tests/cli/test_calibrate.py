"""`wsi calibrate`: reviewed slides change calibration, interval and outputs of a whole folder."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import make_table, write_probabilities
from tests.commands import run
from wsi_pipeline.counting.review import Review, add_answer, start_review
from wsi_pipeline.counting.review_file import review_path, write_review
from wsi_pipeline.outputs import View
from wsi_pipeline.stages.aggregate import publish
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import prepare_predictions
from wsi_pipeline.store.slide_results import open_result

SIDE = 20
CARD = {"digest": "d" * 64, "class_names": ["normal", "tumour"]}
PLAIN: dict[str, Any] = {"slope": 1.0, "offset": 0.0, "count": 0.5, "detect": 0.5, "context_um": 0}
TERMS = {"on_grid": PLAIN, "alone": PLAIN, "positive_share": 0.5, "count_errors": [0.6] * 19}


def make_slide(results: Path, name: str, seed: int, model: dict[str, Any] | None = None) -> Path:
    """400 patches whose probabilities are evenly spread; this model's are too high."""
    rng = np.random.default_rng(seed)
    probability = rng.permutation(np.linspace(0.01, 0.99, SIDE * SIDE)).astype(np.float32)
    cells = [(row, col) for row in range(SIDE) for col in range(SIDE)]
    table = make_table(cells, mpp=4.0, block_size=400, rows=SIDE, cols=SIDE, slide_id=name)
    staging = Staging(results / name, {"source": name})
    prepare_predictions(staging, table, {"model": model or CARD | {"terms": TERMS}})
    write_probabilities(staging, table, 0, probability)
    publish(staging, View(("summary",)), None, results / name)
    return results / name


def review(folder: Path, from_probability: float, *, is_answered: bool = True) -> Review:
    """Call 60 patches as a person would to whom only these probabilities are positive."""
    predictions = open_result(folder)
    table, grid = predictions.table, predictions.table.grid
    values = np.full((grid.rows, grid.cols), np.nan, dtype=np.float32)
    values[tuple(table.positions.T)] = predictions.probability
    found = start_review(
        folder.name, table.slide.fingerprint, grid, values, "d" * 64, ("normal", "tumour"), 60
    )
    while is_answered and (following := found.list_open("ann")):
        number = following[0]
        found = add_answer(found, "ann", number, bool(values.ravel()[number] >= from_probability))
    write_review(review_path(folder.parent, folder.name), found)
    return found


def read_rows(results: Path) -> dict[str, dict[str, str]]:
    with (results / "slides.csv").open() as stream:
        return {row["slide_id"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five slides, of which four are reviewed; a person calls what the model gives 0.8 or more."""
    results = tmp_path_factory.mktemp("reviewed") / "results"
    for number in range(5):
        folder = make_slide(results, f"s{number}", number)
        if number < 4:
            review(folder, 0.8)
    return results


@pytest.fixture
def results(reviewed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(reviewed, tmp_path / "results")


def test_before_it_the_interval_is_the_models(results: Path) -> None:
    assert run("aggregate", results, "--outputs", "summary", "--force").exit_code == 0
    row = read_rows(results)["s4"]
    assert (row["positives"], row["interval_source"]) == ("200", "validation")


def test_reviewed_slides_change_the_counts_of_all(results: Path) -> None:
    assert run("calibrate", results, "--reviewed").exit_code == 0
    row = read_rows(results)["s4"]
    # About 80 of 400 patches have a probability of 0.8 or more.
    assert float(row["positives"]) == pytest.approx(80, abs=12)
    assert row["interval_source"] == "site"
    assert float(row["positives_low"]) < 80 < float(row["positives_high"])


def test_it_says_how_much_narrower_the_interval_is(results: Path) -> None:
    said = run("calibrate", results, "--reviewed")
    assert "240 answers on 4 slides" in said.stdout
    assert "narrower than the model's own" in said.stdout


def test_a_reviewed_slide_keeps_the_estimate_of_its_review(results: Path) -> None:
    run("calibrate", results, "--reviewed")
    row = read_rows(results)["s0"]
    assert row["interval_source"] == "review"
    assert float(row["positives_low"]) <= 80 <= float(row["positives_high"])


def test_formats_stay_as_they_were(results: Path) -> None:
    run("calibrate", results, "--reviewed")
    assert {path.name for path in (results / "s4").iterdir()} == {
        "manifest.json",
        "predictions.zarr",
        "summary.json",
    }


def test_a_later_aggregation_keeps_the_site(results: Path) -> None:
    run("calibrate", results, "--reviewed")
    before = (results / "s4" / "summary.json").read_bytes()
    assert run("aggregate", results, "--outputs", "summary", "--force").exit_code == 0
    assert (results / "s4" / "summary.json").read_bytes() == before


def test_without_its_file_the_models_own_calibration_is_back(results: Path) -> None:
    before = (results / "s4" / "summary.json").read_bytes()
    run("calibrate", results, "--reviewed")
    (results / "calibration.json").unlink()
    assert run("aggregate", results, "--outputs", "summary").exit_code == 0
    assert (results / "s4" / "summary.json").read_bytes() == before


def test_a_site_of_another_model_is_left_alone(results: Path) -> None:
    before = (results / "s4" / "summary.json").read_bytes()
    run("calibrate", results, "--reviewed")
    path = results / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_digest": "e" * 64}))
    run("aggregate", results, "--outputs", "summary")
    assert (results / "s4" / "summary.json").read_bytes() == before


def test_a_review_without_answers_of_another_models_slide_changes_nothing(results: Path) -> None:
    other = {"digest": "e" * 64, "terms": TERMS | {"count_errors": []}}
    review(make_slide(results, "t", 9, CARD | other), 0.8, is_answered=False)
    said = run("calibrate", results, "--reviewed")
    assert said.exit_code == 0
    assert "narrower than the model's own" in said.stdout


def test_too_few_reviews_are_refused(results: Path) -> None:
    review_path(results, "s3").unlink()
    refused = run("calibrate", results, "--reviewed")
    assert refused.exit_code == 1
    assert "3 reviewed slides; review at least 4 with `wsi review`" in refused.stderr


def test_it_asks_by_what(results: Path) -> None:
    assert "--reviewed" in run("calibrate", results).stderr
