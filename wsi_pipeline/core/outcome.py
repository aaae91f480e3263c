"""The outcome of each slide, its metrics, and the account of a run."""

# ruff: noqa: RUF009 - `_metric` returns a dataclass field

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from wsi_pipeline.core.errors import EnvironmentFault, WsiError, is_memory_fault, machine_fault


class SlideState(StrEnum):
    """State of a slide at the end of a run."""

    OK = "ok"
    ZERO = "zero"
    """No tissue: a valid result."""
    DAMAGED = "damaged"
    """Done, but some patches could not be read; they count as unreadable, not as negative."""
    FAILED = "failed"

    @property
    def word(self) -> str:
        """The state as people read it; files and REST keep the value."""
        return "empty" if self is SlideState.ZERO else self.value


def state_of(patches: int, unreadable: int) -> SlideState:
    """Return the state of a slide that was read to its end; no readable patch is a failure."""
    if patches == 0:
        return SlideState.ZERO
    if unreadable == patches:
        return SlideState.FAILED
    return SlideState.DAMAGED if unreadable else SlideState.OK


def _metric(description: str, **limits: Any) -> Any:
    """Return a field whose metadata pydantic reads: it validates and describes `summary.json`."""
    return field(metadata={"description": description, "strict": True, **limits})


SHARE = {"ge": 0, "le": 1}
NEAR = 0.1
"""A patch whose probability is no further than this from the threshold is near it."""


class Distance(NamedTuple):
    """Distance of a slide from a model's training patches; None: not known.

    In standard deviations, as a root mean square: about 1 for slides like the training patches.
    """

    colour: float | None = None
    features: float | None = None


class Limits(NamedTuple):
    """Largest distances of slides like those of the validation patients; None: too few patients."""

    colour: float | None = None
    features: float | None = None


def find_unlike(distance: Distance, limits: Limits) -> str | None:
    """Return what puts a slide beyond its limits: "colour", "features", both, or "" for nothing.

    None where no distance or no limit is known.
    """
    found = {
        name: value > limit
        for name, value, limit in zip(Distance._fields, distance, limits, strict=True)
        if value is not None and limit is not None
    }
    return " and ".join(name for name, is_beyond in found.items() if is_beyond) if found else None


