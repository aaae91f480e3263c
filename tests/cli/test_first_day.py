"""The commands as a newcomer types them: defaults, what is taken, and what comes next."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.builders import (
    draw_regions,
    make_checkpoint,
    make_training_stores,
    tissue,
    write_folds,
    write_model,
    write_slide,
)
from tests.commands import PLAIN, run
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.models.loading import list_boxed
from wsi_pipeline.serve import server
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.store.patches import PatchStore

SQUARES = {"Tumor": (0, 0, 200, 200), "normal": (200, 0, 400, 200)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with one slide of 400 × 200 px at 0.25 µm/px."""
    monkeypatch.chdir(tmp_path)
    write_slide(Path("slides") / "one.tiff", tissue(400, 200), mpp=0.25)
    return tmp_path


TILE = ("tile", "slides/one.tiff", "--workers", 0, "--min-tissue", 0)


def test_tile_writes_stores(here: Path) -> None:
    done = run(*TILE)
    assert done.exit_code == 0
    assert (here / "stores" / "one.patches.zarr").is_dir()
    assert "taking 1 slide, writing stores" in done.stderr


def test_without_labels_the_next_command_is_infer(here: Path) -> None:
    assert "next: wsi infer slides/one.tiff\n" in run(*TILE).stderr


def test_the_label_file_beside_a_slide_is_taken_by_itself(here: Path) -> None:
    draw_regions(here / "slides" / "one.geojson", SQUARES)
    done = run(*TILE)
    labels = PatchStore(here / "stores" / "one.patches.zarr").labels
    # 8 × 4 patches of 50 px, one half drawn as tumour, the other as normal.
    assert (int((labels == 1).sum()), int((labels == 0).sum())) == (16, 16)
    assert "next: wsi train\n" in done.stderr


def test_labels_beside_a_slide_can_be_left_alone(here: Path) -> None:
    draw_regions(here / "slides" / "one.geojson", SQUARES)
    run(*TILE, "--labels", "none")
    assert (PatchStore(here / "stores" / "one.patches.zarr").labels == -1).all()


def test_a_sheet_is_named_in_the_next_command(here: Path) -> None:
    (here / "sheet.csv").write_text("wsi\nslides/one.tiff\n")
    done = run("tile", "--sheet", "sheet.csv", "--workers", 0, "--min-tissue", 0)
    assert "next: wsi infer --sheet sheet.csv\n" in done.stderr


def test_where_no_slide_is_done_nothing_comes_next(here: Path) -> None:
    (here / "slides" / "one.tiff").write_bytes(b"no slide")
    failed = run(*TILE)
    assert failed.exit_code == 4
    assert "next:" not in failed.stderr


def test_a_folder_of_a_defaults_name_is_still_named(here: Path) -> None:
    (here / "slides").rename(here / "model")
    done = run("tile", "model", "--workers", 0, "--min-tissue", 0)
    assert "next: wsi infer model\n" in done.stderr


def test_a_drawn_class_is_mapped_on_the_command_line(here: Path) -> None:
    draw_regions(here / "slides" / "one.geojson", {"Stroma=x": (0, 0, 400, 200)})
    assert run(*TILE, "--map", "Stroma=x=negative").exit_code == 0
    assert (PatchStore(here / "stores" / "one.patches.zarr").labels == 0).all()


def test_an_unknown_class_shows_the_lines_to_add(here: Path) -> None:
    draw_regions(here / "slides" / "one.geojson", {"Stroma": (0, 0, 400, 200)})
    refused = run(*TILE)
    assert refused.exit_code == 4
    assert "add --map Stroma=negative or another meaning of" in refused.output
    assert "lines `map:` and, indented, `Stroma: negative`" in refused.output


@pytest.mark.parametrize("drawn", ["TUMOUR", "tumor", "Tumour "])
def test_classes_are_matched_in_either_spelling(drawn: str, here: Path) -> None:
    draw_regions(here / "slides" / "one.geojson", {drawn: (0, 0, 400, 200)})
    assert run(*TILE, "--class-names", "benign", "Tumor").exit_code == 0
    assert (PatchStore(here / "stores" / "one.patches.zarr").labels == 1).all()


