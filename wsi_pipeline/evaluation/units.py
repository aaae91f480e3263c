"""Units of an evaluation: metrics and count of each slide, and of each patient."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from wsi_pipeline.evaluation.labelled import (
    LabelledResults,
    LabelledSlide,
    pool_logits,
    pool_slides,
)
from wsi_pipeline.outputs.patients import add_intervals
from wsi_pipeline.training.counts import Count, judge_count
from wsi_pipeline.training.metrics import METRIC_NAMES, Interval, Scores, score

NO_INTERVAL: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True)
class UnitEvaluation:
    """Metrics of the predictions of one slide, of one patient, or of all slides together."""

    name: str
    labelled: int
    """Patches whose class is known."""
    not_assessed: int
    """Labelled patches without a probability (no tissue, or unreadable); metrics leave them out."""
    scores: Scores
    count: Count
    """Counted and true positives, of the same patches."""

    def to_row(self, intervals: Mapping[str, Interval] | None = None) -> dict[str, Any]:
        """Return the columns of a table of evaluations, but for the name."""
        named = intervals or {}
        ends = {name: named.get(name) or NO_INTERVAL for name in METRIC_NAMES}
        row: dict[str, Any] = {"labelled": self.labelled, "not_assessed": self.not_assessed}
        row |= {field.name: getattr(self.scores, field.name) for field in fields(Scores)}
        row |= {
            f"{name}_{end}": value
            for name, pair in ends.items()
            for end, value in zip(("low", "high"), pair, strict=True)
        }
        return row | self.count.to_row()


def evaluate_slides(
    labelled: LabelledResults, thresholds: tuple[float, float]
) -> tuple[UnitEvaluation, ...]:
    """Return the metrics of each slide at the thresholds of final probabilities and of alone."""
    found = []
    for slide, assessed in zip(labelled.slides, labelled.assessed, strict=True):
        scores, alone = _score(labelled, [assessed], thresholds)
        count = judge_count(Count(slide.slide_id, scores, alone), slide.summary)
        left_out = len(slide.labels) - len(assessed.labels)
        found.append(UnitEvaluation(slide.slide_id, len(slide.labels), left_out, scores, count))
    return tuple(found)


def evaluate_patients(
    labelled: LabelledResults,
    slides: Sequence[UnitEvaluation],
    thresholds: tuple[float, float],
) -> tuple[UnitEvaluation, ...]:
    """Return the metrics of each patient, by name; `slides` are those of `evaluate_slides`.

    The interval of a patient's count is the sum of those of the slides.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for number, slide in enumerate(labelled.slides):
        members[slide.table.patient_id].append(number)
    found = []
    for patient, numbers in sorted(members.items()):
        own = [slides[number] for number in numbers]
        scores, alone = _score(labelled, [labelled.assessed[k] for k in numbers], thresholds)
        interval = add_intervals(each.count.interval or NO_INTERVAL for each in own)
        sources = dict.fromkeys(each.count.interval_source for each in own)
        source = " and ".join(sources) if interval else "none"
        found.append(
            UnitEvaluation(
                patient,
                sum(each.labelled for each in own),
                sum(each.not_assessed for each in own),
                scores,
                Count(patient, scores, alone, interval, source),
            )
        )
    return tuple(found)


def _score(
    labelled: LabelledResults, slides: Sequence[LabelledSlide], thresholds: tuple[float, float]
) -> tuple[Scores, Scores]:
    """Return the metrics of slides together: final, and of each patch alone."""
    labels, probability, _ = pool_slides(slides)
    alone = labelled.calibration_alone.apply(pool_logits(slides))
    return score(labels, probability, thresholds[0]), score(labels, alone, thresholds[1])
