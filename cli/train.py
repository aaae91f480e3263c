"""`wsi train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from wsi_pipeline.core.choices import REPORT_HTML, STOP_METRICS

from .evaluate import format_calibration, format_intervals
from .options import EXISTING, FOLDER, device_option, force_option, mode_option, sheet_option
from .training_options import read_config, read_split, training_options

if TYPE_CHECKING:
    from wsi_pipeline.training.evaluate import Metrics
    from wsi_pipeline.training.folds import FoldsResult


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
def train(
    stores: tuple[Path, ...],
    out: Path,
    sheet: Path | None,
    folds: int | None,
    epochs: int,
    patience: int,
    stop_on: str,
    threshold: str,
    devices: int,
    device: str,
    resume: bool,
    force: bool,
    **options: Any,
) -> None:
    """Train a network on labelled patch stores, split by patient.

    No patient is on both sides of the split. The best epoch on the validation patients is kept;
    temperature and threshold are fitted on them and go into the checkpoint. OUT gets
    model.safetensors, report.html, history.csv, metrics.json, split.json, validation.csv and
    TensorBoard events. Killed, it goes on where it stopped when the same line is given again.
    """
    from .progress import show_progress

    with show_progress() as progress:
        progress.working_on("loading torch")
        from wsi_pipeline.models.checkpoint import load_checkpoint
        from wsi_pipeline.training.calibrate import parse_threshold_rule
        from wsi_pipeline.training.folds import train_folds
        from wsi_pipeline.training.run import train as train_network

        config = read_config(
            options,
            epochs=epochs,
            patience=patience,
            stop_on=stop_on,
            devices=devices,
            device=device,
        )
        choice = read_split(options, sheet)
        common: dict[str, Any] = {
            "pretrained": options["weights"],
            "rule": parse_threshold_rule(threshold),
            "force": force,
            "resume": resume,
            "listener": progress,
        }
        if folds is None:
            trained = train_network(stores, out, config, choice, **common)
        elif choice.val_patients or choice.is_random:
            raise click.UsageError(
                "--folds draws the validation patients itself, by patient; leave out the options"
                " that name them"
            )
        else:
            test = choice.test_patients
            result = train_folds(stores, out, config, folds, test_patients=test, **common)
    if folds is not None:
        click.echo(describe_folds(result))
        click.echo(f"→  {result.folder}")
    elif trained.metrics is None:
        click.echo(
            f"nothing to do: {trained.model} was already trained from these stores with these"
            " parameters"
        )
    else:
        checkpoint = load_checkpoint(trained.model)
        click.echo(describe_metrics(trained.metrics, checkpoint.class_names, checkpoint.is_leaky))
        click.echo(f"→  {trained.model}  {trained.model.parent / REPORT_HTML}")


def describe_metrics(metrics: "Metrics", class_names: tuple[str, str], is_leaky: bool) -> str:
    """Return validation metrics with intervals, calibration, and the confusion matrix."""
    from wsi_pipeline.training.metrics import format_confusion

    lines = (
        ["LEAKY: patients are on both sides of this split; these figures are inflated"]
        if is_leaky
        else []
    )
    lines += [*format_intervals(metrics, "validation patients"), "", *format_calibration(metrics)]
    lines.append(
        "epoch, temperature and threshold were chosen on these patients; for figures to publish,"
        " run infer and evaluate on others"
    )
    lines += [
        "",
        f"at threshold {metrics.scores.threshold:.3f}:",
        format_confusion(metrics.scores, class_names),
    ]
    return "\n".join(lines)


def describe_folds(result: "FoldsResult") -> str:
    """Every figure as mean ± standard deviation between folds."""
    lines = ["validation patients of all folds, mean ± standard deviation between folds:"]
    lines += [
        f"  {name.replace('_', ' '):<30} {spread.mean:.3f} ± {spread.deviation:.3f}"
        for name, spread in result.metrics.items()
    ]
    return "\n".join(lines)
