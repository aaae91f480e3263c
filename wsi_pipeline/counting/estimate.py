"""The number of positive patches of a slide from those a person has called, with an interval.

The estimate is the stratified one, the sum of N_h k_h / n_h; it uses no model and no prior. With
sample sizes fixed beforehand it is unbiased. Stages that follow earlier answers bias it a little:
up to a third of its standard error in simulations, downwards where positives are rare. The
interval holds every total that a test on the estimate does not reject: its distribution, exact in
the hypergeometric draws of every stratum, at the most likely split of that total over the strata,
tails by mid-p (Lancaster 1961). With one stratum this is the mid-p form of the exact interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.counting.design import Design, fit_shares

REVIEW, SAMPLE = "review", "sample"

TAIL_OF_STAGES = 0.7
"""Share of each tail that is used where draws follow earlier answers: the estimate then strays a
little further than the test knows. Without it blind models were covered .91 to .93 of the time.
"""
PSEUDO_PATCHES = 0.25
"""Draws each stratum's share towards the tested total's, for the spread of the test only."""
LATTICE = 2048
"""Points on which the distribution of the estimate is built."""
CANDIDATES = 10
"""Totals tested at a time where an end of the interval is sought."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CountEstimate:
    """Positive patches of a slide, estimated from a person's answers."""

    estimate: float
    low: float
    high: float
    reviewed: int
    source: str
    """review, or sample where the patches were drawn without strata."""


@dataclass(frozen=True, slots=True)
class _Tally:
    """Sizes of the strata, patches answered and patches called positive, each (strata,)."""

    sizes: Counts
    drawn: Counts
    positive: Counts

    @property
    def found(self) -> int:
        return int(self.positive.sum())

    @property
    def most(self) -> int:
        """The most positives that the answers leave possible."""
        return int((self.sizes - self.drawn + self.positive).sum())

    @property
    def estimate(self) -> float:
        return float((self.sizes * self.positive / self.drawn).sum())


def estimate_count(
    design: Design, answers: Mapping[int, bool], level: float = 0.95
) -> CountEstimate | None:
    """Return the number of positive patches with its interval; None before each stratum has one.

    Answers must have been given in the order in which `draw` showed the patches; the reviewer may
    stop anywhere. Answers to patches in no stratum are ignored.
    """
    tally = _Tally(design.sizes, *design.tally(answers))
    if (tally.drawn == 0).any():
        return None
    source = SAMPLE if len(design.strata) <= 1 else REVIEW
    low, high = _find_interval(tally, level)
    return CountEstimate(tally.estimate, low, high, int(tally.drawn.sum()), source)


def patches_needed(
    design: Design,
    answers: Mapping[int, bool],
    now: CountEstimate | None,
    relative_half_width: float = 0.2,
) -> int | None:
    """Return how many more patches bring the interval to ± this share of the estimate, `now`.

    A forecast: the half width shrinks as the standard error does under Neyman's allocation. None
    where no estimate stands or it is 0.
    """
    if now is None or now.estimate == 0:
        return None
    half, wanted = (now.high - now.low) / 2, relative_half_width * now.estimate
    if half <= wanted:
        return 0
    drawn, positive = design.tally(answers)
    share = fit_shares(drawn, positive)
    spread = design.sizes * np.sqrt(share * (1 - share))

    def half_width(plan: Floats) -> float:
        return float(np.sqrt((spread**2 * (1 / plan - 1 / design.sizes)).sum()))

    scale = half / half_width(drawn.astype(float)) if (drawn < design.sizes).any() else 0.0
    few, many = 0.0, float((design.sizes / spread).max())
    for _ in range(60):
        middle = (few + many) / 2
        plan = np.clip(middle * spread, drawn, design.sizes)
        few, many = (middle, many) if scale * half_width(plan) > wanted else (few, middle)
    return int(np.ceil((np.clip(many * spread, drawn, design.sizes) - drawn).sum() - 1e-6))


def kappa(one: Mapping[int, bool], other: Mapping[int, bool]) -> tuple[float | None, int]:
    """Return Cohen's kappa (1960) of two reviewers and the number of patches both have called.

    None where they share no patch, or where both gave all of them one same answer: agreement by
    chance is then certain.
    """
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None, 0
    first = np.array([one[patch] for patch in shared], dtype=bool)
    second = np.array([other[patch] for patch in shared], dtype=bool)
    agreed = float((first == second).mean())
    chance = float(first.mean() * second.mean() + (~first).mean() * (~second).mean())
    return (None if chance == 1 else (agreed - chance) / (1 - chance)), len(shared)


def _find_interval(tally: _Tally, level: float) -> tuple[float, float]:
    """Return the lowest and highest total of positives that is not rejected."""
    if tally.found == tally.most:
        return float(tally.found), float(tally.found)
    tail = (1 - level) / 2 * (TAIL_OF_STAGES if len(tally.sizes) > 1 else 1)
    estimate = tally.estimate
    high = _find_end(tally, np.floor(estimate), tally.most, tail, upper=True)
    low = _find_end(tally, np.ceil(estimate), tally.found, tail, upper=False)
    return low, high


