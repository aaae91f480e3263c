"""`wsi train`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import REPORT_HTML
from wsi_pipeline.core.limits import limit_spinning
from wsi_pipeline.core.training_options import TrainOptions

from .options import (
    DEFAULT_MODEL,
    build,
    list_words,
    make_out_option,
    mode_option,
    options_of,
    preset_option,
    say_next,
    say_taken,
    stores_argument,
    unless_default,
)
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@stores_argument
@options_of(TrainOptions)
@preset_option
@make_out_option(DEFAULT_MODEL)
@mode_option
def train(stores: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Train a network on labelled patch stores, split by patient.

    No patient is on both sides of the split. The last epoch is kept, or with --stop-on the best on
    the validation patients; context, calibration and thresholds are fitted on them and go into
    the checkpoint. OUT gets model.safetensors, report.html, history.csv, metrics.json, split.json,
    validation.csv and TensorBoard events. Killed, it goes on where it stopped when the same line is
    given again.
    """
    from .progress import show_progress

    say_taken(list_words(stores), out)
    limit_spinning()
    with show_progress() as progress:
        progress.working_on("loading torch")
        from wsi_pipeline.training.folds import FoldsResult, train_stores

        result = train_stores(stores, out, build(TrainOptions, options), progress)
    click.echo(str(result))
    if isinstance(result, FoldsResult):
        click.echo(f"→  {result.folder}")
    elif result.metrics is not None:
        click.echo(f"→  {result.model}  {result.model.parent / REPORT_HTML}")
    own = unless_default(out, DEFAULT_MODEL)
    say_next("wsi infer --slides DIR", *(("--model", *own) if own else ()))
