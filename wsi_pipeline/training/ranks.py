"""A fit in this process, or in one process per device.

A process that starts others never prepares CUDA: it would hold memory of the first GPU, and keep
others from a GPU in exclusive mode.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessException, start_processes

from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, ModelError, WsiError
from wsi_pipeline.core.progress import Listener, relay
from wsi_pipeline.models.gpus import find_gpus
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.fit import FitJob, fit_here, is_unsteady, make_fabric
from wsi_pipeline.training.loop import FitHistory, unpack_history
from wsi_pipeline.training.state import load_state

FAILED = "failed"
HERE = "127.0.0.1"
UNSTEADY = (
    "warning: at a constant learning rate without batch normalisation the result depends on"
    " the epoch at which training stops; give --schedule one-cycle or --batch-norm"
)
Result = TypeVar("Result")


def check_devices(config: TrainConfig) -> None:
    """Raise EnvironmentFault where the machine lacks the devices, or the precision."""
    if config.devices == 1:
        make_fabric(config)
        return
    gpus = find_gpus(config.device)
    if gpus and config.devices > len(gpus):
        raise EnvironmentFault(
            f"{config.devices} GPUs: this machine has {len(gpus)}; give fewer with --devices"
        )
    if config.precision == "fp16" and not gpus:
        raise EnvironmentFault("fp16: only GPUs compute in it; use --precision bf16 or fp32")


def run_fit(job: FitJob, listener: Listener) -> FitHistory:
    """Train on as many devices as configured.

    Raises ModelError, ConfigError or EnvironmentFault.
    """
    if is_unsteady(job.config):
        listener.say(UNSTEADY)
    if job.config.devices == 1:
        fabric = make_fabric(job.config)
        fabric.launch()
        return fit_here(fabric, job, listener)
    if len(job.division.train) < 2 * job.config.devices:
        raise ConfigError(
            f"{len(job.division.train)} training patches for {job.config.devices} devices; give"
            " fewer with --devices"
        )
    return _fit_in_processes(job, listener)


def _fit_in_processes(job: FitJob, listener: Listener) -> FitHistory:
    """Train in one process per device; the first one sends messages and leaves the final state."""
    if job.state_file is None:
        raise ModelError("training on several devices needs a file for its state; give one")
    messages = get_context("spawn").SimpleQueue()
    failures: list[WsiError] = []
    listening = threading.Thread(target=_pass_on, args=(messages.get, listener, failures))
    listening.start()
    others = {*multiprocessing.active_children()}
    try:
        start_processes(_fit_rank, (_find_port(), job, messages), job.config.devices)
    except ProcessException as error:
        reason = str(error).strip().splitlines()[-1]
        fault = EnvironmentFault(
            f"training on {job.config.devices} devices: a process ended ({reason}); run the same"
            " command again"
        )
        raise (failures[0] if failures else fault) from error
    finally:
        # However this ends, no process may write after the lock is released.
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
            process.join()
        messages.put(None)
        listening.join()
    state = load_state(job.state_file)
    if state is None:
        raise EnvironmentFault(
            f"{job.state_file}: the saved state of this training has vanished; run the same"
            " command again"
        )
    return unpack_history(state)


def _find_port() -> int:
    """Return a port of this machine that is free, on which the processes meet."""
    with socket.socket() as free:
        free.bind((HERE, 0))
        return int(free.getsockname()[1])


def _fit_rank(rank: int, port: int, job: FitJob, messages: Any) -> None:
    """Run one of several processes, in the process itself."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": HERE, "MASTER_PORT": str(port)}
    hears = relay(lambda name, *values: messages.put((name, values)))
    try:
        fabric = make_fabric(job.config)
        fabric.launch()
        fit_here(fabric, job, hears if fabric.is_global_zero else Listener())
    except WsiError as error:
        messages.put((FAILED, (error,)))
        raise


def _pass_on(
    receive: Callable[[], tuple[str, Any] | None], listener: Listener, failures: list[WsiError]
) -> None:
    """Pass messages of the processes to the listener of this process, until None comes."""
    while (message := receive()) is not None:
        name, values = message
        if name == FAILED:
            failures.extend(values)
        else:
            getattr(listener, name)(*values)


def compute_where_trained(
    config: TrainConfig, function: Callable[..., Result], *given: Any
) -> Result:
    """Return a function's result, computed where the network was trained: here, or elsewhere.

    Of a fit on several devices that is a process of its own. Raises what the function raises, and
    EnvironmentFault where that process dies.
    """
    if config.devices == 1:
        return function(*given)
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *given).result()
    except BrokenProcessPool as error:
        raise EnvironmentFault(
            "a process ended after the last epoch (out of memory?); run the same command again"
        ) from error
