"""Options that decide how a network is trained, shared by `train` and `lr-find`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import (
    ARCHITECTURE_NAMES,
    AUTO,
    CACHES,
    DEFAULT_ARCHITECTURE,
    HEADS,
    INITIALISATION_NAMES,
    OPTIMIZER_NAMES,
    PRECISIONS,
    SAMPLINGS,
    SCHEDULE_NAMES,
    SPLITS,
)

from .options import Command

Option = Callable[[Command], Command]


def read_patients(
    _ctx: click.Context, _option: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Return the patients of a comma-separated list, or of a file with one or more a line."""
    if value is None:
        return ()
    try:
        text = Path(value).read_text(encoding="utf-8") if _is_file(value) else value
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value}: not a readable list in UTF-8 ({error})") from error
    return tuple(name.strip() for name in text.replace(",", "\n").splitlines() if name.strip())


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # longer than any file's name
        return False


SPLIT: tuple[Option[Any], ...] = (
    click.option(
        "--split-file",
        panel="Input",
        type=click.Path(exists=True, path_type=Path),
        metavar="DIR|JSON",
        help=(
            "A published split: a folder with the patients of …train.txt, …val.txt and …test.txt,"
            " or a split.json of `wsi train`."
        ),
    ),
    click.option(
        "--val-patients",
        panel="Input",
        metavar="FILE|ID,ID…",
        callback=read_patients,
        help="Validation patients by name. [default: drawn]",
    ),
    click.option(
        "--val-fraction",
        panel="Input",
        type=float,
        default=0.2,
        help="Share of patches whose patients are drawn for validation.",
    ),
    click.option(
        "--test-patients",
        panel="Input",
        metavar="FILE|ID,ID…",
        callback=read_patients,
        help="Patients kept out of training and validation altogether.",
    ),
    click.option(
        "--split",
        panel="Input",
        type=click.Choice(SPLITS),
        default="patient",
        help="random puts patches of one patient on both sides: only to measure that leak.",
    ),
    click.option(
        "--i-know-this-leaks",
        panel="Input",
        is_flag=True,
        help="Needed for --split random; model and report are marked.",
    ),
)
NETWORK: tuple[Option[Any], ...] = (
    click.option(
        "--arch",
        panel="Network",
        default=DEFAULT_ARCHITECTURE,
        help=f"Network: {', '.join(ARCHITECTURE_NAMES)}, "
        "wide_resnet_<depth>_<width>, or timm:NAME; docs/guides/models.md lists them.",
    ),
    click.option(
        "--dropout",
        panel="Network",
        type=float,
        help="Share of values dropped. [default: the network's own]",
    ),
    click.option(
        "--head",
        panel="Network",
        type=click.Choice(HEADS),
        default="linear",
        help="Of wide_resnet: one linear layer, or 20 ReLU units before it.",
    ),
    click.option(
        "--batch-norm",
        panel="Network",
        is_flag=True,
        help="Of idc_cnn: batch normalisation after each convolution.",
    ),
    click.option(
        "--logits",
        panel="Network",
        type=click.IntRange(1, 2),
        default=1,
        help="Outputs of the network: one, or one per class.",
    ),
    click.option(
        "--weights",
        panel="Input",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Start from the weights in this file (safetensors, or a state dict of torch).",
    ),
    click.option(
        "--download-weights",
        panel="Input",
        is_flag=True,
        help="Start from the library's own weights, downloaded.",
    ),
    click.option(
        "--init",
        panel="Network",
        type=click.Choice(INITIALISATION_NAMES),
        default="default",
        help="Initial weights.",
    ),
)
OPTIMISATION: tuple[Option[Any], ...] = (
    click.option(
        "--batch-size",
        panel="Compute",
        type=click.IntRange(2),
        default=64,
        help="Patches per step.",
    ),
    click.option(
        "--optimizer",
        panel="Training",
        type=click.Choice(OPTIMIZER_NAMES),
        default="adamw",
        help="Optimizer.",
    ),
    click.option(
        "--lr",
        panel="Training",
        type=float,
        default=3e-4,
        help="Highest learning rate of the schedule.",
    ),
    click.option(
        "--head-lr",
        panel="Training",
        type=float,
        help="Learning rate of the network's head. [default: --lr]",
    ),
    click.option(
        "--schedule",
        panel="Training",
        type=click.Choice(SCHEDULE_NAMES),
        default="constant",
        help="Schedule of the learning rate.",
    ),
    click.option(
        "--step-epochs",
        panel="Training",
        type=click.IntRange(1),
        default=10,
        help="Of step: epochs between falls; of sgdr: the first cycle.",
    ),
    click.option(
        "--gamma",
        panel="Training",
        type=float,
        default=0.1,
        help="Of step: the factor of each fall.",
    ),
    click.option(
        "--momentum",
        panel="Training",
        type=float,
        help="Of sgd and rmsprop; first beta of adam and adamw. [default: 0.9, rmsprop 0]",
    ),
    click.option(
        "--weight-decay",
        panel="Training",
        type=float,
        default=1e-4,
        help="L2 penalty on weights, not on biases; decoupled for adamw.",
    ),
    click.option(
        "--l1",
        panel="Training",
        type=float,
        default=0.0,
        help="Weight of the sum of absolute weights in the loss.",
    ),
    click.option(
        "--label-smoothing",
        panel="Training",
        type=float,
        default=0.0,
        help="Targets become s/2 and 1 - s/2.",
    ),
    click.option(
        "--class-weights",
        panel="Training",
        is_flag=True,
        help="Give both classes the same weight in the loss.",
    ),
    click.option(
        "--sampling",
        panel="Training",
        type=click.Choice(SAMPLINGS),
        default="shuffle",
        help=(
            "Show every patch once an epoch, or draw evenly between classes, patients, or classes"
            " and in each its patients."
        ),
    ),
    click.option(
        "--clip-norm",
        panel="Training",
        type=float,
        help="Shorten longer gradients to this. [default: no]",
    ),
    click.option(
        "--ema",
        panel="Training",
        type=float,
        metavar="SHARE",
        help="Judge and keep a running average of the weights, such as 0.99. [default: no]",
    ),
)
AUGMENTATION: tuple[Option[Any], ...] = (
    click.option(
        "--augment/--no-augment",
        panel="Augmentation",
        default=True,
        help="All changes of patches at once.",
    ),
    click.option("--flips/--no-flips", panel="Augmentation", default=True, help="Mirror patches."),
    click.option(
        "--turns/--no-turns", panel="Augmentation", default=True, help="Turn patches by quarters."
    ),
    click.option(
        "--affine",
        panel="Augmentation",
        type=float,
        default=0.0,
        help="Small turns (15°), scalings (10 %) and shifts (5 %), times this.",
    ),
    click.option(
        "--brightness",
        panel="Augmentation",
        type=float,
        default=0.1,
        help="Shift brightness by up to this.",
    ),
    click.option(
        "--contrast",
        panel="Augmentation",
        type=float,
        default=0.1,
        help="Stretch contrast by up to this.",
    ),
    click.option(
        "--hed",
        panel="Augmentation",
        type=float,
        default=0.0,
        help="Stain jitter in haematoxylin, eosin and DAB by up to this.",
    ),
)
MACHINE: tuple[Option[Any], ...] = (
    click.option(
        "--seed",
        panel="Compute",
        type=int,
        default=0,
        help="Of the split, the weights, the order and the augmentation.",
    ),
    click.option(
        "--cache",
        panel="Compute",
        type=click.Choice(CACHES),
        default="auto",
        help=(
            "Place of the pixels: on the GPU, in memory, or in the stores, read block by block;"
            " auto: where they fit."
        ),
    ),
    click.option(
        "--precision",
        panel="Compute",
        type=click.Choice((AUTO, *PRECISIONS)),
        default="auto",
        help="auto: bf16 on a GPU that has it, else fp32.",
    ),
    click.option("--compile", panel="Compute", is_flag=True, help="Compile the network first."),
)


def training_options(command: Command) -> Command:
    """Add every option above; they arrive together as `**options`."""
    for option in reversed((*SPLIT, *NETWORK, *OPTIMISATION, *AUGMENTATION, *MACHINE)):
        command = option(command)
    return command