def _find_end(tally: _Tally, inside: float, limit: float, tail: float, *, upper: bool) -> float:
    """Return the last total from `inside` towards `limit` whose tail probability exceeds `tail`.

    Exact to one patch, or to 1/4000 of a larger slide, rounded outwards.
    """
    step = max(1.0, np.floor(tally.sizes.sum() / 4000))
    outside = limit + 1 if upper else limit - 1
    while abs(outside - inside) > step:
        totals = np.unique(np.rint(np.linspace(inside, outside, CANDIDATES + 2)))
        totals = totals[1:-1] if upper else totals[-2:0:-1]
        at_most, at_least = _tail_probabilities(tally, totals)
        rejected = np.flatnonzero((at_most if upper else at_least) <= tail)
        first = int(rejected[0]) if len(rejected) else len(totals)
        bounds = np.concatenate([[inside], totals, [outside]])
        inside, outside = float(bounds[first]), float(bounds[first + 1])
    end = inside if step == 1 else outside
    return float(min(end, limit) if upper else max(end, limit))


def _tail_probabilities(tally: _Tally, totals: Floats) -> tuple[Floats, Floats]:
    """Return P(estimate <= observed) and P(estimate >= observed), mid-p, at each total."""
    shares = _likeliest_shares(tally, totals / tally.sizes.sum())
    scale = (LATTICE - len(tally.sizes) - 1) / tally.sizes.sum()
    spectrum: NDArray[np.complex128] | float = 1.0
    observed = 0
    for stratum, (size, drawn, positive) in enumerate(
        zip(tally.sizes.tolist(), tally.drawn.tolist(), tally.positive.tolist(), strict=True)
    ):
        places = np.rint(size * scale * np.arange(drawn + 1) / drawn).astype(np.intp)
        observed += int(places[positive])
        lattice = np.zeros((len(totals), LATTICE))
        np.add.at(lattice.T, places, _draw_distribution(size, drawn, shares[:, stratum] * size).T)
        spectrum = spectrum * np.fft.rfft(lattice)
    distribution = np.fft.irfft(spectrum, LATTICE)
    at_most = distribution[:, :observed].sum(axis=1) + distribution[:, observed] / 2
    return at_most, 1 - at_most


def _likeliest_shares(tally: _Tally, share: Floats) -> Floats:
    """Return the likeliest share of each stratum given the slide's, (totals, strata).

    The binomial likelihood, with a few pseudo-patches at the slide's share, under the constraint
    that the strata add up; solved by bisection on the constraint's multiplier. Shares stay within
    what the answers leave possible.
    """
    weight = tally.sizes / tally.sizes.sum()
    least = tally.positive / tally.sizes
    most = 1 - (tally.drawn - tally.positive) / tally.sizes
    hits = tally.positive + PSEUDO_PATCHES * share[:, None]
    answers = tally.drawn + PSEUDO_PATCHES

    def solve(multiplier: Floats) -> Floats:
        pull = np.sinh(multiplier)[:, None] * weight
        middle = pull + answers
        root = np.sqrt(np.maximum(middle**2 - 4 * pull * hits, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            solved = np.where(middle > 0, 2 * hits / (middle + root), (middle - root) / (2 * pull))
        within: Floats = np.clip(solved, least, most)
        return within

    bound = np.arcsinh(1e3 * answers.sum() / weight.min())
    low, high = np.full(len(share), -bound), np.full(len(share), bound)
    for _ in range(36):
        middle = (low + high) / 2
        above = solve(middle) @ weight > share
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return solve((low + high) / 2)


def _draw_distribution(size: int, drawn: int, positives: Floats) -> Floats:
    """Return the distribution of positives among the drawn, (totals, drawn + 1).

    Hypergeometric; where the stratum's positives are no whole number, the mixture of both next to
    it with that mean.
    """
    below = np.floor(positives)
    part = (positives - below)[:, None]
    above = np.minimum(below + 1, size)
    lower = _hypergeometric(size, drawn, below)
    return lower * (1 - part) + _hypergeometric(size, drawn, above) * part


def _hypergeometric(size: int, drawn: int, positives: Floats) -> Floats:
    """Return P(k of the drawn are positive), k = 0 … drawn, for each number of positives."""
    k = np.arange(drawn + 1.0)
    held = positives[:, None]
    possible = (k <= held) & (drawn - k <= size - held)
    k = np.where(possible, k, np.maximum(0, drawn - size + held))
    logarithm = _log_choose(held, k) + _log_choose(size - held, drawn - k)
    chance: Floats = np.where(possible, np.exp(logarithm - _log_choose(size, drawn)), 0.0)
    return chance


def _log_choose(of: Floats | float, chosen: Floats | float) -> Floats:
    from scipy.special import gammaln

    without: Floats = gammaln(np.add(chosen, 1)) + gammaln(np.subtract(of, chosen) + 1)
    result: Floats = gammaln(np.add(of, 1)) - without
    return result
