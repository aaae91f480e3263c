"""The interval of a count without a review, worked out by hand on angles that have names."""

import math

import pytest

from wsi_pipeline.counting.interval import (
    conformal_radius,
    predict_error,
    share_error,
    spread_share,
)

DEGREE = math.pi / 180
SIN2_15 = (1 - math.sqrt(3) / 2) / 2
"""The share whose root has an arcsine of 15 degrees."""


@pytest.mark.parametrize(
    ("counted", "true", "degrees"),
    [(0.25, 0.5, 15), (0.5, 0.25, -15), (0, 1, 90), (0.3, 0.3, 0), (0.75, 0.25, -30)],
)
def test_an_error_is_a_difference_of_angles(counted: float, true: float, degrees: float) -> None:
    assert share_error(counted, true) == pytest.approx(degrees * DEGREE)


def test_of_nineteen_patients_the_worst_is_taken() -> None:
    assert conformal_radius([0.01] * 9 + [-0.3] + [0.02] * 9) == 0.3


def test_of_thirtynine_patients_the_second_worst_is_taken() -> None:
    # 95 % of 40, the next patient included, are 38.
    assert conformal_radius([0.5, -0.4, *[0.1] * 37]) == 0.4


@pytest.mark.parametrize("count", [0, 1, 18])
def test_too_few_patients_say_nothing(count: int) -> None:
    assert conformal_radius([0.1] * count) is None


@pytest.mark.parametrize(
    ("share", "radius", "ends"),
    [
        (0.5, 45, (0, 1)),
        (0.25, 15, (SIN2_15, 0.5)),
        (0.25, 0, (0.25, 0.25)),
        (0.0, 30, (0, 0.25)),
        (1.0, 30, (0.75, 1)),
        (0.25, 90, (0, 1)),
    ],
)
def test_the_ends_of_a_share(share: float, radius: float, ends: tuple[float, float]) -> None:
    assert spread_share(share, radius * DEGREE) == pytest.approx(ends, abs=1e-12)


def test_a_share_that_is_counted_too_low_is_moved_up() -> None:
    # From 15 degrees up by 30, and 15 to either side.
    found = spread_share(SIN2_15, 15 * DEGREE, center=30 * DEGREE)
    assert found == pytest.approx((0.25, 0.75))


def test_few_slides_of_a_site_spread_by_students_t() -> None:
    # The deviation of ±0.1 is 0.1 √2; of one degree of freedom 95 % lie within tan(0.475 π).
    center, radius = predict_error([-0.1, 0.1])
    assert center == pytest.approx(0)
    assert radius == pytest.approx(math.tan(0.475 * math.pi) * 0.1 * math.sqrt(2 * 1.5))


def test_an_error_that_is_always_the_same_is_only_moved() -> None:
    assert predict_error([0.2] * 4) == pytest.approx((0.2, 0))
