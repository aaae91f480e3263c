"""Labelled patches from stores: choice, order, and refusals."""

from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_patches, make_store, make_table
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.training.data import load_labelled, read_pixels

CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_unlabelled_and_unreadable_patches_are_skipped(tmp_path: Path) -> None:
    pixels = make_patches(4)
    make_store(
        tmp_path / "a.patches.zarr",
        make_table(CELLS, labels=[0, -1, 1, 1], slide_id="a"),
        pixels,
        unreadable=[3],
    )
    patches = load_labelled([tmp_path / "a.patches.zarr"])
    assert np.array_equal(read_pixels(patches, np.arange(len(patches))), pixels[[0, 2]])
    assert patches.labels.tolist() == [0, 1]
    assert patches.patients.tolist() == ["a", "a"]
    assert patches.skipped == 2


def test_pixels_and_labels_stay_together_over_blocks(tmp_path: Path) -> None:
    table = make_table(
        [(k // 5, k % 5) for k in range(23)],
        labels=[k % 2 if k % 3 else -1 for k in range(23)],
        block_size=4,
    )
    pixels = make_patches(23)
    make_store(tmp_path / "a.patches.zarr", table, pixels)
    patches = load_labelled([tmp_path / "a.patches.zarr"])
    assert np.array_equal(read_pixels(patches, np.arange(len(patches))), pixels[table.labels >= 0])


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"mpp": 1.0}, "1 µm/px.* has 0.5 µm/px"),
        ({"side_px": 64}, "64 px.* has 50 px"),
    ],
)
def test_stores_that_do_not_fit_together_are_refused(
    other: dict[str, float], fault: str, tmp_path: Path
) -> None:
    make_store(tmp_path / "a.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1]))
    make_store(tmp_path / "b.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1], **other))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=fault):
        load_labelled([tmp_path / "a.patches.zarr", tmp_path / "b.patches.zarr"])


def test_stores_without_labels_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "a.patches.zarr", make_table(CELLS))
    with pytest.raises(ConfigError, match="none of the 1 stores has a labelled patch"):
        load_labelled([tmp_path / "a.patches.zarr"])


def test_a_flipped_bit_is_found_before_training(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.patches.zarr", make_table(CELLS, labels=[0, 1, 0, 1]))
    chunk = path / "patches" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 64
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match="damaged: patches/c/0"):
        load_labelled([path])


def test_some_patches_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = make_patches(4)
    make_store(
        tmp_path / "a.patches.zarr", make_table(CELLS, labels=[0, 1, 1, 0], block_size=2), pixels
    )
    patches = load_labelled([tmp_path / "a.patches.zarr"])
    assert np.array_equal(read_pixels(patches, np.array([3, 0, 2])), pixels[[3, 0, 2]])


def test_one_slide_of_two_patients_is_refused(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        make_store(
            tmp_path / f"{patient}.patches.zarr",
            make_table(CELLS, labels=[0, 1, 0, 1], patient_id=patient),
        )
    with pytest.raises(
        ConfigError, match=r"b\.patches\.zarr: holds the same slide as .*a\.patches\.zarr"
    ):
        load_labelled([tmp_path / "a.patches.zarr", tmp_path / "b.patches.zarr"])
