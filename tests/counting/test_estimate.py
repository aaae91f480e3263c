"""The count that follows from a review."""

from itertools import combinations, product

import numpy as np
import pytest

from wsi_pipeline.counting import (
    Design,
    draw,
    estimate_count,
    kappa,
    make_design,
    patches_needed,
)

TWO = Design((np.arange(0, 6), np.arange(6, 10)), seed=0)
"""Ten patches: a stratum of six and one of four."""


def test_the_estimate_weighs_each_stratum_by_its_size() -> None:
    # 6 * 1/2 + 4 * 1/1 = 7
    count = estimate_count(TWO, {0: True, 1: False, 6: True})
    assert count is not None
    assert count.estimate == pytest.approx(7)
    assert count.reviewed == 3
    assert count.source == "review"


def test_the_estimate_is_right_on_average_over_all_samples() -> None:
    truth = [True, False, False, False, True, False, True, True, False, True]
    estimates = []
    for first, second in product(combinations(range(6), 3), combinations(range(6, 10), 2)):
        count = estimate_count(TWO, {patch: truth[patch] for patch in (*first, *second)})
        assert count is not None
        estimates.append(count.estimate)
    assert np.mean(estimates) == pytest.approx(5)


def test_there_is_no_estimate_before_every_stratum_has_an_answer() -> None:
    assert estimate_count(TWO, {0: True, 1: False}) is None
    assert patches_needed(TWO, {0: True}, None) is None


def test_a_full_census_is_exact() -> None:
    count = estimate_count(TWO, {patch: patch in (2, 3, 7) for patch in range(10)})
    assert count is not None
    assert (count.estimate, count.low, count.high) == (3, 3, 3)


def test_an_empty_slide_has_none() -> None:
    count = estimate_count(make_design(np.full(4, np.nan), 0), {})
    assert count is not None
    assert (count.estimate, count.low, count.high, count.reviewed) == (0, 0, 0, 0)


def test_one_stratum_is_a_sample() -> None:
    count = estimate_count(make_design(np.full(100, 0.3), 0), {0: False})
    assert count is not None
    assert count.source == "sample"


def test_one_stratum_gives_the_exact_interval() -> None:
    """None of 5 of 10: P(0 | T) is 1, 1/2, 2/9, 1/12 for T = 0 … 3, half of 1/12 is above 2.5 %.

    T = 4: 6/252, of which half is below.
    """
    design = Design((np.arange(10),), seed=0)
    count = estimate_count(design, dict.fromkeys(range(5), False))
    assert count is not None
    assert (count.low, count.high) == (0, 3)


def test_the_interval_stays_within_what_the_answers_leave_possible() -> None:
    answers = {0: True, 1: True, 2: True, 3: False, 6: True, 7: False, 8: False}
    count = estimate_count(TWO, answers)
    assert count is not None
    assert 4 <= count.low <= count.estimate <= count.high <= 7


def test_interval_is_mirrored_where_answers_are() -> None:
    design = Design((np.arange(60), np.arange(60, 100)), seed=0)
    answers = {patch: patch < 3 for patch in (*range(10), *range(60, 70))}
    one = estimate_count(design, answers)
    other = estimate_count(design, {patch: not called for patch, called in answers.items()})
    assert one is not None
    assert other is not None
    assert (other.low, other.high) == (100 - one.high, 100 - one.low)


def test_a_wider_level_gives_a_wider_interval() -> None:
    design = Design((np.arange(500), np.arange(500, 1000)), seed=0)
    answers = {patch: patch % 3 == 0 for patch in (*range(20), *range(500, 520))}
    narrow, wide = (estimate_count(design, answers, level) for level in (0.8, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("model", ["good", "inverted", "blind"])
def test_intervals_hold_the_truth(model: str) -> None:
    random = np.random.default_rng(5)
    truth = random.random(400) < 0.2
    sign = {"good": 1.0, "inverted": -1.0, "blind": 0.0}[model]
    probability = 1 / (1 + np.exp(-sign * 3 * (truth - 0.5) - random.normal(size=400)))
    strata, held = make_design(probability, 0).strata, 0
    for seed in range(60):
        design, answers = Design(strata, seed), dict[int, bool]()
        while shown := draw(design, 50, answers):
            answers |= {each.patch: bool(truth[each.patch]) for each in shown}
        count = estimate_count(design, answers)
        assert count is not None
        held += count.low <= truth.sum() <= count.high
    assert held >= 53  # 57 expected; a binomial of 60 and 0.95 is below 53 once in a hundred


def test_more_patches_are_needed_for_a_narrower_interval() -> None:
    design = Design((np.arange(500), np.arange(500, 1000)), seed=0)
    answers = {patch: patch % 3 == 0 for patch in (*range(20), *range(500, 520))}
    now = estimate_count(design, answers)
    needed = [patches_needed(design, answers, now, width) for width in (0.9, 0.2, 0.1)]
    assert needed[0] == 0
    assert needed[1] is not None
    assert needed[2] is not None
    assert 0 < needed[1] < needed[2] <= 960


def test_all_remaining_patches_give_no_width_at_all() -> None:
    answers = {0: True, 1: False, 6: True}
    now = estimate_count(TWO, answers)
    assert patches_needed(TWO, answers, now, relative_half_width=0) == 7


def test_nothing_found_has_no_relative_width() -> None:
    answers = {0: False, 6: False}
    assert patches_needed(TWO, answers, estimate_count(TWO, answers)) is None


def test_kappa_of_a_table_by_hand() -> None:
    """Both yes 20, both no 15, yes and no 5, no and yes 10: (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10
    pairs += [(False, False)] * 15
    one = {patch: first for patch, (first, _) in enumerate(pairs)}
    other = {patch: second for patch, (_, second) in enumerate(pairs)}
    value, shared = kappa(one | {900: True}, other | {901: False})
    assert value == pytest.approx(0.4)
    assert shared == 50


def test_kappa_of_reviewers_without_a_shared_patch_is_none() -> None:
    assert kappa({1: True}, {2: True}) == (None, 0)


def test_kappa_of_one_same_answer_throughout_is_none() -> None:
    assert kappa({1: True, 2: True}, {1: True, 2: True}) == (None, 2)
