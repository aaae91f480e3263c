"""Tissue relative to the glass: what other things on a slide do not change, and what is flagged."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import drawn_thumbnails, stained_glass
from wsi_pipeline.core.choices import AREAS, OTSU
from wsi_pipeline.slides import local_tissue
from wsi_pipeline.slides.local_tissue import FoundTissue, Limits, find_local_tissue
from wsi_pipeline.slides.tissue import TissueParameters, find_tissue

NEUTRAL = (243, 242, 244)
EOSIN, PALE, DAB, BLUE_INK = (214, 150, 190), (222, 225, 232), (120, 75, 40), (30, 60, 160)
TISSUE = np.s_[60:140, 60:180]
INNER, OUTER = np.s_[64:136, 64:176], np.s_[52:148, 52:188]


def slide(
    glass: tuple[int, ...] = NEUTRAL, tissue: tuple[int, ...] | None = EOSIN, grain: float = 5
) -> NDArray[np.float64]:
    """A section in the middle of 200 × 240 px of glass with a camera's noise; 8 µm each."""
    rng = np.random.default_rng(7)
    picture = np.array(glass) + rng.standard_normal((200, 240, 1))
    if tissue is not None:
        picture[TISSUE] = np.array(tissue) + rng.standard_normal((80, 120, 1)) * grain
    return picture


def look(picture: NDArray[np.float64], mpp: float = 8.0) -> FoundTissue:
    """What the detector finds."""
    return find_local_tissue(np.clip(picture, 0, 255).astype(np.uint8), mpp, Limits())


def assert_section(found: FoundTissue) -> None:
    """The section is tissue, and nothing else."""
    assert found.tissue[INNER].all()
    outside = found.tissue.copy()
    outside[OUTER] = False
    assert not outside.any()


@pytest.mark.parametrize(
    "glass", [(240, 232, 214), (214, 224, 240), (223, 215, 213), (205, 220, 205), (250, 250, 251)]
)
def test_the_tint_of_the_glass_is_no_tissue(glass: tuple[int, ...]) -> None:
    assert_section(look(slide(glass)))
    assert not look(slide(glass, tissue=None)).tissue.any()


@pytest.mark.parametrize("lamp", [(0.0, 0.04), (0.06, 0.0), (0.05, 0.05)])
def test_an_uneven_lamp_is_no_tissue(lamp: tuple[float, float]) -> None:
    y, x = np.mgrid[-1:1:200j, -1:1:240j]
    assert_section(look(slide() * 10 ** -(lamp[0] * y**2 + lamp[1] * (x + 1) / 2)[..., None]))


def test_a_lamp_that_falls_off_to_two_thirds_is_no_tissue() -> None:
    picture = slide()
    picture *= 10 ** -np.linspace(0, 0.18, picture.shape[1])[:, None]
    assert_section(look(picture))


def test_pale_tissue_is_found_whatever_lies_beside_it() -> None:
    alone, inked, brown = slide(tissue=PALE, grain=2), *np.stack([slide(tissue=PALE, grain=2)] * 2)
    inked[:30, :150] = BLUE_INK
    brown[60:90, 60:180] = DAB
    for picture in (alone, inked, brown):
        assert_section(look(picture))


@pytest.mark.parametrize("color", [(120, 118, 116), (60, 58, 57), (190, 189, 190)])
def test_tissue_needs_no_colour(color: tuple[int, ...]) -> None:
    assert_section(look(slide(tissue=color, grain=15)))


@pytest.mark.parametrize("side", [np.s_[:, :30], np.s_[:, -30:], np.s_[:25]])
@pytest.mark.parametrize(("level", "area"), [((4, 3, 6), "fill"), ((255, 255, 255), "fill")])
def test_fill_is_no_tissue(side: slice, level: tuple[int, ...], area: str) -> None:
    picture = slide()
    picture[side] = level
    found = look(picture)
    assert_section(found)
    assert (found.areas[side] == AREAS.index(area)).mean() > 0.9


