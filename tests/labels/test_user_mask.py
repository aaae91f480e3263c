"""Tissue by the user's word: masks found, matched and laid over a slide."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.builders import make_slide_info, write_png
from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.labels import label_image
from wsi_pipeline.labels.tissue_mask import TissueMask, list_masks, match_mask

SLIDE = replace(make_slide_info(size_l0=(120, 6200)), bounds_l0=(100, 200, 20, 6000))


def write_box(path: Path, left: float, top: float, right: float, bottom: float) -> Path:
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {},
    }
    path.write_text(json.dumps(feature))
    return path


def write_classes(path: Path, **boxes: tuple[float, float, float, float]) -> Path:
    """Boxes (left, top, right, bottom) of classes; `Ignore` stands for `Ignore*`."""
    features = []
    for name, box in boxes.items():
        feature = json.loads(write_box(path, *box).read_text())
        feature["properties"] = {"classification": {"name": name.replace("Ignore", "Ignore*")}}
        features.append(feature)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def thumbnail(rows: int, cols: int, downsample: int, origin: tuple[int, int] = (0, 0)) -> Thumbnail:
    return Thumbnail(np.zeros((rows, cols, 3), dtype=np.uint8), Fraction(downsample), origin)


def test_a_folder_gives_its_masks_in_order_and_a_file_itself(tmp_path: Path) -> None:
    for name in ("c.txt", "b.TIF", "a.png", "d.geojson"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_masks(tmp_path)] == ["a.png", "b.TIF", "d.geojson"]
    assert list_masks(tmp_path / "c.txt") == [tmp_path / "c.txt"]


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(LabelError, match="no masks; give a folder"):
        list_masks(tmp_path)


@pytest.mark.parametrize("name", ["one.png", "one_mask.png", "one.mask.png", "one-mask.tif"])
def test_a_mask_is_called_like_its_slide_with_or_without_the_word(name: str) -> None:
    assert match_mask("one", [Path("two.png"), Path(name), Path("one_masks.png")]) == Path(name)


def test_no_mask_and_several_are_refused() -> None:
    with pytest.raises(LabelError, match="one: no mask of that name"):
        match_mask("one", [Path("two.png")])
    with pytest.raises(LabelError, match=r"one: several masks \(one.png, one_mask.tif\)"):
        match_mask("one", [Path("one.png"), Path("one_mask.tif")])


def test_drawn_shares_and_pixels_by_hand_beyond_the_first_256_rows(tmp_path: Path) -> None:
    # QuPath counts from the scanned area, which begins at (100, 200): rows 255 to 257 of the first
    # column.
    tissue = TissueMask(write_box(tmp_path / "a.geojson", 0, 2551, 10, 2574), SLIDE)
    fraction = tissue.fraction(Grid(PatchSpec(10, 10, 0.5), 600, 2, Fraction(1), (100, 200)))
    assert fraction.shape == (600, 2)
    assert fraction[254:259, 0].tolist() == pytest.approx([0, 0.9, 1, 0.4, 0])
    assert fraction.sum() == pytest.approx(2.3)
    mask = tissue.mask_thumbnail(thumbnail(600, 2, downsample=10, origin=(100, 200)))
    assert np.argwhere(mask).tolist() == [
        [255, 0],
        [256, 0],
    ]  # centres at 2555 and 2565; that of row 257 is 2575


def test_drawn_shares_begin_with_the_first_row(tmp_path: Path) -> None:
    tissue = TissueMask(write_box(tmp_path / "a.geojson", 0, 0, 10, 15), SLIDE)
    assert tissue.fraction(
        Grid(PatchSpec(10, 10, 0.5), 2, 2, Fraction(1), (100, 200))
    ).tolist() == [[1, 0], [0.5, 0]]


@pytest.mark.parametrize(
    "box", [(20.5, 0, 40, 10), (-105, 0, -100.5, 10), (0, -205, 10, -200.5), (0, 6000.5, 10, 6010)]
)
def test_a_drawn_mask_beside_the_slide_is_refused(
    box: tuple[float, float, float, float], tmp_path: Path
) -> None:
    with pytest.raises(LabelError, match="1 of 1 regions lie beyond the slide of 120 × 6200 px"):
        TissueMask(write_box(tmp_path / "a.geojson", *box), SLIDE)


@pytest.mark.parametrize(
    "box", [(19.5, 0, 40, 10), (-105, 0, -99.5, 10), (0, -205, 10, -199.5), (0, 5999.5, 10, 6010)]
)
def test_a_drawn_mask_that_begins_on_the_slide_is_taken(
    box: tuple[float, float, float, float], tmp_path: Path
) -> None:
    assert TissueMask(write_box(tmp_path / "a.geojson", *box), SLIDE).thumbnail is None


def test_a_picture_is_tissue_where_it_is_not_black(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.array([[0, 255], [1, 0]], dtype=np.uint8))
    tissue = TissueMask(path, make_slide_info(size_l0=(100, 100)))
    assert tissue.thumbnail is not None
    assert (tissue.thumbnail.downsample, tissue.thumbnail.origin_xy_l0) == (Fraction(50), (0, 0))
    assert tissue.mask_thumbnail(thumbnail(4, 4, downsample=25)).astype(int).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]


def test_there_is_no_tissue_beyond_a_picture_of_a_part(tmp_path: Path) -> None:
    path = write_png(
        tmp_path / "a.png", np.full((25, 25), 255, dtype=np.uint8), mpp=2.0
    )  # the first 50 px of a slide of 1 µm/px
    tissue = TissueMask(path, make_slide_info(size_l0=(100, 120), mpp=1.0))
    mask = tissue.mask_thumbnail(thumbnail(5, 4, downsample=25))
    assert np.argwhere(mask).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("layout", [{"tile": (32, 48)}, {"rowsperstrip": 7}])
def test_a_mask_too_large_to_be_held_at_once_is_read_by_tiles(
    layout: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((200, 200), dtype=np.uint8)
    pixels[:50, :50], pixels[100:125, 150:] = 255, 1
    slide = make_slide_info(size_l0=(400, 400))
    grid = Grid(PatchSpec(100, 100, 0.5), 4, 4, Fraction(1), (0, 0))
    tifffile.imwrite(tmp_path / "m.tif", pixels, compression="deflate", **layout)
    held = TissueMask(tmp_path / "m.tif", slide)
    monkeypatch.setattr(label_image, "MAX_PIXELS", 30_000)
    large = TissueMask(tmp_path / "m.tif", slide)
    assert (held.thumbnail is None, large.thumbnail is None) == (False, True)
    fraction = large.fraction(grid)
    assert (fraction[0, 0], fraction[2, 3], fraction.sum()) == (1, 0.5, 1.5)
    place = thumbnail(20, 20, downsample=20)
    assert np.array_equal(large.mask_thumbnail(place), held.mask_thumbnail(place))
    assert large.mask_thumbnail(place).sum() == 25 + 2 * 5  # rows at 210 and 230, of 200 to 250


def test_a_large_mask_of_colours_is_refused_as_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_image, "MAX_PIXELS", 30_000)
    pixels = np.zeros((200, 200, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", pixels, tile=(32, 32), photometric="rgb")
    with pytest.raises(LabelError, match="one 8-bit value per pixel, this has 'RGB'"):
        TissueMask(tmp_path / "m.tif", make_slide_info(size_l0=(400, 400)))


def test_regions_to_ignore_are_cut_out_of_the_mask(tmp_path: Path) -> None:
    boxes = {"Tumor": (0, 0, 100, 100), "Stroma": (0, 100, 100, 200), "Ignore": (0, 50, 100, 150)}
    file = write_classes(tmp_path / "one.geojson", **boxes)
    slide = make_slide_info(size_l0=(100, 200))
    shares = TissueMask(file, slide).fraction(Grid(PatchSpec(50, 50, slide.mpp), 4, 2, Fraction(1)))
    assert shares.tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]


def test_a_mask_of_regions_to_ignore_alone_is_refused(tmp_path: Path) -> None:
    file = write_classes(tmp_path / "one.geojson", Ignore=(0, 0, 100, 100))
    with pytest.raises(LabelError, match=r"all its regions are Ignore\*; draw where to look"):
        TissueMask(file, make_slide_info(size_l0=(100, 200)))
