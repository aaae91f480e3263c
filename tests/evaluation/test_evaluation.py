"""Whole evaluations: intervals, temperature, images of the worst patches, two models paired."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders import (
    SMALL,
    make_checkpoint,
    make_store,
    make_table,
    make_training_stores,
    rewrite_manifest,
    write_model,
)
from tests.commands import infer, run
from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.evaluation import evaluate_results
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.store.files import file_checksum
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.evaluate import compare
from wsi_pipeline.training.metrics import METRIC_NAMES

pytestmark = pytest.mark.usefixtures("plots_left_out")

CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def infer_by(stores: Path, checkpoint: Checkpoint, folder: Path) -> Path:
    """Results of a checkpoint on stores, in a folder."""
    infer(stores, write_model(folder.with_suffix(".safetensors"), checkpoint), folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of three patients, with the results of a constant and a random model."""
    folder = tmp_path_factory.mktemp("evaluation")
    make_training_stores(folder / "stores", patients=3)
    infer_by(folder / "stores", make_checkpoint(bias=1.0), folder / "constant")
    infer_by(folder / "stores", make_checkpoint(seed=3, temperature=2.0), folder / "random")
    return folder


def test_a_probability_of_three_quarters_that_is_right_half_the_time(place: Path) -> None:
    # The model says sigmoid(1) of every patch and half are positive; two patients more or less
    # change nothing.
    metrics = evaluate_results(place / "constant").metrics
    promised = 1 / (1 + np.exp(-1))
    assert metrics.scores.expected_calibration_error == pytest.approx(promised - 0.5, abs=1e-6)
    assert metrics.intervals["brier"] == pytest.approx(
        [(promised**2 + (1 - promised) ** 2) / 2] * 2, abs=1e-6
    )
    assert [patient.patient_id for patient in metrics.patients] == ["p0", "p1", "p2"]


def test_the_metrics_before_are_of_uncalibrated_logits(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "stores", tmp_path / "stores")
    calibrated = evaluate_results(
        infer_by(
            tmp_path / "stores",
            make_checkpoint(bias=1.0, temperature=2.0),
            tmp_path / "half",
        )
    )
    before, after = calibrated.metrics.before, calibrated.metrics.after
    assert before.expected_calibration_error == pytest.approx(1 / (1 + np.exp(-1)) - 0.5, abs=1e-6)
    assert after.expected_calibration_error == pytest.approx(1 / (1 + np.exp(-0.5)) - 0.5, abs=1e-6)


def test_the_table_has_intervals_for_all_slides_together(place: Path) -> None:
    evaluation = evaluate_results(place / "random")
    with (place / "random" / "evaluation.csv").open(newline="") as stream:
        *slides, pooled = csv.DictReader(stream)
    assert [slide["auroc_low"] for slide in slides] == ["", "", ""]
    assert float(pooled["auroc_low"]) == evaluation.metrics.intervals["auroc"][0]
    assert float(pooled["auroc_high"]) == evaluation.metrics.intervals["auroc"][1]


def test_all_metrics_are_in_a_file_for_machines(place: Path) -> None:
    evaluation = evaluate_results(place / "random")
    record = json.loads((place / "random" / "evaluation.json").read_text())
    assert record["scores"]["auroc"] == evaluation.metrics.scores.auroc
    assert record["model"]["terms"]["alone"]["slope"] == 0.5
    assert len(record["sweep"]) == 99


def test_evaluating_again_gives_the_same_bytes(place: Path) -> None:
    evaluate_results(place / "random")
    first = [
        (place / "random" / name).read_bytes()
        for name in ("evaluation.html", "evaluation.json", "evaluation.csv")
    ]
    evaluate_results(place / "random")
    assert [
        (place / "random" / name).read_bytes()
        for name in ("evaluation.html", "evaluation.json", "evaluation.csv")
    ] == first


def test_worst_patches_come_from_the_stores(place: Path) -> None:
    evaluate_results(place / "constant")
    text = (place / "constant" / "evaluation.html").read_text()
    assert text.count("data:image/png") == 24
    assert "negative, but probability of positive 0.731; patient p0" in text


def test_worst_patches_without_their_store_are_counted(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "stores", tmp_path / "stores")
    results = infer_by(tmp_path / "stores", make_checkpoint(bias=1.0), tmp_path / "results")
    shutil.rmtree(tmp_path / "stores")
    evaluate_results(results)
    text = (results / "evaluation.html").read_text()
    assert text.count("data:image/png") == 0
    assert "24 more have no image" in text