@dataclass(frozen=True, slots=True)
class SlideSummary:
    """The metrics of one slide, as in summary.json; None where there is nothing to measure."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    slide_id: str = _metric("Name of the slide's folder", json_schema_extra={"minLength": 1})
    patient_id: str | None = _metric(
        "The patient; where none was named, the slide itself; null: not recorded"
    )
    state: SlideState = _metric(
        "ok; zero: no tissue; damaged: some patches unreadable; failed: all of them", strict=False
    )
    patches: int = _metric(
        "Patches that were looked at, readable or not: those with tissue, or the drawn of an"
        " estimate",
        ge=0,
    )
    slide_patches: int | None = _metric(
        "Patches of the whole slide, where this is an estimate of a sample; null: it is none", gt=0
    )
    unreadable: int = _metric("Patches that could not be decoded; never counted as negative", ge=0)
    positives: int = _metric("Patches at or above the threshold, in regions that count", ge=0)
    positives_estimate: float | None = _metric(
        "Estimated number of positive patches of the whole slide: of a review or a sample, else the"
        " counted one; null where nothing was assessed",
        ge=0,
    )
    positives_low: float | None = _metric("Lower end of its 95 % interval; null: none", ge=0)
    positives_high: float | None = _metric("Upper end of its 95 % interval; null: none", ge=0)
    interval_source: str = _metric(
        "review: a person's answers; sample: the same, drawn without a model; site: reviewed slides"
        " of this folder; validation: the model's validation patients; estimate: a sample of the"
        " slide's patches, which says nothing of the model's errors; none",
        pattern="^(review|sample|site|validation|estimate|none)$",
    )
    positive_fraction: float | None = _metric("Of the assessed patches", **SHARE)
    assessed_mm2: float = _metric("Area of the assessed patches in mm²", ge=0)
    positive_mm2: float = _metric("Area of the positive patches in mm²", ge=0)
    mean_probability: float | None = _metric("Of the assessed patches", **SHARE)
    p95_probability: float | None = _metric("95th percentile of the assessed patches", **SHARE)
    max_probability: float | None = _metric("Of the assessed patches", **SHARE)
    positive_regions: int | None = _metric(
        "Groups of positive patches that touch, even at corners; null: an estimate", ge=0
    )
    mean_positive_region_mm2: float | None = _metric("Mean area; null where there is none", ge=0)
    largest_positive_region_mm2: float | None = _metric(
        "Largest area; 0 where there is none; null: an estimate", ge=0
    )
    hot_spot_positive_mm2: float | None = _metric(
        "Positive area in the densest window of 1 mm² (in whole patches); null where nothing is"
        " positive",
        ge=0,
    )
    hot_spot_x_l0: float | None = _metric("Centre of that window in level-0 pixels")
    hot_spot_y_l0: float | None = _metric("Centre of that window in level-0 pixels")
    unreadable_fraction: float | None = _metric("Of the patches", **SHARE)
    unassessed_fraction: float | None = _metric(
        "Of all positions of the slide's grid: without tissue, or unreadable", **SHARE
    )
    positives_left_out: int = _metric(
        "Patches that reach the threshold in regions smaller than min_region_mm2", ge=0
    )
    near_threshold: int | None = _metric(
        f"Assessed patches whose probability lies within {NEAR} of the threshold; null: not"
        " recorded",
        ge=0,
    )
    threshold: float = _metric("Probability from which on a patch is positive", **SHARE)
    threshold_source: str = _metric(
        "count: the model's threshold for counting; detect: its threshold for finding; user: a"
        " number that the user gave",
        pattern="^(count|detect|user)$",
    )
    context_um: float = _metric(
        "Standard deviation in µm of the Gaussian over the neighbours' logits; 0: no context", ge=0
    )
    prevalence: float | None = _metric(
        "Share of positive patches that the user expects in the cohort; null: none given", **SHARE
    )
    min_region_mm2: float = _metric("Smaller positive regions do not count", ge=0)
    positive_class: str = _metric("The model's name of the class")
    mpp: float = _metric("µm per patch pixel", gt=0)
    patch_um: float | None = _metric("Side of a patch in µm; null: not recorded", gt=0)
    slide_mpp: float = _metric("µm per level-0 pixel", gt=0)
    slide_mpp_source: str = _metric(
        "Source of it: property, TIFF tag, OME-XML, ImageJ, image header or user"
    )
    colour_profile: str | None = _metric(
        "Name and beginning of the digest of the slide's colour profile (ICC); null: none, or not"
        " recorded"
    )
    reader_note: str | None = _metric(
        "Reader that cannot see damage; null: damage was looked for, or not recorded"
    )
    mask: str | None = _metric(
        "Name of the user's mask; nothing outside of it was assessed; null: none, or not recorded"
    )
    model_digest: str = _metric("SHA-256 that names the model")
    colour_distance: float | None = _metric(
        "Distance of the stains from the training patches', in standard deviations; null: not"
        " known",
        ge=0,
    )
    colour_limit: float | None = _metric(
        "Largest such distance of slides like the validation patients'; null: not known", ge=0
    )
    feature_distance: float | None = _metric(
        "The same distance of the network's features; null: not known", ge=0
    )
    feature_limit: float | None = _metric("Its limit; null: not known", ge=0)
    unlike_training: str | None = _metric(
        "What is beyond its limit, and so unlike the training patches; empty: nothing; null: not"
        " known",
        pattern="^(|colour|features|colour and features)$",
    )
    columns: Mapping[str, str] = _metric(
        "Free columns of the sample sheet and the slide's values of them; empty ones are absent"
    )


SOURCES = {
    "review": "by a person's review",
    "sample": "by a person's review",
    "site": "by the reviewed slides of this site",
    "validation": "by the errors on the model's validation patients",
}


def describe_interval(summary: SlideSummary) -> str:
    """Return the interval of the count and where it is from, in words."""
    low, high, estimate = (
        summary.positives_low,
        summary.positives_high,
        summary.positives_estimate,
    )
    if low is None or high is None or estimate is None:
        if summary.slide_patches is None:
            return "no interval"
        return (
            f"estimate by {summary.patches:,} of {summary.slide_patches:,} patches: none is known"
        )
    source = summary.interval_source
    if summary.slide_patches is not None:
        readable = summary.slide_patches * (1 - summary.unreadable / summary.patches)
        return (
            f"estimate by {summary.patches:,} of {summary.slide_patches:,} patches: about"
            f" {estimate:,.0f} of the whole slide, 95 % interval {low:,.0f} to {high:,.0f}"
            f" ({low / readable:.1%} to {high / readable:.1%})"
        )
    about = f"about {estimate:.0f}, " if source in ("review", "sample") else ""
    return f"{about}95 % interval {low:.0f} to {high:.0f} {SOURCES[source]}"


def describe_distance(summary: SlideSummary) -> str:
    """Return the slide's distance from the training patches in words; "" where it is not known."""
    values = {
        "colour": (summary.colour_distance, summary.colour_limit),
        "features": (summary.feature_distance, summary.feature_limit),
    }
    parts = [
        f"{name} {distance:.2f}" + ("" if limit is None else f" (limit {limit:.2f})")
        for name, (distance, limit) in values.items()
        if distance is not None
    ]
    judged = {None: "distance from", "": "within the limits of"}.get(
        summary.unlike_training, "unlike"
    )
    return f"{judged} the training patches: {', '.join(parts)}" if parts else ""