def test_a_mapping_without_a_meaning_is_refused(here: Path) -> None:
    assert "give the drawn class, = and its meaning" in run(*TILE, "--map", "Stroma").stderr


def test_train_takes_stores_and_writes_model(here: Path) -> None:
    make_training_stores(here / "stores")
    options = ("--epochs", 1, "--arch", "wide_resnet_10_1", "--device", "cpu")
    done = run("train", *options)
    assert done.exit_code == 0
    assert (here / "model" / "model.safetensors").is_file()
    assert "taking stores, writing model" in done.stderr
    assert "next: wsi infer --slides DIR\n" in done.stderr


def test_train_without_stores_says_how_to_make_some(here: Path) -> None:
    refused = run("train")
    assert refused.exit_code == 2
    assert "there is no ./stores; `wsi tile SLIDE` or `wsi ingest DIR` makes it" in refused.stderr


INFER = (*PLAIN, "--workers", 0, "--outputs", "summary")


def test_infer_takes_the_model_that_train_wrote(here: Path) -> None:
    write_model(here / "model" / "model.safetensors", make_checkpoint(mpp=0.25))
    done = run("infer", "--slides", "slides/", *INFER)
    assert done.exit_code == 0
    assert (here / "results" / "one" / "summary.json").is_file()
    assert "taking 1 slide, model model/model.safetensors, writing results" in done.stderr
    assert "next: wsi view\n" in done.stderr


def test_slides_are_plain_arguments_too(here: Path) -> None:
    write_model(here / "model" / "model.safetensors", make_checkpoint(mpp=0.25))
    assert run("infer", "slides/one.tiff", *INFER, "-o", "r").exit_code == 0
    assert (here / "r" / "one").is_dir()


def test_the_next_command_names_what_is_no_default(here: Path) -> None:
    write_model(here / "m.safetensors", make_checkpoint(mpp=0.25))
    arguments = ("--model", "m.safetensors", "--results-dir", "my results")
    done = run("infer", "slides", *INFER, *arguments)
    assert "next: wsi view 'my results'\n" in done.stderr


@pytest.mark.parametrize("command", ["view", "evaluate", "aggregate", "status", "review"])
def test_commands_on_results_say_what_is_missing(command: str, here: Path) -> None:
    refused = run(command)
    assert refused.exit_code == 2
    assert "there is no ./results; `wsi infer --slides DIR` makes it" in refused.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("tiles", "tile"), ("trian", "train"), ("inference", "infer")]
)
def test_a_mistyped_command_is_guessed(typed: str, meant: str) -> None:
    assert f"Did you mean {meant}?" in run(typed).stderr


def test_a_word_like_no_command_is_not_guessed() -> None:
    assert "Did you mean" not in run("xyzzy").stderr


def test_without_a_model_of_ones_own_infer_takes_the_one_in_the_box(here: Path) -> None:
    write_slide(Path("large") / "two.tiff", tissue(1000, 900), mpp=1.0)
    done = run("infer", "large", *INFER)
    assert done.exit_code == 0
    assert "taking 1 slide, the model idc in the box, writing results" in done.stderr
    summary = json.loads((here / "results" / "two" / "summary.json").read_text())
    assert (summary["mpp"], summary["patch_um"], summary["positive_class"]) == (4.0, 200.0, "idc")


def test_the_models_of_a_cross_validation_in_model_are_taken_together(here: Path) -> None:
    write_folds(here / "model", [make_checkpoint(mpp=0.25, seed=seed) for seed in (0, 1)])
    done = run("infer", "slides", *INFER)
    assert done.exit_code == 0
    assert "taking 1 slide, model model, writing results" in done.stderr


def test_models_in_the_box_are_listed_and_described(here: Path) -> None:
    assert "idc: wide_resnet_16_2, non_idc and idc, 50 px at 4 µm/px" in run("model", "list").output
    described = " ".join(run("model", "info", "idc").output.split())
    assert "scores, held-out slide 8863 auroc" in described
    assert "not for diagnosis" in described
    assert run("model", "check", "idc").exit_code == 0


