"""One fit from patches to a finished course: network, pixels and loop put together, on one device or several."""

import logging
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from numpy.typing import NDArray
from torch import nn
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessException

from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, ModelError, WsiError
from wsi_pipeline.core.progress import Listener, relay
from wsi_pipeline.models.architectures import build_network, load_pretrained
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.inputs import Normalisation, count_levels, normalisation_of
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import (
    LabelledPatches,
    PixelSource,
    choose_cache,
    cut_batches,
    open_pixels,
    weigh_classes,
)
from wsi_pipeline.training.loop import (
    VALIDATION_BATCH,
    Course,
    Learner,
    SavedState,
    Side,
    derive_seed,
    fit,
    load_state,
    unpack_course,
)
from wsi_pipeline.training.optimise import Steps, TwoClasses, initialise
from wsi_pipeline.training.split import Division

PRECISION_NAMES = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Ours and Fabric's."""
FAILED = "failed"

logging.getLogger("lightning_fabric").setLevel(
    logging.WARNING
)  # its banner, also in the processes that import this module


@dataclass(frozen=True, slots=True)
class FitJob:
    """Everything that a process needs to train; it holds no pixels and can be sent to other processes."""

    config: TrainConfig
    patches: LabelledPatches
    division: Division
    pretrained: Path | None = None
    """File whose weights training starts from."""
    state_file: Path | None = None
    """Where the state is kept from epoch to epoch, and taken up from."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of a fit."""

    course: Course
    normalisation: Normalisation
    """Mean and deviation of the training patches."""


def run_fit(job: FitJob, listener: Listener) -> Fitted:
    """Train, on as many devices as the configuration names. Raises ModelError, ConfigError or EnvironmentFault."""
    if job.config.devices == 1:
        fabric = make_fabric(job.config)
        fabric.launch()
        return _fit_here(fabric, job, listener)
    if len(job.division.train) < 2 * job.config.devices:
        raise ConfigError(
            f"{len(job.division.train)} training patches for {job.config.devices} devices; give"
            " fewer with --devices"
        )
    # Decided here, once: processes that looked for themselves could read in different orders.
    cache = choose_cache(
        job.config.cache, job.patches, choose_device(job.config.device), copies=job.config.devices
    )
    return _fit_in_processes(replace(job, config=replace(job.config, cache=cache)), listener)


def make_fabric(config: TrainConfig) -> Fabric:
    """Device, number of processes and precision, as Fabric takes them. Raises EnvironmentFault where the machine lacks them."""
    device = choose_device(config.device)
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise EnvironmentFault(
            f"{config.devices} GPUs: this machine has {torch.cuda.device_count()}; give fewer with"
            " --devices"
        )
    return Fabric(
        accelerator=device.type,
        devices=config.devices,
        strategy="auto" if config.devices == 1 else "ddp_spawn",
        plugins=[LightningEnvironment()],  # processes are ours to start, also within a Slurm job
        precision=PRECISION_NAMES[choose_precision(config.precision, device)],  # type: ignore[arg-type]
    )


def choose_precision(wanted: str, device: torch.device) -> str:
    """`auto`: bf16 on a GPU that has it, else fp32. Raises EnvironmentFault for fp16 without a GPU."""
    if wanted == "auto":
        return (
            "bf16"
            if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else "fp32"
        )
    if wanted == "fp16" and device.type != "cuda":
        raise EnvironmentFault("fp16: only GPUs compute in it; use --precision bf16 or fp32")
    return wanted


def _fit_here(fabric: Fabric, job: FitJob, listener: Listener) -> Fitted:
    """This process's part of the fit; all of it where there is one process."""
    state = None if job.state_file is None else load_state(job.state_file)
    precision = choose_precision(job.config.precision, fabric.device)
    cache = _choose_cache(job, fabric.device, state)
    train, val = (
        open_side(job.patches, members, cache, fabric.device)
        for members in (job.division.train, job.division.val)
    )
    normalisation = measure_source(train.pixels)
    learner = make_learner(job, fabric, normalisation)
    course = Course()
    if state is not None:
        _check_precision(precision, str(state.plain["precision"]))
        course = unpack_course(state)
        learner.restore(state.tensors, state.plain["learner"])
        listener.say(f"going on after epoch {len(course.history)}, where this run was stopped")
    notes = {
        "cache": cache,
        "precision": precision,
        "mean": normalisation.mean,
        "std": normalisation.std,
    }
    fit(learner, train, val, job.config, fabric, course, job.state_file, notes, listener)
    return Fitted(course, normalisation)


