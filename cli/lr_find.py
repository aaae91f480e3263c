"""`wsi lr-find`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.limits import limit_spinning
from wsi_pipeline.core.training_options import FitOptions, TrainOptions

from .options import FOLDER, build, mode_option, options_of, preset_option, stores_argument
from .run_file import ConfigCommand


@click.command("lr-find", cls=ConfigCommand)
@stores_argument
@options_of(FitOptions)
@preset_option
@click.option(
    "--out",
    "-o",
    panel="Output",
    type=FOLDER,
    required=True,
    help="Folder to make, with lr_find.csv and lr_find.png.",
)
@click.option(
    "--steps", panel="Training", type=click.IntRange(1), default=200, help="Steps of the sweep."
)
@click.option(
    "--high",
    panel="Training",
    type=float,
    default=10.0,
    help="Highest learning rate; the sweep begins at 1e-8 of it.",
)
@mode_option
def lr_find(stores: tuple[Path, ...], out: Path, steps: int, high: float, **options: Any) -> None:
    """Find a learning rate for `wsi train --lr` by a sweep over the training patients of STORES.

    The rate rises evenly on a logarithmic scale while the network trains; the suggestion is where
    the smoothed loss falls fastest. Give the options that training will have: --lr and --schedule
    are those of the sweep.
    """
    from .progress import show_progress

    limit_spinning()
    with show_progress() as progress:
        progress.working_on("loading torch")
        from wsi_pipeline.training.config import read_config, read_split
        from wsi_pipeline.training.lr_finder import SWEEP_PNG, sweep_stores

        settings = build(TrainOptions, options)
        sweep = sweep_stores(
            stores,
            out,
            read_config(settings),
            read_split(settings),
            steps=steps,
            highest=high,
            pretrained=settings.weights,
            force=settings.force,
            listener=progress,
        )
    click.echo(
        f"the loss falls fastest at a learning rate of {sweep.suggestion:.2g}: a good --lr; for"
        " one-cycle or sgdr its highest"
    )
    click.echo(f"→  {out / SWEEP_PNG}")
