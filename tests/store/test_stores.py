"""Patch stores and predictions on disk."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.builders import make_patches, make_store, make_table
from tests.strangers import vouch
from wsi_pipeline.core.calibration import Calibration, ModelTerms
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.patches import PatchStore, find_stores
from wsi_pipeline.store.predictions import (
    Predictions,
    has_logits,
    prepare_predictions,
    write_prediction_block,
    write_probabilities,
)
from wsi_pipeline.store.slide_results import find_results
from wsi_pipeline.store.zarr_io import read_rows, write_rows

CELLS = [(row, col) for row in range(3) for col in range(3)]


def rewrite_attribute(store: Path, **changes: object) -> None:
    value = json.loads((store / "zarr.json").read_text())
    value["attributes"] |= changes
    (store / "zarr.json").write_text(json.dumps(value))


def test_patches_come_back_block_by_block(tmp_path: Path) -> None:
    pixels = make_patches(9)
    store = PatchStore(make_store(tmp_path / "s.patches.zarr", make_table(CELLS), pixels))
    assert store.blocks == 3
    assert np.array_equal(
        np.concatenate([store.read_block(block).pixels for block in range(3)]), pixels
    )


def test_the_table_comes_back(tmp_path: Path) -> None:
    table = make_table(CELLS, labels=[0, 1, -1] * 3, patient_id="patient 7", mpp=0.4537)
    stored = PatchStore(make_store(tmp_path / "s.patches.zarr", table)).table
    assert stored.slide == table.slide
    assert stored.grid == table.grid
    assert np.array_equal(stored.positions, table.positions)
    assert np.array_equal(stored.labels, table.labels)
    assert np.array_equal(stored.thumbnail.pixels, table.thumbnail.pixels)
    assert (stored.patient_id, stored.class_names, stored.block_size) == (
        "patient 7",
        ("negative", "positive"),
        4,
    )


def test_unreadable_patches_are_remembered(tmp_path: Path) -> None:
    store = PatchStore(
        make_store(tmp_path / "s.patches.zarr", make_table(CELLS), unreadable=[1, 8])
    )
    assert np.flatnonzero(~store.readable).tolist() == [1, 8]
    assert store.read_block(2).readable.tolist() == [False]
    assert store.manifest.counts == {"patches": 9, "unreadable": 2, "labelled": 0}


def test_a_store_without_patches_is_a_store(tmp_path: Path) -> None:
    store = PatchStore(make_store(tmp_path / "s.patches.zarr", make_table([])))
    assert (store.table.patches, store.blocks) == (0, 0)


def test_a_store_of_three_classes_is_refused_by_name(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    rewrite_attribute(path, class_names=["normal", "in situ", "invasive"])
    vouch(path)
    with pytest.raises(StoreError, match=r"has 3 classes \(normal, in situ, invasive\)"):
        PatchStore(path)


def test_white_patches_are_written_out(tmp_path: Path) -> None:
    make_store(
        tmp_path / "s.patches.zarr", make_table(CELLS), np.zeros((9, 50, 50, 3), dtype=np.uint8)
    )
    assert len(list((tmp_path / "s.patches.zarr" / "patches" / "c").iterdir())) == 3


def test_one_file_per_block(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    sizes = {path.stat().st_size for path in (store / "patches" / "c").rglob("*") if path.is_file()}
    assert sizes == {4 * 50 * 50 * 3 + 4}  # a chunk and its checksum


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 23), st.integers(1, 9), st.integers(0, 1000))
def test_any_number_of_patches_round_trips(
    tmp_path: Path, count: int, block_size: int, seed: int
) -> None:
    import tempfile

    pixels = make_patches(count, side_px=6, seed=seed)
    table = make_table([(k // 5, k % 5) for k in range(count)], side_px=6, block_size=block_size)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        store = PatchStore(make_store(Path(folder) / "s.patches.zarr", table, pixels))
        blocks = [store.read_block(block).pixels for block in range(store.blocks)]
        assert np.array_equal(np.concatenate([np.empty((0, 6, 6, 3), np.uint8), *blocks]), pixels)


def test_a_flipped_bit_in_a_chunk_raises_on_reading(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    chunk = path / "patches" / "c" / "1" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)
    store = PatchStore(path)
    with pytest.raises(StoreError, match="damaged"):
        store.read_block(1)


def test_a_missing_chunk_is_found_at_opening(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    (path / "patches" / "c" / "1" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="is missing"):
        PatchStore(path)


def test_predictions_are_no_patch_store(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    rewrite_attribute(path, kind="something new")
    vouch(path)
    with pytest.raises(StoreError, match="holds 'something new'"):
        PatchStore(path)


def test_a_future_format_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    rewrite_attribute(path, format_version=99)
    vouch(path)
    with pytest.raises(StoreError, match="format 99"):
        PatchStore(path)


def broken_tables() -> list[tuple[str, PatchTable]]:
    outside = make_table(CELLS, rows=3, cols=3)
    outside.positions[0] = (7, 7)
    twice = make_table(CELLS, rows=3, cols=3)
    twice.positions[1] = twice.positions[0]
    return [("outside the grid", outside), ("occurs twice", twice)]


@pytest.mark.parametrize(("fault", "table"), broken_tables(), ids=["outside", "twice"])
def test_a_table_that_contradicts_itself_is_refused(
    fault: str, table: PatchTable, tmp_path: Path
) -> None:
    path = make_store(tmp_path / "s.patches.zarr", table)
    with pytest.raises(StoreError, match=fault):
        PatchStore(path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"grid": {}},
        {"slide": None},
        {"block_size": 0},
        {"class_names": []},
        {"thumbnail": {"downsample": "1/0"}},
    ],
)
def test_damaged_attributes_are_named(attributes: dict[str, object], tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    rewrite_attribute(path, **attributes)
    vouch(path)
    with pytest.raises(StoreError, match="damaged"):
        PatchStore(path)


def test_stores_are_found_in_folders_and_by_name(tmp_path: Path) -> None:
    one = make_store(tmp_path / "a.patches.zarr", make_table(CELLS))
    two = make_store(tmp_path / "b.patches.zarr", make_table(CELLS))
    assert find_stores([tmp_path]) == [one, two]
    assert find_stores([two, tmp_path]) == [two, one]


def test_a_folder_without_stores_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no patch stores"):
        find_stores([tmp_path])


def prepare(
    staging: Staging, positions: list[tuple[int, int]] = CELLS, temperature: float = 1.0
) -> PatchTable:
    table = make_table(positions)
    terms = ModelTerms.plain(temperature=temperature).to_json()
    model = {"terms": terms, "digest": "d", "class_names": ["negative", "positive"]}
    prepare_predictions(staging, table, {"model": model})
    return table


def test_predictions_begin_as_not_assessed(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    prepare(staging)
    assert np.isnan(Predictions(staging.product / PREDICTIONS).probability).all()


def test_predictions_come_back(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    table = prepare(staging)
    logits = np.array([0.25, np.nan, -90.0, 7.0], dtype=np.float32)
    write_prediction_block(staging, table, 1, logits, {})
    found = Predictions(staging.product / PREDICTIONS).logit
    assert np.array_equal(found[4:8], logits, equal_nan=True)
    assert np.isnan(found[[0, 1, 2, 3, 8]]).all()


def test_probabilities_alone_are_those_of_the_calibration(tmp_path: Path) -> None:
    # ln 3 is the logit of 3/4; over a temperature of 2 it is that of √3 / (1 + √3).
    staging = Staging(tmp_path / "slide", {})
    table = prepare(staging, CELLS[:1], temperature=2.0)
    write_prediction_block(staging, table, 0, np.array([math.log(3)], dtype=np.float32), {})
    assert Predictions(staging.product / PREDICTIONS).alone == pytest.approx([0.633975])


def test_final_probabilities_stand_beside_those_of_patches_alone(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    table = prepare(staging, CELLS[:2])
    write_prediction_block(staging, table, 0, np.array([0, np.nan], dtype=np.float32), {})
    written = Predictions(staging.product / PREDICTIONS)
    write_probabilities(written, np.array([0.75, np.nan], dtype=np.float32))
    for name, value in {"logit": 0.0, "raw_probability": 0.5, "probability": 0.75}.items():
        found = read_rows(staging.product / PREDICTIONS, name)
        np.testing.assert_array_equal(found, np.array([value, np.nan], dtype=np.float32))


def test_probabilities_without_logits_are_kept_as_they_are(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    stored = np.array([0.1, 0.3, np.nan, 1.0], dtype=np.float32)
    prepare(staging, CELLS[:4])
    leave_probabilities_alone(staging.product / PREDICTIONS, stored)
    old = Predictions(staging.product / PREDICTIONS)
    for found in (old.alone, old.probability):
        np.testing.assert_array_equal(found, stored)
    np.testing.assert_allclose(Calibration().apply(old.logit), stored, rtol=1e-6)
    assert old.logit[:2] == pytest.approx([math.log(1 / 9), math.log(3 / 7)])


def test_logits_are_added_to_probabilities_without_them(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    prepare(staging, CELLS[:2])
    leave_probabilities_alone(
        staging.product / PREDICTIONS, np.array([0.1, np.nan], dtype=np.float32)
    )
    old = Predictions(staging.product / PREDICTIONS)
    logits = old.logit
    write_probabilities(old, old.alone)
    again = Predictions(staging.product / PREDICTIONS)
    assert has_logits(staging.product / PREDICTIONS)
    np.testing.assert_array_equal(again.logit, logits)
    np.testing.assert_array_equal(again.probability, old.probability)


def leave_probabilities_alone(path: Path, probability: NDArray[np.float32]) -> None:
    """As versions did that stored no logits."""
    write_rows(path, "probability", slice(0, len(probability)), probability)
    for name in ("logit", "raw_probability"):
        shutil.rmtree(path / name)


def test_a_block_of_nan_is_written_out(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    table = prepare(staging)
    write_prediction_block(staging, table, 0, np.full(4, np.nan, dtype=np.float32), {})
    assert (staging.product / PREDICTIONS / "logit" / "c" / "0").is_file()


@pytest.mark.parametrize("value", [-0.1, 1.5, np.inf])
def test_a_probability_that_is_none_is_refused(value: float, tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    prepare(staging, CELLS[:1])
    write_probabilities(
        Predictions(staging.product / PREDICTIONS), np.array([value], dtype=np.float32)
    )
    with pytest.raises(StoreError, match="outside 0 to 1"):
        _ = Predictions(staging.product / PREDICTIONS).probability


def test_only_finished_results_are_found(tmp_path: Path) -> None:
    prepare(Staging(tmp_path / "under way", {}))
    staging = Staging(tmp_path / "done", {})
    prepare(staging)
    staging.commit("wsi slide result", {})
    assert [folder.name for folder in find_results([tmp_path])] == ["done"]


def test_a_results_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such results folder"):
        find_results([tmp_path / "nowhere"])
