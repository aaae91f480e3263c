"""Which label file belongs to which slide of a run, by their names."""

from pathlib import Path

import numpy as np
import pytest

from tests.builders import paint, write_png, write_slide
from tests.commands import run
from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels.discovery import match_beside, match_labels
from wsi_pipeline.slides.selection import list_slides


def match(slides: list[str], files: list[str], suffixes: tuple[str, ...] = ()) -> list[str | None]:
    found = match_labels(slides, [Path(name) for name in files], suffixes).files
    return [None if path is None else path.name for path in found]


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["a.geojson", "a.tif.geojson", "a_labels.png", "a_mask.png"], "a.geojson"),
        (["a.tif.geojson", "a_labels.png", "a_mask.png"], "a.tif.geojson"),
        (["a_labels.png", "a_mask.png"], "a_labels.png"),
        (["a_mask.png"], "a_mask.png"),
        (["a-Labels.tif"], "a-Labels.tif"),
        (["a.tif_labels.png"], "a.tif_labels.png"),
        (["a.ndpi.ndpa"], "a.ndpi.ndpa"),
        (["b.geojson"], None),
    ],
)
def test_the_exact_name_comes_first(files: list[str], taken: str | None) -> None:
    assert match(["a"], files) == [taken]


def test_a_file_with_a_suffix_in_its_name_belongs_to_the_slide_of_that_suffix() -> None:
    files = ["a.svs.geojson", "a.ndpi.ndpa"]
    assert match(["a", "a"], files, (".ndpi", ".SVS")) == ["a.ndpi.ndpa", "a.svs.geojson"]


def test_a_name_composed_in_another_way_is_the_same_name() -> None:
    assert match(["Tum\u00f6r"], ["Tumo\u0308r.geojson"]) == ["Tumo\u0308r.geojson"]


def test_the_beginning_of_a_name_is_taken_for_one_slide_only() -> None:
    one = match_labels(["idc_8863_mosaic"], [Path("idc_8863_labels.png")])
    assert one.files == (Path("idc_8863_labels.png"),)
    assert one.notes == (
        "idc_8863_labels.png is taken for idc_8863_mosaic, of whose name it has the beginning",
    )
    two = match_labels(["P1_a", "P1_b"], [Path("P1.geojson")])
    assert two.files == (None, None)
    assert two.notes == (
        "P1.geojson is taken for no slide: the names of 2 begin with its own (P1_a, P1_b)",
    )


def test_the_beginning_of_a_name_is_not_taken_where_a_slide_has_that_name() -> None:
    assert match(["P1", "P1_2"], ["P1.geojson"]) == ["P1.geojson", None]
    assert match(["P1_2", "P1"], ["P1_labels.png"]) == [None, "P1_labels.png"]


def test_the_beginning_of_a_name_is_not_taken_where_the_slide_has_a_file_of_its_own() -> None:
    assert match(["P1_2"], ["P1.geojson", "P1_2_labels.png"]) == ["P1_2_labels.png"]


@pytest.mark.parametrize("name", ["P12", "XP1", "P"])
def test_a_name_begins_at_a_separator(name: str) -> None:
    assert match([name], ["P1.geojson"]) == [None]


def test_two_files_that_carry_a_name_equally_well_are_refused() -> None:
    with pytest.raises(LabelError, match=r"a: both a\.geojson and a\.xml could be its labels"):
        match(["a"], ["a.geojson", "a.xml"])


def test_a_mask_beside_a_slide_may_be_of_tissue(tmp_path: Path) -> None:
    for name in ("a.tif", "a_mask.png"):
        (tmp_path / name).touch()
    slide, mask = tmp_path / "a.tif", tmp_path / "a_mask.png"
    assert match_beside([slide]).files == (mask,)
    assert match_beside([slide], is_mask_taken=False).files == (None,)
    assert match_beside([slide], masks=[mask]).files == (None,)


IMAGES = (
    *("a_labels.png", "a_mask.png", "a-mask.tif", "a.tif_mask.png", "a_Mask.PNG"),
    *("a_label.tiff", "a_masks.jpg", "a_mask.ome.tif", "a.labels.bmp"),
)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("is_named", [False, True])
def test_a_label_image_beside_its_slide_is_no_slide(
    name: str, is_named: bool, tmp_path: Path
) -> None:
    for file in ("a.tif", name):
        (tmp_path / file).touch()
    places = sorted(tmp_path.iterdir()) if is_named else [tmp_path]
    listing = list_slides(places)
    assert [slide.path.name for slide in listing.slides] == ["a.tif"]
    assert listing.images == (tmp_path / name,)


def test_a_label_image_that_has_the_beginning_of_a_name_is_no_slide(tmp_path: Path) -> None:
    for file in ("idc_8863_mosaic.png", "idc_8863_labels.png"):
        (tmp_path / file).touch()
    found = [slide.path.name for slide in list_slides([tmp_path]).slides]
    assert found == ["idc_8863_mosaic.png"]


def test_a_label_image_in_a_folder_of_its_own_is_no_slide(tmp_path: Path) -> None:
    for file in ("slides/a.tif", "masks/a_mask.tif"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    found = [slide.path.name for slide in list_slides([tmp_path], recursive=True).slides]
    assert found == ["a.tif"]


@pytest.mark.parametrize("name", ["b_mask.tif", "amask.tif", "a_mask.svs", "mask.tif"])
def test_a_slide_that_is_only_called_so_stays_a_slide(name: str, tmp_path: Path) -> None:
    for file in ("a.tif", name):
        (tmp_path / file).touch()
    found = {slide.path.name for slide in list_slides([tmp_path]).slides}
    assert found == {"a.tif", name}


def test_a_tissue_mask_beside_its_slide_is_never_its_labels(tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "a.tiff", paint(150, 150), mpp=0.5)
    mask = write_png(tmp_path / "in" / "a_mask.png", np.full((150, 150), 255, np.uint8))
    options = ("--mpp", 0.5, "--workers", 0, "--mask", mask)
    for labels in ((), ("--labels", "auto")):
        result = run(
            "tile", tmp_path / "in", "-o", tmp_path / f"out{len(labels)}", *options, *labels
        )
        assert result.exit_code == 0
        assert "9 patches" in result.stderr
        assert "labelled" not in result.stderr
