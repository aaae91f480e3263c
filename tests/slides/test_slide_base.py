from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.base import (
    DeclaredScale,
    UserScale,
    choose_level,
    composite_on_white,
    fingerprint_file,
    resolve_levels,
    resolve_mpp,
    tiles_touched,
)

PATH = Path("slide.svs")


def declared(mpp_x: str | None, mpp_y: str | None) -> DeclaredScale:
    return DeclaredScale("property", mpp_x, mpp_y)


def test_the_files_own_scale_is_taken() -> None:
    assert resolve_mpp(PATH, declared("0.499", "0.499"), None) == (0.499, "property")


def test_the_user_has_authority_over_the_file() -> None:
    assert resolve_mpp(PATH, declared("0.499", "0.499"), UserScale(0.25, "user (mpp.csv)")) == (
        0.25,
        "user (mpp.csv)",
    )


def test_slightly_different_scales_are_averaged() -> None:
    assert resolve_mpp(PATH, declared("0.50", "0.52"), None)[0] == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("mpp_x", "mpp_y", "fault"),
    [
        (None, None, "states no µm per pixel"),
        ("0.5", None, "states no µm per pixel"),
        ("0,5", "0,5", "not a number"),
        ("nan", "nan", "impossible"),
        ("inf", "inf", "impossible"),
        ("0.5", "0.53", "0.5 µm/px in x but 0.53 in y"),
        ("352.8", "352.8", "impossible"),
        ("0", "0", "impossible"),
        ("-0.5", "-0.5", "impossible"),
        ("0.049", "0.049", "impossible"),
    ],
)
def test_an_unusable_scale_is_refused_with_the_remedy(
    mpp_x: str | None, mpp_y: str | None, fault: str
) -> None:
    with pytest.raises(SlideError, match=fault) as caught:
        resolve_mpp(PATH, declared(mpp_x, mpp_y), None)
    assert "--slide-mpp" in str(caught.value)


def test_levels_cut_short_by_a_pixel_are_whole_downsamples() -> None:
    levels = resolve_levels([(2791, 2335), (1395, 1167), (697, 583), (348, 291)])
    assert [level.downsample for level in levels] == [1, 2, 4, 8]


def test_a_level_of_another_aspect_is_left_out() -> None:
    assert [level.number for level in resolve_levels([(1000, 1000), (500, 500), (400, 100)])] == [
        0,
        1,
    ]


def test_disordered_levels_are_sorted_and_keep_their_numbers() -> None:
    assert [level.number for level in resolve_levels([(1000, 1000), (250, 250), (500, 500)])] == [
        0,
        2,
        1,
    ]


def test_a_broken_downsample_is_a_ratio() -> None:
    level = resolve_levels([(3000, 3000), (2000, 2000)])[1]
    assert level.downsample == Fraction(3, 2)


def test_the_nearest_finer_level_is_chosen() -> None:
    levels = resolve_levels([(4000, 4000), (2000, 2000), (1000, 1000)])
    assert choose_level(levels, Fraction(3)).downsample == 2
    assert choose_level(levels, Fraction(4)).downsample == 4
    assert choose_level(levels, Fraction(1, 2)).downsample == 1


def test_absent_pixels_become_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [100, 100, 100, 51]]], dtype=np.uint8)
    # The last one: 100 · 0.2 + 255 · 0.8 = 224.
    assert composite_on_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [224, 224, 224]]]


def test_fingerprint_is_the_same_for_a_copy(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(bytes(range(256)) * 1000)
    two.write_bytes(one.read_bytes())
    assert fingerprint_file(one) == fingerprint_file(two)


@pytest.mark.parametrize("place", [0, 128_000, 255_999])
def test_fingerprint_of_a_small_file_changes_with_any_byte(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(256_000))
    before = fingerprint_file(path)
    changed = bytearray(path.read_bytes())
    changed[place] = 1
    path.write_bytes(changed)
    assert fingerprint_file(path) != before


def test_tiles_touched_by_hand() -> None:
    # Tiles of 10 × 20 px (width × height); a box over x 5…14, y 19…20 touches two columns and two
    # rows.
    boxes = np.array([[5, 19, 10, 2], [30, 0, 1, 1]])
    assert tiles_touched(boxes, (10, 20), (3, 4)).tolist() == [
        [True, True, False, True],
        [True, True, False, False],
        [False, False, False, False],
    ]
