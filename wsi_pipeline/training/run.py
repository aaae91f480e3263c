"""A whole training run: stores in, a committed folder with the checkpoint and its report out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.recipe import describe_tool, file_sha256
from wsi_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from wsi_pipeline.models.self_test import make_self_test
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.calibration import (
    ThresholdRule,
    apply_temperature,
    fit_temperature,
    parse_threshold_rule,
)
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import LabelledPatches, load_labelled
from wsi_pipeline.training.fit import FitJob, Fitted, make_fabric, make_network, run_fit
from wsi_pipeline.training.history import EVENTS, append_events, write_events
from wsi_pipeline.training.loop import Epoch, Watch
from wsi_pipeline.training.run_folder import TrainingRecord, write_run_folder
from wsi_pipeline.training.scores import Judgement, judge
from wsi_pipeline.training.split import Division, PatientSplit, split_at_random, split_patients

KIND = "wsi training"
MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
DEFAULT_RULE = "youden"


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """How the user wants the patients divided."""

    val_patients: tuple[str, ...] = ()
    """Named validation patients; none: drawn."""
    val_fraction: float = 0.2
    test_patients: tuple[str, ...] = ()
    train_patients: tuple[str, ...] = ()
    """Named training patients; none: all others."""
    ignores_absent: bool = False
    """Named patients who have no patches are passed over: a published split of a larger data set."""
    is_random: bool = False
    """Divide patches and not patients, which leaks: for measuring how much."""

    def divide(self, patches: LabelledPatches, seed: int) -> Division:
        """Training and validation patches. Raises ConfigError where the split cannot be made."""
        if self.is_random:
            return split_at_random(
                patches.patients,
                patches.labels,
                val_fraction=self.val_fraction,
                test_patients=self.test_patients,
                seed=seed,
            )
        sides = PatientSplit(self.train_patients, self.val_patients, self.test_patients)
        if self.ignores_absent:
            sides = sides.keep_present(patches.patients)
        return split_patients(
            patches.patients,
            patches.labels,
            train_patients=sides.train,
            val_patients=sides.val,
            val_fraction=self.val_fraction,
            test_patients=sides.test,
            seed=seed,
        ).divide(patches.patients)


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training run."""

    model: Path
    judgement: Judgement | None
    """On the validation patients; None where an earlier run had already finished this very work."""


@dataclass(frozen=True)
class TrainListener:
    """Functions that are told how a training run gets on."""

    on_start: Callable[[LabelledPatches, Division, Path], None] = field(
        default=lambda patches, division, events: None
    )
    on_resume: Callable[[int], None] = field(default=lambda epoch: None)
    """Called with the number of the last whole epoch of a run that is taken up."""
    on_epoch: Callable[[Epoch], None] = field(default=lambda epoch: None)
    on_batch: Callable[[int], None] = field(default=lambda patches: None)


def train(
    stores: Sequence[Path],
    out: Path,
    config: TrainConfig,
    choice: SplitChoice | None = None,
    *,
    pretrained: Path | None = None,
    rule: ThresholdRule | None = None,
    force: bool = False,
    resume: bool = True,
    listener: TrainListener | None = None,
) -> Trained:
    """Train on the labelled patches of `stores` and commit `out` with the model and its report.

    A run that was killed is taken up after its last whole epoch and ends in the same weights (on
    the CPU, at the same number of threads). `pretrained` is a file of weights to start from. Raises
    ConfigError, ModelError or StoreError before any training where the stores do not fit together,
    or the split cannot be made.
    """
    with hold_lock(out):
        pass  # a place that cannot be written to is said before the stores are read
    patches = load_labelled(find_stores(list(stores)))
    division = (choice or SplitChoice()).divide(patches, config.seed)
    return train_division(
        patches,
        division,
        out,
        config,
        pretrained=pretrained,
        rule=rule,
        force=force,
        resume=resume,
        listener=listener,
    )