def test_a_store_of_other_content_gives_no_images(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "s" / "a.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1], slide_id="a")
    )
    results = infer_by(tmp_path / "s", make_checkpoint(bias=1.0), tmp_path / "results")
    shutil.rmtree(store)
    table = make_table(CELLS, labels=[0, 1, 0, 1], slide_id="a")
    make_store(store, replace(table, slide=replace(table.slide, fingerprint="another slide")))
    evaluate_results(results)
    assert "data:image/png" not in (results / "evaluation.html").read_text()


def test_the_threshold_is_the_models_unless_told_otherwise(place: Path) -> None:
    assert evaluate_results(place / "random").metrics.scores.threshold == 0.5
    assert (
        evaluate_results(
            place / "random", threshold=ThresholdRule("fixed", 0.8)
        ).metrics.scores.threshold
        == 0.8
    )


def test_a_threshold_chosen_on_the_evaluated_patients_gives_a_warning(place: Path) -> None:
    result = run("evaluate", place / "random", "--threshold", "f1")
    assert result.exit_code == 0
    assert "WARNING: the threshold was chosen on the same patients" in result.stdout
    assert "chosen on the same patients" in (place / "random" / "evaluation.html").read_text()
    assert "WARNING" not in run("evaluate", place / "random", "--threshold", "0.7").stdout


def test_an_unknown_threshold_rule_is_one_line(place: Path) -> None:
    result = run("evaluate", place / "random", "--threshold", "best")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "wsi: threshold 'best' is unknown; take youden, f1, sensitivity=NUMBER or a number from 0"
        " to 1"
    ]


def test_a_leaky_model_is_called_one_wherever_it_is_evaluated(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "constant", tmp_path / "leaky")
    for folder in ("p0", "p1", "p2"):
        _mark_leaky(tmp_path / "leaky" / folder)
    result = run("evaluate", tmp_path / "leaky")
    assert result.stdout.startswith(f"WARNING: {SMALL}")
    assert "split at random: the same patients are in training and validation" in result.stdout
    assert 'class="leak"' in (tmp_path / "leaky" / "evaluation.html").read_text()


def test_evaluating_a_model_on_the_patients_that_made_it_gives_a_warning(
    place: Path, tmp_path: Path
) -> None:
    split = {"split": {"train": ["p0"], "val": ["p2"], "test": ["p1"]}}
    results = infer_by(
        place / "stores", replace(make_checkpoint(), training=split), tmp_path / "known"
    )
    evaluation = evaluate_results(results)
    [warning] = evaluation.warnings
    assert warning.endswith(
        ": 2 of 3 patients here were used to train it or to choose its threshold; metrics are"
        " inflated"
    )
    assert warning in (results / "evaluation.html").read_text()
    assert json.loads((results / "evaluation.json").read_text())["warnings"] == [warning]


def test_patients_that_a_model_never_saw_give_no_warning(place: Path, tmp_path: Path) -> None:
    strangers = {"split": {"train": ["a"], "val": ["b"], "test": ["p1"]}}
    assert (
        evaluate_results(
            infer_by(
                place / "stores", replace(make_checkpoint(), training=strangers), tmp_path / "new"
            )
        ).warnings
        == ()
    )


def _mark_leaky(folder: Path) -> None:
    """Write the mark into the results' record of the model, and mend the manifest's sizes."""
    path = folder / "predictions.zarr" / "zarr.json"
    record = json.loads(path.read_text())
    record["attributes"]["model"]["is_leaky"] = True
    path.write_text(json.dumps(record))
    entry = [path.stat().st_size, file_checksum(path)]
    rewrite_manifest(
        folder, lambda manifest: manifest["files"].update({"predictions.zarr/zarr.json": entry})
    )


def test_intervals_are_printed_beside_the_metrics(place: Path) -> None:
    lines = run("evaluate", place / "constant").stdout.splitlines()
    assert (
        "all slides, with 95 % intervals from 1000 samples of 3 patients: so few that the intervals"
        " are a hint at most:" in lines
    )
    assert any(line.split()[:2] == ["AUROC", "0.500"] for line in lines)


def test_two_models_are_paired_on_what_they_share(place: Path) -> None:
    evaluation = evaluate_results(place / "random", compare_with=place / "constant")
    compared = evaluation.compared
    assert compared is not None
    assert (
        compared.comparison.patches,
        compared.comparison.patients,
        compared.slides,
        compared.left_out,
    ) == (72, 3, 3, 0)
    with (place / "random" / "comparison.csv").open(newline="") as stream:
        rows = {row["figure"]: row for row in csv.DictReader(stream)}
    assert list(rows) == list(METRIC_NAMES)
    assert float(rows["auroc"]["other"]) == 0.5
    assert float(rows["auroc"]["one"]) == evaluation.metrics.scores.auroc
    assert "Comparison with another model" in (place / "random" / "evaluation.html").read_text()