def test_both_networks_of_the_mission_are_in_the_box(here: Path) -> None:
    lines = run("model", "list").output.splitlines()
    assert [line.split(",")[0] for line in lines] == ["idc: wide_resnet_16_2", "idc-cnn: idc_cnn"]
    assert list_boxed()["idc-cnn"].stat().st_size <= 11_000_000
    assert run("model", "check", "idc-cnn").exit_code == 0


@pytest.mark.parametrize("name", ["idc", "idc-cnn"])
def test_the_card_states_figures_with_intervals_and_what_the_model_is_not_for(name: str) -> None:
    described = " ".join(run("model", "info", name).output.split())
    assert re.search(r"slide 8865 auroc 0\.97\d*, auroc_interval 0\.95\d to 0\.99\d", described)
    assert re.search(r"slide 8863 .*, counted \d+, .*, true 207", described)
    assert "not for diagnosis" in described
    assert "listed as CC0" in described
    assert "unlike beyond colour 1.60, features " in described


def test_the_digests_in_docs_are_those_of_the_files() -> None:
    page = (ROOT / "docs" / "guides" / "models.md").read_text()
    for name, path in list_boxed().items():
        assert f"`{name}` sha256:{file_sha256(path)}" in page


def test_the_model_in_the_box_is_exported(here: Path) -> None:
    assert run("export", "idc", "--to", "torchscript", "--out", "zoo").exit_code == 0
    assert (here / "zoo" / "torchscript_model.pt").is_file()


def test_a_file_of_that_name_comes_before_the_box(here: Path) -> None:
    write_model(here / "idc", make_checkpoint(mpp=0.25))
    assert "px at 0.25 µm/px" in run("model", "info", "idc").output


@pytest.fixture
def inferred(here: Path) -> Path:
    """Results whose slide is shown at a threshold of the user's own."""
    write_model(here / "model" / "model.safetensors", make_checkpoint(mpp=0.25))
    run("infer", "slides", *INFER)
    run("aggregate", "--threshold", 0.0, "--outputs", "summary")
    return here / "results"


def test_serve_shows_results(inferred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeSettings] = []
    monkeypatch.setattr(server, "run_server", lambda settings, announce: seen.append(settings))
    assert run("serve").exit_code == 0
    assert seen[0].results == (Path("results"),)


def read_threshold(results: Path) -> tuple[float, str]:
    value = json.loads((results / "one" / "summary.json").read_text())
    return value["threshold"], value["threshold_source"]


def test_a_rerun_of_infer_keeps_the_threshold(inferred: Path) -> None:
    assert run("infer", "slides", *INFER).exit_code == 0
    assert read_threshold(inferred) == (0.0, "user")


def test_other_outputs_are_made_at_the_threshold_that_the_results_show(inferred: Path) -> None:
    run("infer", "slides", *PLAIN, "--workers", 0, "--outputs", "summary,csv")
    assert (inferred / "one" / "patches.csv").is_file()
    assert read_threshold(inferred) == (0.0, "user")


def test_the_models_threshold_comes_back_by_its_name(inferred: Path) -> None:
    run("aggregate", "--threshold", "count", "--outputs", "summary")
    assert read_threshold(inferred) == (0.5, "count")


def test_force_begins_at_the_models_threshold(inferred: Path) -> None:
    run("infer", "slides", *INFER, "--force")
    assert read_threshold(inferred) == (0.5, "count")


def test_one_table_names_the_threshold_of_each_slide(inferred: Path) -> None:
    write_slide(Path("slides") / "two.tiff", tissue(400, 200, seed=1), mpp=0.25)
    run("infer", "slides", *INFER)
    page = (inferred / "index.html").read_text()
    assert 'class="own" data-title="threshold by" data-value="user">user<' in page
    assert "at or above the threshold of its slide, which stands in the table" in " ".join(
        page.split()
    )
    assert np.all([name in page for name in ("one", "two")])
