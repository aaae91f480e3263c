"""Patients as a unit of results: what the slides of each one come to together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsi_pipeline.core.outcome import SlideSummary

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PatientSummary:
    """The finished slides of one patient; the fields are the columns of patients.csv."""

    patient_id: str
    slides: int
    patches: int
    unreadable: int
    assessed_mm2: float
    positive_mm2: float
    positive_fraction: float | None
    """Positive of the assessed area, in which an estimate counts as its whole slide.

    None where nothing was assessed.
    """
    positives: int
    positives_estimate: float | None
    positives_low: float | None
    """Lower end of the 95 % interval of the number of positive patches; None: none."""
    positives_high: float | None
    interval_source: str
    """As of the slides; several with `and`."""
    largest_positive_region_mm2: float | None
    """None where all its slides are estimates, which know no regions."""
    largest_region_slide: str | None
    """The slide with that region; None where nothing is positive."""
    estimated_slides: int
    """Slides that are estimates: areas, patches and positives are of their samples alone."""


def summarise_patients(summaries: Sequence[SlideSummary]) -> list[PatientSummary]:
    """Return the patients of slides, by name; a slide without a patient is one of its own."""
    slides: defaultdict[str, list[SlideSummary]] = defaultdict(list)
    for summary in summaries:
        slides[summary.patient_id or summary.slide_id].append(summary)
    return [_summarise(patient, own) for patient, own in sorted(slides.items())]


def _summarise(patient_id: str, slides: Sequence[SlideSummary]) -> PatientSummary:
    assessed = sum(slide.assessed_mm2 for slide in slides)
    positive = sum(slide.positive_mm2 for slide in slides)
    interval = add_intervals((slide.positives_low, slide.positives_high) for slide in slides)
    estimates = [each.positives_estimate for each in slides if each.positives_estimate is not None]
    sources = dict.fromkeys(slide.interval_source for slide in slides)
    regions = [
        (slide.largest_positive_region_mm2, slide.slide_id)
        for slide in slides
        if slide.largest_positive_region_mm2 is not None
    ]
    area_mm2, slide_id = max(regions, key=lambda region: region[0], default=(None, None))
    return PatientSummary(
        patient_id=patient_id,
        slides=len(slides),
        patches=sum(slide.patches for slide in slides),
        unreadable=sum(slide.unreadable for slide in slides),
        assessed_mm2=assessed,
        positive_mm2=positive,
        positive_fraction=_share_positive(slides),
        positives=sum(slide.positives for slide in slides),
        positives_estimate=sum(estimates) if estimates else None,
        positives_low=interval and interval[0],
        positives_high=interval and interval[1],
        interval_source=" and ".join(sources) if interval else "none",
        largest_positive_region_mm2=area_mm2,
        largest_region_slide=slide_id if area_mm2 else None,
        estimated_slides=sum(slide.slide_patches is not None for slide in slides),
    )


def _share_positive(slides: Sequence[SlideSummary]) -> float | None:
    """Return the share of positives, an estimate's by the patches of its whole slide."""
    assessed = positive = 0.0
    for slide in slides:
        times = slide.slide_patches / slide.patches if slide.slide_patches else 1
        assessed += slide.assessed_mm2 * times
        positive += slide.positive_mm2 * times
    return positive / assessed if assessed else None


def add_intervals(ends: Iterable[tuple[float | None, float | None]]) -> Interval | None:
    """Return the interval of a sum of counts; None where one of them has none.

    Lower ends and upper ends are added. A model that counts too many on one slide of a patient does
    so on the next, so that errors add up and do not cancel out; where they did, the interval would
    be too wide, never too narrow.
    """
    low = high = 0.0
    for one, other in ends:
        if one is None or other is None:
            return None
        low, high = low + one, high + other
    return low, high
