"""Clusters: local worker processes, Slurm's, or those of a running cluster.

Also the limit of a worker process's share of the machine's memory.
"""

import itertools
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
import yaml
from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin
from distributed.security import Security

from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, WsiError
from wsi_pipeline.core.limits import limit_memory
from wsi_pipeline.scheduling.dask_executor import ALLOWED_DEATHS, DaskExecutor
from wsi_pipeline.scheduling.jobs import ADDRESS, Tls, Workers
from wsi_pipeline.scheduling.worker_process import (
    ALLOCATOR,
    CHECK_LIMITS,
    gpu_environment,
    share_memory,
    start_tracker,
)

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 30
DASHBOARD_PORT = 8787
EVENTS_KEPT = 100
"""Dask's own log of events, which is read only on a dashboard."""
GPU = "GPU"
"""The resource that workers with a GPU declare, one each."""

ON_THIS_MACHINE = ("local", "cuda")
"""Clusters whose workers share this machine's memory; Slurm limits its jobs itself."""
PATIENCE_S = {"local": 60.0, "cuda": 60.0, "running": 600.0, "slurm": 24 * 3600.0}
"""Seconds without any worker before others are started, or the run ends; Slurm has a queue."""
logger = logging.getLogger(__name__)


@contextmanager
def connect(workers: Workers) -> Iterator[DaskExecutor]:
    """Connect to a cluster, or start it, for the block. Raises EnvironmentFault, ConfigError."""
    rules = {
        # With the dashboard off an HTTP port would still list tasks to every local user.
        **{f"{part}.http.routes": [] for part in ("scheduler", "worker", "nanny")},
        "scheduler.allowed-failures": ALLOWED_DEATHS,
        "scheduler.worker-ttl": f"{workers.deadlines.silence_s}s",
        # The profiler's record grows by 150 kB a slide. It also reads all threads' frames under a
        # lock, in which a garbage collection may close a slide and so let another thread run, which
        # waits for that lock with the interpreter's lock held: the worker hangs
        # (python/cpython#106883).
        "worker.profile.enabled": False,
        **{f"nanny.pre-spawn-environ.{name}": size for name, size in ALLOCATOR.items()},
        "admin.log-length": EVENTS_KEPT,
        "admin.low-level-log-length": EVENTS_KEPT,
        "admin.system-monitor.log-length": EVENTS_KEPT,
    }
    with ExitStack() as stack:
        settings = {f"distributed.{name}": rule for name, rule in rules.items()}
        stack.enter_context(dask.config.set(settings))
        try:
            executor = (
                _start(workers, stack) if workers.scheduler is None else _join(workers, stack)
            )
        except WsiError:
            raise
        except (OSError, TimeoutError, RuntimeError, ValueError, TypeError) as error:
            place, remedy = workers.scheduler, "check it"
            if place is None:
                place = f"the {workers.cluster} cluster"
                script = "a script needs the guard `if __name__ == '__main__':`"
                remedy = f"{CHECK_LIMITS}; {script}"
            what = f"{place}: cannot be reached ({_first_cause(error)}); {remedy}"
            raise EnvironmentFault(f"{what}, then run the same line again") from error
        yield executor


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that began it: Dask's own says only that a process failed to start."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _join(workers: Workers, stack: ExitStack) -> DaskExecutor:
    """Return a running cluster, by its address or by the file that its scheduler wrote."""
    place = str(workers.scheduler)
    if place.startswith("tcp://"):
        fault = "neither encrypted nor protected: anyone who reaches it can run programs there"
        logger.warning("%s: %s; prefer tls://", place, fault)
    options: dict[str, Any] = {"address" if ADDRESS.fullmatch(place) else "scheduler_file": place}
    options |= {"security": _security(workers.tls), "timeout": CONNECT_TIMEOUT_S}
    client = stack.enter_context(Client(**options, set_as_default=False))
    client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
    _check_versions(client, place)
    return _executor(client, workers, processes=None, patience_s=PATIENCE_S["running"])


def read_version() -> str:
    """Return this process's version of the package."""
    return version("wsi-pipeline")


