"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

EXISTING = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

out_option = click.option("--out", "-o", type=FOLDER, required=True, help="Folder to write to.")
force_option = click.option("--force", is_flag=True, help="Make anew what another run, or another recipe, has made.")
slide_mpp_option = click.option(
    "--slide-mpp", type=float, metavar="UM_PER_PX", help="µm per pixel of the slides themselves; overrules what the files say."
)
allow_upsample_option = click.option("--allow-upsample", is_flag=True, help="Cut finer than the scan, which adds pixels but no detail.")
min_tissue_option = click.option(
    "--min-tissue", type=click.FloatRange(0, 1), default=0.5, help="Keep a patch if at least this fraction of it is tissue (0: keep all)."
)
patch_size_option = click.option("--patch-size", type=click.IntRange(1), default=50, metavar="PX", help="Side of a patch in pixels.")
workers_option = click.option(
    "--workers",
    "--num-workers",
    "-n",
    type=click.IntRange(0),
    metavar="N",
    help="Worker processes; 0: a plain loop in this process. [default: one per GPU, or one]",
)
scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS", help="Use a running Dask scheduler, such as tls://host:8786, instead of processes of our own."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where networks run; auto: a GPU where there is one."
)
labels_option = click.option(
    "--labels",
    type=EXISTING,
    multiple=True,
    metavar="PNG|DIR",
    help="Label masks over the slides: images, or folders with <slide>_labels.png. May be given several times.",
)


def mask_values_options(command: Command) -> Command:
    """Add the options that say what a label mask's pixel values mean."""
    for option in (
        click.option("--positive-value", type=click.IntRange(0, 255), default=200, help="Pixel value of the positive class."),
        click.option(
            "--negative-value", type=click.IntRange(0, 255), default=100, help="Pixel value of the negative class; others: unknown."
        ),
    ):
        command = option(command)
    return command