@pytest.mark.parametrize("tone", [(38, 34, 31), (90, 91, 92), (150, 150, 148), (200, 201, 203)])
def test_a_border_of_the_scanner_is_no_tissue(tone: tuple[int, ...]) -> None:
    picture = slide()
    for side in (np.s_[:14], np.s_[-14:], np.s_[:, :14], np.s_[:, -14:]):
        noise = np.random.default_rng(1).standard_normal(picture[side].shape)
        picture[side] = np.array(tone) + noise
    found = look(picture)
    assert_section(found)
    assert found.areas[5, 120] == AREAS.index("border")


@pytest.mark.parametrize(
    "ink", [BLUE_INK, (20, 130, 70), (215, 40, 50), (12, 12, 13), (255, 150, 10), (90, 20, 130)]
)
@pytest.mark.parametrize("focus", [0, 3])
def test_ink_beside_tissue_is_no_tissue(ink: tuple[int, ...], focus: float) -> None:
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[:200, :240, :1][:2]
    cover = (np.abs(y - 175 + 4 * np.sin(x / 25)) < 9) & (np.abs(x - 120) < 90)
    cover = gaussian_filter(cover.astype(float), (focus, focus, 0))
    noise = np.random.default_rng(2).standard_normal((200, 240, 1))
    picture = slide() * (1 - cover) + (np.array(ink) + noise) * cover
    found = look(picture)
    assert found.tissue[INNER].all()
    assert not found.tissue[155:].any()
    assert AREAS[found.areas[175, 120]] in ("pen", "fill")  # black is either


def test_ink_over_tissue_is_tissue_and_flagged() -> None:
    picture = slide()
    picture[:, 110:130] *= np.array(BLUE_INK) / 243
    found = look(picture)
    assert found.tissue[INNER].all()
    assert not found.tissue[:45].any()
    assert found.faults["pen"][60:140, 112:128].all()
    assert found.areas[20, 120] == AREAS.index("pen")


def test_a_small_core_under_transparent_ink_stays_tissue() -> None:
    picture, (y, x) = slide(tissue=None), np.mgrid[:200, :240]
    core = np.hypot(y - 100, x - 120) < 20
    grain = np.random.default_rng(5).standard_normal((200, 240, 1))
    picture[core] = (np.array(EOSIN) + 8 * grain)[core]
    picture[70:130, 60:200] *= np.array((120, 160, 235)) / 243
    found = look(picture)
    assert found.tissue[core].mean() > 0.8
    assert found.tissue[~core].mean() < 0.02
    assert found.faults["pen"][core].mean() > 0.8


def test_a_second_stroke_across_the_first_is_no_tissue() -> None:
    picture = slide(tissue=None)
    picture[60:85, 20:200] *= np.array(BLUE_INK) / 243
    picture[30:190, 100:118] *= np.array((40, 140, 80)) / 243
    found = look(picture)
    assert not found.tissue.any()
    assert found.faults["pen"][65:80, 25:195].all()


def test_hairs_and_edges_of_cover_slips_are_no_tissue() -> None:
    picture = slide()
    picture[20:22] = 150
    picture[:, 20:22] = 190
    assert_section(look(picture))


def test_what_is_pale_without_colour_or_texture_is_uncertain() -> None:
    picture = slide()
    picture[160:190, 60:180] -= 14  # optical density 0.026
    found = look(picture)
    assert_section(found)
    assert (found.areas[163:187, 64:176] == AREAS.index("uncertain")).mean() > 0.9


def test_a_dark_background_is_named_and_what_glows_is_tissue() -> None:
    rng = np.random.default_rng(3)
    picture = np.array((5, 6, 9)) + rng.standard_normal((200, 240, 3))
    picture[TISSUE] += np.array((5, 20, 90))
    picture[20:24, 20:24] += 60  # dust glows, too
    found = look(picture)
    assert_section(found)
    assert (found.areas[:40] == AREAS.index("dark")).all()


