"""Running jobs in this process, in one worker process, or on a cluster.

The plain loop, which runs every step here and now, defines what running them means.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic

from wsi_pipeline.core.errors import EnvironmentFault, GpuLost
from wsi_pipeline.core.limits import limited_memory, tidy_memory
from wsi_pipeline.scheduling.jobs import (
    Executor,
    Job,
    Listener,
    NotYet,
    PlanT,
    ReportT,
    ResultT,
    Step,
    Workers,
)
from wsi_pipeline.scheduling.lone_worker import start_lone_worker
from wsi_pipeline.scheduling.worker_process import WorkerDeath, environment, gpu_environment


@dataclass
class PlainLoop:
    """Every step here and now, in the order of submission."""

    _queue: deque[tuple[Step, Callable[..., Any], tuple[Any, ...]]] = field(default_factory=deque)

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None:
        """Put the step at the end of the queue."""
        self._queue.append((step, function, arguments))

    def drop(self, job: int) -> None:
        """Forget the job's queued steps."""
        self._queue = deque(entry for entry in self._queue if entry[0].job != job)

    def next_done(self) -> tuple[Step, Any]:
        """Take the first step of the queue. Raises GpuLost."""
        step, function, arguments = self._queue.popleft()
        try:
            return step, function(*arguments)
        except GpuLost:
            raise  # no other job could use the GPU in this process
        except Exception as error:  # noqa: BLE001 - a fault is the job's result, others go on
            return step, error


@dataclass
class _Active:
    """A job under way."""

    job: Job[Any, Any, Any]
    lock: ExitStack
    plan: Any = None
    reports: list[Any] = field(default_factory=list)


def _end_nothing() -> None:
    """End no worker: every step ran here."""


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """Opened workers: a plain loop, or processes that were started or reached."""

    executor: Executor
    window: int
    """Jobs under way at a time: the next slides are prepared while the first is computed."""
    end: Callable[[], None] = _end_nothing
    """Ends the workers, which may be at work."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on a worker, before any job, and return its result or raise its error.

        Raises EnvironmentFault where workers died over it.
        """
        self.executor.submit(Step(NO_JOB, "call"), function, *arguments)
        _, answer = self.executor.next_done()
        if isinstance(answer, WorkerDeath):
            raise EnvironmentFault(f"before the first slide: {answer}") from answer
        if isinstance(answer, Exception):
            raise answer
        return answer


NO_JOB = -1
"""Job number of a call that belongs to no job."""


@contextmanager
def open_workers(workers: Workers) -> Iterator[WorkerPool]:
    """Start or reach the workers, until the block ends. Raises EnvironmentFault."""
    if workers.scheduler is None and workers.cluster == "local" and workers.processes == 0:
        with limited_memory(), environment(gpu_environment(workers, 0)):
            yield WorkerPool(PlainLoop(), window=1)
        return
    with ExitStack() as opened:
        if workers.is_one_process:
            worker = opened.enter_context(start_lone_worker(workers))
            yield WorkerPool(worker, window=2, end=opened.close)
            return
        # Here, because Dask takes a second to import, and only a cluster needs it.
        from wsi_pipeline.scheduling.clusters import connect

        executor = opened.enter_context(connect(workers))
        window = 2 * max(executor.processes, 1)
        yield WorkerPool(executor, window, end=opened.close)


