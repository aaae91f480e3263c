"""A slide inferred by the models of a cross-validation: predictions, outputs, and what is kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.builders import (
    folder_bytes,
    make_checkpoint,
    make_store,
    make_table,
    tissue,
    write_folds,
    write_model,
    write_slide,
)
from tests.commands import infer, run
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.outputs import View, choose_formats
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.outputs.results import open_results
from wsi_pipeline.stages.aggregate import aggregate_results
from wsi_pipeline.store.slide_results import open_result

SHOWN = View(choose_formats(["parquet", "spread", "summary"]))
SPREAD = (14 / 3) ** 0.5
"""Standard deviation of -1, 0 and 4."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides' stores, one with an unreadable patch, inferred by models of -1, 0 and 4."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_folds(folder / "folds", [make_checkpoint(bias=bias) for bias in (-1.0, 0.0, 4.0)])
    table = make_table([(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)], block_size=2)
    make_store(folder / "stores" / "slide.patches.zarr", table, unreadable=[3])
    infer(folder / "stores", folder / "folds", folder / "results", view=SHOWN)
    return folder


def test_predictions_keep_mean_and_spread_and_nan_where_unreadable(made: Path) -> None:
    predictions = open_result(made / "results" / "slide")
    unreadable = [False, False, False, True, False]
    assert predictions.spread is not None
    for values, value in ((predictions.logit, 1.0), (predictions.spread, SPREAD)):
        assert np.isnan(values).tolist() == unreadable
        assert values[~np.isnan(values)].tolist() == pytest.approx([value] * 4, abs=1e-6)


def test_predictions_record_the_ensemble(made: Path) -> None:
    predictions = open_result(made / "results" / "slide")
    model = load_model(made / "folds")
    assert predictions.attributes["model"] == json.loads(json.dumps(model.to_json()))
    assert predictions.model_digest == model.digest


def test_the_table_of_patches_has_the_spread(made: Path) -> None:
    column = pyarrow.parquet.read_table(made / "results" / "slide" / "patches.parquet")["spread"]
    found = column.to_pylist()
    assert found[3] is None
    assert found[:3] + found[4:] == pytest.approx([SPREAD] * 4, abs=1e-6)


def test_results_in_python_have_the_spread(made: Path) -> None:
    (slide,) = open_results(made / "results")
    assert slide.to_frame()["spread"].notna().sum() == 4


def test_the_spread_is_drawn(made: Path) -> None:
    with Image.open(made / "results" / "slide" / "spread.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert "spread.png" in (made / "results" / "index.html").read_text()


def test_another_threshold_keeps_the_spread(made: Path, tmp_path: Path) -> None:
    view = View(SHOWN.formats, Aggregation(threshold=0.9))
    aggregate_results(made / "results", view, tmp_path / "other")
    one, other = (
        open_result(results / "slide") for results in (made / "results", tmp_path / "other")
    )
    assert one.spread is not None
    assert other.spread is not None
    assert np.array_equal(one.spread, other.spread, equal_nan=True)
    assert (tmp_path / "other" / "slide" / "spread.png").is_file()


def test_one_model_has_neither_column_nor_map(made: Path, tmp_path: Path) -> None:
    infer(made / "stores", made / "folds" / "fold-3", tmp_path, view=SHOWN)
    folder = tmp_path / "slide"
    assert open_result(folder).spread is None
    assert "spread" not in pyarrow.parquet.read_schema(folder / "patches.parquet").names
    assert not (folder / "spread.png").exists()


def test_done_work_is_not_done_again(made: Path) -> None:
    before = folder_bytes(made / "results" / "slide")
    account = infer(made / "stores", made / "folds", made / "results", view=SHOWN)
    assert [outcome.is_resumed_whole for outcome in account.outcomes] == [True]
    assert folder_bytes(made / "results" / "slide") == before


def test_results_of_a_changed_member_are_not_mixed(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    write_model(
        tmp_path / "copy" / "folds" / "fold-2" / "model.safetensors", make_checkpoint(bias=2.0)
    )
    account = infer(
        tmp_path / "copy" / "stores", tmp_path / "copy" / "folds", tmp_path / "copy" / "results"
    )
    assert "was made from another model; use --force" in account.outcomes[0].message


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_damaged_spreads_are_found(made: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(made / "results" / "slide", tmp_path / "slide")
    chunk = folder / "predictions.zarr" / "spread" / "c" / "1"
    if damage == "change":
        chunk.write_bytes(bytes(chunk.stat().st_size))
    else:
        shutil.rmtree(chunk.parents[1])
    with pytest.raises(StoreError, match="predictions"):
        open_result(folder)


def test_results_that_would_replace_the_models_are_refused(made: Path, tmp_path: Path) -> None:
    folds = shutil.copytree(made / "folds", tmp_path / "slide")
    account = infer(made / "stores", folds, tmp_path)
    assert f"{folds}: exists and was not made by wsi" in account.outcomes[0].message
    assert (folds / "fold-1" / "model.safetensors").is_file()


def test_results_that_hold_the_models_are_not_replaced(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "results", tmp_path / "results")
    folds = shutil.copytree(made / "folds", tmp_path / "results" / "slide" / "folds")
    account = infer(made / "stores", folds, tmp_path / "results", force=True)
    assert f"holds {folds}, which this work reads" in account.outcomes[0].message
    assert (folds / "fold-1" / "model.safetensors").is_file()


def test_the_command_infers_slides_with_all_models(made: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", tissue(200, 100))
    done = run(
        *("infer", "--slides", slide, "--model", made / "folds", "--results-dir", tmp_path / "out"),
        *("--engine", "torch", "--workers", 0, "--outputs", "png"),
    )
    assert done.exit_code == 0, done.output
    assert "3 × wide_resnet_10_1" in done.output
    names = {path.name for path in (tmp_path / "out" / "s").glob("*.png")}
    assert names == {"heatmap.png", "overlay.png", "spread.png", "gallery.png"}
