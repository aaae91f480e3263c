"""A slide's share of positive patches from a random part of it, drawn in clusters.

Clusters are squares of the grid, so that reading stays cheap. The share is the ratio estimator
over clusters, its variance that of the linearised ratio (Cochran 1977, chapters 6 and 11). The
interval is Clopper and Pearson's at the effective sample size, corrected by Student's t for few
clusters (Korn & Graubard 1998). Two things differ from these sources, because in simulations the
interval covered too rarely without them: some clusters whose patches are all alike are added to
those drawn, and the finite-population correction shortens the interval instead of enlarging the
sample, because the error is skewed to the other side where most clusters are drawn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
AIMED_CLUSTERS = 120
"""Wanted number of clusters of a sample; fewer are drawn where the least side is longer.

At the same number of patches the width of the interval is about proportional to the side.
"""
FEWEST_CLUSTERS = 10
"""The side becomes shorter than the least one where fewer clusters than these would be drawn."""
PRIOR_CLUSTERS = 2.0
"""Number of added clusters of patches that are all alike, in the estimate of the design effect."""

Bools = NDArray[np.bool_]
Numbers = NDArray[np.intp]
Floats = NDArray[np.float64]


class ClusterSample(NamedTuple):
    """Patches drawn in clusters: squares of the grid."""

    side: int
    """Patches along a cluster's side."""
    clusters: int
    """Number of clusters of the slide that hold patches."""
    drawn: Bools
    """(n,) True for patches of drawn clusters."""
    cluster: Numbers
    """(n,) number of each patch's cluster, 0 to clusters - 1."""


class ShareEstimate(NamedTuple):
    """Share of positive patches of a slide with its 95 % interval, 0 to 1.

    None where no drawn patch could be read.
    """

    share: float | None
    low: float | None
    high: float | None


def draw_clusters(
    positions: NDArray[np.int32], patches: int, seed: int, least_side: int = 1
) -> ClusterSample:
    """Draw whole clusters that hold about `patches` of the slide's patches.

    `positions` is (n, 2), row and column of every patch of the slide, in any order. Clusters are
    the squares (row // side, col // side); their number is fixed, and they are drawn without
    replacement. `least_side` is the side, in patches, below which reading becomes slow.
    """
    count = len(positions)
    side = _choose_side(positions, patches, least_side)
    clusters, cluster = number_clusters(positions, side)
    wanted = clusters if patches >= count else _clusters_wanted(patches, count, clusters)
    chosen = np.zeros(clusters, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(clusters)[:wanted]] = True
    return ClusterSample(side, clusters, chosen[cluster], cluster)


def estimate_share(positive: Bools, known: Bools, cluster: Numbers, clusters: int) -> ShareEstimate:
    """Return the share of positives among a slide's readable patches, with a 95 % interval.

    `positive`, `known` and `cluster` are (m,), of the drawn patches; a patch that could not be read
    is not known. `clusters` is the number of clusters of the whole slide.
    """
    if not known.any():
        return ShareEstimate(None, None, None)
    _, number = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(number, weights=known).astype(np.float64)
    positives = np.bincount(number, weights=known & positive).astype(np.float64)
    share = float(positives.sum() / sizes.sum())
    if len(sizes) >= clusters:
        return ShareEstimate(share, share, share)
    low, high = _binomial_interval(share, _effective_size(sizes, positives))
    part = (1 - len(sizes) / clusters) ** 0.5  # finite-population correction of the deviation
    return ShareEstimate(share, share - (share - low) * part, share + (high - share) * part)


def number_clusters(positions: NDArray[np.int32], side: int) -> tuple[int, Numbers]:
    """Return the number of clusters, and (n,) the number of each patch's, by row, then column."""
    if not len(positions):
        return 0, np.zeros(0, dtype=np.intp)
    row, col = (positions.astype(np.int64) // side).T
    found, number = np.unique(row * (col.max() + 1) + col, return_inverse=True)
    return len(found), number.astype(np.intp).ravel()


def _clusters_wanted(patches: int, count: int, clusters: int) -> int:
    """Return how many of the clusters, of `count` patches in all, hold about `patches`."""
    return min(max(round(patches * clusters / count), 1), clusters)


def _choose_side(positions: NDArray[np.int32], patches: int, least_side: int) -> int:
    """Return the side, in patches, that gives `AIMED_CLUSTERS`, or `least_side` if it is longer.

    It is shorter where fewer than `FEWEST_CLUSTERS` would be drawn.
    """
    count = len(positions)
    side = max(least_side, int((patches / AIMED_CLUSTERS) ** 0.5), 1)
    while side > 1 and patches < count:
        clusters, _ = number_clusters(positions, side)
        if _clusters_wanted(patches, count, clusters) >= FEWEST_CLUSTERS:
            break
        side -= 1
    return side


def _effective_size(sizes: Floats, positives: Floats) -> float:
    """Return the size of a simple random sample whose share would be as precise.

    `sizes` and `positives` are (k,), of each drawn cluster. The design effect is a mean of the
    measured one and that of clusters whose patches are all alike, which weighs more the fewer
    clusters have positives, or the fewer have negatives. It is at least 1.
    """
    from scipy.special import stdtrit

    known, drawn = float(sizes.sum()), len(sizes)
    share = float(positives.sum()) / known
    effect = alike = float((sizes**2).sum()) / known
    telling = int(min(np.count_nonzero(positives), np.count_nonzero(sizes - positives)))
    if telling and drawn > 1:
        squares = float(((positives - share * sizes) ** 2).sum()) * drawn / (drawn - 1)
        seen = squares / (known * share * (1 - share))
        effect = (telling * seen + PRIOR_CLUSTERS * alike) / (telling + PRIOR_CLUSTERS)
        effect = max(effect, 1.0)
    tail = (1 + LEVEL) / 2
    wider = float(stdtrit(max(drawn - 1, 1), tail) / stdtrit(max(known - 1, 1), tail))
    return known / effect / wider**2


def _binomial_interval(share: float, size: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval; the size need not be whole."""
    from scipy.special import betaincinv

    tail, found = (1 - LEVEL) / 2, share * size
    low = float(betaincinv(found, size - found + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(found + 1, size - found, 1 - tail)) if share < 1 else 1.0
    return low, high
