"""What a job is: a slide's work in steps that can travel between processes.

There are three kinds of step: `prepare` once, `run_block` for every block that is missing, `finish` once. Steps travel as small
picklable objects and read and write by path: no pixels pass through the scheduler.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from wsi_pipeline.errors import ConfigError


class Plan(Protocol):
    """What `prepare` found out."""

    @property
    def blocks(self) -> Sequence[int]:
        """Numbers of the blocks that are still missing."""
        ...


PlanT = TypeVar("PlanT", bound=Plan)
ReportT = TypeVar("ReportT")
ResultT = TypeVar("ResultT")
ResultOut = TypeVar("ResultOut", covariant=True)
PlanIn = TypeVar("PlanIn", bound=Plan, contravariant=True)
ReportIn = TypeVar("ReportIn", contravariant=True)
ResultIn = TypeVar("ResultIn", contravariant=True)


class Job(Protocol[PlanT, ReportT, ResultOut]):
    """One slide's work; picklable."""

    def hold(self) -> AbstractContextManager[None]:
        """Entered in this process while the job runs: its lock."""
        ...

    def prepare(self) -> PlanT: ...

    def run_block(self, plan: PlanT, block: int) -> ReportT: ...

    def finish(self, plan: PlanT, reports: Sequence[ReportT]) -> ResultOut: ...


class Listener(Protocol[PlanIn, ReportIn, ResultIn]):
    """Is told what happens, as it happens; `job` counts from 0."""

    def prepared(self, job: int, plan: PlanIn) -> None: ...

    def block_done(self, job: int, report: ReportIn) -> None: ...

    def ended(self, job: int, result: ResultIn | Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work."""

    count: int | None = None
    """Processes on this machine; 0: none, a plain loop in this one; None: one per GPU, or one."""
    gpus: int = 0
    """GPUs on this machine."""
    threads: int = 2
    """Steps that one process takes at a time: some read while one computes."""
    scheduler: str | None = None
    """Address of a running Dask scheduler; the other fields then do not matter."""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 0:
            raise ConfigError(f"{self.count} workers cannot be; give 0 for a plain loop, or more")
        if self.scheduler is not None and not re.fullmatch(r"(tcp|tls|ws|wss|ucx|inproc)://\S+", self.scheduler):
            raise ConfigError(f"scheduler {self.scheduler!r} is no address; give one such as tls://host:8786")

    @property
    def processes(self) -> int:
        """Worker processes on this machine."""
        return max(self.gpus, 1) if self.count is None else self.count


class Step(NamedTuple):
    """One step of one job; it names a task without naming a slide."""

    job: int
    kind: str
    """"prepare", "block" or "finish"."""
    block: int = 0


class Executor(Protocol):
    """Takes steps and gives back their results in any order."""

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None: ...

    def drop(self, job: int) -> None:
        """Forget the steps of a job that have not begun."""
        ...

    def next_done(self) -> tuple[Step, Any]:
        """The next finished step with its result, or the exception it raised."""
        ...
