"""One fit: network, pixels and loop put together, in a process that computes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, ModelError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures import (
    build_network,
    find_architecture,
    load_pretrained,
)
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import choose_device, compute_exactly, find_bf16_unit
from wsi_pipeline.models.domain import Domain
from wsi_pipeline.models.model import count_levels, normalisation_of
from wsi_pipeline.training.config import TrainConfig, derive_seed
from wsi_pipeline.training.data import (
    LabelledPatches,
    PixelSource,
    choose_cache,
    cut_batches,
    open_pixels,
    weigh_classes,
)
from wsi_pipeline.training.domain import learn_domain
from wsi_pipeline.training.faults import explained
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.loop import (
    READ_BATCH,
    FitHistory,
    SplitPart,
    fit,
    unpack_history,
)
from wsi_pipeline.training.optimise import Steps, TwoClasses, initialise
from wsi_pipeline.training.split import Division
from wsi_pipeline.training.state import SavedState, load_state

PRECISION_NAMES = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Our names of precisions and those of Fabric."""
CACHES_BY_NEED = ("device", "memory", "stores")
"""Caches of pixels, that which needs most memory first."""
NOT_COMPILED = "--compile: left out on the CPU, where compiled steps are not faster"

# Without Fabric's banner, also in the processes that import this module.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class FitJob:
    """Everything that a process needs to train; it holds no pixels and can be pickled."""

    config: TrainConfig
    patches: LabelledPatches
    division: Division
    pretrained: Path | None = None
    """File with the weights that training starts from."""
    state_file: Path | None = None
    """File in which the state is saved after every epoch, and from which training resumes."""


def is_unsteady(config: TrainConfig) -> bool:
    """Return True for a constant learning rate in a network without batch normalisation."""
    return config.schedule.name == "constant" and not (
        config.network.batch_norm or _has_own_batch_norm(config)
    )


def _has_own_batch_norm(config: TrainConfig) -> bool:
    return not find_architecture(config.architecture, config.code).may_lack_batch_norm