def test_a_model_does_not_differ_from_itself(place: Path) -> None:
    compared = evaluate_results(place / "random", compare_with=place / "random").compared
    assert compared is not None
    assert {item.difference for item in compared.comparison.differences} == {0.0}
    assert {item.interval for item in compared.comparison.differences} == {(0.0, 0.0)}


def test_what_only_one_of_them_saw_is_left_out(place: Path, tmp_path: Path) -> None:
    (tmp_path / "stores").mkdir()
    shutil.copytree(place / "stores" / "p1.patches.zarr", tmp_path / "stores" / "p1.patches.zarr")
    fewer = infer_by(tmp_path / "stores", make_checkpoint(seed=8), tmp_path / "fewer")
    compared = evaluate_results(place / "random", compare_with=fewer).compared
    assert compared is not None
    assert (compared.comparison.patches, compared.comparison.patients, compared.left_out) == (
        24,
        1,
        48,
    )
    assert all(item.interval is None for item in compared.comparison.differences)


def test_a_model_has_one_threshold_in_one_report(place: Path, tmp_path: Path) -> None:
    # By itself, p1 would get another threshold than all three together.
    (tmp_path / "stores").mkdir()
    shutil.copytree(place / "stores" / "p1.patches.zarr", tmp_path / "stores" / "p1.patches.zarr")
    fewer = infer_by(tmp_path / "stores", make_checkpoint(seed=3), tmp_path / "fewer")
    rule = ThresholdRule("sensitivity", 0.5)
    alone = evaluate_results(fewer, threshold=rule).metrics.scores.threshold
    evaluation = evaluate_results(place / "random", threshold=rule, compare_with=fewer)
    assert evaluation.compared is not None
    assert evaluation.compared.comparison.thresholds == (evaluation.metrics.scores.threshold, alone)


def test_an_older_comparison_is_removed_with_its_page(place: Path) -> None:
    evaluate_results(place / "random", compare_with=place / "constant")
    assert (place / "random" / "comparison.csv").exists()
    evaluate_results(place / "random")
    assert not (place / "random" / "comparison.csv").exists()


def test_models_that_share_nothing_are_not_compared(place: Path, tmp_path: Path) -> None:
    make_store(
        tmp_path / "s" / "x.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1], slide_id="x")
    )
    other = infer_by(tmp_path / "s", make_checkpoint(), tmp_path / "other")
    with pytest.raises(StoreError, match="shares no labelled patch"):
        evaluate_results(place / "random", compare_with=other)


def test_other_labels_are_not_compared(tmp_path: Path) -> None:
    for name, labels in (("one", [0, 1, 0, 1]), ("other", [0, 1, 1, 1])):
        make_store(
            tmp_path / name / "a.patches.zarr", make_table(CELLS, labels=labels, slide_id="a")
        )
        infer_by(tmp_path / name, make_checkpoint(), tmp_path / f"results-{name}")
    with pytest.raises(LabelError, match="a: 1 patches have another label"):
        evaluate_results(tmp_path / "results-one", compare_with=tmp_path / "results-other")


def test_other_patients_are_not_compared(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_store(
            tmp_path / name / "a.patches.zarr",
            make_table(CELLS, labels=[0, 1, 0, 1], slide_id="a", patient_id=name),
        )
        infer_by(tmp_path / name, make_checkpoint(), tmp_path / f"results-{name}")
    with pytest.raises(StoreError, match="of patient one here, of other there"):
        evaluate_results(tmp_path / "results-one", compare_with=tmp_path / "results-other")


def test_differences_by_hand() -> None:
    # One is right on everything; the other calls everything positive: sensitivity 1 in both,
    # specificity 1 against 0, Brier 0 against ½.
    labels = np.array([0, 1, 0, 1], dtype=np.int8)
    right, blind = labels.astype(np.float32), np.ones(4, dtype=np.float32)
    comparison = compare(
        labels, right, blind, np.array(["a", "a", "b", "b"]), thresholds=(0.5, 0.5), draws=40
    )
    found = {item.metric: (item.difference, item.interval) for item in comparison.differences}
    assert found["sensitivity"] == (0.0, (0.0, 0.0))
    assert found["specificity"] == (1.0, (1.0, 1.0))
    assert found["brier"] == (-0.5, (-0.5, -0.5))
    assert found["auroc"] == (0.5, (0.5, 0.5))
    assert found["f1"][0] == pytest.approx(1 - 2 / 3)
