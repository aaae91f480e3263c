"""Strata and draws of a review."""

import numpy as np
import pytest
from numpy.typing import NDArray

from wsi_pipeline.counting import Design, Drawn, draw, make_design
from wsi_pipeline.counting.design import allocate, fit_shares

RISING: NDArray[np.float32] = np.linspace(0.01, 0.99, 200, dtype=np.float32)


def answer(design: Design, wanted: int) -> list[Drawn]:
    """Every patch shown to a person for whom the odd ones are positive."""
    answers: dict[int, bool] = {}
    sequence: list[Drawn] = []
    while shown := draw(design, wanted, answers):
        sequence += shown
        answers |= {each.patch: each.patch % 2 == 1 for each in shown}
    return sequence


def test_strata_hold_every_patch_once_by_rising_probability() -> None:
    design = make_design(RISING, seed=1)
    assert np.concatenate(design.strata).tolist() == list(range(200))


def test_strata_have_equal_sums_of_the_models_spread() -> None:
    spread = [np.sqrt(RISING[s] * (1 - RISING[s])).sum() for s in make_design(RISING, 1).strata]
    assert np.allclose(spread, np.mean(spread), rtol=0.05)


def test_unreadable_patches_are_in_no_stratum() -> None:
    probability = RISING.copy()
    probability[[3, 77]] = np.nan
    assert not np.isin([3, 77], np.concatenate(make_design(probability, 1).strata)).any()


def test_an_empty_slide_has_no_strata_and_no_draws() -> None:
    probability = np.full(9, np.nan, dtype=np.float32)
    design = make_design(probability, 1)
    assert design.strata == ()
    assert draw(design, 50, {}) == []


@pytest.mark.parametrize("probability", [np.full(200, 0.3), np.linspace(0, 1, 49)])
def test_there_is_one_stratum_where_probabilities_are_equal_or_few(
    probability: NDArray[np.float64],
) -> None:
    assert len(make_design(probability, 1).strata) == 1


def test_the_first_stage_draws_five_of_each_stratum() -> None:
    shown = draw(make_design(RISING, 1), 50, {})
    assert np.bincount([each.stratum for each in shown]).tolist() == [5, 5, 5, 5, 5]


def test_the_first_patches_are_one_of_each_stratum() -> None:
    shown = draw(make_design(RISING, 1), 5, {})
    assert sorted(each.stratum for each in shown) == [0, 1, 2, 3, 4]


def test_inclusion_is_the_share_of_the_stratum_that_is_drawn() -> None:
    design = make_design(RISING, 1)
    for each in draw(design, 25, {}):
        assert each.inclusion == 5 / len(design.strata[each.stratum])


def test_the_same_call_twice_gives_the_same() -> None:
    assert draw(make_design(RISING, 4), 30, {}) == draw(make_design(RISING, 4), 30, {})


def test_another_seed_gives_other_patches() -> None:
    assert draw(make_design(RISING, 4), 25, {}) != draw(make_design(RISING, 5), 25, {})


def test_asking_for_more_extends_the_same_sequence() -> None:
    design = make_design(RISING, 4)
    longer = answer(design, 90)
    assert answer(design, 40) == longer[:40]
    assert len(longer) == 90


def test_answered_patches_are_not_shown_again() -> None:
    design = make_design(RISING, 4)
    shown = draw(design, 25, {})
    answers = {each.patch: False for each in shown[:10]}
    assert draw(design, 25, answers) == shown[10:]


def test_a_stage_waits_for_the_answers_to_those_before() -> None:
    assert len(draw(make_design(RISING, 4), 100, {})) == 25


def test_a_slide_with_fewer_patches_than_wanted_is_shown_whole() -> None:
    probability = np.linspace(0.1, 0.9, 60, dtype=np.float32)
    sequence = answer(make_design(probability, 4), 500)
    assert sorted(each.patch for each in sequence) == list(range(60))


def test_tally_counts_answers_by_stratum_and_ignores_unknown_patches() -> None:
    design = Design((np.array([0, 2]), np.array([3, 4, 5])), seed=0)
    drawn, positive = design.tally({0: True, 2: False, 5: True, 1: True, 99: True, -1: True})
    assert drawn.tolist() == [2, 1]
    assert positive.tolist() == [1, 1]


def test_allocation_follows_size_times_spread() -> None:
    # Neyman: 30 draws as 100 * 0.4 to 100 * 0.2, that is 20 and 10.
    sizes, drawn = np.array([100, 100]), np.array([1, 1])
    assert allocate(sizes, drawn, np.array([0.4, 0.2]), 30).tolist() == [20, 10]


def test_allocation_draws_no_more_than_there_are() -> None:
    sizes, drawn = np.array([5, 100]), np.array([1, 1])
    assert allocate(sizes, drawn, np.array([0.5, 0.01]), 40).tolist() == [5, 35]


def test_shares_are_flat_where_nothing_was_found() -> None:
    shares = fit_shares(np.full(5, 5), np.zeros(5, dtype=np.int64))
    assert np.allclose(shares, shares[0], atol=0.01)


def test_shares_rise_with_the_answers_and_fall_with_them() -> None:
    rising = fit_shares(np.full(5, 5), np.array([0, 0, 1, 4, 5]))
    falling = fit_shares(np.full(5, 5), np.array([5, 4, 1, 0, 0]))
    assert (np.diff(rising) > 0).all()
    assert np.allclose(rising, falling[::-1])