def _check_versions(client: Any, place: str) -> None:
    """Raise ConfigError where a worker has no package, or another: it could not read a step."""
    answers = client.run(read_version, on_error="return")
    ours = read_version()
    for worker, theirs in answers.items():
        if isinstance(theirs, Exception):
            what = f"{place}: the worker {worker} cannot load wsi-pipeline ({theirs})"
            raise ConfigError(f"{what}; install version {ours} there")
        if theirs != ours:
            what = f"{place}: the worker {worker} has wsi-pipeline {theirs}, this machine {ours}"
            raise ConfigError(f"{what}; install the same version on both")


def _security(tls: Tls | None) -> Security | None:
    """Return the certificates that the user names; None: Dask's own configuration."""
    if tls is None:
        return None
    for path in (tls.ca_file, tls.cert, tls.key):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; name PEM files of the cluster's certificates")
    return Security(
        tls_ca_file=str(tls.ca_file),
        tls_client_cert=str(tls.cert),
        tls_client_key=str(tls.key),
        require_encryption=True,
    )


def _start(workers: Workers, stack: ExitStack) -> DaskExecutor:
    cluster = stack.enter_context(STARTERS[workers.cluster](workers))
    client = stack.enter_context(Client(cluster, security=cluster.security, set_as_default=False))
    if workers.cluster in ON_THIS_MACHINE:
        client.register_plugin(MemoryLimit(share_memory(workers)))
    if workers.has_dashboard:
        logger.warning("Dask's dashboard: %s", client.dashboard_link)
    if workers.cluster == "slurm":
        _wait_for_slurm(client)
    executor = _executor(client, workers, workers.processes, PATIENCE_S[workers.cluster])
    if workers.cluster == "local":
        executor.start_more = partial(cluster.scale, 2 * workers.processes)
    return executor


def _wait_for_slurm(client: Any) -> None:
    """Wait for the first worker. Raises EnvironmentFault where none starts in time."""
    hours = PATIENCE_S["slurm"] / 3600
    logger.warning("waiting for Slurm to start the first worker, for %.3g h at most", hours)
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S["slurm"])
    except TimeoutError as error:
        what = f"Slurm started no worker within {hours:.3g} h"
        remedy = "see squeue and the jobs' own logs, then run the same line again"
        raise EnvironmentFault(f"{what}; {remedy}") from error


def _executor(
    client: Any, workers: Workers, processes: int | None, patience_s: float
) -> DaskExecutor:
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    share = 0.0
    if workers.wants_gpu and any(worker.get("resources", {}).get(GPU) for worker in known):
        # Several blocks share a GPU, for some read while one computes; a little less than their
        # share, so that rounding locks none out.
        share = 0.999 / max(worker["nthreads"] for worker in known)
    count = len(known) if processes is None else processes
    return DaskExecutor(client, count, workers.deadlines, share, patience_s)


def _start_local(workers: Workers) -> SpecCluster:
    """Start processes on this machine, one per GPU where there are GPUs; TLS, loopback only."""
    start_tracker()
    security = Security.temporary()
    quiet = {"silence_logs": logging.CRITICAL}
    common = {"security": security, "host": LOOPBACK}
    options = {
        **common,
        **quiet,
        "nthreads": workers.threads,
        "memory_limit": 0,
        "dashboard": False,
    }
    rules = common | {"protocol": "tls://"} | _dashboard(workers)
    scheduler = {"cls": Scheduler, "options": rules}
    return _Processes(workers, options, scheduler=scheduler, security=security, **quiet)


class _Processes(SpecCluster):
    """Worker processes of this machine, of which further ones can be started."""

    def __init__(self, workers: Workers, options: Mapping[str, Any], **settings: Any) -> None:
        self._workers = workers
        self._options = options
        self._started = itertools.count()
        first: dict[int, dict[str, Any]] = {}
        for _ in range(workers.processes):
            first |= self.new_worker_spec()
        super().__init__(workers=first, **settings)  # type: ignore[no-untyped-call]

    def new_worker_spec(self) -> dict[int, dict[str, Any]]:
        """Return what Dask needs to start the next process."""
        index = next(self._started)
        place = _place(self._workers, index)
        return {index: {"cls": Nanny, "options": {**self._options, **place}}}


