"""What the values and colours of label images mean, and images too large to be held at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.builders import write_png
from tests.labels.grids import (
    GRID,
    NAMES,
    TOP_LEFT,
    find_positive,
    label_all,
    slide_at,
)
from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.core.geometry import all_positions
from wsi_pipeline.labels import describe_labels, label_image, label_patches
from wsi_pipeline.labels.label_image import read_label_image
from wsi_pipeline.labels.rules import LabelRules, MaskValues

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def paint_square(inside: Any, outside: Any = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    """Values (200, 200) or colours (200, 200, 3): `inside` over four patches at the top left."""
    pixels = np.empty((200, 200, *np.shape(inside)), dtype)
    pixels[:], pixels[:100, :100] = outside, inside
    return pixels


def write_palette(path: Path, indices: NDArray[np.uint8], *colours: tuple[int, int, int]) -> Path:
    image = Image.fromarray(indices).convert("L")
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(path)
    return path


def describe(path: Path, **rules: object) -> str:
    chosen = LabelRules(**{"class_names": NAMES} | rules)  # type: ignore[arg-type]
    labels = label_patches(path, slide_at(path), GRID, all_positions(GRID), chosen)
    return describe_labels(labels.description)


@pytest.mark.parametrize("outside", ["unknown", "negative"])
@pytest.mark.parametrize(("value", "shown"), [(1, "0, 1:"), (255, "0, 255:"), (37, "0, 37:")])
def test_an_image_without_a_value_that_means_something_is_refused(
    value: int, shown: str, outside: str, tmp_path: Path
) -> None:
    path = write_png(tmp_path / "m.png", paint_square(value))
    fault = rf"no pixel has a value that means something \(100 and 200\); its values are {shown}"
    with pytest.raises(LabelError, match=fault):
        label_all(path, outside=outside)


def test_a_background_that_means_a_class_does_not_hide_that_the_other_value_is_missing(
    tmp_path: Path,
) -> None:
    path = write_png(tmp_path / "m.png", paint_square(1))
    with pytest.raises(LabelError, match="its values are 0, 1"):
        label_all(path, mask_values=MaskValues(0, 255))
    assert find_positive(path, mask_values=MaskValues(0, 1)) == TOP_LEFT


@pytest.mark.parametrize("outside", ["unknown", "negative"])
def test_an_image_of_zeros_is_nothing_drawn(outside: str, tmp_path: Path) -> None:
    path = write_png(tmp_path / "m_labels.png", np.zeros((200, 200), np.uint8))
    assert find_positive(path, outside=outside) == []
    assert describe(path, outside=outside) == "m_labels.png: nothing drawn"


def test_pixels_are_told_by_meaning_and_those_without_one_by_value(tmp_path: Path) -> None:
    pixels = paint_square(200, outside=100)
    pixels[199] = 37
    path = write_png(tmp_path / "m.png", pixels)
    assert describe(path) == (
        "m.png: 10,000 px tumour, 29,800 px benign; 200 px of 37 mean nothing"
    )


def test_the_record_of_an_earlier_version_is_told_by_value() -> None:
    record = {"file": "m.png", "mask_pixels": {"100": 12, "200": 3400}}
    assert describe_labels(record) == "m.png: 12 px of 100, 3,400 px of 200"


@pytest.mark.parametrize("key", ["1", " 1", "#010101", "1,1,1", "1, 1, 1"])
def test_the_label_map_names_values(key: str, tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", paint_square(1))
    assert find_positive(path, meanings={key: "tumour"}) == TOP_LEFT


def test_values_of_the_label_map_take_the_place_of_the_two_values(tmp_path: Path) -> None:
    pixels = paint_square(3, outside=4)
    pixels[150:, 150:] = 200
    path = write_png(tmp_path / "m.png", pixels)
    labels = label_all(path, meanings={"3": "tumour", "4": "benign", "Stroma": "ignore"}).labels
    assert labels.reshape(4, 4).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, -1],
    ]


def test_a_value_of_two_meanings_is_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", paint_square(255))
    with pytest.raises(ConfigError, match="255 and #ffffff are one value of a label image"):
        label_all(path, meanings={"255": "tumour", "#ffffff": "benign"})
    assert find_positive(path, meanings={"255": "tumour", "#ffffff": "tumour"}) == TOP_LEFT


def test_several_values_may_mean_one_class_and_one_a_hole(tmp_path: Path) -> None:
    pixels = paint_square(3)
    pixels[:50, 50:100], pixels[150:, 150:] = 4, 5
    path = write_png(tmp_path / "m.png", pixels)
    meanings = {"3": "tumour", "4": "tumour", "5": "hole"}
    labels = label_all(path, meanings=meanings, outside="negative").labels
    assert labels.reshape(4, 4).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, -1],
    ]
    assert describe(path, meanings=meanings) == ("m.png: 10,000 px tumour, 2,500 px cut out")


@pytest.mark.parametrize("key", ["#ff0000", "#FF0000", "255,0,0"])
def test_a_colour_image_is_read_by_the_label_map(key: str, tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", paint_square(RED, outside=GREEN))
    labels = label_all(path, meanings={key: "tumour", "0, 255, 0": "benign"}).labels
    assert labels.reshape(4, 4)[0].tolist() == [1, 1, 0, 0]


def test_a_colour_image_without_a_known_colour_is_refused_with_its_colours(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", paint_square(RED, outside=BLUE))
    with pytest.raises(LabelError, match="its values are #0000ff, #ff0000: say what they mean"):
        label_all(path, outside="negative")


def test_a_grey_image_saved_in_colours_is_read_as_grey(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", paint_square((200, 200, 200)))
    assert find_positive(path) == TOP_LEFT
    assert find_positive(path, meanings={"200": "tumour"}) == TOP_LEFT


def test_what_is_transparent_is_not_drawn(tmp_path: Path) -> None:
    pixels = paint_square((255, 0, 0, 255), outside=(255, 0, 0, 0))
    path = write_png(tmp_path / "m.png", pixels)
    assert find_positive(path, meanings={"#ff0000": "tumour"}) == TOP_LEFT


@pytest.mark.parametrize("key", ["2", "#ff0000"])
def test_a_palette_image_is_read_by_number_and_by_colour(key: str, tmp_path: Path) -> None:
    path = write_palette(tmp_path / "m.png", paint_square(2), (0, 0, 0), GREEN, RED)
    assert find_positive(path, meanings={key: "tumour"}) == TOP_LEFT


def test_a_palette_image_without_a_known_value_is_refused_with_its_colours(tmp_path: Path) -> None:
    path = write_palette(tmp_path / "m.png", paint_square(2), (0, 0, 0), GREEN, RED)
    with pytest.raises(LabelError, match=r"its values are 0 \(#000000\), 2 \(#ff0000\)"):
        label_all(path)


def test_an_image_of_16_bits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(paint_square(300, dtype=np.uint16)).save(path)
    assert find_positive(path, meanings={"300": "tumour"}) == TOP_LEFT


def test_an_image_of_two_values_has_0_and_255(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(paint_square(255)).convert("1").save(path)
    with pytest.raises(LabelError, match="its values are 0, 255"):
        label_all(path)
    assert find_positive(path, mask_values=MaskValues(100, 255)) == TOP_LEFT


@pytest.mark.parametrize("mode", ["F", "CMYK"])
def test_an_image_of_another_kind_is_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    Image.new(mode, (200, 200)).save(path)
    with pytest.raises(LabelError, match=f"holds a value or a colour per pixel, this has '{mode}'"):
        label_all(path)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 200 × 200 px were too many to be held at once."""
    monkeypatch.setattr(label_image, "MAX_PIXELS", 30_000)


