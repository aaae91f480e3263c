"""`wsi aggregate`: outputs anew from stored probabilities, without model or slide."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import (
    folder_bytes,
    make_checkpoint,
    paint_noise,
    rewrite_manifest,
    write_model,
    write_slide,
)
from tests.commands import infer, run
from tests.strangers import Change, edit_json, several, vouch
from tests.written_results import CASES, FORMATS, write_result
from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import SlideState
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import Aggregation, build_heatmap
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.stages.aggregate import aggregate_results
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.slide_results import open_result

TABLES = View(("summary", "csv", "geojson"))
AT_08 = replace(TABLES, aggregation=Aggregation(threshold=0.8))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_result(folder / "a", CASES["mixed"], view=TABLES)
    write_result(folder / "b", CASES["everything positive"], view=TABLES)
    return folder


def test_another_threshold_is_recorded_with_who_chose_it(results: Path) -> None:
    aggregate_results(results, AT_08)
    summary = read_summary(results / "a")
    assert (summary.positives, summary.threshold, summary.threshold_source) == (1, 0.8, "user")
    assert json.loads((results / "aggregate.json").read_text())["view"]["threshold"] == 0.8


def test_the_tables_of_the_folder_follow(results: Path) -> None:
    aggregate_results(results, AT_08)
    with (results / "slides.csv").open(newline="") as stream:
        assert {row["slide_id"]: row["threshold"] for row in csv.DictReader(stream)} == {
            "a": "0.8",
            "b": "0.8",
        }
    assert (results / "slides.parquet").exists()
    assert (results / "index.html").exists()


def edit_table(*keys: str, value: object) -> Change:
    return several(edit_json("predictions.zarr/zarr.json", "attributes", *keys, value=value), vouch)


@pytest.mark.parametrize(
    "change",
    [
        lambda product: rewrite_manifest(product, lambda manifest: manifest.update(recipe=None)),
        lambda product: rewrite_manifest(product, lambda manifest: manifest.update(counts=[])),
        edit_table("grid", "spec", "stride_px", value=2.5),
        edit_table("slide", "level_downsamples", value=["1/0"]),
    ],
    ids=["no recipe", "no counts", "half a pixel", "divided by none"],
)
def test_a_result_that_cannot_be_fails_and_its_neighbour_is_done(
    change: Change, results: Path
) -> None:
    change(results / "a")
    account = aggregate_results(results, AT_08)
    assert [outcome.state for outcome in account.outcomes] == [SlideState.FAILED, SlideState.OK]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patches", -5),
        ("patches", 10**30),
        ("positive_class", "\ud800"),
        ("positive_fraction", 1.5),
        ("mpp", -0.5),
    ],
)
def test_a_figure_that_cannot_be_is_in_no_table(name: str, value: object, results: Path) -> None:
    several(edit_json("summary.json", name, value=value), vouch)(results / "a")
    account = aggregate_results(results, TABLES)
    assert [outcome.state for outcome in account.outcomes] == [SlideState.FAILED, SlideState.OK]
    with (results / "slides.csv").open(newline="") as stream:
        assert [row["slide_id"] for row in csv.DictReader(stream)] == ["b"]


@pytest.mark.parametrize("there", [Aggregation(0.8), Aggregation(context_um=300)], ids=str)
def test_there_and_back_gives_the_same_bytes(there: Aggregation, results: Path) -> None:
    before = folder_bytes(results / "a")
    aggregate_results(results, replace(TABLES, aggregation=there))
    assert folder_bytes(results / "a") != before
    aggregate_results(results, TABLES)
    assert folder_bytes(results / "a") == before


def test_logits_and_patches_alone_stay_as_they_are(results: Path) -> None:
    before = folder_bytes(results / "a" / PREDICTIONS)
    aggregate_results(results, replace(AT_08, aggregation=Aggregation(context_um=300)))
    after = folder_bytes(results / "a" / PREDICTIONS)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"probability/c/0"}


def test_the_stored_probabilities_are_those_of_the_view(results: Path) -> None:
    aggregate_results(results, replace(AT_08, aggregation=Aggregation(context_um=300)))
    predictions = open_result(results / "a")
    shown = build_heatmap(predictions, Aggregation(context_um=300)).probability
    np.testing.assert_array_equal(
        predictions.probability, shown[tuple(predictions.table.positions.T)]
    )


def test_what_is_there_already_is_left_alone(results: Path) -> None:
    aggregate_results(results, AT_08)
    inode = (results / "a" / "summary.json").stat().st_ino
    account = aggregate_results(results, AT_08)
    assert all(outcome.is_resumed_whole for outcome in account.outcomes)
    assert (results / "a" / "summary.json").stat().st_ino == inode


def test_another_folder_leaves_the_results_untouched(results: Path, tmp_path: Path) -> None:
    before = folder_bytes(results)
    aggregate_results(results, AT_08, tmp_path / "out")
    assert folder_bytes(results) == before
    assert read_summary(tmp_path / "out" / "a").threshold == 0.8
    assert read_summary(tmp_path / "out" / "b").positives == 4


def test_another_folder_holds_results_that_can_be_aggregated_again(
    results: Path, tmp_path: Path
) -> None:
    aggregate_results(results, AT_08, tmp_path / "out")
    aggregate_results(tmp_path / "out", TABLES)
    assert read_summary(tmp_path / "out" / "a").positives == read_summary(results / "a").positives


def test_a_damaged_slide_does_not_stop_the_others(results: Path) -> None:
    chunk = next((results / "a" / PREDICTIONS / "probability" / "c").iterdir())
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    account = aggregate_results(results, AT_08)
    assert [outcome.state for outcome in account.outcomes] == [SlideState.FAILED, SlideState.OK]
    assert "damaged" in account.outcomes[0].message
    assert read_summary(results / "b").threshold == 0.8


def test_a_writer_that_fails_leaves_the_slide_as_it_was(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_pipeline.outputs import WRITERS

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = folder_bytes(results / "a")
    monkeypatch.setitem(WRITERS, "geojson", fail)
    account = aggregate_results(results, AT_08)
    assert account.exit_code == 5
    assert folder_bytes(results / "a") == before


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no finished slide"):
        aggregate_results(tmp_path, TABLES)


@pytest.mark.parametrize("case", ["all unreadable", "one patch", "no patches", "nothing positive"])
def test_every_case_can_be_aggregated(case: str, tmp_path: Path) -> None:
    write_result(tmp_path / "slide", CASES[case], view=TABLES)
    view = View(FORMATS, Aggregation(threshold=0.0, context_um=500, min_region_mm2=0.01))
    (outcome,) = aggregate_results(tmp_path, view).outcomes
    known = sum(not np.isnan(value) for value in CASES[case])
    assert read_summary(tmp_path / "slide").positives == known
    assert outcome.patches == len(CASES[case])


# The command line, and what inference does beside it.


def test_the_command_line_does_the_same(results: Path, tmp_path: Path) -> None:
    options = [
        "--threshold",
        0.8,
        "--smooth",
        100,
        "--min-region-mm2",
        0.05,
        "--outputs",
        "csv,geojson",
    ]
    done = run("aggregate", results, *options, "--out", tmp_path / "out")
    assert done.exit_code == 3, done.output  # one slide has an unreadable patch
    assert "2 slides: 1 ok, 1 damaged" in done.output
    view = View(TABLES.formats, Aggregation(0.8, 100.0, 0.05))
    assert read_manifest(tmp_path / "out" / "a").recipe["view"] == view.to_json()


@pytest.mark.parametrize(
    ("options", "aggregation"),
    [
        (["--context", "none"], Aggregation(context_um=0.0)),
        (["--context", "300"], Aggregation(context_um=300.0)),
        (["--smooth", "300"], Aggregation(context_um=300.0)),
        (["--threshold", "detect"], Aggregation("detect")),
        (["-t", "count"], Aggregation()),
    ],
)
def test_options_that_make_the_map(
    options: list[str], aggregation: Aggregation, results: Path, tmp_path: Path
) -> None:
    run("aggregate", results, *options, "--out", tmp_path / "out")
    recorded = read_manifest(tmp_path / "out" / "a").recipe["view"]
    assert {name: recorded[name] for name in asdict(aggregation)} == asdict(aggregation)


def test_a_prevalence_lowers_what_a_rarer_class_reaches(tmp_path: Path) -> None:
    # From half to a fifth: odds of 9, 1.5, 2.33 and 1 become a quarter of them.
    terms = replace(ModelTerms(), positive_share=0.5)
    write_result(tmp_path / "s", CASES["mixed"], view=TABLES, terms=terms)
    assert run("aggregate", tmp_path, "--prevalence", 0.2, "--outputs", "summary").exit_code == 3
    summary = read_summary(tmp_path / "s")
    assert (summary.positives, summary.prevalence) == (1, 0.2)
    assert summary.max_probability == pytest.approx(2.25 / 3.25)


def test_a_prevalence_that_cannot_be_taken_is_one_line_for_each_slide(results: Path) -> None:
    before = folder_bytes(results / "a")
    done = run("aggregate", results, "--prevalence", 0.2)
    assert "its model does not record the share of positive patches" in done.output
    assert done.exit_code != 0
    assert folder_bytes(results / "a") == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threshold", "2"),
        ("--threshold", "model"),
        ("--alpha", "-1"),
        ("--colormap", "jet"),
        ("--smooth", "-5"),
        ("--context", "wide"),
        ("--prevalence", "many"),
    ],
)
def test_values_out_of_range_are_usage_errors(option: str, value: str, results: Path) -> None:
    assert run("aggregate", results, option, value).exit_code == 2


def test_an_unknown_format_stops_before_anything_is_done(results: Path) -> None:
    before = folder_bytes(results)
    done = run("aggregate", results, "--outputs", "csv,excel")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert folder_bytes(results) == before


@pytest.fixture(scope="module")
def inferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of noise, 3 × 4 patches, inferred with a gallery."""
    folder = tmp_path_factory.mktemp("inferred")
    write_slide(folder / "slides" / "s.tiff", paint_noise(200, 150), mpp=0.5)
    write_model(folder / "model.safetensors", make_checkpoint(mpp=0.5))
    infer_again(folder, View(("gallery", "summary", "csv")))
    return folder


