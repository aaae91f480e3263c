"""A site's calibration: what is fitted on reviews, how far counts are then off, and its file."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.counting.interval import conformal_radius, predict_error
from wsi_pipeline.counting.review import add_answer, start_review
from wsi_pipeline.counting.site import (
    CALIBRATION_JSON,
    ReviewedSlide,
    SiteCalibration,
    describe_site,
    fit_site,
    measure_errors,
    read_site,
    write_site,
)

ABOVE = 1.5
"""The logit from which on a patch of this site is positive; the model believes 0."""
SITE = SiteCalibration("d" * 64, Calibration(1.25, -0.5), (-0.1, 0.0, 0.1, 0.2), 200)


def make_slide(number: int, patches: int = 4000, answers: int = 100) -> ReviewedSlide:
    """A slide whose patch of logit z is positive with probability sigmoid(2 (z - ABOVE))."""
    rng = np.random.default_rng(number)
    logits = rng.normal(number / 3 - 1, 2, patches).astype(np.float32)
    is_positive = rng.random(patches) < 1 / (1 + np.exp(-2 * (logits - ABOVE)))
    drawn = rng.permutation(patches)[:answers]
    return ReviewedSlide(
        f"s{number}",
        logits,
        logits[drawn],
        is_positive[drawn],
        np.ones(answers),
        float(is_positive.mean()),
    )


SLIDES = [make_slide(number) for number in range(6)]


def test_the_site_is_fitted_where_its_patches_turn_positive() -> None:
    calibration = fit_site(SLIDES, Calibration(), 0.5, "d").calibration
    assert -calibration.offset / calibration.slope == pytest.approx(ABOVE, abs=0.25)
    assert calibration.slope == pytest.approx(2, rel=0.25)


def test_counts_of_slides_left_out_are_nearer_to_the_reviews_than_the_models() -> None:
    own = measure_errors(SLIDES, [Calibration()] * 6, 0.5)
    site = fit_site(SLIDES, Calibration(), 0.5, "d")
    assert max(map(abs, site.errors)) < 0.25 * max(map(abs, own))


def test_a_model_that_counts_right_stays_as_it_is() -> None:
    right = Calibration(2.0, -2.0 * ABOVE)
    exact = [
        replace(slide, share=float(np.mean(right.apply(slide.logits) >= 0.5))) for slide in SLIDES
    ]
    site = fit_site(exact, right, 0.5, "d")
    assert site.calibration == right
    assert site.errors == pytest.approx([0] * 6, abs=1e-6)


def test_answers_that_a_model_tells_without_a_mistake_give_a_finite_slope() -> None:
    sure = [replace(slide, calls=slide.answered > 0) for slide in SLIDES]
    assert 1 < fit_site(sure, Calibration(0.5, 0.0), 0.5, "d").calibration.slope < 1000


def test_three_slides_are_too_few() -> None:
    with pytest.raises(ConfigError, match="3 reviewed slides; review at least 4"):
        fit_site(SLIDES[:3], Calibration(), 0.5, "d")


def test_an_error_is_the_difference_of_arcsines() -> None:
    slide = replace(SLIDES[0], logits=np.array([-1, -1, -1, 1], np.float32), share=0.75)
    # asin(sqrt(3/4)) - asin(sqrt(1/4)) = 60° - 30°
    assert measure_errors([slide], [Calibration()], 0.5) == pytest.approx([math.pi / 6])


def test_each_answer_stands_for_the_patches_of_its_stratum() -> None:
    grid = Grid(PatchSpec(50, 50, 4.0), 10, 12, Fraction(16))
    probability = np.linspace(0.01, 0.99, 120, dtype=np.float32).reshape(10, 12)
    review = start_review("s", "f" * 64, grid, probability, "d1", ("negative", "tumour"), 20)
    while following := review.list_open("ann"):
        review = add_answer(review, "ann", following[0], following[0] >= 60)
    logits = np.linspace(-3, 3, 120, dtype=np.float32).reshape(10, 12)
    slide = ReviewedSlide.of_review(review, logits)
    assert slide is not None
    drawn, _ = review.design.tally(review.calls_of("ann"))
    stratum = review.strata.ravel()[list(review.calls_of("ann"))]
    expected = (review.design.sizes / drawn)[stratum]
    assert slide.weights == pytest.approx(expected / expected.mean())
    assert slide.answered.tolist() == logits.ravel()[list(review.calls_of("ann"))].tolist()


def test_a_review_without_answers_gives_no_slide() -> None:
    grid = Grid(PatchSpec(50, 50, 4.0), 10, 12, Fraction(16))
    values = np.linspace(0.01, 0.99, 120, dtype=np.float32).reshape(10, 12)
    review = start_review("s", "f" * 64, grid, values, "d1", ("negative", "tumour"), 20)
    assert ReviewedSlide.of_review(review, values) is None


def test_a_site_comes_back_from_its_file(tmp_path: Path) -> None:
    write_site(tmp_path, SITE)
    assert read_site(tmp_path) == SITE


def test_a_folder_without_the_file_has_no_site(tmp_path: Path) -> None:
    assert read_site(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"slope": -1.0},
        {"slope": "1"},
        {"offset": None},
        {"errors": [1, "2"]},
        {"errors": 3},
        {"model_digest": 7},
        {"kind": "wsi review"},
        {"format_version": 2},
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, change: dict[str, object]) -> None:
    write_site(tmp_path, SITE)
    path = tmp_path / CALIBRATION_JSON
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=r"calibration.json: damaged .*wsi calibrate"):
        read_site(tmp_path)


def test_the_words_say_by_how_much_the_interval_is_narrower() -> None:
    center, radius = predict_error(SITE.errors)
    # mean 0.05, deviation 0.1291, t(3) = 3.182: 3.182 × 0.1291 × sqrt(1.25) = 0.4594
    assert (center, radius) == pytest.approx((0.05, 0.4594), abs=1e-4)
    words = describe_site(SITE, conformal_radius([0.6] * 19))
    assert "slope 1.250, offset -0.500 from 200 answers on 4 slides" in words
    assert ", narrower than the model's own ± " in words


def test_the_words_do_not_hide_an_interval_that_is_wider() -> None:
    assert ", not narrower than the model's own ± " in describe_site(SITE, 0.1)
