"""`wsi infer` where the user points: masks of every format, scales, readers, tissue, and flags."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders import make_checkpoint, paint, tissue, write_model, write_png, write_slide
from tests.commands import PLAIN, run
from wsi_pipeline.store.predictions import Predictions
from wsi_pipeline.store.slide_results import open_result

QUICK = (*PLAIN, "--outputs", "summary", "--workers", 0)
ASAP = """<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="None">
<Coordinates><Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="200" Y="0"/>
<Coordinate Order="2" X="200" Y="100"/><Coordinate Order="3" X="0" Y="100"/></Coordinates>
</Annotation></Annotations></ASAP_Annotations>"""


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """600 × 400 px of tissue at 0.5 µm/px: 8 rows and 12 columns of patches."""
    return write_slide(tmp_path / "slides" / "one.tiff", tissue(600, 400))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.safetensors", make_checkpoint())


def infer(slides: Path, model: Path, out: Path, *options: object) -> Predictions:
    done = run("infer", slides, "--model", model, "--out", out, *QUICK, *options)
    assert done.exit_code == 0, done.output
    return open_result(out / "one")


def draw(path: Path, corners: list[list[int]]) -> Path:
    """A polygon as QuPath GeoJSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    feature = {"type": "Feature", "geometry": shape, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def cells(predictions: Predictions) -> set[tuple[int, int]]:
    return {(int(row), int(col)) for row, col in predictions.table.positions}


def logits(predictions: Predictions) -> dict[tuple[int, int], bytes]:
    pairs = zip(predictions.table.positions, predictions.logit, strict=True)
    return {(int(row), int(col)): logit.tobytes() for (row, col), logit in pairs}


def write_image(folder: Path) -> Path:
    """A mask of a tenth of the slide's size: 200 × 100 px at the top left are tissue."""
    mask: NDArray[np.uint8] = np.zeros((40, 60), dtype=np.uint8)
    mask[:10, :20] = 255
    return write_png(folder / "one_mask.png", mask)


def write_asap(folder: Path) -> Path:
    folder.mkdir()
    (folder / "one.xml").write_text(ASAP)
    return folder / "one.xml"


def write_geojson(folder: Path) -> Path:
    return draw(folder / "one.geojson", [[0, 0], [200, 0], [200, 100], [0, 100]])


@pytest.mark.parametrize("write", [write_image, write_asap, write_geojson])
def test_only_what_lies_in_the_mask_is_predicted(
    write: Any, slide: Path, model: Path, tmp_path: Path
) -> None:
    write(tmp_path / "masks")
    found = infer(slide, model, tmp_path / "out", "--mask", tmp_path / "masks")
    assert cells(found) == {(row, col) for row in range(2) for col in range(4)}


def test_raw_probabilities_are_the_same_bytes_with_and_without_a_mask(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "masks" / "one.geojson", [[120, 60], [590, 80], [480, 390], [130, 340]])
    whole = logits(infer(slide, model, tmp_path / "whole"))
    part = logits(infer(slide, model, tmp_path / "part", "--mask", tmp_path / "masks"))
    assert 0 < len(part) < len(whole) == 96
    assert all(whole[cell] == value for cell, value in part.items())


def test_the_sheet_names_the_mask_of_each_slide(slide: Path, model: Path, tmp_path: Path) -> None:
    draw(tmp_path / "drawn" / "roi 7.geojson", [[0, 0], [50, 0], [50, 50], [0, 50]])
    (tmp_path / "sheet.csv").write_text("wsi,mask\nslides/one.tiff,drawn/roi 7.geojson\n")
    words = ("--sheet", tmp_path / "sheet.csv", "--model", model, "--out", tmp_path / "out", *QUICK)
    assert run("infer", *words).exit_code == 0
    assert cells(open_result(tmp_path / "out" / "one")) == {(0, 0)}


def test_kept_patches_are_those_of_the_mask(slide: Path, model: Path, tmp_path: Path) -> None:
    from wsi_pipeline.store.patches import PatchStore

    write_geojson(tmp_path / "masks")
    kept = ("--mask", tmp_path / "masks", "--keep-patches", tmp_path / "stores")
    infer(slide, model, tmp_path / "out", *kept)
    store = PatchStore(tmp_path / "stores" / "one.patches.zarr")
    assert (store.table.patches, store.attributes["tissue"]["mask"]) == (8, "one.geojson")


def refusal(slide: Path, model: Path, tmp_path: Path, *options: object) -> str:
    words = ("--model", model, "--out", tmp_path / "out", *QUICK, *options)
    done = run("infer", slide, *words)
    assert done.exit_code != 0
    return " ".join(done.output.split())


def test_a_mask_of_another_shape_is_refused_by_name(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    write_png(tmp_path / "masks" / "one.png", np.full((40, 40), 255, dtype=np.uint8))
    said = refusal(slide, model, tmp_path, "--mask", tmp_path / "masks")
    assert "one.png: " in said
    assert "does not lie over a slide of 600 × 400 px" in said


def test_regions_beyond_the_slide_are_refused_by_name(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "masks" / "one.geojson", [[900, 900], [950, 900], [950, 950], [900, 950]])
    said = refusal(slide, model, tmp_path, "--mask", tmp_path / "masks")
    assert "one.geojson: 1 of 1 regions lie beyond the slide of 600 × 400 px" in said


def test_a_mask_named_after_another_slide_is_refused(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "masks" / "two.geojson", [[0, 0], [50, 0], [50, 50], [0, 50]])
    said = refusal(slide, model, tmp_path, "--mask", tmp_path / "masks")
    assert "no mask of that name" in said


def test_stores_take_no_mask(slide: Path, model: Path, tmp_path: Path) -> None:
    write_geojson(tmp_path / "masks")
    stores = tmp_path / "stores"
    assert run("tile", slide, "--out", stores, "--mpp", 0.5, "--workers", 0).exit_code == 0
    words = ("--model", model, "--out", tmp_path / "out", *QUICK, "--mask", tmp_path / "masks")
    done = run("infer", "--stores", stores, *words)
    assert "these are patch stores; leave --mask out" in " ".join(done.output.split())


def test_another_mask_is_another_result(slide: Path, model: Path, tmp_path: Path) -> None:
    write_geojson(tmp_path / "masks")
    infer(slide, model, tmp_path / "out", "--mask", tmp_path / "masks")
    assert "--force" in refusal(slide, model, tmp_path)


def test_a_table_of_scales_is_taken(slide: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\none.tiff,0.25\n")
    found = infer(slide, model, tmp_path / "out", "--mpp-csv", tmp_path / "mpp.csv")
    # 600 × 400 px of 0.25 µm are 300 × 200 px of 0.5 µm.
    assert (found.table.grid.rows, found.table.grid.cols) == (4, 6)


def test_folders_within_folders_are_found_where_that_is_asked_for(
    model: Path, tmp_path: Path
) -> None:
    write_slide(tmp_path / "slides" / "deep" / "one.tiff", tissue(150, 100))
    found = infer(tmp_path / "slides", model, tmp_path / "out", "--recursive")
    assert found.table.patches == 6


def test_flagged_patches_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    pixels = paint(600, 400)
    pixels[:, :100] = (30, 60, 200)  # blue ink over the first two columns
    slide = write_slide(tmp_path / "slides" / "one.tiff", pixels, mpp=4.0)
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(mpp=4.0))
    words = ("--tissue", "otsu", "--min-tissue", 0)
    whole = cells(infer(slide, model, tmp_path / "whole", *words))
    left = cells(infer(slide, model, tmp_path / "left", *words, "--drop", "pen"))
    assert whole - left == {(row, col) for row in range(8) for col in range(2)}


def test_the_reader_is_chosen(slide: Path, model: Path, tmp_path: Path) -> None:
    one = logits(infer(slide, model, tmp_path / "one", "--reader", "openslide"))
    two = logits(infer(slide, model, tmp_path / "two", "--reader", "tiff"))
    assert one == two


def test_results_say_that_nothing_else_was_assessed(
    slide: Path, model: Path, tmp_path: Path
) -> None:
    write_geojson(tmp_path / "masks")
    words = ("--model", model, "--out", tmp_path / "out", *QUICK, "--mask", tmp_path / "masks")
    done = run("infer", slide, *words)
    assert "only inside one.geojson was assessed" in " ".join(done.output.split())
    summary = json.loads((tmp_path / "out" / "one" / "summary.json").read_text())
    # 8 patches of 25 µm; the other 88 of the 96 positions are not assessed.
    assert (summary["mask"], summary["patches"]) == ("one.geojson", 8)
    assert summary["assessed_mm2"] == pytest.approx(0.005)
    assert summary["unassessed_fraction"] == pytest.approx(88 / 96)
