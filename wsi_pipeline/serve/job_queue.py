"""Inference on request: slides of the served folder, one after another, as `wsi infer` does."""

import logging
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.outcome import SlideOutcome, SlideState
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.runs.infer import infer_slides
from wsi_pipeline.scheduling import KeptWorkers
from wsi_pipeline.serve.drawn_areas import DrawnArea
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.slides.found_slide import FoundSlide

KEPT_JOBS = 200
UNDER_WAY = "a job for this slide is under way already"

logger = logging.getLogger(__name__)


class JobState(StrEnum):
    """State of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Cancelled(Exception):
    """The job was cancelled; finished blocks stay on disk."""


@dataclass
class InferenceJob(Listener):
    """One slide to infer; it listens to its own run."""

    slide: FoundSlide
    force: bool
    area: DrawnArea | None = None
    """The drawn area to infer; None: the slide, wherever it has tissue."""
    has_added: bool = False
    """True if this job wrote the area, which the file did not hold before."""
    job_id: str = field(default_factory=lambda: secrets.token_hex(6))
    state: JobState = JobState.WAITING
    patches_done: int = 0
    patches_total: int = 0
    message: str = ""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.slide.slide_id

    def progress(self, line: str, done: float, total: float | None) -> None:
        """Set the numbers of patches. Raises Cancelled to stop the run."""
        if self.state is JobState.CANCELLING:
            raise Cancelled
        self.patches_done, self.patches_total = int(done), int(total or 0)

    def slide_ended(self, outcome: SlideOutcome) -> None:
        """Set the final state."""
        if outcome.state is SlideState.FAILED:
            self.fail(outcome.message)
        else:  # numbers only, as in the slide list
            self.state, self.message = JobState.DONE, outcome.message

    def fail(self, reason: str | BaseException) -> None:
        """Set the final state; the reason goes to the log alone."""
        fault_id = secrets.token_hex(4)
        trace = reason if isinstance(reason, BaseException) else None
        self._take_back()
        logger.warning("%s: job %s failed: %s", fault_id, self.job_id, reason, exc_info=trace)
        self.state = JobState.FAILED
        self.message = f"failed; the server's log has the reason under {fault_id}"

    def _take_back(self) -> None:
        """Remove the area that this job wrote, so that it makes no later run of the slide fail."""
        if self.area is None or not self.has_added:
            return
        try:
            self.area.remove()
        except Exception:
            logger.exception("%s: its area was not taken back", self.job_id)


@dataclass
class JobQueue:
    """Runs jobs in one thread; safe to use from others."""

    model: Path
    results: Path
    options: InferOptions
    capacity: int
    """Jobs that wait or run at most."""
    on_end: Callable[[], None]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, InferenceJob] = {}
        self._workers = KeptWorkers()
        self._waiting: queue.SimpleQueue[InferenceJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def submit(
        self, slide: FoundSlide, force: bool = False, area: DrawnArea | None = None
    ) -> InferenceJob:
        """Write the area, if there is one, and add the slide to the queue.

        Raises Refusal, and changes nothing, where the slide is queued, the queue is
        full, or the area cannot be written.
        """
        job = self._reserve(slide, force, area)
        try:
            job.has_added = area is not None and area.add()
        except BaseException:
            with self._lock:
                self._jobs.pop(job.job_id, None)
            raise
        self._waiting.put(job)
        return job

    def _reserve(self, slide: FoundSlide, force: bool, area: DrawnArea | None) -> InferenceJob:
        """Return a job that counts as waiting, but is not given to the thread. Raises Refusal."""
        with self._lock:
            under_way = [job for job in self._jobs.values() if job.state not in ENDED]
            if len(under_way) >= self.capacity:
                full = f"{self.capacity} jobs are waiting already; try again when some have ended"
                raise Refusal(429, full)
            if any(job.slide_id == slide.slide_id for job in under_way):
                raise Refusal(409, UNDER_WAY)
            job = InferenceJob(slide, force, area)
            self._jobs[job.job_id] = job
            ended = [job_id for job_id, job in self._jobs.items() if job.state in ENDED]
            for job_id in ended[: max(0, len(self._jobs) - KEPT_JOBS)]:
                del self._jobs[job_id]
        return job

    def is_under_way(self, slide_id: str) -> bool:
        """Return whether a job for a slide waits or runs."""
        return any(job.slide_id == slide_id and job.state not in ENDED for job in self.list())

    def list(self) -> list[InferenceJob]:
        """Return every remembered job, oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def find(self, job_id: str) -> InferenceJob | None:
        """Return the job of that name, or None."""
        return self._jobs.get(job_id)

    def cancel(self, job: InferenceJob) -> None:
        """Stop a job: at once if it waits, after the current block if it runs."""
        with self._lock:
            if job.state is JobState.WAITING:
                job.state = JobState.CANCELLED
            elif job.state is JobState.RUNNING:
                job.state = JobState.CANCELLING

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop everything and wait for it."""
        for job in self.list():
            self.cancel(job)
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._lock:
                if job.state is not JobState.WAITING:
                    continue
                job.state = JobState.RUNNING
            self._run_job(job)
            self._clear_up("the list of slides was not read again", self.on_end)
        self._end_workers()

    def _end_workers(self) -> None:
        self._clear_up("workers were not ended", self._workers.close)

    def _clear_up(self, otherwise: str, act: Callable[[], None]) -> None:
        """Do what follows a job; the thread and the jobs that wait outlive a fault in it."""
        try:
            act()
        except BaseException:
            logger.exception("%s", otherwise)

    def _run_job(self, job: InferenceJob) -> None:
        """Run a job; whatever is raised is its failure, and the next job runs."""
        options = replace(self.options, force=job.force)
        try:
            infer_slides(
                *([job.slide], self.model, self.results, options),
                listener=job,
                open_pool=self._workers.open,
                extends=job.area is not None,
            )
        except Cancelled:
            self._end_workers()
            job.state = JobState.CANCELLED
            job.message = "cancelled; what is finished is kept for the next run"
        except BaseException as error:  # noqa: BLE001 - the thread serves the other jobs
            self._end_workers()
            job.fail(error)
        if job.state not in ENDED:
            job.fail("its run ended without a result")
