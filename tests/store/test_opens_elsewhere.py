"""Stores and predictions as other programs read them: zarr, dask, xarray and tensorstore, without
our code and without a warning.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from numpy.typing import NDArray

from tests.builders import make_patches, make_store, make_table
from tests.strangers import edit_json, put_values, vouch
from tests.written_results import write_result
from wsi_pipeline.core.choices import PREDICTIONS, ZARR_JSON
from wsi_pipeline.core.patch_table import PatchQuality, PatchTable
from wsi_pipeline.outputs import View
from wsi_pipeline.store.arrays import MEANINGS
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.patches import PatchStore, finish_patch_store, prepare_patch_store
from wsi_pipeline.store.predictions import prepare_predictions
from wsi_pipeline.store.zarr_io import CONSOLIDATED, add_attributes, consolidate

CELLS = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]
PIXELS = make_patches(5)
PROBABILITY = [0.9, 0.1, math.nan, 0.6, 0.7]
OF_PATCHES = {"row", "col", "x_um", "y_um"}


def make_full_table() -> PatchTable:
    """Five patches of 50 px at 0.5 µm/px, with all that can be known of them."""
    table = make_table(CELLS, labels=[0, 1, -1, 1, 0])
    quality = PatchQuality(
        np.linspace(0, 1, 5, dtype=np.float32),
        np.arange(5, dtype=np.float32),
        np.array([0, 1, 2, 3, 0], dtype=np.uint8),
    )
    height, width, _ = table.thumbnail.pixels.shape
    tissue = np.zeros((height, width), dtype=np.bool_)
    tissue[2:5, 3:] = True
    areas = np.where(tissue, 1, np.arange(width) % 7).astype(np.uint8)
    known = replace(table, quality=quality, tissue=tissue, areas=areas)
    known = replace(known, tissue_id=np.array([1, 1, 2, 0, 2], dtype=np.int32))
    known = replace(known, role=np.array([0, 1, 0, 0, 1], dtype=np.uint8))
    return replace(known, class_names=("not tumour", "tumour"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s.patches.zarr"
    return make_store(path, make_full_table(), PIXELS, unreadable=[3])


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "slide"
    table = replace(make_full_table(), block_size=5)
    write_result(folder, PROBABILITY, table=table, view=View(("summary",)))
    return folder / PREDICTIONS


def read_by_zarr(group: Path, name: str) -> Any:
    opened: Any = zarr.open_group(group, mode="r")
    return opened[name][...]


def read_by_dask(group: Path, name: str) -> Any:
    return dask.array.from_zarr(group / name).compute()  # type: ignore[no-untyped-call]


def read_by_xarray(group: Path, name: str) -> Any:
    return xr.open_zarr(group)[name].to_numpy()


def read_by_tensorstore(group: Path, name: str) -> Any:
    where = {"driver": "file", "path": str(group / name)}
    return tensorstore.open({"driver": "zarr3", "kvstore": where}).result().read().result()


READERS = [read_by_zarr, read_by_dask, read_by_xarray, read_by_tensorstore]
of_stores = pytest.mark.parametrize(
    "name", sorted(MEANINGS.keys() - {"logit", "raw_probability", "probability", "spread"})
)


def read_chunks(group: Path, name: str) -> NDArray[Any]:
    """The values of an array by its files alone: rows of chunks, a checksum of 4 bytes in each."""
    said = json.loads((group / name / ZARR_JSON).read_bytes())
    chunk_shape = said["chunk_grid"]["configuration"]["chunk_shape"]
    chunks = sorted(path for path in (group / name / "c").rglob("*") if path.is_file())
    values = [np.frombuffer(path.read_bytes()[:-4], said["data_type"]) for path in chunks]
    whole = np.concatenate([each.reshape(chunk_shape) for each in values])
    return whole[: said["shape"][0]]


@of_stores
def test_every_reader_finds_the_same_values_in_a_store(name: str, store: Path) -> None:
    for read in READERS:
        np.testing.assert_array_equal(read(store, name), read_chunks(store, name), read.__name__)


@pytest.mark.parametrize("name", ["logit", "raw_probability", "probability", "labels", "x_um"])
def test_every_reader_finds_the_same_values_in_predictions(name: str, predictions: Path) -> None:
    for read in READERS:
        found = read(predictions, name)
        np.testing.assert_array_equal(found, read_chunks(predictions, name), read.__name__)


def test_a_store_is_one_dataset(store: Path) -> None:
    found = xr.open_zarr(store)
    assert dict(found.sizes) == {
        "patch": 5,
        "y": 50,
        "x": 50,
        "channel": 3,
        "thumbnail_y": 15,
        "thumbnail_x": 15,
    }
    assert set(found.coords) == OF_PATCHES
    assert found.patches.dims == ("patch", "y", "x", "channel")
    assert found.thumbnail.dims == ("thumbnail_y", "thumbnail_x", "channel")
    assert found.tissue.dims == ("thumbnail_y", "thumbnail_x")
    np.testing.assert_array_equal(found.patches, PIXELS)


def test_coordinates_are_the_top_left_corners_in_micrometres(store: Path) -> None:
    # 50 px of 0.5 µm are 25 µm.
    found = xr.open_zarr(store)
    assert found.row.values.tolist() == [0, 0, 1, 2, 2]
    assert found.col.values.tolist() == [0, 2, 1, 0, 2]
    assert found.x_um.values.tolist() == [0, 50, 25, 0, 50]
    assert found.y_um.values.tolist() == [0, 0, 25, 50, 50]
    assert (found.x_um.units, found.x_um.long_name) == ("µm", "left edge of the patch")


def test_a_store_is_chosen_from_by_its_coordinates(store: Path) -> None:
    found = xr.open_zarr(store).load()
    assert found.labels.where(found.x_um > 30, drop=True).values.tolist() == [1, 0]


@pytest.mark.parametrize("group", ["store", "predictions"])
def test_every_array_says_what_it_is(group: str, request: pytest.FixtureRequest) -> None:
    for array in xr.open_zarr(request.getfixturevalue(group)).variables.values():
        assert array.attrs["long_name"]
        assert array.attrs["units"] in ("1", "µm")


def test_labels_and_flags_are_named_as_in_cf(store: Path) -> None:
    found = xr.open_zarr(store)
    assert found.labels.flag_values == [-1, 0, 1]
    assert found.labels.flag_meanings == "unknown not_tumour tumour"
    assert (found["flags"].flag_masks, found["flags"].flag_meanings) == (
        [1, 2, 4, 8],
        "pen blur fold bubble",
    )


def test_the_tissue_has_a_value_for_every_pixel_of_the_thumbnail(store: Path) -> None:
    tissue = xr.open_zarr(store).tissue
    assert (tissue.dtype, int(tissue.sum())) == (np.bool_, 3 * 12)


def test_probabilities_become_a_map(predictions: Path) -> None:
    patches = xr.open_zarr(predictions).probability.load()
    image = patches.set_index(patch=["row", "col"]).unstack("patch")
    assert image.dims == ("row", "col")
    nan = math.nan
    wanted = np.array([[0.9, nan, 0.1], [nan, nan, nan], [0.6, nan, 0.7]])
    np.testing.assert_allclose(image, wanted, rtol=1e-6)


def test_tensorstore_knows_the_dimensions(store: Path) -> None:
    where = {"driver": "file", "path": str(store / "patches")}
    found = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
    assert found.domain.labels == ("patch", "y", "x", "channel")


@pytest.mark.parametrize("group", ["store", "predictions"])
def test_a_group_is_opened_by_one_file(group: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(group)
    copies = json.loads((path / ZARR_JSON).read_bytes())[CONSOLIDATED]["metadata"]
    arrays = {file.parent.name: json.loads(file.read_bytes()) for file in path.glob("*/zarr.json")}
    assert copies == arrays
    assert [*copies] == sorted(copies)
    opened: Any = zarr.open_consolidated(path, mode="r")
    assert opened["row"][...].tolist() == [0, 0, 1, 2, 2]


def test_the_copy_of_the_metadata_is_part_of_the_manifest(store: Path) -> None:
    assert (store / "manifest.json").is_file()
    assert find_damage(store) == []


def test_a_copy_that_disagrees_does_not_matter_to_us(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_full_table(), PIXELS)
    declared = (CONSOLIDATED, "metadata", "patches", "shape")
    edit_json(ZARR_JSON, *declared, value=[10**12, 50, 50, 3])(path)
    vouch(path)
    np.testing.assert_array_equal(PatchStore(path).read_patches([4, 0]), PIXELS[[4, 0]])


@pytest.mark.parametrize("copy", [None, 7, {}, {"kind": "inline", "metadata": {"row": "x"}}])
def test_a_copy_that_is_none_does_not_matter_to_us(copy: object, tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_full_table(), PIXELS)
    edit_json(ZARR_JSON, CONSOLIDATED, value=copy)(path)
    vouch(path)
    assert PatchStore(path).table.patches == 5


def test_a_tissue_of_other_bytes_than_0_and_1_is_still_true_or_false(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_full_table(), PIXELS)
    put_values("tissue", np.full((15, 15), 2, dtype=np.uint8))(path)
    vouch(path)
    tissue = PatchStore(path).table.tissue
    assert tissue is not None
    assert np.count_nonzero(tissue) == 15 * 15
    assert np.count_nonzero(~tissue) == 0


def test_a_copy_made_again_has_the_same_bytes(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.patches.zarr", make_full_table(), PIXELS)
    before = (path / ZARR_JSON).read_bytes()
    add_attributes(path, {"codec": PatchStore(path).attributes["codec"]})
    consolidate(path)
    assert (path / ZARR_JSON).read_bytes() == before


def test_two_stores_of_the_same_patches_have_the_same_bytes(tmp_path: Path) -> None:
    one, other = (
        make_store(tmp_path / name / "s.patches.zarr", make_full_table(), PIXELS) for name in "ab"
    )
    for file in (ZARR_JSON, "manifest.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_a_store_without_patches_opens_too(tmp_path: Path) -> None:
    found = xr.open_zarr(make_store(tmp_path / "s.patches.zarr", make_table([])))
    assert found.sizes["patch"] == 0


def test_readers_without_our_codec_find_the_other_arrays(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "s.patches.zarr", {})
    prepare_patch_store(staging, make_table([]), {}, PixelCodec("jpeg", 90))
    finish_patch_store(staging, make_table([]))
    line = (
        "import sys, zarr; sys.modules['wsi_pipeline'] = None;"
        " print(zarr.open_group(sys.argv[1], mode='r')['labels'].shape)"
    )
    command = [sys.executable, "-c", line, str(tmp_path / "s.patches.zarr")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout == "(0,)\n", answer.stderr


def test_ensembles_have_the_spread_of_their_logits(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "slide", {})
    prepare_predictions(staging, make_table(CELLS), {}, has_spread=True)
    spread = xr.open_zarr(staging.product / PREDICTIONS, consolidated=False).spread
    assert (spread.dims, set(spread.coords)) == (("patch",), OF_PATCHES)
    assert spread.long_name == "standard deviation of the logits of several models"