def _place(workers: Workers, index: int) -> dict[str, Any]:
    """Return the options by which each process sees one GPU."""
    environment = gpu_environment(workers, index)
    return {"env": environment, "resources": {GPU: 1}} if environment else {}


def _dashboard_address() -> str:
    """Return Dask's usual port, or any where it is taken: Dask would warn, and leak a socket."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LOOPBACK, DASHBOARD_PORT))
        except OSError:
            return f"{LOOPBACK}:0"
    return f"{LOOPBACK}:{DASHBOARD_PORT}"


@contextmanager
def _needed(what: str, remedy: str) -> Iterator[None]:
    """Raise ConfigError, with the package to install, where an import fails."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{what}: {remedy}") from error


def _dashboard(workers: Workers) -> dict[str, Any]:
    """Return the scheduler's options: a dashboard on the loopback, or none."""
    if not workers.has_dashboard:
        return {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    with _needed("the dashboard needs Bokeh", "pip install 'wsi-pipeline[dashboard]'"):
        import bokeh  # noqa: F401  # the dashboard is made with it
    return {"dashboard": True, "dashboard_address": _dashboard_address()}


def _start_slurm(workers: Workers) -> Any:
    """Start workers as Slurm jobs."""
    with _needed("--cluster slurm needs dask-jobqueue", "pip install 'wsi-pipeline[slurm]'"):
        from dask_jobqueue.slurm import SLURMCluster
    settings = read_slurm_config(workers.slurm_config)
    jobs = settings.pop("jobs", 1) if workers.count is None else workers.count
    home = {"shared_temp_directory": str(Path.home())}  # where the jobs find the certificates
    exports = [f"export {name}={size}" for name, size in ALLOCATOR.items()]
    prologue = {"job_script_prologue": exports + list(settings.pop("job_script_prologue", []))}
    cluster: Any = SLURMCluster(
        scheduler_options=_dashboard(workers) | settings.pop("scheduler_options", {}),
        security=Security.temporary(),
        protocol="tls://",
        **home | settings | prologue,
    )
    cluster.scale(jobs=jobs)
    return cluster


def read_slurm_config(path: Path | None) -> dict[str, Any]:
    """Return arguments of SLURMCluster, and `jobs`, their number. Raises ConfigError."""
    manual = "see docs/guides/servers.md"
    try:
        settings = yaml.safe_load(Path(path or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: cannot be read as YAML ({reason}); {manual}") from error
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ConfigError(f"{path}: must be a table such as 'cores: 8'; {manual}")
    if reserved := {"security", "protocol", "n_workers", "asynchronous"} & set(settings):
        listed = ", ".join(sorted(reserved))
        raise ConfigError(f"{path}: {listed}: not to be set here, wsi sets it itself; take it out")
    jobs = settings.get("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        said = jobs if isinstance(jobs, int | float | str) else f"a {type(jobs).__name__}"
        raise ConfigError(f"{path}: jobs is {said!r}; it must be a number of Slurm jobs, 1 or more")
    return dict(settings)


def _start_cuda(workers: Workers) -> Any:
    """Start RAPIDS' own cluster: a process per GPU, bound to the cores and memory near it."""
    remedy = "pip install 'wsi-pipeline[gpu]', or --cluster local"
    with _needed("--cluster cuda needs dask-cuda and a GPU", remedy):
        from dask_cuda import LocalCUDACluster
    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=",".join(workers.gpus) or None,
        n_workers=workers.processes,
        threads_per_worker=workers.threads,
        host=LOOPBACK,
        protocol="tls",
        security=Security.temporary(),
        dashboard_address=_dashboard_address() if workers.has_dashboard else None,
        resources={GPU: 1},
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )


Start = Callable[[Workers], Any]
STARTERS: dict[str, Start] = {"local": _start_local, "slurm": _start_slurm, "cuda": _start_cuda}


class MemoryLimit(WorkerPlugin):
    """Limits each worker process as it starts, also replacements."""

    name = "wsi-memory-limit"
    idempotent = True

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def setup(self, worker: Any) -> None:
        """Limit the worker process before its first task."""
        limit_memory(self._most_bytes)
