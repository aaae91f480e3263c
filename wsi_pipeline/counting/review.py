"""A review of one slide: the patches that were drawn, and what each reviewer called them.

A patch is known by its number on the slide's grid, row · columns + column, so that a review does
not depend on the model, the order or the threshold of the results beside it. The strata are the
review's own: another model's probabilities change neither them nor the estimate.

The reviewer who answered first decides what is drawn and what is estimated. Others are shown the
same patches; their answers count for the agreement only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.counting.design import Design, draw, make_design
from wsi_pipeline.counting.estimate import CountEstimate, estimate_count, kappa, patches_needed

UNDRAWN = 255
"""Stratum of positions that were not assessed."""
MAX_REVIEWER = 100
"""Characters of a reviewer's name."""
FIRST_WANTED = 50
"""Patches that a review asks about unless it is told otherwise."""


class ShownPatch(NamedTuple):
    """One patch that was drawn."""

    number: int
    """row · columns + column on the grid."""
    stratum: int
    inclusion: float
    """Share of its stratum that is drawn up to the end of the patch's stage, 0 to 1."""


class Answer(NamedTuple):
    """A reviewer's call of one patch."""

    call: bool
    at: str
    """UTC, as 2026-11-29T05:00:00Z."""


Answers = Mapping[int, Answer]
"""By the patch's number, in the order in which they were given."""


class Agreement(NamedTuple):
    """The agreement of two reviewers."""

    one: str
    other: str
    kappa: float | None
    """Cohen's kappa; None where it cannot be told."""
    shared: int
    """Patches that both have called."""


@dataclass(frozen=True, eq=False)
class Review:
    """The answers about one slide, and the design by which its patches were drawn."""

    slide_id: str
    fingerprint: str
    """That of the slide's file."""
    grid: Grid
    model_digest: str
    """Model whose probabilities made the strata."""
    class_names: tuple[str, str]
    """(negative, positive)"""
    seed: int
    strata: NDArray[np.uint8]
    """(rows, cols) stratum of each position; UNDRAWN where nothing was assessed."""
    wanted: int = FIRST_WANTED
    """Patches to ask about."""
    shown: tuple[ShownPatch, ...] = ()
    """In the order in which they are shown."""
    answers: Mapping[str, Answers] = field(default_factory=lambda: MappingProxyType({}))
    """By reviewer; the first one is the one who answered first."""

    @cached_property
    def design(self) -> Design:
        """The strata of patch numbers."""
        flat = self.strata.ravel()
        last = int(flat[flat != UNDRAWN].max(initial=0))
        strata = (np.flatnonzero(flat == number) for number in range(last + 1))
        return Design(tuple(each for each in strata if len(each)), self.seed)

    @property
    def patches(self) -> int:
        """Patches of the slide that were assessed, from which others are drawn."""
        return int(self.design.sizes.sum())

    @property
    def first_reviewer(self) -> str | None:
        """The one whose answers are the estimate's."""
        return next(iter(self.answers), None)

    def calls_of(self, reviewer: str | None) -> dict[int, bool]:
        """Return what a reviewer called each patch, by its number; nothing for an unknown name."""
        given = self.answers.get(reviewer or "", {})
        return {number: answer.call for number, answer in given.items()}

    def is_led_by(self, reviewer: str) -> bool:
        """Return True where this reviewer decides what is drawn."""
        return self.first_reviewer in (None, reviewer)

    def list_open(self, reviewer: str) -> list[int]:
        """Return the numbers of the patches that a reviewer has still to call, in order."""
        called = self.answers.get(reviewer, {})
        return [patch.number for patch in self.shown if patch.number not in called]

    @cached_property
    def estimate(self) -> CountEstimate | None:
        """The number of positive patches by the first reviewer's answers."""
        return estimate_count(self.design, self.calls_of(self.first_reviewer))

    def patches_needed(self) -> int | None:
        """Return how many more answers make the interval ± 20 % of the estimate."""
        calls = self.calls_of(self.first_reviewer)
        return patches_needed(self.design, calls, self.estimate)

    def list_agreements(self) -> list[Agreement]:
        """Return the agreement of every other reviewer with the first."""
        first, *others = self.answers or (None,)
        calls = self.calls_of(first)
        return [
            Agreement(str(first), other, *kappa(calls, self.calls_of(other))) for other in others
        ]

    def place_of(self, number: int) -> tuple[int, int]:
        """Return (row, col) of a patch."""
        return divmod(number, self.grid.cols)