def make_fabric(config: TrainConfig) -> Fabric:
    """Return Fabric for the configured device, number of processes and precision.

    Raises EnvironmentFault where the machine lacks them.
    """
    device = choose_device(config.device)
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise EnvironmentFault(
            f"{config.devices} GPUs: this machine has {torch.cuda.device_count()}; give fewer with"
            " --devices"
        )
    return Fabric(
        accelerator=device.type,
        devices=config.devices,
        strategy="auto" if config.devices == 1 else "ddp",
        plugins=[LightningEnvironment()],  # we start the processes, also within a Slurm job
        precision=PRECISION_NAMES[choose_precision(config.precision, device)],  # type: ignore[arg-type]
    )


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return the wanted precision; for `auto` bf16 where the device has units for it, else fp32.

    Raises EnvironmentFault for fp16 without a GPU.
    """
    is_gpu = device.type == "cuda"
    if wanted == "fp16" and not is_gpu:
        raise EnvironmentFault("fp16: only GPUs compute in it; use --precision bf16 or fp32")
    if wanted != "auto":
        return wanted
    if is_gpu:
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_units = find_bf16_unit() is not None
    return "bf16" if has_units else "fp32"


def choose_setting(config: TrainConfig) -> EngineSetting:
    """Return the device and precision of a training, as engines have them."""
    device = choose_device(config.device)
    return EngineSetting("torch", choose_precision(config.precision, device), device.type)


def fit_here(fabric: Fabric, job: FitJob, listener: Listener) -> FitHistory:
    """Do this process's part of the fit; all of it where there is one process.

    Raises ModelError, ConfigError or EnvironmentFault.
    """
    with explained(job.config):
        return _fit(fabric, job, listener)


def _fit(fabric: Fabric, job: FitJob, listener: Listener) -> FitHistory:
    if fabric.device.type == "cuda":
        compute_exactly()  # as inference will
    elif job.config.is_compiled:
        listener.say(NOT_COMPILED)
    state = None if job.state_file is None else load_state(job.state_file)
    precision = choose_precision(job.config.precision, fabric.device)
    cache = agree_on_cache(fabric, _choose_cache(job, fabric, state))
    train, val = (
        open_part(job.patches, members, cache, fabric.device)
        for members in (job.division.train, job.division.val)
    )
    history = FitHistory(measure_normalisation(train.pixels))
    learner = make_learner(job, fabric, history.normalisation)
    if state is not None:
        if precision != (before := state.plain["precision"]):
            raise ConfigError(
                f"this run started in {before} and would continue in {precision}; give --precision"
                f" {before}, or start again with --no-resume"
            )
        history = unpack_history(state)
        learner.restore(state.tensors, state.plain["learner"])
        listener.say(f"continuing after epoch {len(history.epochs)}, where this run was stopped")
    notes = {"cache": cache, "precision": precision}
    fit(learner, train, val, job.config, history, listener, job.state_file, notes)
    return history


def _choose_cache(job: FitJob, fabric: Fabric, state: SavedState | None) -> str:
    """Return the cache; a resumed run keeps its own, which decides the order of the patches."""
    device = fabric.device
    if state is None:
        return choose_cache(job.config.cache, job.patches, device, copies=fabric.world_size)
    cache = str(state.plain["cache"])
    return "memory" if cache == "device" and device.type != "cuda" else cache


def find_domain(checkpoint: Checkpoint, job: FitJob) -> Domain | None:
    """Return the domain of the training patches, computed as the network was trained."""
    with explained(job.config):
        setting = choose_setting(job.config)
        return learn_domain(checkpoint, job.patches, job.division, setting)


def agree_on_cache(fabric: Fabric, cache: str) -> str:
    """Return the cache for which all processes have room; each could choose another by itself.

    They would then read the patches in different orders.
    """
    rank = torch.tensor(CACHES_BY_NEED.index(cache), device=fabric.device)
    return CACHES_BY_NEED[int(torch.as_tensor(fabric.all_reduce(rank, reduce_op="max")))]


def open_part(
    patches: LabelledPatches, members: NDArray[Any], cache: str, device: torch.device
) -> SplitPart:
    """Return some of the patches, ready to be read."""
    pixels = open_pixels(patches, members, cache, device)
    return SplitPart(patches.labels[members], patches.patients[members], pixels)


def measure_normalisation(source: PixelSource) -> Normalisation:
    """Return the exact mean and deviation of all pixels of a source."""
    levels = map(count_levels, source.stream(source.order_for_reading().split(READ_BATCH)))
    return normalisation_of(sum(levels, start=torch.zeros((3, 256), dtype=torch.int64)))


def make_learner(
    job: FitJob, fabric: Fabric, normalisation: Normalisation, steps: Steps | None = None
) -> Learner:
    """Return the job's network with its optimiser, for all epochs or for so many steps."""
    labels, choice = job.patches.labels[job.division.train], job.config.optimisation
    weights = weigh_classes(labels) if choice.class_weights else (1.0, 1.0)
    steps = steps or count_steps(len(labels), job.config, fabric.world_size)
    objective = TwoClasses(choice.label_smoothing, weights)
    return Learner(make_network(job), job.config, steps, normalisation, fabric, objective)


def count_steps(patches: int, config: TrainConfig, ranks: int = 1) -> Steps:
    """Return the number of steps that so many training patches make."""
    per_epoch = len(cut_batches(torch.arange(patches), config.batch_size, ranks))
    return Steps(per_epoch, per_epoch * config.epochs)


def make_network(job: FitJob) -> nn.Module:
    """Return the network with its first weights.

    Raises ModelError where its name, the patch size or given weights do not fit.
    """
    name = job.config.architecture
    if not job.config.network.batch_norm and _has_own_batch_norm(job.config):
        raise ModelError(
            f"{name}: always has its own batch normalisation; leave --no-batch-norm out"
        )
    torch.manual_seed(derive_seed(job.config.seed, 0, 0))
    side_px, options = job.patches.spec.side_px, job.config.network
    network = build_network(name, side_px, options, job.config.code)
    initialise(network, job.config.optimisation.initialisation)
    if job.config.pretrained is not None:
        is_downloaded = job.pretrained is None
        load_pretrained(network, name, job.pretrained, download=is_downloaded)
    return network
