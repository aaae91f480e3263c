"""Context, calibration, thresholds and errors of counts, chosen on patients of known numbers."""

import math

import numpy as np
import pytest

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training import terms as terms_module
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.terms import ValidationPatches, fit_terms, measure_count_errors

YOUDEN = ThresholdRule("youden")
LN3 = math.log(3)
"""The logit of 3/4."""
APART = 20
"""Patches that stand so many strides apart know nothing of each other."""


def make_patients(
    patients: list[tuple[list[int], list[float]]], apart: int = APART
) -> ValidationPatches:
    """Patients of one slide each, with the labels and logits of their patches, in one row."""
    counts = [len(labels) for labels, _ in patients]
    numbers = np.repeat(np.arange(len(patients)), counts)
    columns = np.concatenate([np.arange(count) * apart for count in counts])
    return ValidationPatches(
        labels=np.concatenate([labels for labels, _ in patients]).astype(np.int8),
        logits=np.concatenate([logits for _, logits in patients]).astype(np.float32),
        patients=np.array([f"p{number}" for number in numbers]),
        stores=numbers,
        positions=np.stack([np.zeros_like(columns), columns], axis=1).astype(np.int32),
        stride_um=25.0,
    )


def make_slides(patients: int, noise: float, seed: int = 0) -> ValidationPatches:
    """Whole slides of 12 × 12 patches, the right half positive: logits of ±1 and noise."""
    rng = np.random.default_rng(seed)
    row, col = np.indices((12, 12)).reshape(2, -1)
    labels = np.tile(col >= 6, patients).astype(np.int8)
    numbers = np.repeat(np.arange(patients), 144)
    return ValidationPatches(
        labels=labels,
        logits=(labels * 2 - 1 + rng.normal(size=len(labels)) * noise).astype(np.float32),
        patients=np.array([f"p{number}" for number in numbers]),
        stores=numbers,
        positions=np.tile(np.stack([row, col], axis=1), (patients, 1)).astype(np.int32),
        stride_um=25.0,
    )


def half_right(logit: float, right: int = 3, of: int = 4) -> tuple[list[int], list[float]]:
    """A patient of whose patches at +logit and at -logit `right` in `of` are what they seem."""
    labels = [1] * right + [0] * (of - right) + [0] * right + [1] * (of - right)
    return labels, [logit] * of + [-logit] * of


def test_one_patient_says_nothing_of_context() -> None:
    terms, how = fit_terms(make_slides(1, noise=2.0), YOUDEN)
    assert terms.on_grid == terms.alone
    assert terms.on_grid.context_um == 0
    assert "slope fitted on one patient" in how
    assert "on 1 validation patients, 144 patches" in how


def test_noise_over_smooth_slides_is_averaged_away() -> None:
    patches = make_slides(4, noise=2.0)
    terms, _ = fit_terms(patches, YOUDEN)
    assert terms.on_grid.context_um in [25 * sigma for sigma in (0.7, 1.0, 1.25, 1.5, 2.0)]
    right = [
        ((patches.apply(part) >= 0.5) == patches.labels).mean()
        for part in (terms.on_grid, terms.alone)
    ]
    assert right[0] > 0.9 > right[1]
    assert terms.alone.context_um == 0


def test_patches_that_stand_apart_have_no_context() -> None:
    terms, _ = fit_terms(make_patients([half_right(2 * LN3)] * 4), YOUDEN)
    assert terms.on_grid.context_um == 0


def test_slides_do_not_know_each_other() -> None:
    # Both patches lie at the same place, of different slides.
    patches = make_patients([([1], [4.0]), ([0], [-2.0])])
    assert patches.average(1.0).tolist() == pytest.approx([4.0, -2.0])


def test_neighbours_weigh_in_strides() -> None:
    # Next to each other, one stride a deviation: weights of 1 and exp(-1/2).
    near = math.exp(-0.5)
    averaged = make_patients([([1, 0], [3.0, 0.0])], apart=1).average(1.0)
    assert averaged == pytest.approx([3 / (1 + near), 3 * near / (1 + near)], rel=1e-5)


def test_whole_slides_are_told_from_selections() -> None:
    whole, selected = make_slides(1, 1.0), make_patients([half_right(1.0, 30, 50)])
    assert whole.is_whole.all()
    assert not selected.is_whole.any()


def test_a_slide_of_few_patches_is_no_whole_one() -> None:
    assert not make_patients([half_right(1.0, 20, 40)], apart=1).is_whole.any()


def test_patients_stay_in_one_group() -> None:
    patches = make_patients([half_right(1.0)] * 7)
    groups = [set(patches.groups[patches.patients == f"p{number}"]) for number in range(7)]
    assert all(len(group) == 1 for group in groups)
    assert set.union(*groups) == {0, 1, 2, 3, 4}


