"""Choice of the patches that a person calls: strata by the model's probability, and draws.

Strata have equal sums of sqrt(p (1 - p)), so that equal draws are Neyman's allocation if the model
is right (Dalenius & Hodges 1959). Stages double: 25 patches, equally over the strata; then up to
50, 100, 200, …, allocated by what the stages before have shown. Within a stratum patches come in
one fixed random order, so that those answered are a simple random sample of the stratum, whatever
the model's faults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

FIRST_DRAWS = 5
"""Patches of each stratum in the first stage."""
FEWEST_PATCHES = 10
"""Patches per stratum below which a slide has one stratum."""
LEAST_VARIANCE = 0.02
"""Floor of p (1 - p) where strata are cut: a model may be sure and wrong."""
LEAST_SHARE = 0.01
"""Floor of the expected share of positives where draws are allocated, for the same reason."""
CURVE_SPREAD = 2.0
"""The first and last stratum lie at -2 and 2 on the axis of the fitted curve."""
CURVE_PENALTY = (0.05, 1.0)
"""Ridge on the curve's intercept (about the pooled share) and slope (about zero)."""


@dataclass(frozen=True, eq=False)
class Design:
    """Patches of one slide in strata, and the seed of every random order."""

    strata: tuple[NDArray[np.intp], ...]
    """Patch indices of each stratum by rising probability; unreadable patches are in none."""
    seed: int

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Patches in each stratum, shape (strata,)."""
        return np.array([len(stratum) for stratum in self.strata], dtype=np.int64)

    @cached_property
    def orders(self) -> tuple[NDArray[np.intp], ...]:
        """Each stratum in its random order."""
        return tuple(
            np.random.default_rng([self.seed, number]).permutation(stratum)
            for number, stratum in enumerate(self.strata)
        )

    @cached_property
    def stratum_of(self) -> NDArray[np.int16]:
        """Stratum of each patch, -1 for none, up to the last patch that is in one."""
        last = max((int(stratum.max()) for stratum in self.strata), default=-1)
        numbers = np.full(last + 1, -1, dtype=np.int16)
        for number, stratum in enumerate(self.strata):
            numbers[stratum] = number
        return numbers

    def tally(self, answers: Mapping[int, bool]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return patches answered and patches called positive, by stratum, each (strata,)."""
        patches = np.fromiter(answers, dtype=np.int64, count=len(answers))
        called = np.fromiter(answers.values(), dtype=bool, count=len(answers))
        known = (patches >= 0) & (patches < len(self.stratum_of))
        number = self.stratum_of[patches[known]]
        inside = number >= 0
        width = len(self.strata)
        drawn = np.bincount(number[inside], minlength=width)
        positive = np.bincount(number[inside & called[known]], minlength=width)
        return drawn.astype(np.int64), positive.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One patch to show."""

    patch: int
    stratum: int
    inclusion: float
    """Share of its stratum that is drawn up to the end of the patch's stage."""


def make_design(probability: ArrayLike, seed: int, strata: int = 5) -> Design:
    """Return strata with equal sums of sqrt(p (1 - p)).

    `probability` is (patches,); patches with NaN are in no stratum. There is one stratum where all
    probabilities are equal or patches are few, and none where there are no patches.
    """
    values = np.asarray(probability, dtype=np.float64).ravel()
    readable = np.flatnonzero(~np.isnan(values))
    order = readable[np.argsort(values[readable], kind="stable")]
    if not len(order):
        return Design((), seed)
    p = values[order]
    if len(order) < FEWEST_PATCHES * strata or p[0] == p[-1]:
        return Design((order,), seed)
    weight = np.cumsum(np.sqrt(np.maximum(p * (1 - p), LEAST_VARIANCE)))
    cuts = np.searchsorted(weight, weight[-1] * np.arange(1, strata) / strata)
    return Design(tuple(part for part in np.split(order, cuts) if len(part)), seed)