TIFFS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 48)},
    "compressed tiles": {"tile": (64, 64), "compression": "deflate"},
    "LZW strips": {"rowsperstrip": 7, "compression": "lzw"},
    "white is 0": {"tile": (64, 64), "photometric": "miniswhite"},
    "BigTIFF": {"tile": (64, 64), "bigtiff": True},
}


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("case", TIFFS)
def test_a_large_tiff_is_read_by_rows_of_tiles(case: str, tmp_path: Path) -> None:
    pixels = paint_square(200, outside=100)
    pixels[199] = 37
    stored = 255 - pixels if case == "white is 0" else pixels
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, stored, **TIFFS[case])
    assert find_positive(path) == TOP_LEFT
    assert describe(path) == (
        "m.tif: 10,000 px tumour, 29,800 px benign; 200 px of 37 mean nothing"
    )


@pytest.mark.usefixtures("small_limit")
def test_a_large_tiff_of_colours_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    pixels = paint_square(RED, outside=BLUE)
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb")
    assert find_positive(path, meanings={"#ff0000": "tumour"}) == TOP_LEFT


@pytest.mark.usefixtures("small_limit")
def test_a_large_tiff_with_a_palette_is_read(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 2] = 0xFFFF, 0, 0
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, paint_square(2), tile=(32, 32), photometric="palette", colormap=colours)
    assert find_positive(path, meanings={"#ff0000": "tumour"}) == TOP_LEFT


@pytest.mark.usefixtures("small_limit")
def test_a_large_tiff_states_its_scale(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    tifffile.imwrite(
        path, paint_square(200), tile=(32, 32), resolution=(20_000, 20_000), resolutionunit=3
    )
    assert read_label_image(path).mpp == pytest.approx(0.5)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_large_image_without_tiles_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    Image.fromarray(paint_square(200)).save(tmp_path / name, tiffinfo={278: 200})
    with pytest.raises(LabelError, match="too large for a label image; reduce it, or save it as a"):
        label_all(tmp_path / name)


@pytest.mark.usefixtures("small_limit")
def test_a_damaged_large_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, paint_square(200), tile=(64, 64), compression="deflate")
    with tifffile.TiffFile(path) as file:
        offset, size = (file.pages.first.dataoffsets[3], file.pages.first.databytecounts[3])
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(LabelError, match="not a readable label image"):
        label_all(path)


def test_shares_do_not_depend_on_bands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).choice([0, 100, 200], (200, 200)).astype(np.uint8)
    path = write_png(tmp_path / "m.png", noise)
    whole = label_all(path)
    monkeypatch.setattr(label_image, "BAND_PIXELS", 1)
    monkeypatch.setattr("wsi_pipeline.labels.mask.COLUMNS_AT_ONCE", 7)
    narrow = label_all(path)
    assert narrow.fraction.tolist() == whole.fraction.tolist()
    by_hand = (noise[:50, :50] == 200).mean(), (noise[:50, :50] == 100).mean()
    assert whole.fraction[0] == pytest.approx(max(by_hand))
