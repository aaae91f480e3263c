"""Options of `wsi train` and `wsi lr-find`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import (
    ARCHITECTURE_NAMES,
    AUTO,
    CACHES,
    DEFAULT_ARCHITECTURE,
    HEADS,
    INITIALISATION_NAMES,
    KEPT_EPOCHS,
    LAST,
    OPTIMIZER_NAMES,
    PRECISIONS,
    SAMPLINGS,
    SCHEDULE_NAMES,
    SPLITS,
)
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.options import (
    AUGMENTATION,
    COMPUTE,
    INPUT,
    NETWORK,
    OPERATION,
    TRAINING,
    DeviceOptions,
    ForceOptions,
    SheetOptions,
    option,
)

# An option takes two or three lines, not one for each of its facts.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class FitOptions(SheetOptions, DeviceOptions, ForceOptions):
    """Options of fitting a network, for training and for the sweep of learning rates."""

    batch_size: int = option(64, COMPUTE, "Patches per step.", low=2)
    lr: float = option(2e-3, TRAINING, "Highest learning rate of the schedule.")
    arch: str = option(DEFAULT_ARCHITECTURE, NETWORK,
        f"Network: {', '.join(ARCHITECTURE_NAMES)}, wide_resnet_<depth>_<width>, timm:NAME, or a"
        " function of yours, FILE.py:FUNCTION; docs/guides/models.md lists them.")
    split_file: Path | None = option(None, INPUT,
        "A published split: a folder with the patients of …train.txt, …val.txt and …test.txt, or a"
        " split.json of `wsi train`.", metavar="DIR|JSON")
    val_patients: Sequence[str] = option(
        (), INPUT, "Validation patients by name. [default: drawn]",
        metavar="FILE|ID,ID…", parse="patients")
    val_fraction: float = option(
        0.2, INPUT, "Share of patches whose patients are drawn for validation.")
    test_patients: Sequence[str] = option(
        (), INPUT, "Patients kept out of training and validation altogether.",
        metavar="FILE|ID,ID…", parse="patients")
    split: str = option("patient", INPUT,
        "random puts patches of one patient on both sides: only to measure that leak.",
        choices=SPLITS)
    i_know_this_leaks: bool = option(
        False, INPUT, "Needed for --split random; model and report are marked.")
    weights: Path | None = option(
        None, INPUT, "Start from the weights in this file (safetensors, or a state dict of torch).",
        metavar="FILE", path="file")
    download_weights: bool = option(
        False, INPUT, "Start from the library's own weights, downloaded.")
    dropout: float | None = option(
        None, NETWORK, "Share of values dropped. [default: the network's own]")
    head: str = option(
        "linear", NETWORK, "Of wide_resnet: one linear layer, or 20 ReLU units before it.",
        choices=HEADS)
    batch_norm: bool = option(
        True, NETWORK, "Of idc_cnn: batch normalisation after each convolution.")
    logits: int = option(
        1, NETWORK, "Outputs of the network: one, or one per class.", low=1, high=2)
    init: str = option("default", NETWORK, "Initial weights.", choices=INITIALISATION_NAMES)
    optimizer: str = option("adamw", TRAINING, "Optimizer.", choices=OPTIMIZER_NAMES)
    head_lr: float | None = option(
        None, TRAINING, "Learning rate of the network's head. [default: --lr]")
    schedule: str = option(
        "one-cycle", TRAINING, "Schedule of the learning rate.", choices=SCHEDULE_NAMES)
    step_epochs: int = option(
        10, TRAINING, "Of step: epochs between falls; of sgdr: the first cycle.", low=1)
    gamma: float = option(0.1, TRAINING, "Of step: the factor of each fall.")
    momentum: float | None = option(None, TRAINING,
        "Of sgd and rmsprop; first beta of adam and adamw. [default: 0.9, rmsprop 0]")
    weight_decay: float = option(
        0.05, TRAINING, "L2 penalty on weights, not on biases; decoupled for adamw.")
    l1: float = option(0.0, TRAINING, "Weight of the sum of absolute weights in the loss.")
    label_smoothing: float = option(0.0, TRAINING, "Targets become s/2 and 1 - s/2.")
    class_weights: bool = option(False, TRAINING, "Give both classes the same weight in the loss.")
    sampling: str = option("shuffle", TRAINING,
        "Show every patch once an epoch, or draw evenly between classes, patients, or classes and"
        " in each its patients.", choices=SAMPLINGS)
    clip_norm: float | None = option(
        None, TRAINING, "Shorten longer gradients to this. [default: no]")
    ema: float | None = option(None, TRAINING,
        "Judge and keep a running average of the weights, such as 0.99. [default: no]",
        metavar="SHARE")
    augment: bool = option(True, AUGMENTATION, "All changes of patches at once.")
    flips: bool = option(True, AUGMENTATION, "Mirror patches.")
    turns: bool = option(True, AUGMENTATION, "Turn patches by quarters.")
    affine: float = option(
        0.0, AUGMENTATION, "Small turns (15°), scalings (10 %) and shifts (5 %), times this.")
    brightness: float = option(0.1, AUGMENTATION, "Shift brightness by up to this.")
    contrast: float = option(0.1, AUGMENTATION, "Stretch contrast by up to this.")
    hed: float = option(
        0.0, AUGMENTATION, "Stain jitter in haematoxylin, eosin and DAB by up to this.")
    seed: int = option(0, COMPUTE, "Of the split, the weights, the order and the augmentation.")
    cache: str = option(AUTO, COMPUTE,
        "Place of the pixels: on the GPU, in memory, or in the stores, read block by block; auto:"
        " where they fit.", choices=CACHES)
    precision: str = option(
        AUTO, COMPUTE, "auto: bf16 where the GPU or the CPU has units for it, else fp32.",
        choices=(AUTO, *PRECISIONS))
    compile: bool = option(False, COMPUTE, "On a GPU: compile the network first.")

    def __post_init__(self) -> None:
        if self.weights and self.download_weights:
            raise ConfigError("give --weights or --download-weights, not both")
        named = bool(self.val_patients or self.test_patients)
        if [self.sheet is not None, self.split_file is not None, named].count(True) > 1:
            raise ConfigError(
                "give one of --sheet, --split-file, and --val-patients with --test-patients"
            )
        if (self.split == "random") != self.i_know_this_leaks:
            raise ConfigError(
                "--split random puts patients on both sides and needs --i-know-this-leaks, which"
                " is for nothing else"
            )
        if self.i_know_this_leaks and (self.sheet or self.split_file or self.val_patients):
            raise ConfigError(
                "--split random draws patches, not patients; leave out --sheet, --split-file and"
                " --val-patients"
            )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FitOptions):
    """Options of `wsi train`."""

    epochs: int = option(8, TRAINING, "Passes over the training patches, at most.", low=1)
    patience: int | None = option(None, TRAINING,
        "Stop after so many epochs that are not better by --stop-on. [default: 5; none with last]",
        low=1)
    stop_on: str = option(LAST, TRAINING,
        "Epoch that is kept: the last, or the best on the validation patients by this metric.",
        choices=KEPT_EPOCHS)
    threshold: str | float = option("youden", TRAINING,
        "How the threshold for finding is chosen on the validation patients: f1, youden (highest"
        " balanced accuracy), sensitivity=0.95; a number such as 0.5 is that for counting too.",
        metavar="RULE")
    folds: int | None = option(
        None, INPUT, "Cross-validate: train once per fold, every patient validates once.", low=2)
    hold_out_by: str | None = option(None, INPUT,
        "Train once for each group of this column of the sample sheet, such as site, without its"
        " patients, and judge the model on them.", metavar="COLUMN")
    devices: int = option(
        1, COMPUTE, "GPUs (or processes on the CPU) that share every batch.", low=1)
    resume: bool = option(
        True, OPERATION, "Go on after the last whole epoch of the same run that was killed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.stop_on == LAST:
            raise ConfigError(
                "--patience needs a metric by which epochs are compared, such as --stop-on auroc;"
                " without one every epoch is trained and the last is kept"
            )
        if self.folds is not None and self.hold_out_by is not None:
            raise ConfigError(
                "--folds trains once for each fold, --hold-out-by once for each group; give one of"
                " them"
            )
        several = "--hold-out-by" if self.folds is None else "--folds"
        is_several = self.folds is not None or self.hold_out_by is not None
        if is_several and (self.val_patients or self.i_know_this_leaks):
            raise ConfigError(
                f"{several} draws the validation patients itself, by patient; leave out the options"
                " that name them"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "article-cnn": {
        "arch": "idc_cnn", "batch_norm": False, "epochs": 20, "batch_size": 128,
        "optimizer": "sgd", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant",
        "augment": False, "val_fraction": 0.25, "precision": "fp32",
    },
    "article-wideresnet": {
        "arch": "wide_resnet_16_2", "head": "dense20", "epochs": 8, "ema": 0.99, "init": "he",
        "val_fraction": 0.2, "cache": "memory", "precision": "fp32",
    },
}
"""Settings of published recipes by name, where they differ from the defaults; patients are split
by patient all the same. Examples of both are in examples/."""


def apply_preset(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options and, for those that are not given, the preset's values.

    Raises ConfigError for an unknown preset.
    """
    if name is not None and name not in PRESETS:
        raise ConfigError(f"preset is {name}; choose one of {', '.join(PRESETS)}")
    return {**(PRESETS[name] if name else {}), **given}