def draw(design: Design, wanted: int, answers: Mapping[int, bool]) -> list[Drawn]:
    """Return the patches to show next, in order, so that `wanted` are answered in all.

    `wanted` includes what is answered. A stage depends on the answers to those before, so the list
    ends with the first stage that still lacks answers: ask again when it is worked through. The
    sequence depends on the design and the answers only; a larger `wanted` continues it.
    """
    sequence: list[Drawn] = []
    total, stage = 0, 0
    drawn = np.zeros(len(design.strata), dtype=np.int64)
    while total < min(wanted, int(design.sizes.sum())):
        if any(each.patch not in answers for each in sequence):
            break
        plan = _plan_stage(design, drawn, sequence, answers, stage)
        sequence += _order_stage(design, drawn, plan, stage)
        drawn, total, stage = plan, int(plan.sum()), stage + 1
    return [each for each in sequence[: max(wanted, 0)] if each.patch not in answers]


def fit_shares(
    drawn: NDArray[np.int64], positive: NDArray[np.int64], steps: int = 12
) -> NDArray[np.float64]:
    """Return the share of positives expected in each stratum: a logistic curve over the strata.

    The curve has two parameters, so that no stratum's own answers decide how many more it gets: an
    estimate whose sample sizes follow its own early answers is biased. The ridge draws the slope
    to zero, where draws are in proportion to size. Newton's method on the penalised likelihood.
    """
    from scipy.special import expit, logit

    place = np.linspace(-CURVE_SPREAD, CURVE_SPREAD, len(drawn)) if len(drawn) > 1 else [0.0]
    axes = np.stack([np.ones(len(drawn)), np.asarray(place)])  # (2, strata)
    start = np.array([logit((positive.sum() + 0.5) / (drawn.sum() + 1)), 0.0])
    curve, ridge = start.copy(), np.diag(CURVE_PENALTY)
    for _ in range(steps):
        share = expit(np.clip(curve @ axes, -12, 12))
        slope = axes @ (positive - drawn * share) - ridge @ (curve - start)
        bend = (axes * (drawn * share * (1 - share))) @ axes.T + ridge
        curve = curve + np.clip(np.linalg.solve(bend, slope), -1.5, 1.5)
    shares: NDArray[np.float64] = expit(np.clip(curve @ axes, -12, 12))
    return np.clip(shares, LEAST_SHARE, 1 - LEAST_SHARE)


def allocate(
    sizes: NDArray[np.int64], drawn: NDArray[np.int64], spread: NDArray[np.float64], total: int
) -> NDArray[np.int64]:
    """Return draws by stratum, `total` in all, none fewer than `drawn`.

    Each next draw goes where it lowers the estimate's variance most, given the standard deviation
    within each stratum, `spread`: Neyman's allocation in whole patches (Wright 2012).
    """
    plan = drawn.copy()
    gain = (sizes * spread) ** 2
    for _ in range(min(total, int(sizes.sum())) - int(drawn.sum())):
        with np.errstate(divide="ignore"):
            worth = np.where(plan < sizes, gain / (plan * (plan + 1.0)), -1.0)
        plan[np.argmax(worth)] += 1
    return plan


def _plan_stage(
    design: Design,
    drawn: NDArray[np.int64],
    sequence: list[Drawn],
    answers: Mapping[int, bool],
    stage: int,
) -> NDArray[np.int64]:
    """Return draws by stratum up to the end of the stage."""
    if stage == 0:
        return np.minimum(design.sizes, FIRST_DRAWS)
    answered = {each.patch: answers[each.patch] for each in sequence}
    share = fit_shares(*design.tally(answered))
    spread = np.sqrt(share * (1 - share))
    total = FIRST_DRAWS * len(design.strata) * 2**stage
    return allocate(design.sizes, drawn, spread, total)


def _order_stage(
    design: Design, drawn: NDArray[np.int64], plan: NDArray[np.int64], stage: int
) -> list[Drawn]:
    """Return a stage's patches in random order over the strata.

    The first stage goes round by round, one patch of each stratum, so that an estimate stands after
    as many answers as there are strata.
    """
    random = np.random.default_rng([design.seed, len(design.strata), stage])
    if stage == 0:
        rounds = [np.flatnonzero(plan > number) for number in range(FIRST_DRAWS)]
        turns = np.concatenate([random.permutation(each) for each in rounds])
    else:
        turns = random.permutation(np.repeat(np.arange(len(plan)), plan - drawn))
    following = drawn.copy()
    ordered = []
    for number in turns.tolist():
        patch = int(design.orders[number][following[number]])
        ordered.append(Drawn(patch, number, float(plan[number] / design.sizes[number])))
        following[number] += 1
    return ordered
