"""Samples of whole clusters, and the share that follows from them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import betainc

from tests.commands import PLAIN, run
from wsi_pipeline.counting.cluster_sample import (
    FEWEST_CLUSTERS,
    ShareEstimate,
    draw_clusters,
    estimate_share,
)
from wsi_pipeline.store.slide_results import open_result

SLIDES = ("idc_8863_mosaic", "idc_8865_mosaic")
NO_POSITIVES_HIGH = 0.6166
"""Of four drawn clusters of four patches, of eight clusters.

The sample is worth its clusters: 16 patches / effect 4 = 4, divided by the square of Student's
t(3) / t(15) = 3.1824 / 2.1314: 4 / 2.2293 = 1.7943. No positives of so many leave
1 - 0.025^(1 / 1.7943) = 0.8720, and half of the clusters drawn √(1 - 1/2) of that.
"""


def grid(rows: int, cols: int) -> NDArray[np.int32]:
    """Positions of a full rectangle, by row."""
    return np.argwhere(np.ones((rows, cols), dtype=np.bool_)).astype(np.int32)


def estimate(clusters: list[list[int | None]], of: int) -> ShareEstimate:
    """Estimate from the patches of each drawn cluster: 1 positive, 0 negative, None unreadable."""
    number = np.repeat(np.arange(len(clusters)), [len(each) for each in clusters])
    patches = [patch for each in clusters for patch in each]
    positive = np.array([patch == 1 for patch in patches], dtype=np.bool_)
    known = np.array([patch is not None for patch in patches], dtype=np.bool_)
    return estimate_share(positive, known, number, of)


def interval(found: ShareEstimate) -> tuple[float, float, float]:
    """Return the share and its ends, which are there."""
    share, low, high = found
    assert share is not None
    assert low is not None
    assert high is not None
    return share, low, high


def smooth_field(side: int, reach: float, share: float, seed: int) -> NDArray[np.bool_]:
    """Positives that lie together: the highest values of a smooth random field, (side * side,)."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    values = gaussian_filter(noise, reach).ravel()
    positive: NDArray[np.bool_] = values > np.quantile(values, 1 - share)
    return positive


positions = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=120, unique=True
).map(lambda found: np.array(found, dtype=np.int32))


def test_clusters_are_squares_numbered_by_row_then_column() -> None:
    # Side 2 on 3 × 5 patches: squares of columns 0-1, 2-3 and 4, of rows 0-1 and 2.
    sample = draw_clusters(grid(3, 5), patches=15, seed=0, least_side=2)
    assert (sample.side, sample.clusters) == (2, 6)
    assert sample.cluster.tolist() == [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5]


def test_squares_without_tissue_are_no_clusters() -> None:
    corners = np.array([[0, 0], [9, 9]], dtype=np.int32)
    assert draw_clusters(corners, patches=2, seed=0, least_side=3).cluster.tolist() == [0, 1]


def test_the_number_of_clusters_is_fixed() -> None:
    # 400 of 1,600 patches in squares of 2 × 2: 100 squares, whatever the seed.
    drawn = [draw_clusters(grid(40, 40), 400, seed, least_side=2).drawn.sum() for seed in range(9)]
    assert drawn == [400] * 9


@pytest.mark.parametrize(("patches", "side"), [(100, 1), (150, 1), (500, 2), (2000, 4)])
def test_larger_samples_have_larger_clusters(patches: int, side: int) -> None:
    assert draw_clusters(grid(100, 100), patches, seed=0).side == side


def test_the_least_side_is_kept() -> None:
    assert draw_clusters(grid(100, 100), 2000, seed=0, least_side=7).side == 7


def test_the_least_side_gives_way_where_too_few_clusters_would_be_drawn() -> None:
    # 150 patches are 9.4 squares of 4 × 4 and 16.7 of 3 × 3.
    sample = draw_clusters(grid(96, 96), 150, seed=0, least_side=8)
    assert sample.side == 3
    assert len(np.unique(sample.cluster[sample.drawn])) >= FEWEST_CLUSTERS


@pytest.mark.parametrize("patches", [48, 49, 10**9])
def test_as_many_patches_as_there_are_draw_all(patches: int) -> None:
    assert draw_clusters(grid(6, 8), patches, seed=0).drawn.all()


def test_a_slide_without_tissue_gives_an_empty_sample() -> None:
    sample = draw_clusters(np.zeros((0, 2), dtype=np.int32), 150, seed=0)
    assert (sample.clusters, len(sample.drawn), len(sample.cluster)) == (0, 0, 0)


