"""A batch of slides on its way: one outcome per slide whatever is raised, progress, and seconds by stage."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState, describe_failure
from wsi_pipeline.runs.disk_space import DiskSpace, SpaceCheckedJob, current_umask
from wsi_pipeline.runs.events import EventLog
from wsi_pipeline.runs.pace import STAGES, Pace
from wsi_pipeline.scheduling import WorkerPool, Workers, run_jobs
from wsi_pipeline.slides.discovery import FoundSlide
from wsi_pipeline.stages.plan import BlockReport, SlideJob, SlidePlan

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Is told how a run gets on."""

    def begin(self, slides: int) -> None: ...

    def add_patches(self, missing: int) -> None:
        """So many more patches are known to be there to do."""
        ...

    def advance(self, patches: int) -> None: ...

    def end_slide(self, outcome: SlideOutcome) -> None: ...

    def show(self, pace: Pace) -> None:
        """The run's figures have changed."""
        ...


class SilentProgress:
    """Says nothing."""

    def begin(self, slides: int) -> None:
        """Nothing."""

    def add_patches(self, missing: int) -> None:
        """Nothing."""

    def advance(self, patches: int) -> None:
        """Nothing."""

    def end_slide(self, outcome: SlideOutcome) -> None:
        """Nothing."""

    def show(self, pace: Pace) -> None:
        """Nothing."""


@dataclass
class SlideTimes:
    """Seconds that one slide took, from the moment at which it was opened."""

    opened: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, report: BlockReport) -> None:
        """Count one block's."""
        for stage, seconds in zip(
            STAGES, (report.seconds_read, report.seconds_compute, report.seconds_write), strict=True
        ):
            self.stages[stage] += seconds

    def to_json(self) -> dict[str, float]:
        """By stage, and by the clock."""
        return {"total": time.perf_counter() - self.opened} | self.stages


@dataclass
class Batch:
    """Jobs on their way, their outcomes, and the seconds they took."""

    slides: Sequence[FoundSlide]
    progress: Progress
    events: EventLog = field(default_factory=lambda: EventLog(None))
    outcomes: dict[int, SlideOutcome] = field(default_factory=dict)
    patches_predicted: int = 0
    pace: Pace = field(init=False)
    slide_times: dict[int, SlideTimes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pace = Pace(len(self.slides))

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, added up over all that worked side by side."""
        return dict(self.pace.seconds)

    def prepared(self, job: int, plan: SlidePlan) -> None:
        """A slide's patches are known."""
        self.slide_times[job] = SlideTimes()
        self.pace.open_slide(job, plan.missing_patches)
        self.events.slide_prepared(
            self.slides[job].slide_id, plan.patches, plan.missing_patches, len(plan.blocks)
        )
        self.progress.add_patches(plan.missing_patches)
        self.progress.show(self.pace)

    def block_done(self, job: int, report: BlockReport) -> None:
        """A block is on disk."""
        self.patches_predicted += report.patches if report.is_predicted else 0
        self.slide_times[job].add(report)
        self.pace.add_block(
            report.patches, report.seconds_read, report.seconds_compute, report.seconds_write
        )
        self.progress.advance(report.patches)
        self.progress.show(self.pace)

    def ended(self, job: int, result: SlideOutcome | Exception) -> None:
        """A slide has come to its end."""
        slide = self.slides[job]
        outcome = self._fail(slide, result) if isinstance(result, Exception) else result
        self.outcomes[job] = outcome
        self.pace.end_slide(job, outcome.is_resumed_whole)
        times = self.slide_times.pop(job, None)
        self.events.slide_ended(outcome, {} if times is None else times.to_json())
        self.progress.show(self.pace)
        self.progress.end_slide(outcome)

    def _fail(self, slide: FoundSlide, error: Exception) -> SlideOutcome:
        """The outcome of a slide whose work raised; the whole story goes to the log."""
        logger.error("slide %s failed", slide.slide_id, exc_info=error)
        return describe_failure(slide.slide_id, str(slide.path), error)

    @property
    def account(self) -> RunAccount:
        """Every slide's outcome, in the order they were given."""
        return RunAccount(tuple(self.outcomes[job] for job in range(len(self.slides))))


def run_batch(
    slides: Sequence[FoundSlide],
    jobs: Sequence[SlideJob],
    workers: Workers | WorkerPool,
    progress: Progress,
    events: EventLog | None = None,
    disk_space: DiskSpace | None = None,
) -> Batch:
    """Run every job while there is `disk_space`; each slide ends in one outcome.

    Raises EnvironmentFault where what the workers made is not on this machine.
    """
    batch = Batch(slides, progress, events or EventLog(None))
    progress.begin(len(slides))
    umask = current_umask()
    run_jobs(
        [SpaceCheckedJob(job, disk_space or DiskSpace(), umask) for job in jobs], workers, batch
    )
    for job, outcome in zip(jobs, batch.account.outcomes, strict=True):
        if outcome.state is not SlideState.FAILED and not job.target.exists():
            raise EnvironmentFault(
                f"{job.target}: was made by a worker but is not here; give a folder that this"
                " machine and the workers share"
            )
    return batch


def make_absolute(slides: Sequence[FoundSlide]) -> list[FoundSlide]:
    """The slides by paths that mean the same in every process."""
    return [
        replace(
            slide,
            path=slide.path.absolute(),
            label_file=slide.label_file.absolute() if slide.label_file else None,
        )
        for slide in slides
    ]