class KeptWorkers:
    """Workers that are kept between runs, with the model that they have loaded."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._pool: WorkerPool | None = None

    @contextmanager
    def open(self, workers: Workers) -> Iterator[WorkerPool]:
        """Start the workers, or give those of the run before, whatever its settings were."""
        if not workers.processes:  # the plain loop limits the memory of this process
            with open_workers(workers) as pool:
                yield pool
            return
        if self._pool is None:
            self._pool = self._opened.enter_context(open_workers(workers))
        yield self._pool

    def close(self) -> None:
        """End the workers, and what they still do for a run that was cancelled."""
        self._pool = None
        self._opened.close()


def run_jobs(
    jobs: Sequence[Job[PlanT, ReportT, ResultT]],
    workers: Workers | WorkerPool,
    listener: Listener[PlanT, ReportT, ResultT],
) -> list[ResultT | Exception]:
    """Run every job and return the result or the exception of each, in their order.

    One job's fault never stops the others. Raises EnvironmentFault where the cluster is lost:
    finished work stays on disk, and the same call continues from there.
    """
    if isinstance(workers, Workers):
        with open_workers(workers) as pool:
            return run_jobs(jobs, pool, listener)
    return _Run(jobs, workers, listener).results()


class _Run(Generic[PlanT, ReportT, ResultT]):
    """The state of all jobs, which move from step to step."""

    def __init__(
        self,
        jobs: Sequence[Job[PlanT, ReportT, ResultT]],
        pool: WorkerPool,
        listener: Listener[PlanT, ReportT, ResultT],
    ) -> None:
        self._jobs = jobs
        self._executor = pool.executor
        self._window = pool.window
        self._end_workers = pool.end
        self._listener = listener
        self._active: dict[int, _Active] = {}
        self._results: dict[int, ResultT | Exception] = {}
        self._is_full = False
        """The next job waits until another has ended."""

    def results(self) -> list[ResultT | Exception]:
        """Run to the end."""
        waiting = deque(range(len(self._jobs)))
        try:
            while waiting or self._active:
                while waiting and len(self._active) < self._window and not self._is_full:
                    if self._start(waiting[0]):
                        waiting.popleft()
                if self._active:
                    self._advance(*self._executor.next_done())
        except BaseException:
            self._end_workers()  # while the locks are held, and what the workers read is there
            raise
        finally:
            for active in self._active.values():
                active.lock.close()
        return [self._results[index] for index in range(len(self._jobs))]

    def _start(self, index: int) -> bool:
        """Start a job; False where it is to be tried again when another has ended."""
        active = _Active(self._jobs[index], ExitStack())
        try:
            active.lock.enter_context(active.job.hold())
        except NotYet as error:
            if self._active:
                self._is_full = True
                return False
            self._conclude(index, error)
            return True
        except Exception as error:  # noqa: BLE001 - an unavailable lock is the job's result
            self._conclude(index, error)
            return True
        self._active[index] = active
        self._executor.submit(Step(index, "prepare"), active.job.prepare)
        return True

    def _advance(self, step: Step, value: Any) -> None:
        active = self._active.get(step.job)
        if active is None:
            return  # a step of a job that has already failed
        if isinstance(value, Exception) or step.kind == "finish":
            self._executor.drop(step.job)
            self._conclude(step.job, value)
            return
        if step.kind == "prepare":
            active.plan = value
            self._listener.prepared(step.job, value)
            for block in value.blocks:
                block_step = Step(step.job, "block", block)
                self._executor.submit(block_step, active.job.run_block, value, block)
        else:
            active.reports.append(value)
            self._listener.block_done(step.job, value)
        if len(active.reports) == len(active.plan.blocks):
            arguments = (active.job, active.plan, active.reports)
            self._executor.submit(Step(step.job, "finish"), _finish, *arguments)

    def _conclude(self, index: int, result: ResultT | Exception) -> None:
        if (active := self._active.pop(index, None)) is not None:
            active.lock.close()
        self._is_full = False
        self._results[index] = result
        self._listener.ended(index, result)
        if isinstance(result, Exception):
            forget_frames(result)
        tidy_memory()


def _finish(job: Job[PlanT, ReportT, ResultT], plan: PlanT, reports: Sequence[ReportT]) -> ResultT:
    try:
        return job.finish(plan, reports)
    finally:
        tidy_memory()


def forget_frames(error: BaseException | None) -> None:
    """Release the frames of an error, and the slides and pixels in them."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
