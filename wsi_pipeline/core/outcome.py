"""What became of each slide, and the account that a run gives of all of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from wsi_pipeline.core.errors import EnvironmentFault, WsiError, machine_fault


class SlideState(StrEnum):
    """The four ends that a slide can come to."""

    OK = "ok"
    ZERO = "zero"
    """No tissue: a valid result."""
    DAMAGED = "damaged"
    """Done, but some patches could not be read; they count as unreadable, never as negative."""
    FAILED = "failed"

    @property
    def word(self) -> str:
        """The state as people read it; files and REST keep the value."""
        return "empty" if self is SlideState.ZERO else self.value


def state_of(patches: int, unreadable: int) -> SlideState:
    """The state of a slide that was gone through to its end; nothing readable at all is a failure."""
    if patches == 0:
        return SlideState.ZERO
    if unreadable == patches:
        return SlideState.FAILED
    return SlideState.DAMAGED if unreadable else SlideState.OK


@dataclass(frozen=True, slots=True)
class SlideSummary:
    """The figures of one slide's heatmap. Fractions and probabilities lie in 0–1; None where nothing was assessed."""

    slide_id: str
    state: SlideState
    patches: int
    """Cells with tissue, readable or not."""
    unreadable: int
    positives: int
    positive_fraction: float | None
    """Of the assessed patches."""
    assessed_mm2: float
    positive_mm2: float
    mean_probability: float | None
    p95_probability: float | None
    max_probability: float | None
    positive_regions: int
    """Groups of positive cells that touch, diagonals included."""
    mean_positive_region_mm2: float | None
    """None where there is none."""
    largest_positive_region_mm2: float
    hot_spot_positive_mm2: float | None
    """Positive area within the densest window of 1 mm²; None where nothing is positive."""
    hot_spot_x_l0: float | None
    """The window's centre in level-0 pixels."""
    hot_spot_y_l0: float | None
    unreadable_fraction: float | None
    """Of the patches."""
    unassessed_fraction: float | None
    """Of all cells of the slide's grid: without tissue, or unreadable."""
    positives_left_out: int
    """Patches that reach the threshold but lie in regions below the smallest that counts."""
    threshold: float
    threshold_source: str
    """Who chose it: "model" or "user"."""
    smooth_um: float
    """Standard deviation of the Gaussian that the map was smoothed with, in µm; 0: not at all."""
    min_region_mm2: float
    """Smaller positive regions do not count."""
    positive_class: str
    mpp: float
    """µm per patch pixel that was really read."""
    slide_mpp: float
    slide_mpp_source: str
    model_digest: str


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """How one slide of a run ended."""

    slide_id: str
    path: str
    state: SlideState
    message: str
    """One line: figures where it went well, the reason where it did not."""
    patches: int = 0
    is_resumed_whole: bool = False
    """True where an earlier run had already finished this slide."""
    is_environment_fault: bool = False


@dataclass(frozen=True, slots=True)
class RunAccount:
    """Every slide that went in, each in exactly one state."""

    outcomes: tuple[SlideOutcome, ...]
    noun: str = "slide"
    """What people call one of them: a slide, a patient, a store."""

    def count(self, state: SlideState) -> int:
        """Number of slides that ended in `state`."""
        return Counter(outcome.state for outcome in self.outcomes)[state]

    def with_failures(self, failures: Iterable["SlideOutcome"]) -> "RunAccount":
        """The same slides, those among them that failed after all by their failures."""
        found = {failure.slide_id: failure for failure in failures}
        outcomes = tuple(
            (
                replace(found[outcome.slide_id], path=outcome.path)
                if outcome.slide_id in found and outcome.state is not SlideState.FAILED
                else outcome
            )
            for outcome in self.outcomes
        )
        return replace(self, outcomes=outcomes)

    @property
    def sentence(self) -> str:
        """How the run ended, for people: `4 slides: 2 ok, 1 damaged, 1 failed`."""
        counts = {state.word: self.count(state) for state in SlideState}
        return describe_counts(counts, self.noun)

    @property
    def closing_line(self) -> str:
        """The same as files record it: `in 4 = ok 2 + zero 0 + damaged 1 + failed 1`."""
        return f"in {len(self.outcomes)} = " + " + ".join(
            f"{state.value} {self.count(state)}" for state in SlideState
        )

    @property
    def exit_code(self) -> int:
        """0 all well · 3 some failed or damaged · 4 none succeeded · 5 stopped by the machine, run again."""
        if any(outcome.is_environment_fault for outcome in self.outcomes):
            return EnvironmentFault.exit_code
        failed = self.count(SlideState.FAILED)
        if failed and failed == len(self.outcomes):
            return 4
        return 3 if failed or self.count(SlideState.DAMAGED) else 0


def describe_counts(counts: Mapping[str, int], noun: str = "slide") -> str:
    """Return numbers by state as people read them; states that none is in are left out."""
    total = sum(counts.values())
    parts = [f"{count:,} {state}" for state, count in counts.items() if count]
    return f"{total:,} {noun}{'' if total == 1 else 's'}" + (
        f": {', '.join(parts)}" if parts else ""
    )


def describe_failure(slide_id: str, path: str, error: BaseException) -> SlideOutcome:
    """The outcome of a slide whose work raised `error`; foreign errors are named by their type."""
    if isinstance(error, OSError) and (fault := machine_fault(path, error)):
        error = fault
    if isinstance(error, MemoryError):
        error = WsiError(
            f"{path}: needs more memory than a worker may take; leave it out, or use fewer workers"
            " or a larger machine"
        )
    message = str(error) if isinstance(error, WsiError) else f"{type(error).__name__}: {error}"
    return SlideOutcome(
        slide_id=slide_id,
        path=path,
        state=SlideState.FAILED,
        message=" ".join(message.split()),
        is_environment_fault=isinstance(error, EnvironmentFault),
    )


def find_failures(outcomes: Sequence[SlideOutcome]) -> list[SlideOutcome]:
    """The outcomes that a person should look at: failed, or done with unreadable patches."""
    return [
        outcome for outcome in outcomes if outcome.state in (SlideState.FAILED, SlideState.DAMAGED)
    ]