def describe_unlike(summary: SlideSummary) -> str:
    """Return the same for a slide beyond the limits; "" for any other."""
    return describe_distance(summary) if summary.unlike_training else ""


def list_concerns(summary: SlideSummary) -> dict[str, str]:
    """Return why to look at a slide before others, by kind, most pressing first.

    Kinds: damaged; unlike, further from the training patches than the model's limits; near, where
    the patches near the threshold are at least half as many as the positive ones.
    """
    found: dict[str, str] = {}
    if summary.unreadable:
        found["damaged"] = f"{summary.unreadable:,} of {summary.patches:,} patches unreadable"
    if summary.unlike_training:
        found["unlike"] = describe_unlike(summary).partition(": ")[2]
    near, positives = summary.near_threshold or 0, summary.positives
    if near and 2 * near >= positives:
        word = "patch" if near == 1 else "patches"
        found["near"] = f"{near:,} {word} within {NEAR} of the threshold, {positives:,} positive"
    return found


def describe_counting(summary: SlideSummary) -> str:
    """Return what a count is a count of, in words."""
    side = "patches" if summary.patch_um is None else f"patches of {summary.patch_um:g} µm"
    context = f", averaged over {summary.context_um:g} µm" if summary.context_um else ""
    return (
        f"A count is the number of {side} whose probability of {summary.positive_class}{context} is"
        f" {summary.threshold:.3f} or more, of those that were assessed. It counts patches, not"
        " cells, and is no grade."
    )


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """The outcome of one slide of a run."""

    slide_id: str
    path: str
    state: SlideState
    message: str
    """One line: metrics of a success, or the reason of a failure."""
    patches: int = 0
    is_resumed_whole: bool = False
    """True where an earlier run had finished this slide."""
    is_environment_fault: bool = False

    @property
    def line(self) -> str:
        """One line that names the slide once: by its name, unless the message names its file."""
        state = f"{self.state.word}: {self.message}"
        names_itself = self.message.startswith((f"{self.path}: ", f"{self.slide_id}: "))
        return state if names_itself else f"{self.slide_id}: {state}"


