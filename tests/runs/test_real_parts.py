"""Parts of a real slide by the model in the box: a mask, an estimate, and areas that are drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.builders import folder_bytes
from tests.commands import run
from wsi_pipeline.store.predictions import Predictions
from wsi_pipeline.store.slide_results import open_result

pytestmark = pytest.mark.system

NAME = "idc_8863_mosaic"
REACH = 4
"""Patches: the context of the model `idc` is one patch, and ends at four."""
LEFT = 1400
"""Level-0 pixels; the mask is what lies to the left of them, 28 patches of 50 px."""


@pytest.fixture(scope="module")
def slide(shared_data: Path) -> Path:
    return shared_data / "slides" / f"{NAME}.tiff"


@pytest.fixture(scope="module")
def whole(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the whole slide."""
    out = tmp_path_factory.mktemp("whole") / "results"
    infer(slide, out)
    return out


def infer(slide: Path, out: Path, *options: object) -> Predictions:
    words = ("--model", "idc", "--out", out, "--outputs", "summary", "--workers", 0)
    done = run("infer", slide, *words, *options)
    assert done.exit_code == 0, done.output
    return open_result(out / NAME)


def draw_left(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = [[0, 0], [LEFT, 0], [LEFT, 2335], [0, 2335], [0, 0]]
    shape = {"type": "Polygon", "coordinates": [corners]}
    feature = {"type": "Feature", "geometry": shape, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_a_mask_changes_no_raw_probability_and_final_ones_only_near_its_edge(
    slide: Path, whole: Path, tmp_path: Path
) -> None:
    draw_left(tmp_path / "masks" / f"{NAME}.geojson")
    part = infer(slide, tmp_path / "out", "--mask", tmp_path / "masks", "--min-tissue", 0.5)
    all_of_it = open_result(whole / NAME)
    shape = (all_of_it.table.grid.rows, all_of_it.table.grid.cols)
    raw, final = (np.full((2, *shape), np.nan, dtype=np.float32) for _ in range(2))
    for layer, found in enumerate((all_of_it, part)):
        place = tuple(found.table.positions.T)
        raw[layer][place], final[layer][place] = found.alone, found.probability
    both = ~np.isnan(raw).any(axis=0)
    assert both.sum() > 200
    assert raw[0][both].tobytes() == raw[1][both].tobytes()
    # What the mask adds beyond the tissue is another neighbourhood, too.
    other = np.isnan(raw[0]) != np.isnan(raw[1])
    rows, cols = np.nonzero(both)
    near = np.array(
        [
            other[max(0, r - REACH) : r + REACH + 1, max(0, c - REACH) : c + REACH + 1].any()
            for r, c in zip(rows, cols, strict=True)
        ]
    )
    is_same = final[0][both] == final[1][both]
    assert near.sum() > 0
    assert is_same[~near].all()


def test_the_whole_slide_goes_on_from_an_estimate(slide: Path, whole: Path, tmp_path: Path) -> None:
    out, predicted = tmp_path / "out", []
    for options in (("--sample", 5), ()):
        infer(slide, out, *options)
        predicted.append(json.loads((out / "run.json").read_text())["patches_predicted"])
    assert 5 <= predicted[0] < 950
    assert sum(predicted) == 950
    assert folder_bytes(out / NAME) == folder_bytes(whole / NAME)


def test_areas_join_the_tissue_of_a_real_slide(slide: Path, whole: Path, tmp_path: Path) -> None:
    before = open_result(whole / NAME)
    draw_left(tmp_path / "out" / "drawn" / f"{NAME}.geojson")
    after = infer(slide, tmp_path / "out")
    known = dict(zip(map(tuple, after.table.positions.tolist()), after.logit, strict=True))
    places = map(tuple, before.table.positions.tolist())
    assert all(known[p].tobytes() == x.tobytes() for p, x in zip(places, before.logit, strict=True))
    left = {(row, col) for row in range(46) for col in range(28)}
    assert left <= known.keys()