def train_division(
    patches: LabelledPatches,
    division: Division,
    out: Path,
    config: TrainConfig,
    *,
    pretrained: Path | None = None,
    rule: ThresholdRule | None = None,
    force: bool = False,
    resume: bool = True,
    listener: TrainListener | None = None,
) -> Trained:
    """`train` on patches that are loaded and divided already."""
    rule = rule or parse_threshold_rule(DEFAULT_RULE)
    listener = listener or TrainListener()
    staging = Staging(
        out, make_recipe(patches, division, config, pretrained) | {"threshold": rule.describe()}
    )
    with hold_lock(out):
        if find_finished(staging, KIND, force, [*patches.paths, pretrained]):
            return Trained(out / MODEL_FILE, None)
        job = FitJob(config, patches, division, pretrained, staging.folder / STATE_FILE)
        make_fabric(config)
        make_network(job)
        if not (resume and staging.is_prepared):
            staging.begin()
            (staging.product / EVENTS).parent.mkdir()
            staging.mark_prepared()
        listener.on_start(patches, division, staging.product / EVENTS.parent)
        fitted = run_fit(
            job,
            Watch(
                listener.on_resume,
                _log_to(staging.product / EVENTS, listener.on_epoch),
                listener.on_batch,
            ),
        )
        judgement = _finish(staging, job, fitted, rule)
    return Trained(out / MODEL_FILE, judgement)


def make_recipe(
    patches: LabelledPatches, division: Division, config: TrainConfig, pretrained: Path | None
) -> dict[str, Any]:
    """Everything that decides what training comes to."""
    parameters = config.to_json()
    if pretrained is not None:
        parameters["pretrained"] = file_sha256(pretrained)
    return {"stores": list(patches.stores), "split": division.record, "parameters": parameters}


def _log_to(events: Path, on_epoch: Callable[[Epoch], None]) -> Callable[[Epoch], None]:
    """Tell TensorBoard of an epoch, then the listener."""

    def log(epoch: Epoch) -> None:
        append_events(events, epoch)
        on_epoch(epoch)

    return log


def _finish(staging: Staging, job: FitJob, fitted: Fitted, rule: ThresholdRule) -> Judgement:
    """Calibrate on the validation patches, choose the threshold there, and commit model and report."""
    val = job.division.val
    labels, patients, logits = (
        job.patches.labels[val],
        job.patches.patients[val],
        fitted.course.best_logits,
    )
    temperature = fit_temperature(labels, logits)
    threshold = rule.choose(labels, apply_temperature(logits, temperature))
    judgement = judge(
        labels, logits, patients, temperature=temperature, threshold=threshold, seed=job.config.seed
    )
    checkpoint = _describe(job, fitted, judgement, temperature, threshold, rule)
    checkpoint = replace(checkpoint, self_test=make_self_test(checkpoint))
    save_checkpoint(checkpoint, staging.product / MODEL_FILE)
    write_events(staging.product / EVENTS, fitted.course.history)
    write_run_folder(
        staging.product,
        TrainingRecord(checkpoint, job.patches, job.division, fitted.course, judgement),
    )
    staging.commit(KIND, {"patches": len(job.patches), "epochs": len(fitted.course.history)})
    return judgement


def _describe(
    job: FitJob,
    fitted: Fitted,
    judgement: Judgement,
    temperature: float,
    threshold: float,
    rule: ThresholdRule,
) -> Checkpoint:
    patches, division = job.patches, job.division
    judges = (
        f"{len({*patches.patients[division.val].tolist()})} validation patients,"
        f" {len(division.val)} patches"
    )
    return Checkpoint(
        architecture=job.config.architecture,
        options=job.config.network,
        spec=patches.spec,
        class_names=patches.class_names,
        normalisation=fitted.normalisation,
        temperature=temperature,
        threshold=threshold,
        threshold_source=(
            f"{rule.describe()} on"
            f" {judges}{'; patients on both sides' if division.is_leaky else ''}"
        ),
        weights=fitted.course.best_weights,
        is_leaky=division.is_leaky,
        scores={"validation": judgement.scores.to_json()},
        training={
            **make_recipe(patches, division, job.config, job.pretrained),
            "patches": {
                side: _count(patches, members)
                for side, members in (("train", division.train), ("val", division.val))
            },
            "epochs": len(fitted.course.history),
            "best_epoch": fitted.course.best_epoch,
            "tool": describe_tool(),
        },
    )


def _count(patches: LabelledPatches, members: NDArray[np.intp]) -> Mapping[str, int]:
    labels = patches.labels[members]
    return {
        name: int(np.count_nonzero(labels == index))
        for index, name in enumerate(patches.class_names)
    }
