"""`wsi train`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import REPORT_HTML, STOP_METRICS

from .options import EXISTING, FOLDER, build, device_option, force_option, mode_option, sheet_option
from .training_options import training_options


@click.command()
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@sheet_option
@click.option(
    "--out",
    "-o",
    panel="Output",
    type=FOLDER,
    required=True,
    help="Folder to make, with model.safetensors and the report.",
)
@click.option(
    "--folds",
    panel="Input",
    type=click.IntRange(2),
    help="Cross-validate: train once per fold, every patient validates once.",
)
@click.option(
    "--epochs",
    panel="Training",
    type=click.IntRange(1),
    default=20,
    help="Passes over the training patches, at most.",
)
@click.option(
    "--patience",
    panel="Training",
    type=click.IntRange(1),
    default=5,
    help="Stop after so many epochs that are not better by --stop-on.",
)
@click.option(
    "--stop-on",
    panel="Training",
    type=click.Choice(STOP_METRICS),
    default="auroc",
    help="What the best epoch is best at, on the validation patients.",
)
@click.option(
    "--threshold",
    panel="Training",
    default="youden",
    metavar="RULE",
    help=(
        "Chosen on the validation patients: f1, youden (highest balanced accuracy),"
        " sensitivity=0.95, or a number such as 0.5."
    ),
)
@training_options
@click.option(
    "--devices",
    panel="Compute",
    type=click.IntRange(1),
    default=1,
    help="GPUs (or processes on the CPU) that share every batch.",
)
@device_option
@click.option(
    "--resume/--no-resume",
    panel="Operation",
    default=True,
    help="Go on after the last whole epoch of the same run that was killed.",
)
@force_option
@mode_option
def train(stores: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Train a network on labelled patch stores, split by patient.

    No patient is on both sides of the split. The best epoch on the validation patients is kept;
    temperature and threshold are fitted on them and go into the checkpoint. OUT gets
    model.safetensors, report.html, history.csv, metrics.json, split.json, validation.csv and
    TensorBoard events. Killed, it goes on where it stopped when the same line is given again.
    """
    from .progress import show_progress

    with show_progress() as progress:
        progress.working_on("loading torch")
        from wsi_pipeline.training.config import TrainOptions
        from wsi_pipeline.training.folds import FoldsResult, train_stores

        result = train_stores(stores, out, build(TrainOptions, options), progress)
    click.echo(str(result))
    if isinstance(result, FoldsResult):
        click.echo(f"→  {result.folder}")
    elif result.metrics is not None:
        click.echo(f"→  {result.model}  {result.model.parent / REPORT_HTML}")
