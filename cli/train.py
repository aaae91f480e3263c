"""`wsi train`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import REPORT_HTML
from wsi_pipeline.core.training_options import TrainOptions

from .options import EXISTING, FOLDER, build, mode_option, options_of, preset_option


@click.command()
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@options_of(TrainOptions)
@preset_option
@click.option(
    "--out",
    "-o",
    panel="Output",
    type=FOLDER,
    required=True,
    help="Folder to make, with model.safetensors and the report.",
)
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

    with show_progress() as progress:
        progress.working_on("loading torch")
        from wsi_pipeline.training.folds import FoldsResult, train_stores

        result = train_stores(stores, out, build(TrainOptions, options), progress)
    click.echo(str(result))
    if isinstance(result, FoldsResult):
        click.echo(f"→  {result.folder}")
    elif result.metrics is not None:
        click.echo(f"→  {result.model}  {result.model.parent / REPORT_HTML}")
