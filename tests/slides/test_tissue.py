from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2hsv
from skimage.morphology import closing, disk

from tests.builders import PINK, paint
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.slides.tissue import (
    TissueParameters,
    area_fractions,
    close_gaps,
    find_tissue,
    look_up,
    saturation_table,
    tissue_fraction,
)

LOCAL, OTSU = TissueParameters(), TissueParameters(detector="otsu")
of_each_detector = pytest.mark.parametrize("detector", [LOCAL, OTSU], ids=["local", "otsu"])


def find_mask(picture: np.ndarray, mpp: float, parameters: TissueParameters) -> np.ndarray:
    """The tissue alone."""
    return find_tissue(picture, mpp, parameters).tissue


def glass(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Bare glass under a lamp, with the noise of a camera."""
    noise = np.random.default_rng(seed).normal(0, 1.5, (height, width, 3))
    return np.clip(242 + noise, 0, 255).astype(np.uint8)


@of_each_detector
def test_stained_tissue_is_found_and_glass_is_not(detector: TissueParameters) -> None:
    picture = glass(200, 200)
    picture[60:140, 40:160] = PINK
    mask = find_mask(picture, 8.0, detector)
    assert mask[70:130, 50:150].all()
    assert not mask[:50].any()
    assert not mask[:, 170:].any()


@of_each_detector
def test_bare_glass_holds_no_tissue(detector: TissueParameters) -> None:
    assert not find_mask(glass(300, 300), 8.0, detector).any()


@of_each_detector
def test_a_slide_full_of_tissue_is_tissue_everywhere(detector: TissueParameters) -> None:
    picture = paint(200, 200, (235, 195, 220))
    picture[:, 100:] = (170, 90, 160)  # Otsu alone would keep this half only
    assert find_mask(picture, 8.0, detector).all()


def grey(picture: np.ndarray) -> np.ndarray:
    """The green channel as a picture without colour."""
    return np.repeat(picture[..., 1:2], 3, axis=2)


@of_each_detector
def test_without_colour_tissue_is_what_is_darker_than_glass(detector: TissueParameters) -> None:
    picture = glass(200, 200)
    picture[60:140, 40:160] = PINK
    mask = find_mask(grey(picture), 8.0, detector)
    assert mask[70:130, 50:150].all()
    assert not mask[:50].any()
    assert not mask[:, 170:].any()


@of_each_detector
@pytest.mark.parametrize("level", [242, 210])
def test_bare_glass_without_colour_holds_no_tissue(level: int, detector: TissueParameters) -> None:
    assert not find_mask(grey(glass(300, 300) - np.uint8(242 - level)), 8.0, detector).any()


@of_each_detector
def test_what_was_not_scanned_is_no_tissue_where_there_is_no_colour(
    detector: TissueParameters,
) -> None:
    picture = grey(glass(300, 300))
    picture[:, :150] = 0
    assert not find_mask(picture, 8.0, detector)[:, :140].any()


@of_each_detector
def test_one_colour_everywhere_does_not_fail(detector: TissueParameters) -> None:
    assert not find_mask(paint(50, 50, (255, 255, 255)), 8.0, detector).any()


@of_each_detector
def test_a_picture_of_one_pixel_does_not_fail(detector: TissueParameters) -> None:
    assert find_mask(paint(1, 1), 8.0, detector).shape == (1, 1)


@of_each_detector
def test_dust_is_removed_and_small_holes_are_filled(detector: TissueParameters) -> None:
    picture = glass(300, 300)
    picture[100:250, 100:250] = PINK
    picture[170:178, 170:178] = 243  # 64 px = 4,096 µm²
    picture[20:30, 20:30] = PINK  # 100 px = 6,400 µm²
    mask = find_mask(picture, 8.0, detector)
    assert mask[165:185, 165:185].all()
    assert not mask[10:40, 10:40].any()


@of_each_detector
def test_what_counts_as_dust_is_an_area_not_a_number_of_pixels(detector: TissueParameters) -> None:
    fine = glass(300, 300)
    fine[100:180, 100:180] = PINK  # 80 px at 2 µm/px = 25,600 µm², above the limit
    assert find_mask(fine, 2.0, detector).any()


@of_each_detector
def test_black_has_no_saturation(detector: TissueParameters) -> None:
    assert not find_mask(paint(100, 100, (0, 0, 0)), 8.0, detector).any()


def test_area_fractions_by_hand() -> None:
    mask = np.zeros((4, 4), dtype=np.bool_)
    mask[1:3, 1:3] = True
    assert area_fractions(mask, np.array([0.0]), np.array([0.0]), 4.0).tolist() == [[0.25]]
    assert area_fractions(mask, np.array([1.5]), np.array([0.5]), 1.0).tolist() == [[0.5]]


@given(st.integers(0, 2**32 - 1), st.floats(0, 6), st.floats(0, 6), st.floats(0.3, 4))
def test_area_fractions_agree_with_a_fine_raster(
    seed: int, top: float, left: float, side: float
) -> None:
    mask = np.random.default_rng(seed).random((10, 10)) < 0.5
    places = (np.arange(200) + 0.5) / 200 * side
    fine = mask[np.ix_((top + places).astype(int), (left + places).astype(int))].mean()
    assert area_fractions(mask, np.array([top]), np.array([left]), side)[0, 0] == pytest.approx(
        fine, abs=0.03
    )


def test_fractions_follow_the_grid_over_the_thumbnail() -> None:
    # Mask pixels of 16 level-0 px; cells of 100 level-0 px = 6.25 mask pixels. Tissue right of mask
    # column 8 = level-0 px 128.
    mask = np.zeros((20, 20), dtype=np.bool_)
    mask[:, 8:] = True
    grid = Grid(PatchSpec(50, 50, 1.0), 3, 3, Fraction(2))
    fractions = tissue_fraction(mask, Thumbnail(paint(20, 20), Fraction(16), (0, 0)), grid)
    assert fractions[0].tolist() == pytest.approx(
        [0.0, 0.72, 1.0]
    )  # column 1 spans 100 to 200: 72 of it


def test_a_shifted_origin_shifts_the_cells() -> None:
    mask = np.zeros((20, 20), dtype=np.bool_)
    mask[:, 10:] = True
    grid = Grid(PatchSpec(50, 50, 1.0), 1, 1, Fraction(2), origin_xy_l0=(1160, 1000))
    fractions = tissue_fraction(mask, Thumbnail(paint(20, 20), Fraction(16), (1000, 1000)), grid)
    assert fractions[0, 0] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"min_tissue": -0.1}, {"min_tissue": 1.1}, {"mask_mpp": 0.1}, {"min_tissue": float("nan")}],
)
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TissueParameters(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("radius", [0, 1, 2, 6])
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (37, 5), (90, 120)])
def test_gaps_are_closed_as_by_scikit_image(shape: tuple[int, int], radius: int) -> None:
    mask = np.random.default_rng(radius).random(shape) < 0.1
    assert np.array_equal(close_gaps(mask, radius), closing(mask, disk(radius)))


def test_saturation_depends_on_the_largest_and_smallest_value() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    saturation = rgb2hsv(colours)[..., 1]
    assert np.array_equal(look_up(colours, saturation_table()), saturation)


def test_shares_of_more_rows_than_a_strip_are_those_of_each_row() -> None:
    mask = np.random.default_rng(0).random((60, 50)) < 0.5
    tops, lefts = np.linspace(-1, 60, 700), np.linspace(0, 45, 9)
    alone = [area_fractions(mask, tops[row : row + 1], lefts, 3.7)[0] for row in range(700)]
    assert np.array_equal(area_fractions(mask, tops, lefts, 3.7), np.stack(alone))
