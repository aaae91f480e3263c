"""Jobs: a slide's work in steps that can travel between processes.

There are three kinds of step: `prepare` once, `run_block` for every block that is missing, `finish`
once. Steps travel as small picklable objects and read and write by path: no pixels pass through the
scheduler.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from wsi_pipeline.core.choices import CLUSTERS
from wsi_pipeline.core.errors import ConfigError


class Plan(Protocol):
    """The result of `prepare`."""

    @property
    def blocks(self) -> Sequence[int]:
        """Numbers of the blocks that are still missing."""


PlanT = TypeVar("PlanT", bound=Plan)
ReportT = TypeVar("ReportT")
ResultT = TypeVar("ResultT")
ResultOut = TypeVar("ResultOut", covariant=True)
PlanIn = TypeVar("PlanIn", bound=Plan, contravariant=True)
ReportIn = TypeVar("ReportIn", contravariant=True)
ResultIn = TypeVar("ResultIn", contravariant=True)


class NotYet(Exception):
    """Raised by `hold` of a job that must wait for another of its run; it is called again later."""


class Job(Protocol[PlanT, ReportT, ResultOut]):
    """One slide's work; picklable."""

    def hold(self) -> AbstractContextManager[None]:
        """Entered in this process while the job runs: its lock. May raise NotYet."""

    def prepare(self) -> PlanT: ...

    def run_block(self, plan: PlanT, block: int) -> ReportT: ...

    def finish(self, plan: PlanT, reports: Sequence[ReportT]) -> ResultOut: ...


class Listener(Protocol[PlanIn, ReportIn, ResultIn]):
    """Receiver of a run's progress; `job` counts from 0."""

    def prepared(self, job: int, plan: PlanIn) -> None: ...

    def block_done(self, job: int, report: ReportIn) -> None: ...

    def ended(self, job: int, result: ResultIn | Exception) -> None: ...


ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx|inproc)://\S+")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a step may take before it is stopped as hanging."""

    floor_s: float = 60.0
    """No block is stopped earlier."""
    factor: float = 10.0
    """A block may take so many times the median of those before it."""
    first_s: float = 600.0
    """Seconds for a block while too few are known: the first ones load and compile models."""
    others_s: float = 7200.0
    """Preparing and finishing a slide may take so long."""
    silence_s: float = 120.0
    """A worker that shows no sign of life for so long is given up: stopped, or its machine gone."""

    def __post_init__(self) -> None:
        if min(self.floor_s, self.factor, self.first_s, self.others_s, self.silence_s) <= 0:
            raise ConfigError(f"deadlines must be above 0, not {self}")


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates for a running cluster, in PEM files."""

    ca_file: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Workers:
    """Settings of the workers."""

    count: int | None = None
    """Processes on this machine, or Slurm jobs; 0: a plain loop; None: one per GPU, or one."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs on this machine that are used, as CUDA_VISIBLE_DEVICES has them."""
    threads: int = 2
    """Steps that one process takes at a time: some read while one computes."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, or a file with it; it overrules the fields above."""
    tls: Tls | None = None
    """Certificates for a scheduler at tls://; None: those of Dask's own configuration."""
    cluster: str = "local"
    """Kind of worker processes to start: one of CLUSTERS."""
    slurm_config: Path | None = None
    """YAML with the arguments of dask_jobqueue.SLURMCluster."""
    wants_gpu: bool = False
    """Blocks go to workers that have a GPU, where any has."""
    has_dashboard: bool = False
    """Show Dask's dashboard, on the loopback."""
    deadlines: Deadlines = field(default_factory=Deadlines)

    def __post_init__(self) -> None:
        scheduler, cluster = self.scheduler, self.cluster
        if self.count is not None and self.count < 0:
            raise ConfigError(f"{self.count} workers cannot be; give 0 for a plain loop, or more")
        if cluster not in CLUSTERS:
            raise ConfigError(f"cluster is {cluster!r}; it must be one of {', '.join(CLUSTERS)}")
        if scheduler is not None:
            if not ADDRESS.fullmatch(scheduler) and not Path(scheduler).is_file():
                what = f"scheduler {scheduler!r} is neither an address nor a file"
                raise ConfigError(f"{what}; give one such as tls://host:8786")
            if cluster != "local":
                raise ConfigError(f"give a running cluster or --cluster {cluster}, not both")
        if (cluster == "slurm") != (self.slurm_config is not None):
            what = "a YAML of cores, memory, walltime, interface, …"
            raise ConfigError(f"--cluster slurm and --slurm-config belong together: {what}")

    @property
    def is_elsewhere(self) -> bool:
        """True the work may be done on other machines than this."""
        return self.scheduler is not None or self.cluster == "slurm"

    @property
    def processes(self) -> int:
        """Worker processes that are started."""
        return max(len(self.gpus), 1) if self.count is None else self.count

    @property
    def is_one_process(self) -> bool:
        """True where one process of this machine does the work, which needs no cluster."""
        is_here = self.scheduler is None and self.cluster == "local"
        return is_here and self.processes == 1 and not self.has_dashboard

    def to_json(self) -> dict[str, Any]:
        """Return the record of the workers for a run, without paths."""
        return {
            "cluster": "running" if self.scheduler is not None else self.cluster,
            "count": None if self.is_elsewhere and self.count is None else self.processes,
            "gpus": list(self.gpus),
            "threads": self.threads,
        }


class Step(NamedTuple):
    """One step of one job; it names a task without naming a slide."""

    job: int
    kind: str
    """"prepare", "block", "finish", or "call" for a call that belongs to no job."""
    block: int = 0


class Executor(Protocol):
    """Takes steps and gives back their results in any order."""

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None: ...

    def drop(self, job: int) -> None:
        """Forget the steps of a job that have not started."""

    def next_done(self) -> tuple[Step, Any]:
        """Return the next finished step with its result, or the exception it raised."""
