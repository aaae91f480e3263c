"""A batch of slides: one outcome per slide in any case, progress, and seconds by stage."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState, describe_failure
from wsi_pipeline.core.progress import Listener, describe_duration
from wsi_pipeline.runs.disk_space import DiskSpace, SpaceCheckedJob, current_umask
from wsi_pipeline.runs.events import EventLog
from wsi_pipeline.scheduling import WorkerPool, Workers, run_jobs
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.stages.plan import BlockReport, SlideJob, SlidePlan

logger = logging.getLogger(__name__)

STAGES = ("read", "compute", "write")
WINDOW_S = 300.0
"""The rate is that of the last five minutes, so that neither old slides nor one block decide."""


@dataclass
class Pace:
    """The figures of one run; every slide counts once as it is opened and once as it ends."""

    slides: int
    noun: str = "slide"
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    patches_done: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """By stage, added up over all that work side by side."""
    _missing: dict[int, int] = field(default_factory=dict)
    """Patches to be done of every slide that was opened."""
    _ended: set[int] = field(default_factory=set)
    _done_before: set[int] = field(default_factory=set)
    """Slides that an earlier run had finished; they tell nothing of those to come."""
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _started: float | None = None

    def open_slide(self, slide: int, missing_patches: int) -> None:
        """Count a slide that was opened, with its missing patches."""
        self._started = self.clock() if self._started is None else self._started
        self._missing[slide] = missing_patches

    def add_block(self, patches: int, read_s: float, compute_s: float, write_s: float) -> None:
        """Count a block that is done."""
        self.patches_done += patches
        for stage, seconds in zip(STAGES, (read_s, compute_s, write_s), strict=True):
            self.seconds[stage] += seconds
        now = self.clock()
        self._recent.append((now, patches))
        while self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()

    def end_slide(self, slide: int, is_done_before: bool) -> None:
        """Count a slide that has ended, well or not."""
        self._ended.add(slide)
        if is_done_before:
            self._done_before.add(slide)

    @property
    def slides_done(self) -> int:
        """Slides that have come to their end."""
        return len(self._ended)

    @property
    def rate(self) -> float | None:
        """Patches per second; None before the first are done."""
        if self._started is None or not self._recent:
            return None
        now = self.clock()
        recent = sum(patches for at, patches in self._recent if at >= now - WINDOW_S)
        return recent / max(min(now - self._started, WINDOW_S), 1e-9)

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Share of the time that each stage took, 0 to 1; None before there is any."""
        total = sum(self.seconds.values())
        shares = {stage: seconds / (total or 1) for stage, seconds in self.seconds.items()}
        return shares if total > 0 else None

    @property
    def _unopened(self) -> int:
        """Slides whose patches are not known yet, so that the rest is a guess."""
        return self.slides - len(self._ended | self._missing.keys())

    @property
    def patches_expected(self) -> float | None:
        """Patches of the whole run, unopened slides at the mean of the others; None: unknown."""
        fresh = (self._missing.keys() | self._ended) - self._done_before
        known = sum(self._missing.values())
        if self._unopened == 0:
            return known
        return known + self._unopened * known / len(fresh) if fresh and known else None

    @property
    def seconds_left(self) -> float | None:
        """None while it is not known."""
        expected, rate = self.patches_expected, self.rate
        if expected is None or not rate:
            return None
        return max(expected - self.patches_done, 0) / rate

    def to_json(self) -> dict[str, float | None]:
        """Return the figures as pages show them."""
        return {
            "slides": self.slides,
            "patches_done": self.patches_done,
            "patches_expected": self.patches_expected,
            "rate": self.rate,
            "seconds_left": self.seconds_left,
        }

    def describe(self) -> str:
        """Return the figures in one line."""
        parts = [f"{self.slides_done} of {self.slides} {self.noun}s"]
        if self.rate is not None:
            parts.append(f"{self.rate:,.0f} patches/s")
        if self.shares is not None:
            parts.append(" ".join(f"{stage} {share:.0%}" for stage, share in self.shares.items()))
        if self.seconds_left is not None:
            about = "about " if self._unopened else ""
            parts.append(f"{about}{describe_duration(self.seconds_left)} left")
        return ", ".join(parts)


@dataclass
class SlideTimes:
    """Seconds that one slide took, from the moment at which it was opened."""

    opened: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, report: BlockReport) -> None:
        """Count one block's."""
        for stage in STAGES:
            self.stages[stage] += getattr(report, f"seconds_{stage}")

    def to_json(self) -> dict[str, float]:
        """By stage, and by the clock."""
        return {"total": time.perf_counter() - self.opened} | self.stages


class Interrupted(Exception):
    """The user has ended a run; `account` has the outcomes so far."""

    def __init__(self, account: RunAccount) -> None:
        super().__init__("interrupted")
        self.account = account