def test_a_network_that_is_twice_too_sure_gets_half_the_slope() -> None:
    terms, how = fit_terms(make_patients([half_right(2 * LN3)] * 3), YOUDEN)
    assert terms.alone.calibration.slope == pytest.approx(0.5, rel=1e-5)
    assert terms.alone.calibration.offset == 0
    assert how.startswith("slope fitted")


def test_a_network_that_is_shifted_gets_an_offset() -> None:
    # Three in four of the patches at 0 are positive and one in four of those at -2 ln 3: what
    # they should say is ln 3 more.
    patient = ([1, 1, 1, 0, 0, 0, 0, 1], [0.0] * 4 + [-2 * LN3] * 4)
    terms, how = fit_terms(make_patients([patient] * 3), YOUDEN)
    calibration = terms.alone.calibration
    assert (calibration.slope, calibration.offset) == pytest.approx((1.0, LN3), rel=1e-3)
    assert how.startswith("slope and offset fitted")


def test_a_network_that_is_right_is_left_alone() -> None:
    terms, how = fit_terms(make_patients([half_right(LN3)] * 3), YOUDEN)
    assert terms.alone.calibration.slope == pytest.approx(1.0, rel=1e-5)
    assert terms.alone.calibration.offset == 0
    assert "on 3 validation patients" in how


def test_a_slope_that_makes_other_patients_worse_is_not_applied() -> None:
    # One patient asks for half the slope, the other, of whom 9 in 10 are right, for twice of it.
    patients = [half_right(2 * LN3), half_right(LN3, 9, 10)]
    terms, how = fit_terms(make_patients(patients), YOUDEN)
    assert terms.alone.calibration == Calibration()
    assert how.startswith("no calibration, for none made the validation better")


SURE = ([1] * 10 + [0] * 20, [3.0] * 10 + [-3.0] * 20)
"""All patches are on their own side of one half, and a third is positive."""


def test_among_thresholds_that_count_alike_one_half_is_taken() -> None:
    terms, _ = fit_terms(make_patients([SURE] * 6), YOUDEN)
    assert (terms.on_grid.count, terms.alone.count) == (0.5, 0.5)
    assert terms.positive_share == pytest.approx(1 / 3)
    assert terms.count_errors == (0.0,) * 6


def test_another_threshold_is_taken_where_it_counts_other_patients_better() -> None:
    # Every positive is promised 0.4, so that one half counts none; 0.4 is the nearest that does.
    patches = make_patients([SURE] * 6)
    probability = np.where(patches.labels == 1, 0.4, 0.1).astype(np.float32)
    assert terms_module._choose_cut(patches, probability) == 0.4


def test_one_patient_that_is_counted_better_is_no_reason_for_another_threshold() -> None:
    patches = make_patients([SURE] * 6)
    probability = np.where(patches.labels == 1, 0.9, 0.1).astype(np.float32)
    probability[:5] = 0.4
    assert terms_module._choose_cut(patches, probability) == 0.5


def test_the_threshold_to_detect_is_by_the_rule() -> None:
    patches, rule = make_patients([half_right(2 * LN3)] * 3), ThresholdRule("sensitivity", 1.0)
    alone = fit_terms(patches, rule)[0].alone
    probability = alone.calibration.apply(patches.logits)
    assert alone.detect == rule.choose(patches.labels, probability) < 0.25
    assert alone.count == 0.5


def test_a_fixed_threshold_is_for_counting_and_for_detecting() -> None:
    terms, how = fit_terms(make_slides(3, 2.0), ThresholdRule("fixed", 0.3))
    for part in (terms.on_grid, terms.alone):
        assert (part.count, part.detect) == (0.3, 0.3)
    assert "set to 0.3 by hand" in how


def test_errors_of_counts_by_hand() -> None:
    # Of 20 patches 10 are positive and 5 are counted: from 30 degrees to 45. The other patient is
    # counted twice as high as it is. The last has one patch too few.
    half, quarter = [1] * 10 + [0] * 10, [1] * 5 + [0] * 15
    patients = [(half, [0.0] * 20), (quarter, [0.0] * 20), (half[1:], [0.0] * 19)]
    probability = np.array([0.9] * 5 + [0.1] * 15 + [0.9] * 10 + [0.1] * 10 + [0.9] * 19)
    errors = measure_count_errors(make_patients(patients), probability.astype(np.float32), 0.5)
    assert errors == pytest.approx((-math.pi / 12, math.pi / 12))


def test_terms_need_both_classes() -> None:
    with pytest.raises(ConfigError, match="without both classes"):
        fit_terms(make_patients([([1, 1], [0.0, 1.0])]), YOUDEN)


def test_terms_need_finite_logits() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        fit_terms(make_patients([([1, 0], [0.0, math.nan])]), YOUDEN)
