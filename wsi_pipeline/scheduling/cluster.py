"""Dask: steps as tasks of worker processes, ours on this machine or a running cluster's."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, as_completed
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from distributed.security import Security

from wsi_pipeline.errors import EnvironmentFault
from wsi_pipeline.scheduling.jobs import Step, Workers

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 30


class DaskExecutor:
    """Steps as Dask tasks."""

    def __init__(self, client: Any, processes: int) -> None:
        self.processes = processes
        self._client = client
        self._done = as_completed([], loop=client.loop)
        self._pending: dict[str, tuple[Step, Any]] = {}
        self._dropped: set[int] = set()
        self._run_id = os.urandom(4).hex()

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None:
        """Send the step off. Earlier jobs come first, so that slides are finished one after another."""
        key = f"{step.kind}-{self._run_id}-{step.job}-{step.block}"
        priority = -step.job if step.kind != "prepare" else 1
        future = self._client.submit(function, *arguments, key=key, pure=False, priority=priority)
        self._pending[key] = (step, future)
        self._done.add(future)

    def drop(self, job: int) -> None:
        """Cancel what has not begun, and ignore what has."""
        self._dropped.add(job)
        if stale := [future for step, future in self._pending.values() if step.job == job]:
            self._client.cancel(stale)

    def next_done(self) -> tuple[Step, Any]:
        """Wait for the next step. Raises EnvironmentFault where the cluster is lost."""
        while True:
            future = next(self._done)
            step, _ = self._pending.pop(future.key)
            if step.job not in self._dropped:
                return step, _result_of(future)


def _result_of(future: Any) -> Any:
    """What a step returned or raised."""
    if future.status == "finished":
        return future.result()
    if future.status == "error":
        error = future.exception()
        if not isinstance(error, FutureCancelledError):
            return _plain_exception(error)
    raise EnvironmentFault("the Dask cluster was lost; what is finished stays on disk, run the same line again")


def _plain_exception(error: Any) -> Exception:
    """A worker that died several times over the same step, in words."""
    if isinstance(error, KilledWorker):
        return RuntimeError("a worker process died several times over it (out of memory, or a crash in a decoder)")
    return error if isinstance(error, Exception) else RuntimeError(str(error))


@contextmanager
def connect(workers: Workers) -> Iterator[DaskExecutor]:
    """A client of the cluster that is asked for, and that cluster where it is ours. Raises EnvironmentFault."""
    # With the dashboard off an HTTP port would still list tasks to every local user.
    routes: dict[str, list[str]] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker", "nanny")}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(routes))
        try:
            executor = _join(workers.scheduler, stack) if workers.scheduler is not None else _start(workers, stack)
        except (OSError, TimeoutError, RuntimeError) as error:
            place = workers.scheduler or "the local cluster"
            raise EnvironmentFault(f"{place}: cannot be reached ({error}); check it, then run the same line again") from error
        yield executor


def _join(address: str, stack: ExitStack) -> DaskExecutor:
    """A running cluster; its TLS files are those of Dask's own configuration."""
    client = stack.enter_context(Client(address, set_as_default=False, timeout=CONNECT_TIMEOUT_S))
    return DaskExecutor(client, processes=len(client.scheduler_info(n_workers=-1)["workers"]))


def _start(workers: Workers, stack: ExitStack) -> DaskExecutor:
    """Worker processes of our own."""
    cluster = stack.enter_context(_start_cluster(workers))
    client = stack.enter_context(Client(cluster, security=cluster.security, set_as_default=False))
    return DaskExecutor(client, processes=workers.processes)


def _start_cluster(workers: Workers) -> Any:
    """Worker processes on this machine, one per GPU where there are GPUs; TLS, loopback only, no dashboard."""
    security = Security.temporary()
    common = {"security": security, "host": LOOPBACK, "dashboard": False}
    worker = common | {"nthreads": workers.threads, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    specification = {index: {"cls": Nanny, "options": worker | {"env": _environment(workers, index)}} for index in range(workers.processes)}
    scheduler = {
        "cls": Scheduler,
        "options": common | {"protocol": "tls://", "dashboard_address": f"{LOOPBACK}:0"},
    }
    return SpecCluster(workers=specification, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)


def _environment(workers: Workers, index: int) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": str(index % workers.gpus)} if workers.gpus else {}
