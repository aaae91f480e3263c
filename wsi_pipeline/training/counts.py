"""Counts judged by labels: how far counted positives are from the true ones, slide by slide.

A count is the number of patches at or above the threshold, of those that were assessed and whose
class is known. It counts patches, not cells.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.counting.estimate import REVIEW, SAMPLE
from wsi_pipeline.counting.interval import share_error
from wsi_pipeline.training.evaluate import Metrics
from wsi_pipeline.training.metrics import Interval, Scores

LARGE = 100
"""Labelled patches from which on the share of a slide's positives says something of its own."""
SLACK = 1e-6
"""Part of a patch by which rounding may move an end of an interval."""


@dataclass(frozen=True, slots=True)
class Count:
    """The counted and the true number of positive patches of one slide or patient."""

    name: str
    final: Scores
    """Of the probabilities that the results show."""
    alone: Scores | None = None
    """Of each patch alone, without its neighbours; None where that is not known."""
    interval: Interval | None = None
    """The interval that the results give for the true number; None where it cannot be judged."""
    interval_source: str = "none"

    @property
    def counted(self) -> int:
        """Patches at or above the threshold."""
        return _counted(self.final)

    @property
    def true(self) -> int:
        """Patches that are labelled positive."""
        return self.final.true_positives + self.final.false_negatives

    @property
    def error(self) -> int:
        """Counted minus true."""
        return self.counted - self.true

    @property
    def counted_alone(self) -> int | None:
        """Patches at or above the threshold where each is judged alone."""
        return None if self.alone is None else _counted(self.alone)

    @property
    def share_errors(self) -> tuple[float | None, float | None]:
        """Counted minus true as a share of the patches: final, and of each patch alone."""
        return self._share(self.counted), self._share(self.counted_alone)

    @property
    def holds(self) -> bool | None:
        """True if the interval holds the true number; None without an interval."""
        if self.interval is None:
            return None
        return self.interval[0] - SLACK <= self.true <= self.interval[1] + SLACK

    @property
    def interval_text(self) -> str:
        """Both ends in whole patches, marked where they do not hold the true number."""
        if self.interval is None:
            return "–"
        low, high = self.interval
        return f"{low:.0f} to {high:.0f}{'' if self.holds else ' (missed)'}"

    def to_row(self) -> dict[str, Any]:
        """Return the figures as evaluation.csv and evaluation.json have them."""
        low, high = self.interval or (None, None)
        final, alone = self.share_errors
        return {
            "counted": self.counted,
            "true": self.true,
            "error": self.error,
            "share_error": final,
            "interval_low": low,
            "interval_high": high,
            "interval_source": self.interval_source,
            "interval_holds": self.holds,
            "counted_alone": self.counted_alone,
            "share_error_alone": alone,
            "calibration_error_alone": self.alone and self.alone.expected_calibration_error,
        }

    def _share(self, counted: int | None) -> float | None:
        patches = self.final.patches
        return None if counted is None or not patches else (counted - self.true) / patches


def _counted(scores: Scores) -> int:
    return scores.true_positives + scores.false_positives