@dataclass(frozen=True, slots=True)
class RunAccount:
    """The outcomes of all slides of a run, each in exactly one state."""

    outcomes: tuple[SlideOutcome, ...]
    noun: str = "slide"
    """Word for one of them: a slide, a patient, a store."""

    def __str__(self) -> str:
        failures = find_failures(self.outcomes)
        rows = [f"  {each.line}" for each in failures]
        return "\n".join([self.sentence, *rows])

    def count(self, state: SlideState) -> int:
        """Return the number of slides that ended in `state`."""
        return Counter(outcome.state for outcome in self.outcomes)[state]

    def with_failures(self, failures: Iterable["SlideOutcome"]) -> "RunAccount":
        """Return the account with `failures` in place of earlier outcomes of those slides."""
        found = {failure.slide_id: failure for failure in failures}
        outcomes = tuple(
            replace(found[outcome.slide_id], path=outcome.path)
            if outcome.slide_id in found and outcome.state is not SlideState.FAILED
            else outcome
            for outcome in self.outcomes
        )
        return replace(self, outcomes=outcomes)

    def after(self, earlier: "RunAccount | None") -> "RunAccount":
        """Return the account with the outcomes of earlier runs of other slides before its own."""
        if earlier is None:
            return self
        own = {outcome.path for outcome in self.outcomes}
        others = (outcome for outcome in earlier.outcomes if outcome.path not in own)
        return replace(self, outcomes=(*others, *self.outcomes))

    @property
    def sentence(self) -> str:
        """The outcome of the run for people: `4 slides: 2 ok, 1 damaged, 1 failed`."""
        counts = {state.word: self.count(state) for state in SlideState}
        return describe_counts(counts, self.noun)

    @property
    def closing_line(self) -> str:
        """The same as files record it: `in 4 = ok 2 + zero 0 + damaged 1 + failed 1`."""
        counts = " + ".join(f"{state.value} {self.count(state)}" for state in SlideState)
        return f"in {len(self.outcomes)} = {counts}"

    @property
    def exit_code(self) -> int:
        """0 all well · 3 some failed or damaged · 4 none succeeded · 5 machine fault, run again."""
        if any(outcome.is_environment_fault for outcome in self.outcomes):
            return EnvironmentFault.exit_code
        failed = self.count(SlideState.FAILED)
        if failed and failed == len(self.outcomes):
            return 4
        return 3 if failed or self.count(SlideState.DAMAGED) else 0


def describe_counts(counts: Mapping[str, int], noun: str = "slide") -> str:
    """Return numbers by state as people read them; states without any are left out."""
    total = sum(counts.values())
    parts = [f"{count:,} {state}" for state, count in counts.items() if count]
    head = f"{total:,} {noun if total == 1 else f'{noun}s'}"
    return f"{head}: {', '.join(parts)}" if parts else head


def describe_failure(slide_id: str, path: str, error: BaseException) -> SlideOutcome:
    """Return the outcome of a slide whose work raised `error`; others' errors show their type."""
    if isinstance(error, OSError):
        error = machine_fault(path, error) or error
    if is_memory_fault(error):
        remedy = "leave it out, or use fewer workers or a larger machine"
        error = WsiError(f"{path}: needs more memory than a worker may take; {remedy}")
    message = str(error) if isinstance(error, WsiError) else f"{type(error).__name__}: {error}"
    is_fault = isinstance(error, EnvironmentFault)
    begin, name, rest = " ".join(message.split()).partition(path)
    message = begin + name + rest.replace(f"{path}: ", "")  # a library's text may name it again
    return SlideOutcome(slide_id, path, SlideState.FAILED, message, is_environment_fault=is_fault)


def find_failures(outcomes: Sequence[SlideOutcome]) -> list[SlideOutcome]:
    """Return the outcomes to look at: failed, or done with unreadable patches."""
    states = (SlideState.FAILED, SlideState.DAMAGED)
    return [outcome for outcome in outcomes if outcome.state in states]