def _choose_cache(job: FitJob, device: torch.device, state: SavedState | None) -> str:
    """A run that is taken up reads its patches in the order in which it began: at random from memory, or block by block."""
    if state is None:
        return choose_cache(job.config.cache, job.patches, device)
    begun = str(state.plain["cache"])
    return "memory" if begun == "device" and device.type != "cuda" else begun


def _check_precision(now: str, begun: str) -> None:
    if now != begun:
        raise ConfigError(
            f"this run was begun in {begun} and would go on in {now}; give --precision {begun}, or"
            " begin anew with --no-resume"
        )


def open_side(
    patches: LabelledPatches, members: NDArray[Any], cache: str, device: torch.device
) -> Side:
    """Some of the patches, ready to be read."""
    return Side(
        patches.labels[members],
        patches.patients[members],
        open_pixels(patches, members, cache, device),
    )


def measure_source(source: PixelSource) -> Normalisation:
    """Mean and deviation of all pixels of a source, exactly."""
    batches = list(source.order_for_reading().split(VALIDATION_BATCH))
    return normalisation_of(
        sum(
            (count_levels(pixels) for pixels in source.stream(batches)),
            start=torch.zeros((3, 256), dtype=torch.int64),
        )
    )


def make_learner(
    job: FitJob, fabric: Fabric, normalisation: Normalisation, steps: Steps | None = None
) -> Learner:
    """The job's network with fresh or given weights, and what trains it, for all its epochs or so many steps."""
    labels, choice = job.patches.labels[job.division.train], job.config.optimisation
    weights = weigh_classes(labels) if choice.class_weights else (1.0, 1.0)
    steps = steps or count_steps(len(labels), job.config, fabric.world_size)
    return Learner(
        make_network(job),
        job.config,
        steps,
        normalisation,
        fabric,
        TwoClasses(choice.label_smoothing, weights),
    )


def count_steps(patches: int, config: TrainConfig, ranks: int = 1) -> Steps:
    """Steps that so many training patches make."""
    per_epoch = len(cut_batches(torch.arange(patches), config.batch_size, ranks))
    return Steps(per_epoch, per_epoch * config.epochs)


def make_network(job: FitJob) -> nn.Module:
    """The network as training begins. Raises ModelError where its name, the patch size or given weights do not fit."""
    torch.manual_seed(derive_seed(job.config.seed, 0, 0))
    network = build_network(job.config.architecture, job.patches.spec.side_px, job.config.network)
    initialise(network, job.config.optimisation.initialisation)
    if job.config.pretrained is not None:
        load_pretrained(
            network, job.config.architecture, job.pretrained, download=job.pretrained is None
        )
    return network


def _fit_in_processes(job: FitJob, listener: Listener) -> Fitted:
    """One process per device; the first one's messages and its final state come back here."""
    if job.state_file is None:
        raise ModelError("training on several devices needs a file for its state; give one")
    messages = get_context("spawn").SimpleQueue()
    failures: list[WsiError] = []
    listening = threading.Thread(target=_pass_on, args=(messages.get, listener, failures))
    listening.start()
    others = {*multiprocessing.active_children()}
    try:
        make_fabric(job.config).launch(partial(_fit_rank, job=job, messages=messages))
    except ProcessException as error:
        reason = str(error).strip().splitlines()[-1]
        fault = EnvironmentFault(
            f"training on {job.config.devices} devices: a process ended ({reason}); run the same"
            " line again"
        )
        raise (failures[0] if failures else fault) from error
    finally:
        # Whatever ends this, nobody may go on writing once the lock is let go.
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
            process.join()
        messages.put(None)
        listening.join()
    state = load_state(job.state_file)
    if state is None:
        raise EnvironmentFault(
            f"{job.state_file}: the state of this training has vanished; run the same line again"
        )
    return Fitted(
        unpack_course(state), Normalisation(tuple(state.plain["mean"]), tuple(state.plain["std"]))
    )


def _fit_rank(fabric: Fabric, job: FitJob, messages: Any) -> None:
    """One of several processes; runs where it was spawned."""
    listener = relay(partial(_post, messages)) if fabric.is_global_zero else Listener()
    try:
        _fit_here(fabric, job, listener)
    except WsiError as error:
        messages.put((FAILED, (error,)))
        raise


def _post(messages: Any, name: str, *values: Any) -> None:
    messages.put((name, values))


def _pass_on(
    receive: Callable[[], tuple[str, Any] | None], listener: Listener, failures: list[WsiError]
) -> None:
    """Pass the processes' messages to this process's listener, until None comes."""
    while (message := receive()) is not None:
        name, values = message
        if name == FAILED:
            failures.extend(values)
        else:
            getattr(listener, name)(*values)