@dataclass(frozen=True, slots=True)
class MeanErrors:
    """Mean errors of the counted shares of several slides; None where there is none."""

    slides: int
    bias: float | None
    """Mean of counted minus true; above 0: too many are counted."""
    mean_absolute_error: float | None

    @classmethod
    def of(cls, errors: Sequence[float | None]) -> "MeanErrors":
        """Return the means over the slides that have an error."""
        known = [error for error in errors if error is not None]
        if not known:
            return cls(0, None, None)
        return cls(len(known), _mean(known), _mean([abs(error) for error in known]))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of several slides or patients, and their errors."""

    patch_um: float
    """Side of a patch."""
    threshold: float
    rows: tuple[Count, ...]
    patients: int
    noun: str = "slide"
    """Word for what a row is of."""

    def errors(self, fewest: int = 0) -> tuple[MeanErrors, MeanErrors]:
        """Return the errors of final counts and of patches alone, over rows of enough patches."""
        pairs = [row.share_errors for row in self.rows if row.final.patches >= fewest]
        return MeanErrors.of([pair[0] for pair in pairs]), MeanErrors.of(
            [pair[1] for pair in pairs]
        )

    @property
    def judged(self) -> int:
        """Number of intervals that could be judged."""
        return sum(row.holds is not None for row in self.rows)

    @property
    def held(self) -> int:
        """Number of those that hold the true number."""
        return sum(row.holds is True for row in self.rows)

    @property
    def has_alone(self) -> bool:
        """True if counts of each patch alone are known and differ in any metric."""
        return any(row.alone not in (None, row.final) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the object `counts` of evaluation.json, or `counts_of_patients`."""
        (final, alone), (final_large, alone_large) = self.errors(), self.errors(LARGE)
        return {
            "patch_um": self.patch_um,
            "threshold": self.threshold,
            "patients": self.patients,
            "all": asdict(final),
            "large": asdict(final_large),
            "alone": {"all": asdict(alone), "large": asdict(alone_large)},
            "intervals": self.judged,
            "intervals_that_hold": self.held,
            "coverage": self.held / self.judged if self.judged else None,
            f"{self.noun}s": [
                {f"{self.noun}_id": row.name, "patches": row.final.patches, **row.to_row()}
                for row in self.rows
            ],
        }

    @property
    def sentences(self) -> list[str]:
        """Sentences on the meaning of a count, the mean errors and the intervals."""
        sentences = [
            f"A count is the number of patches of {self.patch_um:g} µm at or above"
            f" {self.threshold:.3f}, of those that were assessed and labelled; it counts patches,"
            " not cells, and is no grade."
        ]
        every, large = self.errors()[0].slides, self.errors(LARGE)[0].slides
        if every > large:
            sentences.append(self._describe_errors(0, ""))
        if large:
            few = f", each with {LARGE} labelled patches or more"
            sentences.append(self._describe_errors(LARGE, few))
        if self.judged:
            share = self.held / self.judged
            sentences.append(
                f"{self.held} of {self.judged} intervals hold the true number: {share:.0%}; they"
                " are made to hold 95%."
            )
        return sentences

    def _describe_errors(self, fewest: int, which: str) -> str:
        final, alone = self.errors(fewest)
        rows = _number(final.slides, self.noun)
        if final.slides == len(self.rows) and self.noun != "patient":
            rows += f" of {_number(self.patients, 'patient')}"
        text = f"{rows}{which}: {_percent(final)}"
        if self.has_alone and alone.slides:
            text += f"; each patch alone: {_percent(alone)}"
        return f"{text}."


def _number(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else f'{noun}s'}"


def _percent(errors: MeanErrors) -> str:
    bias, error = errors.bias or 0.0, errors.mean_absolute_error or 0.0
    return f"mean absolute error {error:.1%} of the patches, bias {bias:+.1%}"


def judge_count(count: Count, summary: SlideSummary) -> Count:
    """Return the count of a slide with the interval of its results, where that can be judged.

    At another threshold than that of the results, only a review's can: it is of no threshold.
    """
    is_reviewed = summary.interval_source in (REVIEW, SAMPLE)
    if not is_reviewed and count.final.threshold != summary.threshold:
        return count
    interval = find_interval(summary, count.final.patches, count.counted)
    source = "none" if interval is None else summary.interval_source
    return replace(count, interval=interval, interval_source=source)


def find_interval(summary: SlideSummary, labelled: int, counted: int) -> Interval | None:
    """Return the interval for the true number among a slide's labelled, assessed patches.

    The interval of results is for all assessed patches. Where only some are labelled, one from
    validation or from reviewed slides, which is about a share, is moved from the slide's counted
    share to theirs, at an equal distance in the arcsine; one from a review is about the slide's own
    patches, so None. None also where the results give no interval.
    """
    assessed = summary.patches - summary.unreadable
    low, high = summary.positives_low, summary.positives_high
    if low is None or high is None or not labelled:
        return None
    if labelled == assessed:
        return low, high
    if summary.interval_source in (REVIEW, SAMPLE):
        return None
    shares = summary.positives / assessed, counted / labelled
    low, high = (labelled * _move(end / assessed, *shares) for end in (low, high))
    return low, high


def _move(end: float, share: float, own: float) -> float:
    """Return an end of a share's interval for another share; an end at 0 or 1 stays there."""
    if end <= 0 or end >= 1:
        return end
    angle = math.asin(math.sqrt(own)) + share_error(share, end)
    return math.sin(min(max(angle, 0.0), math.pi / 2)) ** 2


def count_patients(metrics: Metrics, patch_um: float) -> Counts:
    """Return the counts of each patient, without intervals and without those of patches alone."""
    rows = tuple(Count(patient.patient_id, patient.scores) for patient in metrics.patients)
    return Counts(patch_um, metrics.scores.threshold, rows, len(rows), "patient")