@dataclass
class Batch:
    """Jobs on their way, their outcomes, and the seconds they took."""

    jobs: Sequence[SlideJob]
    listener: Listener
    events: EventLog = field(default_factory=lambda: EventLog(None))
    noun: str = "slide"
    outcomes: dict[int, SlideOutcome] = field(default_factory=dict)
    patches_predicted: int = 0
    pace: Pace = field(init=False)
    slide_times: dict[int, SlideTimes] = field(default_factory=dict)
    is_interrupted: bool = False
    """The user has ended the batch; some jobs have no outcome."""

    def __post_init__(self) -> None:
        self.pace = Pace(len(self.jobs), self.noun)

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, added up over all that worked side by side."""
        return dict(self.pace.seconds)

    def prepared(self, job: int, plan: SlidePlan) -> None:
        """Take a slide whose patches are known."""
        self.slide_times[job] = SlideTimes()
        self.pace.open_slide(job, plan.missing_patches)
        slide_id, missing = self.jobs[job].slide.slide_id, plan.missing_patches
        self.events.slide_prepared(slide_id, plan.patches, missing, len(plan.blocks))
        self._show()

    def block_done(self, job: int, report: BlockReport) -> None:
        """Take a block that is on disk."""
        self.patches_predicted += report.predicted
        self.slide_times[job].add(report)
        self.pace.add_block(
            report.patches, report.seconds_read, report.seconds_compute, report.seconds_write
        )
        self._show()

    def ended(self, job: int, result: SlideOutcome | Exception) -> None:
        """Take the end of a slide."""
        slide = self.jobs[job].slide
        outcome = self._fail(slide, result) if isinstance(result, Exception) else result
        self.outcomes[job] = outcome
        self.pace.end_slide(job, outcome.is_resumed_whole)
        times = self.slide_times.pop(job, None)
        self.events.slide_ended(outcome, {} if times is None else times.to_json())
        self.listener.slide_ended(outcome)
        self._show()

    def _show(self) -> None:
        pace = self.pace
        self.events.progress.show(pace.to_json())
        self.listener.progress(pace.describe(), pace.patches_done, pace.patches_expected)

    def _fail(self, slide: FoundSlide, error: Exception) -> SlideOutcome:
        """Return the outcome of a slide whose work raised; the traceback goes to the log."""
        logger.error("slide %s failed", slide.slide_id, exc_info=error)
        return describe_failure(slide.slide_id, str(slide.path), error)

    @property
    def account(self) -> RunAccount:
        """The outcome of every slide, or of those that ended if interrupted, in the given order."""
        numbers = sorted(self.outcomes) if self.is_interrupted else range(len(self.jobs))
        return RunAccount(tuple(self.outcomes[job] for job in numbers), self.noun)


@dataclass(frozen=True)
class _Numbered:
    """A batch as some of its jobs see it: they are numbered from 0."""

    batch: Batch
    numbers: Sequence[int]

    def prepared(self, job: int, plan: SlidePlan) -> None:
        self.batch.prepared(self.numbers[job], plan)

    def block_done(self, job: int, report: BlockReport) -> None:
        self.batch.block_done(self.numbers[job], report)

    def ended(self, job: int, result: SlideOutcome | Exception) -> None:
        self.batch.ended(self.numbers[job], result)


def run_batch(
    jobs: Sequence[SlideJob],
    workers: Workers | WorkerPool,
    listener: Listener,
    events: EventLog | None = None,
    disk_space: DiskSpace | None = None,
    noun: str = "slide",
    done: Mapping[int, SlideOutcome] | None = None,
    keeps_account: bool = False,
) -> Batch:
    """Run every job while there is `disk_space`; each slide ends in one outcome.

    Those that are `done` already end at once, by their number; no worker is needed for them. With
    `keeps_account` a batch that the user interrupts is returned, with the outcomes so far.
    Raises EnvironmentFault where what the workers made is not on this machine.
    """
    batch = Batch(jobs, listener, events or EventLog(None), noun)
    listener.working_on(f"opening {len(jobs):,} {noun}{'' if len(jobs) == 1 else 's'}")
    umask = current_umask()
    space = disk_space or DiskSpace()
    for number, outcome in (done or {}).items():
        batch.ended(number, outcome)
    left = [number for number in range(len(jobs)) if number not in (done or {})]
    if left:
        checked = [SpaceCheckedJob(jobs[number], space, umask) for number in left]
        try:
            run_jobs(checked, workers, _Numbered(batch, left))
        except BaseException as end:
            if isinstance(end, Exception) or not keeps_account:
                raise
            batch.is_interrupted = True
    for job, outcome in ((jobs[number], batch.outcomes[number]) for number in batch.outcomes):
        if outcome.state is not SlideState.FAILED and not job.target.exists():
            raise EnvironmentFault(
                f"{job.target}: was made by a worker but is not here; give a folder that this"
                " machine and the workers share"
            )
    return batch
