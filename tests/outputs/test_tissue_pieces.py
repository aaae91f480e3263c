"""Figures of each piece of tissue, in tables, GeoJSON, Parquet and REST."""

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import shapely

from tests.builders import make_store, make_table, paint
from tests.written_results import write_result
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.outputs import View
from wsi_pipeline.serve.catalogue import Catalogue
from wsi_pipeline.serve.result_reader import ResultReader
from wsi_pipeline.slides.pieces import number_tissue
from wsi_pipeline.store.patches import PatchStore

CELLS = [(0, 0), (1, 0), (0, 4), (1, 4), (1, 2)]
PROBABILITY = [0.9, 0.1, 0.8, 0.9, 0.7]
VIEW = View(("summary", "parquet", "tissue"))


def make_glass() -> PatchTable:
    """Two sections of two patches (200 µm each), and a patch on a speck between them.

    A patch is 20 pixels of the thumbnail wide, and a pixel 10 µm.
    """
    table = make_table(CELLS, mpp=4.0, block_size=10, rows=2, cols=5)
    mask = np.zeros((40, 100), dtype=np.bool_)
    mask[:, :20] = mask[:, 80:] = mask[28:32, 48:52] = True
    return replace(table, tissue=mask, thumbnail=Thumbnail(paint(100, 40), Fraction(5, 2), (0, 0)))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a slide; 3 and 4 are patches of the second section."""
    folder = tmp_path_factory.mktemp("pieces") / "results" / "slide"
    write_result(folder, PROBABILITY, table=make_glass(), view=VIEW)
    return folder


def test_each_piece_has_its_area_patches_positives_share_and_box(result: Path) -> None:
    with (result / "tissue.csv").open(newline="") as stream:
        first, second, rest = csv.DictReader(stream)
    assert (first["tissue_id"], first["patches"], first["positives"]) == ("1", "2", "1")
    assert float(first["area_mm2"]) == pytest.approx(0.2 * 0.4)
    assert float(first["positive_fraction"]) == 0.5
    assert [float(first[name]) for name in ("x0_l0", "y0_l0", "x1_l0", "y1_l0")] == [0, 0, 50, 100]
    assert (second["tissue_id"], second["patches"], second["positives"]) == ("2", "2", "2")
    assert float(second["positive_mm2"]) == pytest.approx(2 * 0.04)
    assert [float(second[name]) for name in ("x0_l0", "x1_l0")] == [200, 250]
    assert (rest["tissue_id"], rest["patches"], rest["positives"]) == ("0", "1", "1")


def test_outlines_are_annotations_by_name(result: Path) -> None:
    features = json.loads((result / "tissue.geojson").read_text())["features"]
    assert [each["properties"]["name"] for each in features] == ["Tissue 1", "Tissue 2", "Rest"]
    outline = shapely.from_geojson(json.dumps(features[1]["geometry"]))
    assert outline.equals(shapely.box(200, 0, 250, 100))
    assert features[0]["properties"]["measurements"]["tissue_id"] == 1


def test_every_patch_of_the_table_names_its_piece(result: Path) -> None:
    table = pyarrow.parquet.read_table(result / "patches.parquet").to_pydict()
    found = dict(zip(zip(table["row"], table["col"], strict=True), table["tissue_id"], strict=True))
    assert found == {(0, 0): 1, (1, 0): 1, (0, 4): 2, (1, 4): 2, (1, 2): 0}


def test_the_server_has_the_pieces_with_outlines(result: Path) -> None:
    (entry,) = Catalogue([result.parent], None).entries()
    pieces = ResultReader().pieces(entry.results["r0"])
    assert [(piece.tissue_id, piece.positives) for piece in pieces] == [(1, 1), (2, 2), (0, 1)]
    assert pieces[0].bounds_l0 == (0, 0, 50, 100)


def test_a_slide_without_a_mask_has_no_pieces(tmp_path: Path) -> None:
    write_result(tmp_path / "slide", [0.9], view=VIEW)
    assert len((tmp_path / "slide" / "tissue.csv").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "slide" / "tissue.geojson").read_text())["features"] == []
    table = pyarrow.parquet.read_table(tmp_path / "slide" / "patches.parquet")
    assert "tissue_id" not in table.column_names


def test_a_store_keeps_the_piece_of_each_patch_and_one_from_before_has_none(
    tmp_path: Path,
) -> None:
    glass = make_glass()
    new = make_store(tmp_path / "new.patches.zarr", number_tissue(glass))
    old = make_store(tmp_path / "old.patches.zarr", glass)
    tissue_id = PatchStore(new).table.tissue_id
    assert tissue_id is not None
    assert tissue_id.tolist() == [1, 1, 2, 2, 0]
    assert PatchStore(old).table.tissue_id is None