def start_review(
    slide_id: str,
    fingerprint: str,
    grid: Grid,
    probability: NDArray[np.float32],
    model_digest: str,
    class_names: tuple[str, str],
    wanted: int = FIRST_WANTED,
) -> Review:
    """Return a review without answers; `probability` is (rows, cols), NaN: not assessed.

    The seed follows from the slide alone, so that a page that is opened twice before the first
    answer shows the same patches.
    """
    seed = int(hashlib.sha256(fingerprint.encode()).hexdigest()[:8], 16)
    strata = np.full(grid.rows * grid.cols, UNDRAWN, dtype=np.uint8)
    for number, stratum in enumerate(make_design(probability.ravel(), seed).strata):
        strata[stratum] = number
    started = Review(
        slide_id=slide_id,
        fingerprint=fingerprint,
        grid=grid,
        model_digest=model_digest,
        class_names=class_names,
        seed=seed,
        strata=strata.reshape(grid.rows, grid.cols),
        wanted=min(wanted, int(np.count_nonzero(strata != UNDRAWN))),
    )
    return _draw_on(started)


def add_answer(review: Review, reviewer: str, number: int, call: bool) -> Review:
    """Return the review with one more answer. Raises ConfigError.

    The same answer once more changes nothing; another one to a patch that this reviewer has called
    is refused, because a page that does not know of the first one would overwrite it.
    """
    given = review.answers.get(reviewer, {})
    if number in given:
        if given[number].call == call:
            return review
        row, col = review.place_of(number)
        raise ConfigError(
            f"row {row}, column {col}: {reviewer} has called this patch otherwise; undo that first"
        )
    if number not in {patch.number for patch in review.shown}:
        raise ConfigError("this patch was not drawn; reload the page")
    answer = Answer(call, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    return _draw_on(_replace_answers(review, reviewer, {**given, number: answer}))


def remove_last_answer(review: Review, reviewer: str) -> tuple[Review, int | None]:
    """Return the review without a reviewer's last answer, and the number of its patch."""
    given = dict(review.answers.get(reviewer, {}))
    if not given:
        return review, None
    number, _ = given.popitem()
    return _draw_on(_replace_answers(review, reviewer, given)), number


def ask_for_more(review: Review, patches: int) -> Review:
    """Return the review asking about so many patches more, as far as the slide has them."""
    asked = min(review.wanted, review.patches) + patches
    return _draw_on(replace(review, wanted=min(asked, review.patches)))


def _replace_answers(review: Review, reviewer: str, given: Answers) -> Review:
    """Return the review with a reviewer's answers; one who has none left is left out.

    Unless it is the first one: the second would else decide what is drawn.
    """
    answers = {**review.answers, reviewer: given}
    if not given and (reviewer != review.first_reviewer or len(answers) == 1):
        del answers[reviewer]
    return replace(review, answers=MappingProxyType(answers))


def _draw_on(review: Review) -> Review:
    """Return the review with the patches to show next, after those that someone has called."""
    calls = review.calls_of(review.first_reviewer)
    following = [
        ShownPatch(each.patch, each.stratum, each.inclusion)
        for each in draw(review.design, review.wanted, calls)
    ]
    called = {number for answers in review.answers.values() for number in answers}
    kept = [patch for patch in review.shown if patch.number in called]
    known = {patch.number for patch in kept}
    new = [patch for patch in following if patch.number not in known]
    return replace(review, shown=(*kept, *new))
