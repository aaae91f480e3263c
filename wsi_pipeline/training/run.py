"""A whole training run: stores in, a committed folder with the checkpoint and its report out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.inputs import Normalisation, measure_normalisation
from wsi_pipeline.provenance import describe_tool
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.dataset import LabelledPatches, load_labelled
from wsi_pipeline.training.loop import Batches, Epoch, TrainConfig, fit, sigmoid
from wsi_pipeline.training.metrics import Scores, choose_threshold, score
from wsi_pipeline.training.report import write_report
from wsi_pipeline.training.split import PatientSplit, split_patients

KIND = "wsi training"
MODEL_FILE = "model.safetensors"
THRESHOLD_SOURCE = "highest balanced accuracy on the validation patients"


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """How the user wants the patients divided."""

    val_patients: tuple[str, ...] = ()
    """Named validation patients; none: drawn."""
    val_fraction: float = 0.2
    test_patients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training run."""

    model: Path
    scores: Scores | None
    """On the validation patients; None where an earlier run had already finished this very work."""


@dataclass(frozen=True)
class TrainListener:
    """Functions that are told how a training run gets on."""

    on_start: Callable[[LabelledPatches, PatientSplit], None] = field(default=lambda patches, split: None)
    on_epoch: Callable[[Epoch], None] = field(default=lambda epoch: None)
    on_batch: Callable[[int], None] = field(default=lambda patches: None)


def train(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    choice: SplitChoice | None = None,
    *,
    force: bool = False,
    listener: TrainListener | None = None,
) -> Trained:
    """Train on the labelled patches of `stores` and commit `out` with model, history, figures, curve and split.

    Raises ConfigError or StoreError before any training where the stores do not fit together or the split cannot be made.
    """
    choice = choice or SplitChoice()
    listener = listener or TrainListener()
    device = choose_device(config.device)
    patches = load_labelled(find_stores(list(stores)))
    split = split_patients(
        patches.patients,
        patches.labels,
        val_patients=choice.val_patients,
        val_fraction=choice.val_fraction,
        test_patients=choice.test_patients,
        seed=config.seed,
    )
    staging = Staging(out, _recipe(patches, split, config))
    with hold_lock(out):
        if find_finished(staging, force):
            return Trained(out / MODEL_FILE, None)
        listener.on_start(patches, split)
        checkpoint, scores, history = _train(patches, split, config, device, listener)
        staging.begin()
        save_checkpoint(checkpoint, staging.product / MODEL_FILE)
        write_report(staging.product, history, scores, split)
        staging.commit(KIND, {"patches": len(patches.labels), "epochs": len(history)})
    return Trained(out / MODEL_FILE, scores)


def _recipe(patches: LabelledPatches, split: PatientSplit, config: TrainConfig) -> dict[str, object]:
    return {
        "stores": list(patches.stores),
        "split": {"train": list(split.train), "val": list(split.val), "test": list(split.test)},
        "parameters": config.to_json(),
    }


def _train(
    patches: LabelledPatches, split: PatientSplit, config: TrainConfig, device: torch.device, listener: TrainListener
) -> tuple[Checkpoint, Scores, list[Epoch]]:
    train_pixels, train_labels = patches.of(split.train)
    val_pixels, val_labels = patches.of(split.val)
    normalisation = measure_normalisation(torch.from_numpy(train_pixels))
    torch.manual_seed(config.seed)
    network = build_network(config.architecture, patches.spec.side_px)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights, logits, history = fit(
        network,
        Batches(train_pixels, train_labels, normalisation, device),
        Batches(val_pixels, val_labels, normalisation, device),
        config,
        listener.on_epoch,
        listener.on_batch,
    )
    probability = sigmoid(logits)
    scores = score(val_labels, probability, choose_threshold(val_labels, probability))
    checkpoint = _describe(patches, split, config, normalisation, scores, {k: v.cpu() for k, v in weights.items()})
    return checkpoint, scores, history


def _describe(
    patches: LabelledPatches,
    split: PatientSplit,
    config: TrainConfig,
    normalisation: Normalisation,
    scores: Scores,
    weights: dict[str, torch.Tensor],
) -> Checkpoint:
    return Checkpoint(
        architecture=config.architecture,
        spec=patches.spec,
        class_names=patches.class_names,
        normalisation=normalisation,
        threshold=scores.threshold,
        threshold_source=f"{THRESHOLD_SOURCE} ({len(split.val)} patients, {scores.patches} patches)",
        weights=weights,
        scores={"validation": scores.to_json()},
        training={
            "parameters": config.to_json(),
            "split": {"train": list(split.train), "val": list(split.val), "test": list(split.test)},
            "patches": {side: _count(patches, members) for side, members in (("train", split.train), ("val", split.val))},
            "stores": list(patches.stores),
            "tool": describe_tool(),
        },
    )


def _count(patches: LabelledPatches, patients: Sequence[str]) -> dict[str, int]:
    labels: NDArray[np.int8] = patches.labels[np.isin(patches.patients, list(patients))]
    return {name: int(np.count_nonzero(labels == index)) for index, name in enumerate(patches.class_names)}
