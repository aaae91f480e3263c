"""A batch of slides on its way: one outcome per slide whatever is raised, progress, and seconds by stage."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from wsi_pipeline.errors import EnvironmentFault
from wsi_pipeline.jobs.plan import BlockReport, SlidePlan
from wsi_pipeline.outcome import RunAccount, SlideOutcome, SlideState, describe_failure
from wsi_pipeline.scheduling import Crew, Job, Workers, run_jobs
from wsi_pipeline.slides.discovery import FoundSlide

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Is told how a run gets on."""

    def begin(self, slides: int) -> None: ...

    def add_patches(self, missing: int) -> None:
        """So many more patches are known to be there to do."""
        ...

    def advance(self, patches: int) -> None: ...

    def end_slide(self, outcome: SlideOutcome) -> None: ...


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


class SlideJob(Job[SlidePlan, BlockReport, SlideOutcome], Protocol):
    """A job that ends in a product."""

    @property
    def target(self) -> Path:
        """Where the product will be."""
        ...


@dataclass
class Batch:
    """Jobs on their way, their outcomes, and the seconds they took."""

    slides: Sequence[FoundSlide]
    progress: Progress
    outcomes: dict[int, SlideOutcome] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "compute": 0.0, "write": 0.0})
    patches_done: int = 0

    def prepared(self, job: int, plan: SlidePlan) -> None:
        """A slide's patches are known."""
        self.progress.add_patches(plan.missing_patches)

    def block_done(self, job: int, report: BlockReport) -> None:
        """A block is on disk."""
        self.patches_done += report.patches
        self.seconds["read"] += report.seconds_read
        self.seconds["compute"] += report.seconds_compute
        self.seconds["write"] += report.seconds_write
        self.progress.advance(report.patches)

    def ended(self, job: int, result: SlideOutcome | Exception) -> None:
        """A slide has come to its end."""
        slide = self.slides[job]
        if isinstance(result, Exception):
            logger.error("slide %s failed", slide.slide_id, exc_info=result)
        outcome = describe_failure(slide.slide_id, str(slide.path), result) if isinstance(result, Exception) else result
        self.outcomes[job] = outcome
        self.progress.end_slide(outcome)

    @property
    def account(self) -> RunAccount:
        """Every slide's outcome, in the order they were given."""
        return RunAccount(tuple(self.outcomes[job] for job in range(len(self.slides))))


def run_batch(slides: Sequence[FoundSlide], jobs: Sequence[SlideJob], workers: Workers | Crew, progress: Progress) -> Batch:
    """Run every job; each slide ends in one outcome. Raises EnvironmentFault where what the workers made is not on this machine."""
    batch = Batch(slides, progress)
    progress.begin(len(slides))
    run_jobs(jobs, workers, batch)
    for job, outcome in zip(jobs, batch.account.outcomes, strict=True):
        if outcome.state is not SlideState.FAILED and not job.target.exists():
            raise EnvironmentFault(
                f"{job.target}: was made by a worker but is not here; give a folder that this machine and the workers share"
            )
    return batch


def make_absolute(slides: Sequence[FoundSlide]) -> list[FoundSlide]:
    """The slides by paths that mean the same in every process."""
    return [
        replace(slide, path=slide.path.absolute(), label_file=slide.label_file.absolute() if slide.label_file else None) for slide in slides
    ]
