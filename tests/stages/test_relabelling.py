"""New labels for stores, and labels that go round through QuPath's format."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import (
    make_patches,
    make_store,
    make_table,
    paint,
    paint_noise,
    write_png,
    write_slide,
)
from tests.commands import run
from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.counting.review import Answer, Review, ShownPatch
from wsi_pipeline.counting.review_file import review_path, write_review
from wsi_pipeline.labels.geojson import labels_to_geojson, write_labels_geojson
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.stages.relabel import put_review, relabel_store
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.patches import PatchStore

RULES = LabelRules()
CELLS = [(row, col) for row in range(3) for col in range(3)]


def write_mask(path: Path, labels: list[int]) -> Path:
    """A label image over 3 × 3 patches of 50 px."""
    values = np.array([{-1: 0, 0: 100, 1: 200}[label] for label in labels], dtype=np.uint8).reshape(
        3, 3
    )
    return write_png(path, np.kron(values, np.ones((50, 50), dtype=np.uint8)))


def test_labels_change_and_pixels_stay(tmp_path: Path) -> None:
    pixels = make_patches(9)
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS), pixels, unreadable=[4])
    assert relabel_store(path, write_mask(tmp_path / "s_labels.png", [0, 1, -1] * 3), RULES)
    store = PatchStore(path)
    assert store.table.labels.tolist() == [0, 1, -1] * 3
    assert store.table.label_fraction.tolist() == [1, 1, 0] * 3
    assert np.array_equal(
        np.concatenate([store.read_block(block).pixels for block in range(3)]), pixels
    )
    assert np.flatnonzero(~store.readable).tolist() == [4]
    assert find_damage(path) == []
    assert store.manifest.counts["labelled"] == 6


def test_every_relabelling_is_a_new_generation(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    relabel_store(path, write_mask(tmp_path / "one.png", [0] * 9), RULES)
    relabel_store(path, write_mask(tmp_path / "two.png", [1] * 9), RULES)
    attributes = PatchStore(path).attributes
    assert attributes["generation"] == 3
    assert attributes["labels"]["file"] == "two.png"


def test_the_same_labels_again_change_nothing(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    mask = write_mask(tmp_path / "m.png", [0] * 9)
    assert relabel_store(path, mask, RULES)
    assert not relabel_store(path, mask, RULES)


def test_labels_that_do_not_fit_leave_the_store_as_it_was(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS, labels=[1] * 9))
    with pytest.raises(LabelError):
        relabel_store(path, write_png(tmp_path / "m.png", np.zeros((7, 90), dtype=np.uint8)), RULES)
    assert PatchStore(path).table.labels.tolist() == [1] * 9


def test_a_damaged_store_is_not_relabelled(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    chunk = path / "patches" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[9] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        relabel_store(path, write_mask(tmp_path / "m.png", [0] * 9), RULES)


def test_labels_go_round_through_geojson(tmp_path: Path) -> None:
    labels = [0, 1, -1, 1, 1, 0, -1, 0, 1]
    table = make_table(CELLS, labels=labels)
    write_labels_geojson(table, tmp_path / "s.geojson")
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    relabel_store(path, tmp_path / "s.geojson", RULES)
    assert PatchStore(path).table.labels.tolist() == labels


def test_qupath_finds_what_it_needs_in_the_export() -> None:
    features = labels_to_geojson(make_table(CELLS, labels=[0, 1, -1] * 3))["features"]
    assert [feature["properties"]["classification"]["name"] for feature in features] == [
        "negative",
        "positive",
    ]
    assert all(len(feature["properties"]["classification"]["color"]) == 3 for feature in features)
    assert all(feature["properties"]["objectType"] == "annotation" for feature in features)


def test_the_command_relabels_and_draws(tmp_path: Path) -> None:
    make_store(tmp_path / "stores" / "s.patches.zarr", make_table(CELLS))
    make_store(tmp_path / "stores" / "t.patches.zarr", make_table(CELLS, slide_id="t"))
    write_mask(tmp_path / "labels" / "s_labels.png", [0, 1, -1] * 3)
    result = run("label", tmp_path / "stores", "--labels", tmp_path / "labels")
    assert result.exit_code == 0
    assert "s: ok: 3 unknown, 3 negative, 3 positive" in result.stderr
    assert "t: ok: no label file of its name, left as it was" in result.stderr
    assert (tmp_path / "stores" / "s.labels.png").is_file()


def test_the_command_exports(tmp_path: Path) -> None:
    make_store(tmp_path / "s.patches.zarr", make_table(CELLS, labels=[1] * 9))
    assert run("label", tmp_path / "s.patches.zarr", "--export", tmp_path / "out").exit_code == 0
    assert len(json.loads((tmp_path / "out" / "s.geojson").read_text())["features"]) == 1


def make_cohort(tmp_path: Path) -> Path:
    write_slide(tmp_path / "slides" / "a.tiff", paint_noise(150, 150) // 4 + np.uint8(120), mpp=0.5)
    write_slide(tmp_path / "slides" / "b.tiff", paint(150, 150), mpp=0.5)
    write_mask(tmp_path / "masks" / "anything.png", [1] * 9)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(
        "wsi,mpp,patient_id,labels,split\nslides/a.tiff,1.0,P1,masks/anything.png,train\nslides/b.tiff,,P2,,val\n"
    )
    return sheet


def test_a_sheet_says_everything_at_once(tmp_path: Path) -> None:
    sheet = make_cohort(tmp_path)
    result = run(
        "tile",
        "--sheet",
        sheet,
        "-o",
        tmp_path / "out",
        "--mpp",
        1.0,
        "--workers",
        0,
        "--min-tissue",
        0,
    )
    assert result.exit_code == 0, result.output
    one, two = (PatchStore(tmp_path / "out" / f"{name}.patches.zarr") for name in "ab")
    assert (one.table.patient_id, one.slide.mpp, one.slide.mpp_source) == (
        "P1",
        1.0,
        "user (sheet.csv)",
    )
    assert one.table.labels.tolist() == [1] * 9
    assert (two.table.patient_id, two.slide.mpp, two.table.labels.tolist()) == ("P2", 0.5, [-1])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("slides/none.tiff,,,,", "line 2: wsi: slides/none.tiff: no such file"),
        (",,P1,,", "line 2: the column wsi is empty"),
        ("slides/a.tiff,half,,,", "line 2: mpp is 'half', which is not a number"),
        ("slides/a.tiff,99,,,", "line 2: mpp is 99"),
        ("slides/a.tiff,,,none.xml,", "line 2: labels: none.xml: no such file"),
        ("slides/a.tiff,,,,training", "line 2: split is 'training'"),
        ("slides/a.tiff,,,", "line 2: has another number of values"),
        ("slides/a.tiff,,,,\nslides/a.tiff,,,,", "named more than once"),
        ("slides/a.tiff,,P,,train\nslides/b.tiff,,P,,val", "patient P is in two parts"),
    ],
)
def test_what_is_wrong_in_a_sheet_is_named_with_its_line(
    line: str, fault: str, tmp_path: Path
) -> None:
    sheet = make_cohort(tmp_path)
    sheet.write_text(f"wsi,mpp,patient_id,labels,split\n{line}\n")
    result = run("tile", "--sheet", sheet, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert fault in result.stderr


def test_a_patient_regex_names_the_patients(tmp_path: Path) -> None:
    for name in ("P1_a", "P1_b", "other"):
        write_slide(tmp_path / "slides" / f"{name}.tiff", paint(60, 60), mpp=0.5)
    regex = r"^(P\d+)_"
    result = run(
        "tile",
        tmp_path / "slides",
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--workers",
        0,
        "--patient-regex",
        regex,
    )
    assert result.exit_code == 0
    names = {
        name: PatchStore(tmp_path / "out" / f"{name}.patches.zarr").table.patient_id
        for name in ("P1_a", "P1_b", "other")
    }
    assert names == {"P1_a": "P1", "P1_b": "P1", "other": "other"}


def test_one_label_file_is_never_two_slides(tmp_path: Path) -> None:
    for folder in "ab":
        write_slide(tmp_path / folder / "s.tiff", paint(150, 150), mpp=0.5)
    write_mask(tmp_path / "s_labels.png", [1] * 9)
    result = run(
        "tile",
        tmp_path / "a",
        tmp_path / "b",
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--labels",
        tmp_path / "s_labels.png",
    )
    assert result.exit_code == 1
    assert "could be the labels of 2 slides" in result.stderr


def test_the_label_file_beside_a_slide_is_found(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", paint(150, 150), mpp=0.5)
    write_labels_geojson(make_table(CELLS, labels=[1] * 9), tmp_path / "slides" / "s.geojson")
    result = run(
        "tile",
        tmp_path / "slides",
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--workers",
        0,
        "--labels",
        "auto",
    )
    assert "9 patches, 9 labelled" in result.stderr


def test_a_slide_without_its_labels_is_named(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", paint(150, 150), mpp=0.5)
    write_mask(tmp_path / "labels" / "other_labels.png", [1] * 9)
    result = run(
        "tile",
        tmp_path / "slides",
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--workers",
        0,
        "--labels",
        tmp_path / "labels",
    )
    assert "no label file for 1 of 1 slides: s" in result.stderr


def test_mended_and_ignored_objects_are_counted_where_people_look(tmp_path: Path) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", paint(150, 150), mpp=0.5)
    bow_tie = [[[0, 0], [100, 100], [100, 0], [0, 100]]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": bow_tie},
            "properties": {"classification": {"name": "positive"}},
        },
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {}},
    ]
    (tmp_path / "slides" / "s.geojson").write_text(json.dumps(features))
    options = ("--mpp", 0.5, "--workers", 0, "--labels", "auto")
    result = run("tile", tmp_path / "slides", "-o", tmp_path / "out", *options)
    assert (
        "s.geojson: 1 region, 1 positive, 1 of them invalid and repaired; 1 point passed over"
        in result.stderr
    )
    refused = run("tile", tmp_path / "slides", "-o", tmp_path / "strict", *options, "--strict")
    assert refused.exit_code == 4
    assert "an invalid region of class 'positive'" in refused.stderr


def test_the_label_of_a_whole_slide_stays_with_its_store(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tiff", paint(60, 60), mpp=0.5)
    (tmp_path / "sheet.csv").write_text("wsi,label\na.tiff,IDC grade 2\n")
    run(
        "tile",
        "--sheet",
        tmp_path / "sheet.csv",
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--workers",
        0,
    )
    assert (
        PatchStore(tmp_path / "out" / "a.patches.zarr").attributes["slide_label"] == "IDC grade 2"
    )


def write_review_of(results: Path, called: dict[int, bool], **changes: Any) -> Review:
    """A review of the slide of `make_table(CELLS)`, in which ann called these of the 9 patches."""
    table = make_table(CELLS)
    rows, cols = table.grid.rows, table.grid.cols
    numbers = [row * cols + col for row, col in CELLS]
    review = Review(
        slide_id="s",
        fingerprint=table.slide.fingerprint,
        grid=table.grid,
        model_digest="d",
        class_names=("negative", "positive"),
        seed=0,
        strata=np.zeros((rows, cols), dtype=np.uint8),
        wanted=9,
        shown=tuple(ShownPatch(number, 0, 1.0) for number in numbers),
        answers={
            "ann": {
                numbers[patch]: Answer(call, "2026-11-29T05:00:00Z")
                for patch, call in called.items()
            }
        },
    )
    review = replace(review, **changes)
    write_review(review_path(results, "s"), review)
    return review


def test_called_patches_are_labelled_and_others_keep_their_labels(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS, labels=[0, 1, -1] * 3))
    write_review_of(tmp_path / "results", {0: True, 2: False, 8: True})
    result = run("label", path, "--reviews", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert "s: ok: 1 unknown, 3 negative, 5 positive" in result.stderr
    store = PatchStore(path)
    assert store.table.labels.tolist() == [1, 1, 0, 0, 1, -1, 0, 1, 1]
    assert np.isnan(store.table.label_fraction[[0, 2, 8]]).all()
    assert store.attributes["labels"]["review"] == {"reviewer": "ann", "patches": 3}
    assert find_damage(path) == []


def test_the_same_review_again_changes_nothing(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    review = write_review_of(tmp_path / "results", {0: True})
    assert put_review(path, review)
    assert not put_review(path, review)
    assert PatchStore(path).attributes["generation"] == 2


def test_the_first_reviewers_calls_are_the_labels(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    review = write_review_of(tmp_path / "results", {0: True})
    given = {
        0: Answer(False, "2026-11-29T05:00:00Z"),
        review.grid.cols: Answer(True, "2026-11-29T05:00:01Z"),  # row 1, column 0
    }
    put_review(path, replace(review, answers={**review.answers, "bob": given}))
    assert PatchStore(path).table.labels.tolist() == [1] + [-1] * 8


def test_a_store_of_another_slide_is_left_as_it_was(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    write_review_of(tmp_path / "results", {0: True}, fingerprint="other")
    result = run("label", path, "--reviews", tmp_path / "results")
    assert "s: ok: no review of its slide, left as it was" in result.stderr
    assert PatchStore(path).table.labels.tolist() == [-1] * 9


def test_a_review_of_another_grid_is_one_line(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    table = make_table(CELLS)
    grid = replace(table.grid, spec=replace(table.grid.spec, mpp=2 * table.grid.spec.mpp))
    write_review_of(tmp_path / "results", {0: True}, grid=grid)
    result = run("label", path, "--reviews", tmp_path / "results")
    assert result.exit_code == 4
    assert "of patches of another size or place; tile the slide as it was inferred" in result.stderr


def test_a_review_of_another_class_is_one_line(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS, labels=[1] * 9))
    review = write_review_of(tmp_path / "results", {0: True}, class_names=("other", "mitosis"))
    with pytest.raises(LabelError, match="are of class 'positive', the review is of 'mitosis'"):
        put_review(path, review)


def test_a_store_without_labels_takes_the_reviews_classes(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    put_review(path, write_review_of(tmp_path, {0: True}, class_names=("other", "mitosis")))
    assert PatchStore(path).table.class_names == ("other", "mitosis")


def test_results_without_reviews_are_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    (tmp_path / "results").mkdir()
    result = run("label", path, "--reviews", tmp_path / "results")
    assert result.exit_code == 1
    assert "holds no reviews; make some with `wsi review" in result.stderr


def test_labels_come_from_one_source(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    result = run("label", path, "--reviews", tmp_path, "--export", tmp_path / "out")
    assert result.exit_code == 2
    assert "give either --labels, or --reviews, or --export" in result.stderr