def test_a_fold_is_tissue_and_flagged() -> None:
    picture = slide(grain=8)
    picture[64:136, 100:106] = 243 * (picture[64:136, 100:106] / 243) ** 2.4
    found = look(picture)
    assert_section(found)
    assert found.faults["fold"][70:130, 101:105].mean() > 0.8
    assert found.faults["fold"][TISSUE].mean() < 0.1


def test_a_bubble_on_glass_is_flagged_and_no_tissue() -> None:
    picture, (y, x) = slide(), np.mgrid[:200, :240]
    away = np.hypot(y - 30, x - 200)
    picture[np.abs(away - 20) < 1.5] = 150
    found = look(picture)
    assert_section(found)
    assert found.faults["bubble"][away < 18].all()
    assert not found.faults["bubble"][60:].any()


@pytest.mark.parametrize("color", [EOSIN, (150, 110, 170), (200, 160, 120)])
def test_without_any_glass_all_is_tissue(color: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    assert look(np.array(color) + 6 * rng.standard_normal((100, 100, 1))).tissue.all()


def test_a_picture_smaller_than_the_smallest_tissue_can_be_all_tissue() -> None:
    assert look(np.full((7, 9, 3), EOSIN, dtype=np.float64)).tissue.all()  # 4,032 µm²


def test_an_empty_picture_does_not_fail() -> None:
    for shape in ((1, 1, 3), (1, 40, 3), (40, 2, 3)):
        assert look(np.zeros(shape)).tissue.shape == shape[:2]


@pytest.mark.parametrize("shrunk", [1, 2, 4])
def test_the_scale_changes_little(shrunk: int) -> None:
    picture = slide().reshape(200 // shrunk, shrunk, 240 // shrunk, shrunk, 3).mean((1, 3))
    found = look(picture, mpp=8.0 * shrunk)
    truth = np.zeros(found.tissue.shape, dtype=np.bool_)
    truth[60 // shrunk : 140 // shrunk, 60 // shrunk : 180 // shrunk] = True
    assert 2 * (found.tissue & truth).sum() / (found.tissue.sum() + truth.sum()) > 0.95


def test_a_large_picture_is_looked_at_in_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_tissue, "MAX_PX", 20_000)  # 199 × 239 px are looked at as 100 × 120
    found = look(slide()[:-1, :-1])
    assert found.tissue.shape == found.areas.shape == found.faults["pen"].shape == (199, 239)
    assert_section(found)


def test_otsu_knows_tissue_and_glass_only() -> None:
    picture = np.clip(slide(), 0, 255).astype(np.uint8)
    found = find_tissue(picture, 8.0, TissueParameters(detector=OTSU))
    assert found.faults == {}
    assert np.array_equal(found.areas == AREAS.index("tissue"), found.tissue)


@pytest.mark.parametrize("number", range(len(stained_glass.KINDS)))
def test_every_kind_of_drawn_slide_is_told_from_glass(number: int) -> None:
    """The second generator, which nothing was tuned on; `benchmarks/tissue.py` has the table."""
    drawn = stained_glass.draw(number)
    found = find_local_tissue(drawn.rgb, stained_glass.UM_PER_PX, Limits())
    assert stained_glass.score(found.tissue, drawn) >= 0.85


OF_FIRST_HAND = [
    *range(0, 2 * len(drawn_thumbnails.KINDS), 2),
    *(drawn_thumbnails.LATER + 2 * kind for kind in range(len(drawn_thumbnails.LATER_KINDS))),
]


@pytest.mark.parametrize("number", OF_FIRST_HAND)
def test_every_kind_that_it_was_tuned_on_is_still_told_from_glass(number: int) -> None:
    drawn = drawn_thumbnails.draw(number)
    found = find_local_tissue(drawn.rgb, drawn_thumbnails.UM_PER_PX, Limits())
    kept, truth = found.tissue[drawn.matters], drawn.tissue[drawn.matters]
    if truth.any():
        assert 2 * (kept & truth).sum() / (kept.sum() + truth.sum()) >= 0.85
    else:
        assert kept.mean() < 0.001