def infer_again(folder: Path, view: View) -> bool:
    """Infer the slides of a folder; whether nothing was left to do."""
    (outcome,) = infer(
        folder / "slides",
        folder / "model.safetensors",
        folder / "results",
        view=view,
        min_tissue=0,
    ).outcomes
    return outcome.is_resumed_whole


def test_the_gallery_shows_patches_of_the_slide(inferred: Path) -> None:
    with Image.open(inferred / "results" / "s" / "gallery.png") as image:
        colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colors) > 1000  # noise has them, a white sheet with frames and text has not


def test_other_outputs_are_made_without_predicting_again(
    inferred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_pipeline.stages import infer as inference

    monkeypatch.setattr(inference, "predict_block", lambda *_: pytest.fail("predicted again"))
    assert not infer_again(inferred, View(("gallery", "summary", "parquet")))
    assert infer_again(inferred, View(("gallery", "summary", "parquet")))
    assert (inferred / "results" / "s" / "patches.parquet").exists()
    assert not (inferred / "results" / "s" / "patches.csv").exists()


def test_a_gallery_made_anew_keeps_the_threshold_of_the_results(inferred: Path) -> None:
    folder = inferred / "results" / "s"
    for formats, threshold in ((("summary",), 0.25), (("gallery", "summary"), None)):
        if threshold is None:
            infer_again(inferred, View(formats))
        else:
            aggregate_results(inferred / "results", View(formats, Aggregation(threshold=threshold)))
    assert (folder / "gallery.png").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["threshold"], summary["threshold_source"]) == (0.25, "user")


def test_aggregation_without_the_slide_keeps_the_gallery(inferred: Path) -> None:
    before = (inferred / "results" / "s" / "gallery.png").read_bytes()
    (inferred / "slides" / "s.tiff").rename(inferred / "moved.tiff")
    try:
        account = aggregate_results(
            inferred / "results", View(("gallery", "summary"), Aggregation(threshold=0.9))
        )
    finally:
        (inferred / "moved.tiff").rename(inferred / "slides" / "s.tiff")
    assert account.exit_code == 0
    assert (inferred / "results" / "s" / "gallery.png").read_bytes() == before
