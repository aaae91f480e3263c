from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import make_slide_info, write_png
from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions
from wsi_pipeline.labels import label_positions
from wsi_pipeline.labels.discovery import list_label_files, match_beside, match_labels
from wsi_pipeline.labels.label_image import GreyImage, read_mask
from wsi_pipeline.labels.rules import LabelRules, MaskValues

VALUES = MaskValues()
GRID = Grid(PatchSpec(50, 50, 1.0), 2, 2, Fraction(1))


def label(
    path: Path, size: tuple[int, int] = (100, 100), values: MaskValues = VALUES, **options: object
) -> list[int]:
    rules = LabelRules(mask_values=values, **options)  # type: ignore[arg-type]
    labels: list[int] = label_positions(
        path, make_slide_info(size_l0=size, mpp=1.0), GRID, all_positions(GRID), rules
    ).labels.tolist()
    return labels


def test_each_value_is_its_class_and_all_others_are_unknown(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[:50, 50:] = 100
    mask[50:, :50] = 200
    mask[50:, 50:] = 37
    assert label(write_png(tmp_path / "m.png", mask)) == [-1, 0, 1, -1]


def test_half_a_cell_is_enough_and_less_is_not(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[:50, :25] = 200
    mask[:50, 50:74] = 200
    assert label(write_png(tmp_path / "m.png", mask)) == [1, -1, -1, -1]


def test_a_smaller_mask_lies_over_the_whole_slide(tmp_path: Path) -> None:
    mask = np.array([[0, 100], [200, 200]], dtype=np.uint8)
    assert label(write_png(tmp_path / "m.png", mask)) == [-1, 0, 1, 1]


@pytest.mark.parametrize("side", [200, 400])
def test_patches_smaller_than_a_pixel_of_the_mask_take_the_pixel_that_they_lie_in(
    side: int, tmp_path: Path
) -> None:
    mask = np.array(
        [[200, 100], [0, 100]], dtype=np.uint8
    )  # pixels of 100 or 200 px: all four patches of 50 px lie in the first
    assert label(write_png(tmp_path / "m.png", mask), size=(side, side)) == [1, 1, 1, 1]


def test_a_resolution_of_nothing_is_no_scale(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "m.png", dpi=(0, 0))
    assert read_mask(tmp_path / "m.png").mpp is None


def test_what_has_no_mask_is_negative_where_the_rules_say_so(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[:75] = 200
    mask[:75, :25] = 37  # means nothing
    rules = LabelRules(outside="negative", priority="negative")
    path = write_png(tmp_path / "m.png", mask)
    labels = label_positions(
        path, make_slide_info(size_l0=(100, 100), mpp=1.0), GRID, all_positions(GRID), rules
    )
    assert labels.labels.tolist() == [0, 1, 0, 0]
    assert labels.fraction.tolist() == [0.5, 1.0, 0.75, 0.5]
    assert labels.description == {
        "mask_pixels": {"100": 0, "200": 5625},
        "meant_pixels": {"negative": 0, "positive": 5625},
        "other_pixels": {"37": 1875},
    }


def test_the_share_of_a_class_is_its_pixels_over_the_patchs(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[:75] = 200
    path = write_png(tmp_path / "m.png", mask)
    labels = label_positions(
        path, make_slide_info(size_l0=(100, 100), mpp=1.0), GRID, all_positions(GRID), LabelRules()
    )
    assert labels.fraction.tolist() == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize("size", [(100, 120), (120, 100)])
def test_a_mask_with_a_scale_may_end_in_a_pixel_that_begins_on_the_slide(
    size: tuple[int, int], tmp_path: Path
) -> None:
    fits, too_large = (
        write_png(tmp_path / f"{side}.png", np.full((side, side), 200, dtype=np.uint8), mpp=2.0)
        for side in (51, 52)
    )
    assert label(fits, size=size) == [1, 1, 1, 1]
    with pytest.raises(LabelError, match="does not lie over a slide"):
        label(too_large, size=size)


def test_a_mask_of_more_than_two_pixels_per_pixel_of_the_slide_is_refused(tmp_path: Path) -> None:
    fits = write_png(tmp_path / "fits.png", np.full((100, 100), 200, dtype=np.uint8), mpp=0.5)
    assert label(fits, size=(100, 120)) == [1, -1, -1, -1]
    with pytest.raises(
        LabelError, match="an image of 25 × 26 px does not lie over a slide of 100 × 120 px"
    ):
        label(
            write_png(tmp_path / "m.png", np.zeros((26, 25), dtype=np.uint8), mpp=0.4),
            size=(100, 120),
        )


def test_the_height_of_a_mask_may_be_off_by_one_pixel_of_it(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", np.full((10, 10), 200, dtype=np.uint8))
    assert label(path, size=(100, 101)) == label(path, size=(100, 110)) == [1, 1, 1, 1]
    with pytest.raises(LabelError, match="does not lie over a slide"):
        label(path, size=(100, 111))


@pytest.mark.parametrize("mpp", [0.5, 1000 / 1.005])
def test_a_stated_scale_is_read_to_the_last_digit(mpp: float, tmp_path: Path) -> None:
    assert read_mask(
        write_png(tmp_path / "m.png", np.zeros((9, 9), dtype=np.uint8), mpp=mpp)
    ).mpp == pytest.approx(mpp, rel=1e-5)


def test_a_mask_of_a_part_is_registered_by_its_own_scale(tmp_path: Path) -> None:
    mask = np.full(
        (25, 25), 200, dtype=np.uint8
    )  # 2 µm/px over a slide of 1 µm/px: its top left quarter
    assert label(write_png(tmp_path / "m.png", mask, mpp=2.0), size=(100, 120)) == [1, -1, -1, -1]


def test_an_ome_tiff_states_its_scale(tmp_path: Path) -> None:
    import tifffile

    metadata = {
        "axes": "YX",
        "PhysicalSizeX": 2.0,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 2.0,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(
        tmp_path / "m.ome.tif", np.full((25, 25), 100, dtype=np.uint8), ome=True, metadata=metadata
    )
    assert label(tmp_path / "m.ome.tif", size=(100, 120)) == [0, -1, -1, -1]


def test_other_values_may_be_named(tmp_path: Path) -> None:
    mask = np.array([[1, 2], [0, 200]], dtype=np.uint8)
    assert label(write_png(tmp_path / "m.png", mask), values=MaskValues(1, 2)) == [0, 1, -1, -1]


def test_palette_images_are_read_by_index(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[100, 200]], dtype=np.uint8)).convert("L")
    image.putpalette([0] * 768)
    image.save(tmp_path / "p.png")
    mask = read_mask(tmp_path / "p.png")
    assert isinstance(mask, GreyImage)
    assert mask.values.tolist() == [[100, 200]]


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="does not lie over a slide of 100 × 100 px"):
        label(write_png(tmp_path / "m.png", np.zeros((50, 80), dtype=np.uint8)))


def test_a_mask_larger_than_the_slide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="does not lie over"):
        label(write_png(tmp_path / "m.png", np.zeros((200, 200), dtype=np.uint8)))


def test_a_colour_image_is_no_mask_of_tissue(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="8-bit grey"):
        read_mask(write_png(tmp_path / "c.png", np.zeros((9, 9, 3), dtype=np.uint8)))


def test_a_text_file_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_text("no image")
    with pytest.raises(LabelError, match="not a readable label image"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("negative", "positive"), [(100, 100), (-1, 5), (5, -1), (256, 5), (5, 256)]
)
def test_two_classes_need_two_values_of_a_byte(negative: int, positive: int) -> None:
    with pytest.raises(
        ConfigError, match=f"mask values {negative} and {positive} are not two different values"
    ):
        MaskValues(negative, positive)


@pytest.mark.parametrize(("negative", "positive"), [(0, 255), (255, 0)])
def test_every_byte_may_mean_a_class(negative: int, positive: int, tmp_path: Path) -> None:
    mask = np.array([[negative, positive], [1, 254]], dtype=np.uint8)
    assert label(write_png(tmp_path / "m.png", mask), values=MaskValues(negative, positive)) == [
        0,
        1,
        -1,
        -1,
    ]


def match(slide: str, *files: str) -> Path | None:
    return match_labels([slide], [Path(name) for name in files]).files[0]


def test_masks_are_matched_by_the_beginning_of_a_name() -> None:
    masks = ("idc_8863_labels.png", "idc_8865_labels.png", "a_labels.png", "a_b_labels.png")
    assert match("idc_8863_mosaic", *masks) == Path(masks[0])
    assert match("idc_8865", *masks) == Path(masks[1])
    assert match("a_b_c", *masks) == Path(masks[3])
    assert match("a_c", *masks) == Path(masks[2])
    assert match("idc_88639", *masks) is None
    assert match("ab", *masks) is None
    assert match("_x", "_labels.png") is None


def test_two_masks_for_one_slide_are_refused() -> None:
    with pytest.raises(
        LabelError, match=r"a: both x/a_labels.png and y/a_labels.tif could be its labels"
    ):
        match("a", "x/a_labels.png", "y/a_labels.tif")


def test_a_folder_gives_its_label_images_only(tmp_path: Path) -> None:
    for name in ("a_labels.png", "b.png", "c_labels.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_label_files([tmp_path])] == ["a_labels.png"]


@pytest.mark.parametrize(
    "name", ["a.geojson", "a_labels.png"]
)  # before and after the slide in the alphabet
def test_a_label_file_lies_beside_its_slide(name: str, tmp_path: Path) -> None:
    for other in ("a.svs", "a.txt", "b.svs", name):
        (tmp_path / other).touch()
    matches = match_beside([tmp_path / "a.svs", tmp_path / "b.svs"])
    assert matches.files == (tmp_path / name, None)


def test_a_slide_is_not_its_own_label_file(tmp_path: Path) -> None:
    (tmp_path / "a_labels.tif").touch()
    assert match_beside([tmp_path / "a_labels.tif"]).files == (None,)


def test_label_files_that_are_named_are_taken_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("b.png", "a.txt"):
        (tmp_path / name).touch()
    assert list_label_files([tmp_path / "b.png", tmp_path / "a.txt"]) == [
        tmp_path / "b.png",
        tmp_path / "a.txt",
    ]
    with pytest.raises(LabelError, match=r"c\.png: no such file or folder"):
        list_label_files([tmp_path / "c.png"])


def test_a_folder_without_masks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="name the label files"):
        list_label_files([tmp_path])
