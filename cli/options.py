"""Options that several commands share.

Also those of commands that write: room on the disk, and the permissions of files.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from wsi_pipeline.core.choices import (
    AUTO,
    CLUSTERS,
    COLORMAPS,
    DEVICES,
    ENGINE_NAMES,
    ON_REQUEST,
    ORIGINS,
    OUTPUT_GROUPS,
    OUTSIDE,
    PRECISIONS,
    PRIORITIES,
    QUALITY_FLAGS,
    READER_NAMES,
)

Command = TypeVar("Command", bound=Callable[..., Any])
Options = TypeVar("Options")


def together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Return one decorator that adds several options, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def build(kind: type[Options], settings: dict[str, Any]) -> Options:
    """Return the options object of a command. Raises UsageError for a contradiction."""
    from wsi_pipeline.core.errors import ConfigError

    try:
        return kind(**settings)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


EXISTING = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

out_option = click.option(
    "--out", "-o", panel="Output", type=FOLDER, required=True, help="Folder to write to."
)
force_option = click.option(
    "--force",
    panel="Operation",
    is_flag=True,
    help="Overwrite existing results.",
)
slide_mpp_option = click.option(
    "--slide-mpp",
    panel="Scale",
    type=float,
    metavar="UM_PER_PX",
    help="µm per pixel of the slides themselves; overrules what the files say.",
)
allow_upsample_option = click.option(
    "--allow-upsample",
    panel="Scale",
    is_flag=True,
    help="Cut finer than the scan, which adds pixels but no detail.",
)
min_tissue_option = click.option(
    "--min-tissue",
    panel="Tissue",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Keep a patch if at least this fraction of it is tissue (0: keep all).",
)
reader_option = click.option(
    "--reader",
    panel="Scale",
    type=click.Choice((AUTO, *READER_NAMES)),
    default="auto",
    help=(
        "Reader of slides: tiff decodes the tiles of TIFF and SVS itself, several times as fast and"
        " with the same pixels; auto: the fastest that knows the file."
    ),
)
tissue_options = together(
    min_tissue_option,
    click.option(
        "--mask-mpp",
        panel="Tissue",
        type=float,
        default=8.0,
        metavar="UM_PER_PX",
        help="Scale at which tissue is looked for.",
    ),
    click.option(
        "--min-object",
        panel="Tissue",
        type=float,
        default=20_000.0,
        metavar="UM2",
        help="Smaller pieces of tissue are dust, in µm².",
    ),
    click.option(
        "--max-hole",
        panel="Tissue",
        type=float,
        default=20_000.0,
        metavar="UM2",
        help="Smaller holes belong to the tissue, in µm².",
    ),
    click.option(
        "--mask",
        panel="Tissue",
        type=EXISTING,
        metavar="DIR",
        help=(
            "Your own tissue masks: PNG or TIFF (above 0 is tissue) or QuPath"
            " GeoJSON, named like the slides."
        ),
    ),
    click.option(
        "--max-pen",
        panel="Tissue",
        type=click.FloatRange(0, 1),
        default=0.1,
        help="Flag a patch if more than this fraction of it is pen ink.",
    ),
    click.option(
        "--min-sharpness",
        panel="Tissue",
        type=float,
        metavar="VARIANCE",
        help=(
            "Flag patches below this variance of the Laplacian (brightness 0 to 255, at 1 µm/px) as"
            " blurred. [default: not measured]"
        ),
    ),
    click.option(
        "--drop",
        panel="Tissue",
        type=click.Choice(tuple(QUALITY_FLAGS)),
        multiple=True,
        help="Leave out patches with this flag. May be repeated.",
    ),
)
"""Where tissue is, and the faults of patches."""

patch_size_option = click.option(
    "--patch-size",
    panel="Scale",
    type=click.IntRange(1),
    default=50,
    metavar="PX",
    help="Side of a patch in pixels.",
)
workers_option = click.option(
    "--workers",
    "--num-workers",
    "-n",
    panel="Compute",
    type=click.IntRange(0),
    metavar="N",
    help=(
        "Worker processes; 0: a plain loop in this process. [default: one per GPU, or one; to tile"
        " one per core, 16 at most]"
    ),
)
worker_options = together(
    workers_option,
    click.option(
        "--gpus",
        panel="Compute",
        metavar="LIST",
        help="GPUs to use, such as 0,2, by their numbers or UUIDs. [default: all]",
    ),
    click.option(
        "--scheduler",
        panel="Compute",
        metavar="ADDRESS|FILE",
        help=(
            "Use a running Dask scheduler, such as tls://host:8786, or the file that `dask"
            " scheduler --scheduler-file` wrote."
        ),
    ),
    click.option(
        "--tls-ca-file",
        panel="Compute",
        type=EXISTING,
        metavar="PEM",
        help="Certificate authority of a scheduler at tls://.",
    ),
    click.option(
        "--tls-cert",
        panel="Compute",
        type=EXISTING,
        metavar="PEM",
        help="Our certificate for a scheduler at tls://.",
    ),
    click.option(
        "--tls-key",
        panel="Compute",
        type=EXISTING,
        metavar="PEM",
        help="The key of that certificate.",
    ),
    click.option(
        "--cluster",
        panel="Compute",
        type=click.Choice(CLUSTERS),
        default="local",
        help="Which worker processes are started: on this machine, as Slurm jobs, or by dask-cuda.",
    ),
    click.option(
        "--slurm-config",
        panel="Compute",
        type=EXISTING,
        metavar="YAML",
        help="What a Slurm job asks for; see docs/guides/servers.md.",
    ),
    click.option(
        "--dashboard",
        panel="Compute",
        is_flag=True,
        help="Show Dask's dashboard at 127.0.0.1:8787.",
    ),
)
"""The workers; `runs.WorkerOptions` has fields of the same names."""

shard_option = click.option(
    "--shard",
    panel="Operation",
    metavar="I/N",
    help="Take only every N-th slide, from the I-th on: one share of an array job.",
)
device_option = click.option(
    "--device",
    panel="Compute",
    type=click.Choice(DEVICES),
    default="auto",
    help="Where networks run; auto: a GPU where there is one.",
)


def _read_batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """Return a whole number of patches from 1 on; None for "auto"."""
    return None if value == "auto" else int(click.IntRange(1)(value, parameter, context))


engine_options = together(
    click.option(
        "--engine",
        panel="Compute",
        type=click.Choice((AUTO, *ENGINE_NAMES)),
        default="auto",
        help=(
            "What computes the network; auto: openvino on a CPU where it is installed (the extra"
            " called cpu), else torch. Results of different engines are never mixed."
        ),
    ),
    click.option(
        "--compile", panel="Compute", is_flag=True, help="The same as --engine torch-compile."
    ),
    click.option(
        "--precision",
        panel="Compute",
        type=click.Choice((AUTO, *PRECISIONS)),
        default="auto",
        help=(
            "Numbers that it is computed in; auto: bf16 or fp16 where the device has units for it,"
            " else fp32."
        ),
    ),
    click.option(
        "--batch-size",
        panel="Compute",
        metavar="N|auto",
        default="auto",
        callback=_read_batch_size,
        help=(
            "Patches that the network takes at once; auto: a small number on a CPU, on a GPU what"
            " it computes fastest and has memory for."
        ),
    ),
)
"""How a network is computed."""

trust_option = click.option(
    "--trust-model",
    panel="Input",
    metavar="sha256:…",
    help=(
        "Run a model folder of others, whose torchscript_model.pt is code, where that file has this"
        " digest."
    ),
)
positive_class_option = click.option(
    "--positive-class",
    panel="Input",
    metavar="NAME",
    help="Which class of a model folder of others is positive. [default: the last of two]",
)
sheet_option = click.option(
    "--sheet",
    panel="Input",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help=(
        "Sample sheet: a slide per line with the columns wsi, mpp, patient_id, labels, split,"
        " label."
    ),
)
labels_option = click.option(
    "--labels",
    panel="Labels",
    type=EXISTING,
    multiple=True,
    metavar="FILE|DIR",
    help=(
        "What is known of the slides: QuPath GeoJSON, ASAP or ImageScope XML, label images, or"
        " folders of them, matched by name."
    ),
)
label_rules_options = together(
    click.option(
        "--label-map",
        panel="Labels",
        type=EXISTING,
        metavar="YAML",
        help="Meaning of each drawn class; see docs/guides/labels.md.",
    ),
    click.option(
        "--min-label-area",
        panel="Labels",
        type=float,
        default=0.5,
        help="A patch has a class if at least this share of its area has it, above 0 to 1.",
    ),
    click.option(
        "--outside",
        panel="Labels",
        type=click.Choice(OUTSIDE),
        help="Class of tissue over which nothing is drawn. [default: unknown]",
    ),
    click.option(
        "--priority",
        panel="Labels",
        type=click.Choice(PRIORITIES),
        help="Which class wins where both are drawn. [default: positive]",
    ),
    click.option(
        "--label-origin",
        panel="Labels",
        type=click.Choice(ORIGINS),
        default="auto",
        help=(
            "Where coordinates count from: the slide's corner or the scanned area's; auto: as the"
            " format has it."
        ),
    ),
    click.option(
        "--strict",
        panel="Labels",
        is_flag=True,
        help="Refuse invalid polygons instead of mending and counting them.",
    ),
    click.option(
        "--class-names",
        panel="Labels",
        nargs=2,
        metavar="NEGATIVE POSITIVE",
        help="What the two classes are called. [default: negative positive]",
    ),
    click.option(
        "--positive-value",
        panel="Labels",
        type=click.IntRange(0, 255),
        default=200,
        help="Pixel value of the positive class in label images.",
    ),
    click.option(
        "--negative-value",
        panel="Labels",
        type=click.IntRange(0, 255),
        default=100,
        help="Pixel value of the negative class in label images.",
    ),
)
"""How drawn regions and label images become labels."""

PNG = OUTPUT_GROUPS["png"]
view_options = together(
    click.option(
        "--outputs",
        panel="Output",
        default="all",
        metavar="NAMES",
        help=(
            f"Formats, with commas: png ({', '.join(PNG)}),"
            f" {', '.join(name for name in OUTPUT_GROUPS['all'] if name not in PNG)}; all: all of"
            " these. Only where named:"
            f" {', '.join(f'{name} ({note})' for name, note in ON_REQUEST.items())}."
        ),
    ),
    click.option(
        "--colormap",
        panel="Output",
        type=click.Choice(COLORMAPS),
        default=COLORMAPS[0],
        help="Colours of heatmap and overlay.",
    ),
    click.option(
        "--alpha",
        panel="Output",
        type=click.FloatRange(0, 1),
        default=0.45,
        help="Opacity of the map in overlay.png, 0 to 1.",
    ),
)
"""Which outputs are made, and how they look."""


class Bytes(click.ParamType[int]):
    """An amount of bytes, such as 500MB, 2.5GB or 0."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", value.strip())
        if match is None:
            self.fail(f"{value!r} is no amount of bytes; give one such as 500MB or 2GB", param, ctx)
        amount = float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")
        if not math.isfinite(amount):
            self.fail(
                f"{value[:20]!r}… is more than any disk has; give an amount such as 500MB or 2GB",
                param,
                ctx,
            )
        return int(amount)


min_free_option = click.option(
    "--min-free",
    panel="Operation",
    type=Bytes(),
    default="1GB",
    metavar="SIZE",
    help=(
        "Bytes that stay free on the disk: no slide, and no block of one, is begun without room"
        " for it."
    ),
)


def _set_permissions(context: click.Context, parameter: click.Parameter, value: str) -> None:
    """Set them for this process and those that it starts, until the command ends."""
    if (
        not re.fullmatch(r"0?[0-7]{3}", value)
        or int(value, 8) & ~0o666
        or int(value, 8) & 0o600 != 0o600
    ):
        raise click.BadParameter(
            f"{value!r} is none that files can have here; give 600, 640, 660, 644 or 664",
            context,
            parameter,
        )
    mode = int(value, 8)
    old = os.umask(0o777 & ~(mode | (mode & 0o444) >> 2))
    context.call_on_close(lambda: os.umask(old))


mode_option = click.option(
    "--mode",
    panel="Output",
    metavar="OCTAL",
    default="600",
    expose_value=False,
    callback=_set_permissions,
    help="Permissions of the files that are made; folders can also be entered by whoever may read.",
)
