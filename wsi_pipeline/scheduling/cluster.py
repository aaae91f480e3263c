"""Dask: steps as tasks of worker processes, ours on this machine or a running cluster's."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, as_completed
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from distributed.security import Security

from wsi_pipeline.errors import EnvironmentFault
from wsi_pipeline.scheduling.jobs import Step, Workers

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 30
ALLOWED_DEATHS = 1
"""Workers that may die over a step before it is held back to be tried alone."""


class DaskExecutor:
    """Steps as Dask tasks."""

    def __init__(self, client: Any, processes: int) -> None:
        self.processes = processes
        self._client = client
        self._done = as_completed([], loop=client.loop)
        self._pending: dict[str, _Submitted] = {}
        self._suspects: deque[_Submitted] = deque()
        self._dropped: set[int] = set()
        self._run_id = os.urandom(4).hex()

    def submit(self, step: Step, function: Callable[..., Any], *arguments: Any) -> None:
        """Send the step off. Earlier jobs come first, so that slides are finished one after another."""
        self._send(_Submitted(step, function, arguments))

    def _send(self, work: "_Submitted") -> None:
        step = work.step
        key = f"{step.kind}-{self._run_id}-{step.job}-{step.block}{'-alone' if work.is_alone else ''}"
        priority = -step.job if step.kind != "prepare" else 1
        future = self._client.submit(work.function, *work.arguments, key=key, pure=False, priority=priority)
        self._pending[key] = work._replace(future=future)
        self._done.add(future)

    def drop(self, job: int) -> None:
        """Cancel what has not begun, and ignore what has."""
        self._dropped.add(job)
        if stale := [work.future for work in self._pending.values() if work.step.job == job]:
            self._client.cancel(stale)

    def next_done(self) -> tuple[Step, Any]:
        """Wait for the next step. Raises EnvironmentFault where the cluster is lost.

        A step whose worker died is tried again when nothing else is running: what runs beside a deadly step dies with it, and must
        not be taken for its cause.
        """
        while True:
            if not self._pending and self._suspects:
                self._send(self._suspects.popleft()._replace(is_alone=True))
            future = next(self._done)
            work = self._pending.pop(future.key)
            if work.step.job in self._dropped:
                continue
            result = _result_of(future)
            if isinstance(result, KilledWorker) and not work.is_alone:
                self._suspects.append(work)
                continue
            return work.step, _in_words(result)


class _Submitted(NamedTuple):
    """A step under way."""

    step: Step
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Any = None
    is_alone: bool = False


def _result_of(future: Any) -> Any:
    """What a step returned or raised; a result that was lost with its worker is computed again."""
    try:
        return future.result()
    except FutureCancelledError as error:
        raise EnvironmentFault("the Dask cluster was lost; what is finished stays on disk, run the same line again") from error
    except Exception as error:  # noqa: BLE001 - the batch boundary: a fault is the job's result, its neighbours go on
        return error


def _in_words(result: Any) -> Any:
    if isinstance(result, KilledWorker):
        return RuntimeError("a worker process died over it, also when it ran alone (out of memory, or a crash in a decoder)")
    return result


@contextmanager
def connect(workers: Workers) -> Iterator[DaskExecutor]:
    """A client of the cluster that is asked for, and that cluster where it is ours. Raises EnvironmentFault."""
    # With the dashboard off an HTTP port would still list tasks to every local user.
    routes: dict[str, list[str]] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker", "nanny")}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(routes | {"distributed.scheduler.allowed-failures": ALLOWED_DEATHS}))
        try:
            executor = _join(workers.scheduler, stack) if workers.scheduler is not None else _start(workers, stack)
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:
            place = workers.scheduler or "the local cluster"
            hint = "check it" if workers.scheduler else "a script needs the guard `if __name__ == '__main__':`; else check the machine"
            raise EnvironmentFault(f"{place}: cannot be reached ({error}); {hint}, then run the same line again") from error
        yield executor


def _join(address: str, stack: ExitStack) -> DaskExecutor:
    """A running cluster; its TLS files are those of Dask's own configuration."""
    client = stack.enter_context(Client(address, set_as_default=False, timeout=CONNECT_TIMEOUT_S))
    client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
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
    """Each process sees one GPU, out of those that this process may see."""
    if not workers.gpus:
        return {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)] if visible else str(index % workers.gpus)}
