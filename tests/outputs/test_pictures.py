"""Maps and their texts: every pixel in its place, every name readable, the scale beside them."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import make_table, paint
from tests.outputs.test_outputs import CASES, PICTURES, make_result
from wsi_pipeline.core.choices import COLORMAPS, EVERYTHING, POSITIVE_ONLY
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.outputs.canvas import (
    SMALL,
    ColorBar,
    Key,
    compose,
    cover,
    find_scale_bar,
    list_marks,
    list_ticks,
    show_thumbnail,
)
from wsi_pipeline.outputs.colormaps import FAINTEST, colour_table, opacity_table
from wsi_pipeline.outputs.lettering import (
    MAX_LINES,
    Face,
    load_font,
    measure_text,
    set_text,
    spell,
    wrap_text,
)
from wsi_pipeline.outputs.map_image import (
    Frame,
    find_borders,
    frame_slide,
    number_colours,
    place_on_image,
)
from wsi_pipeline.outputs.previews import COLORS, write_label_preview
from wsi_pipeline.store.slide_results import open_result

FACE = Face(15)
NAN = float("nan")


def with_thumbnail(
    table: PatchTable, size_px: tuple[int, int], downsample: int, origin: tuple[int, int] = (0, 0)
) -> PatchTable:
    return replace(table, thumbnail=Thumbnail(paint(*size_px), Fraction(downsample), origin))


@pytest.mark.parametrize("name", COLORMAPS[3:-1])
def test_colormaps_are_the_published_ones(name: str) -> None:
    from matplotlib import colormaps

    published = colormaps[name](np.arange(256), bytes=True)[:, :3]
    assert np.array_equal(colour_table(name), published)


def test_turbo_is_within_four_levels_of_the_published_one() -> None:
    from matplotlib import colormaps

    published = colormaps["turbo"](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(colour_table("turbo") - published).max() <= 4


def test_orange_red_darkens_all_the_way() -> None:
    """Lightness alone tells its colours apart, as with every kind of colour blindness."""
    luma = colour_table("orange-red") @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) <= 0).all()
    assert luma[0] - luma[255] > 150


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_white_lies_at_the_threshold(threshold: float) -> None:
    table = colour_table("blue-white-red", threshold).astype(int)
    assert table[round(threshold * 255)].min() >= 240
    assert table[0].tolist() == [16, 62, 170]
    assert table[255].tolist() == [176, 8, 32]


def test_nothing_below_the_threshold_hides_tissue() -> None:
    """Half of 256 colour numbers; from there opacity rises from 0.3 by 0.7 · 2 · (v − 0.5)."""
    table = opacity_table(0.5)
    assert not table[:128].any()
    assert table[128] == FAINTEST
    assert table[192] == pytest.approx(0.3 + 0.7 * 0.5)
    assert opacity_table(0.5, POSITIVE_ONLY).tolist() == [0.0] * 128 + [1.0] * 128
    assert opacity_table(0.5, EVERYTHING).tolist() == [1.0] * 256


def test_the_highest_value_is_seen_at_any_threshold() -> None:
    assert opacity_table(1.0)[255] > 0


def test_grey_rises_by_one_from_black_to_white() -> None:
    assert colour_table("gray").tolist() == [[level] * 3 for level in range(256)]


def test_colours_are_numbered_from_one_and_nothing_is_zero() -> None:
    values = np.array([[0.0, 0.5, 1.0, NAN]], dtype=np.float32)
    assert number_colours(values).tolist() == [[1, 129, 256, 0]]
    assert number_colours(values * 3, top=3.0).tolist() == [[1, 129, 256, 0]]


def test_each_patch_covers_its_own_part_of_the_slide() -> None:
    table = make_table([(0, 0)], rows=3, cols=5)  # a thumbnail of 25 × 15 px
    numbers = np.arange(1, 16).reshape(3, 5)
    placed = place_on_image(numbers, table.grid, frame_slide(table, 50))
    assert np.array_equal(placed, np.kron(numbers, np.ones((10, 10), dtype=np.int64)))


def test_a_grid_within_a_larger_thumbnail_lies_where_it_is() -> None:
    """2 × 2 patches of 50 px on a thumbnail of 200 × 200 level-0 pixels that begins 50 to the left
    and 100 above; a pixel is 10 × 10.
    """
    table = with_thumbnail(make_table([(0, 0)], rows=2, cols=2), (20, 20), 10, (-50, -100))
    placed = place_on_image(np.array([[1, 2], [3, 4]]), table.grid, frame_slide(table, 20))
    expected = np.zeros((20, 20), dtype=np.int64)
    expected[10:15, 5:10], expected[10:15, 10:15] = 1, 2
    expected[15:20, 5:10], expected[15:20, 10:15] = 3, 4
    assert np.array_equal(placed, expected)


def test_overlapping_patches_are_squares_about_their_centres() -> None:
    """Patches of 40 px at every 20th: their centres are 20 and 40, their squares 10 to 30, and 30
    to 50.
    """
    grid = Grid(PatchSpec(40, 20, 0.5), 1, 2, Fraction(1))
    frame = Frame((0, 0), (10.0, 10.0), (6, 6))
    placed = place_on_image(np.array([[1, 2]]), grid, frame)
    assert placed.tolist() == [[0] * 6, *[[0, 1, 1, 2, 2, 0]] * 2, *[[0] * 6] * 3]


def test_no_positive_patch_is_lost_where_patches_are_smaller_than_pixels() -> None:
    grid = Grid(PatchSpec(10, 10, 0.5), 100, 100, Fraction(1))
    frame = Frame((0, 0), (100.0, 100.0), (10, 10))
    for row, col in ((0, 0), (33, 58), (99, 99), (95, 4)):
        numbers = np.ones((100, 100), dtype=np.uint16)
        numbers[row, col] = 256
        placed = place_on_image(numbers, grid, frame)
        assert np.argwhere(placed == 256).tolist() == [[row // 10, col // 10]]


def test_an_empty_grid_covers_nothing() -> None:
    grid = Grid(PatchSpec(10, 10, 0.5), 0, 0, Fraction(1))
    frame = Frame((0, 0), (1.0, 1.0), (4, 3))
    placed = place_on_image(np.empty((0, 0), dtype=np.uint16), grid, frame)
    assert placed.tolist() == [[0] * 4] * 3


def test_the_sides_of_an_image_are_those_of_the_thumbnail() -> None:
    frame = frame_slide(with_thumbnail(make_table([(0, 0)]), (400, 100), 10), 1080)
    assert frame.size_px == (1080, 270)
    assert frame.pixel_xy_l0 == pytest.approx((4000 / 1080, 1000 / 270))


def test_borders_are_two_pixels_wide_about_the_edge() -> None:
    inside = np.zeros((12, 12), dtype=np.bool_)
    inside[:6, :6] = True
    borders = find_borders(inside, patch_px=6, max_share=1)
    expected = np.zeros((12, 12), dtype=np.bool_)
    expected[5:7, :6] = expected[:6, 5:7] = True
    assert np.array_equal(borders, expected)


def test_borders_of_small_patches_are_outside_them() -> None:
    inside = np.zeros((30, 30), dtype=np.bool_)
    inside[10:14, 10:14] = True
    borders = find_borders(inside, patch_px=4)
    assert borders.sum() == 16
    assert not (borders & inside).any()


def test_there_are_no_borders_where_they_would_hide_the_map() -> None:
    inside = np.indices((40, 40)).sum(axis=0) % 2 == 0
    assert not find_borders(inside, patch_px=1).any()


def test_half_of_a_colour_is_laid_over_a_picture() -> None:
    picture = Image.new("RGB", (3, 1), (255, 255, 255))
    cover(picture, np.array([[0, 1, 2]]), np.array([(0, 0, 0), (255, 0, 0)], dtype=np.uint8), 128)
    assert np.asarray(picture).tolist() == [[[255, 255, 255], [127, 127, 127], [255, 127, 127]]]


def test_the_thumbnail_fills_the_frame() -> None:
    table = with_thumbnail(make_table([(0, 0)]), (7, 5), 10)
    for side in (3, 7, 10, 70):
        frame = frame_slide(table, side)
        image = show_thumbnail(table, frame)
        assert image.size == frame.size_px
        assert np.ptp(np.asarray(image).reshape(-1, 3), axis=0).max() == 0


def test_a_patch_of_the_heatmap_is_as_large_as_its_part_of_the_slide(tmp_path: Path) -> None:
    folder = make_result(tmp_path, "s", [1.0], PICTURES)  # (0, 0) of 3 × 3: 360 of 1080 px
    pixels = np.asarray(Image.open(folder / "heatmap.png").convert("RGB"))
    is_yellow = (pixels == colour_table()[255]).all(axis=-1)
    shown = is_yellow[:, :400]  # not the colour bar
    rows, cols = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert (len(rows), len(cols)) == (359, 359)  # a pixel of the border lies inside the patch
    assert shown[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].all()


def test_labels_are_shown_in_their_places(tmp_path: Path) -> None:
    table = make_table([(0, 0), (0, 1), (1, 0)], labels=[-1, 0, 1], rows=2, cols=2)
    write_label_preview(table, tmp_path / "l.png")
    pixels = np.asarray(Image.open(tmp_path / "l.png"))
    slide = np.array(paint(1, 1)[0, 0], dtype=np.int64)
    mixed = [(slide + np.array(color)) / 2 for color in COLORS]
    top = pixels.shape[0] - 1080
    found = [pixels[row, col] for row, col in ((300, 200), (300, 800), (900, 200), (900, 800))]
    assert top < 300
    for color, expected in zip(found, [*mixed, slide], strict=True):
        np.testing.assert_allclose(color, expected, atol=2)


@pytest.mark.parametrize("text", ["µm² × 3 – ≥ 1", "Ωmega слайд", "Łódź ß é", "שלום"])
def test_texts_of_most_scripts_are_written_as_they_are(text: str) -> None:
    assert spell(text, FACE) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\u75c7\u4f8b 1", "\\u75c7\\u4f8b 1"),
        ("a\udcffb", "a\\udcffb"),
        ("a\nb\x1b", "a\\nb\\x1b"),
        ("\u202egpj", "\\u202egpj"),
        ("e\u0301", "é"),
    ],
)
def test_what_cannot_be_written_is_spelt_out(text: str, shown: str) -> None:
    assert spell(text, FACE) == shown


def test_pillows_own_font_does_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pipeline.outputs.lettering.find_spec", lambda name: None)
    load_font.cache_clear()
    try:
        assert set_text("without DejaVu", Face(21)).width > 100
    finally:
        load_font.cache_clear()
        set_text.cache_clear()


def test_lines_keep_their_width_and_lose_nothing() -> None:
    text = "a long name with words_and_underscores_" + "x" * 60 + " and more of it"
    lines = wrap_text(text, FACE, 200)
    assert max(measure_text(line, FACE) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_text_without_end_is_cut() -> None:
    lines = wrap_text("endless " * 10_000, FACE, 100)
    assert len(lines) == MAX_LINES
    assert lines[-1].endswith("…")


@pytest.mark.parametrize(
    ("top", "texts"),
    [
        (1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (3.47, ["0", "1", "2", "3"]),
        (0.05, ["0.00", "0.01", "0.02", "0.03", "0.04", "0.05"]),
        (2e-7, ["0", "5e-08", "1e-07", "1.5e-07", "2e-07"]),
        (1e9, ["0", "2e+08", "4e+08", "6e+08", "8e+08", "1e+09"]),
    ],
)
def test_ticks_are_round_numbers(top: float, texts: list[str]) -> None:
    assert [text for _, text in list_ticks(top)] == texts


def test_the_thresholds_text_takes_the_place_of_a_tick_that_it_would_cover() -> None:
    bar = ColorBar(colour_table(), "probability", threshold=0.4)
    texts = [text for _, text in list_marks(bar, 301)]
    assert texts == ["0.0", "0.2", "0.6", "0.8", "1.0", "0.40 threshold"]


def test_marks_lie_at_their_values() -> None:
    places = {text: place for place, text in list_marks(ColorBar(colour_table(), ""), 301)}
    assert (places["1.0"], places["0.4"], places["0.0"]) == (0, 180, 300)


@pytest.mark.parametrize(
    ("width_l0", "length_px", "text"),
    [(40_000, 270, "5 mm"), (2_000, 216, "200 µm"), (100, 540, "50 µm")],
)
def test_the_scale_bar_is_a_round_length(width_l0: int, length_px: int, text: str) -> None:
    """At 0.5 µm/px the widths are 20 mm, 1 mm and 50 µm; a bar is a quarter of it, or the least."""
    frame = Frame((0, 0), (width_l0 / 1080, width_l0 / 1080), (1080, 540))
    bar = find_scale_bar(frame, 0.5)
    assert bar.text == text
    assert bar.length_px == pytest.approx(length_px * (2 if width_l0 == 100 else 1), abs=1)


@pytest.mark.parametrize("size", [(1080, 1), (1, 1080), (30, 20), (1080, 675)])
def test_the_picture_is_whole_whatever_its_shape(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (1, 2, 3))
    frame = Frame((0, 0), (10.0, 10.0), size)
    bar = ColorBar(colour_table(), "probability of " + "a class " * 40, threshold=0.5)
    keys = [Key((9, 9, 9), "a key " * 60), Key((9, 9, 9), "another", is_line=True)]
    drawn = compose(["name " * 80, "counts"], picture, find_scale_bar(frame, 0.5), bar, keys)
    found = (np.asarray(drawn) == (1, 2, 3)).all(axis=-1)
    assert found.sum() == size[0] * size[1]


@pytest.mark.parametrize(
    "name", ["a\nb", "\u75c7\u4f8b", "x" * 200, "$cost_{", "\u202eb", "e\u0301"]
)
def test_a_slide_of_any_name_is_drawn(name: str, tmp_path: Path) -> None:
    folder = make_result(tmp_path, name, CASES["mixed"], PICTURES)
    with Image.open(folder / "overlay.png") as image:
        assert image.width < 1500


def test_a_text_is_set_once() -> None:
    assert set_text("0.4", SMALL) is set_text("0.4", SMALL)


def test_the_overlay_hides_no_tissue_below_the_threshold(tmp_path: Path) -> None:
    # Patches at (0, 0), (0, 1), (1, 2), (2, 2) of a 3 × 3 grid: one just below 0.5.
    folder = make_result(tmp_path, "s", [0.4999, 0.5, 0.9, 1.0], ("overlay", "summary"))
    table = open_result(folder).table
    frame = frame_slide(table)
    plain = np.asarray(show_thumbnail(table, frame)).astype(int)
    with Image.open(folder / "overlay.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    height, width = plain.shape[:2]
    left, found = 17, drawn.shape[0]
    top = next(row for row in range(found) if tuple(drawn[row, left - 1]) == (90, 90, 90)) + 1
    shown = drawn[top : top + height, left : left + width]
    changes = [
        np.abs(shown - plain)[round((row + 0.5) * height / 3), round((col + 0.5) * width / 3)].sum()
        for row, col in ((0, 0), (0, 1), (1, 2), (2, 2))
    ]
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2] < changes[3]


def test_a_patch_of_the_gallery_is_framed_in_the_colour_of_its_probability(tmp_path: Path) -> None:
    folder = make_result(tmp_path, "s", [0.9, 0.1], ("gallery", "summary"))
    with Image.open(folder / "gallery.png") as image:
        drawn = np.asarray(image.convert("RGB"))
    for value in (0.9, 0.1):
        color = colour_table()[int(value * 256)]
        assert (drawn == color).all(axis=-1).sum() >= 4 * 3 * 100  # four sides of a frame