@given(positions, st.integers(1, 150), st.integers(0, 99), st.integers(1, 9))
def test_only_whole_clusters_are_drawn(
    found: NDArray[np.int32], patches: int, seed: int, least_side: int
) -> None:
    sample = draw_clusters(found, patches, seed, least_side)
    drawn = set(sample.cluster[sample.drawn].tolist())
    assert drawn
    assert drawn.isdisjoint(sample.cluster[~sample.drawn].tolist())
    assert set(sample.cluster.tolist()) == set(range(sample.clusters))


@given(positions, st.integers(1, 150), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_patches(
    found: NDArray[np.int32], patches: int, seed: int, random: object
) -> None:
    order = np.array(random.sample(range(len(found)), len(found)))  # type: ignore[attr-defined]
    one = draw_clusters(found, patches, seed, least_side=2)
    other = draw_clusters(found[order], patches, seed, least_side=2)
    assert one.drawn[order].tolist() == other.drawn.tolist()
    assert one.cluster[order].tolist() == other.cluster.tolist()


def test_another_seed_draws_other_clusters() -> None:
    draws = {draw_clusters(grid(40, 40), 100, seed).drawn.tobytes() for seed in range(5)}
    assert len(draws) == 5


def test_every_cluster_is_drawn_equally_often() -> None:
    # 400 of 1,600 squares: each patch in a quarter of 400 draws, ± 4.6 standard errors of 8.66.
    draws = sum(draw_clusters(grid(40, 40), 400, seed).drawn.astype(int) for seed in range(400))
    assert 60 <= np.min(draws) <= np.max(draws) <= 140


def test_the_share_is_that_of_all_drawn_patches() -> None:
    # (2 + 1) positives of (4 + 2) patches; the mean of the clusters' shares is the same by no rule.
    assert estimate([[1, 1, 0, 0], [1, 0]], of=9).share == pytest.approx(3 / 6)
    assert estimate([[1, 1, 1, 0], [0, 0]], of=9).share == pytest.approx(3 / 6)


def test_unreadable_patches_count_on_neither_side() -> None:
    assert estimate([[1, None, 0, 0], [None, 0]], of=9).share == pytest.approx(1 / 4)


def test_an_unreadable_positive_is_not_counted() -> None:
    positive, known = np.array([True, False]), np.array([False, True])
    assert estimate_share(positive, known, np.array([0, 1]), 5).share == 0


@pytest.mark.parametrize("clusters", [[], [[None, None], [None]]])
def test_nothing_readable_gives_no_share(clusters: list[list[int | None]]) -> None:
    assert estimate(clusters, of=9) == (None, None, None)


def test_all_clusters_drawn_are_exact() -> None:
    assert estimate([[1, 0, 0], [1]], of=2) == (0.5, 0.5, 0.5)


def test_no_positives_give_an_upper_end() -> None:
    found = estimate([[0] * 4] * 4, of=8)
    assert found == pytest.approx((0, 0, NO_POSITIVES_HIGH), abs=1e-4)


def test_positives_alone_give_a_lower_end() -> None:
    found = estimate([[1] * 4] * 4, of=8)
    assert found == pytest.approx((1, 1 - NO_POSITIVES_HIGH, 1), abs=1e-4)


def test_one_cluster_says_next_to_nothing() -> None:
    share, low, high = interval(estimate([[1, 0, 0, 0]], of=100))
    assert share == 0.25
    assert low < 0.01
    assert high > 0.95


def test_the_ends_cut_off_the_tails_of_the_effective_sample() -> None:
    """Ten patches in clusters of one, half of them positive, of a million.

    The effect seen is 10 / 9, of five clusters with positives; two of effect 1 are added:
    (5 * 10 / 9 + 2) / 7 = 68 / 63. The sample is worth 10 * 63 / 68, half of it positive.
    """
    share, low, high = interval(estimate([[1], [0]] * 5, of=10**6))
    size = 630 / 68
    assert share == 0.5
    assert low == pytest.approx(1 - high)
    assert betainc(size / 2, size / 2 + 1, low) == pytest.approx(0.025, rel=1e-3)


def test_a_drawn_quarter_leaves_the_root_of_three_quarters_of_the_deviation() -> None:
    *_, endless = interval(estimate([[1], [0]] * 5, of=10**9))
    *_, quarter = interval(estimate([[1], [0]] * 5, of=40))
    assert quarter - 0.5 == pytest.approx((endless - 0.5) * 0.75**0.5)


def test_clusters_that_are_all_alike_widen_the_interval() -> None:
    # Both 40 of 80 patches positive; the effect is 1 and (10 * 4 * 20 / 19 + 8) / 12 = 4.2.
    *_, mixed = interval(estimate([[1, 1, 0, 0]] * 20, of=10**6))
    *_, alike = interval(estimate([[1] * 4, [0] * 4] * 10, of=10**6))
    assert alike - 0.5 > 1.8 * (mixed - 0.5)


def test_even_clusters_are_worth_no_more_than_single_patches() -> None:
    """The effect of ten clusters of (1, 0) would be (10 * 0 + 4) / 12; it is taken for 1.

    20 patches, divided by the square of Student's t(9) / t(19) = 2.2622 / 2.0930: 17.12.
    """
    _, low, _ = interval(estimate([[1, 0]] * 10, of=10**6))
    assert betainc(17.12 / 2, 17.12 / 2 + 1, low) == pytest.approx(0.025, rel=1e-3)


@given(st.data(), st.integers(1, 60))
def test_the_share_lies_in_its_interval_and_that_from_0_to_1(
    choose: st.DataObject, patches: int
) -> None:
    positive, known = (choose.draw(arrays(np.bool_, patches)) for _ in range(2))
    cluster = choose.draw(arrays(np.intp, patches, elements=st.integers(0, 12)))
    known[0] = True
    share, low, high = interval(estimate_share(positive, known, cluster, 13))
    assert 0 <= low <= share <= high <= 1


@given(st.data(), st.integers(1, 40))
def test_the_order_of_the_patches_does_not_matter(choose: st.DataObject, patches: int) -> None:
    positive, known = (choose.draw(arrays(np.bool_, patches)) for _ in range(2))
    cluster = choose.draw(arrays(np.intp, patches, elements=st.integers(0, 9)))
    order = np.array(choose.draw(st.permutations(range(patches))))
    one = estimate_share(positive, known, cluster, 12)
    assert estimate_share(positive[order], known[order], cluster[order], 12) == one


@pytest.mark.parametrize(
    ("patches", "least_side", "reach", "share"),
    [(150, 2, 3, 0.3), (150, 3, 5, 0.2), (500, 4, 3, 0.15), (500, 4, 8, 0.4)],
)
def test_nineteen_of_twenty_intervals_hold_the_share_of_a_slide_with_regions(
    patches: int, least_side: int, reach: float, share: float
) -> None:
    positive = smooth_field(60, reach, share, seed=1)
    clustered, blind = count_held(grid(60, 60), positive, patches, least_side, draws=300)
    assert clustered >= 0.93
    assert blind < 0.85  # the same draws, each patch taken for a cluster of its own


def count_held(
    places: NDArray[np.int32],
    positive: NDArray[np.bool_],
    patches: int,
    least_side: int,
    draws: int,
) -> tuple[float, float]:
    """Return how many of the draws' intervals hold the share: by clusters, and by patches."""
    truth = float(positive.mean())
    by_clusters = by_patches = 0
    for seed in range(draws):
        sample = draw_clusters(places, patches, seed, least_side)
        seen, number = positive[sample.drawn], sample.cluster[sample.drawn]
        known, alone = np.ones_like(seen), np.arange(len(seen))
        by_clusters += holds(estimate_share(seen, known, number, sample.clusters), truth)
        by_patches += holds(estimate_share(seen, known, alone, len(positive)), truth)
    return by_clusters / draws, by_patches / draws


def holds(found: ShareEstimate, truth: float) -> bool:
    _, low, high = interval(found)
    return low <= truth <= high


@pytest.fixture(scope="module", params=["idc", "idc-cnn"])
def results(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Predictions of two whole slides by each model in the box."""
    folder = tmp_path_factory.mktemp("sampled") / "results"
    slides = [shared_data / "slides" / f"{slide}.tiff" for slide in SLIDES]
    options = (*PLAIN, "--workers", 0, "--outputs", "summary", "-o", folder)
    answer = run("infer", *slides, "--model", request.param, *options)
    assert answer.exit_code == 0, answer.output
    return folder


@pytest.mark.system
@pytest.mark.parametrize("slide", SLIDES)
@pytest.mark.parametrize("least_side", [1, 2, 3, 4, 5])
def test_intervals_of_150_patches_hold_the_share_of_a_whole_real_slide(
    slide: str, least_side: int, results: Path
) -> None:
    predictions = open_result(results / slide)
    positive = predictions.probability >= predictions.terms.on_grid.count
    held, _ = count_held(predictions.table.positions, positive, 150, least_side, draws=1000)
    assert held >= 0.93
