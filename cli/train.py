"""`wsi train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_pipeline.core.choices import REPORT_HTML, STOP_METRICS

from .evaluate import draw_calibration, draw_intervals
from .options import EXISTING, FOLDER, device_option, force_option, mode_option, sheet_option
from .training_options import read_config, read_split, training_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi_pipeline.training.config import TrainConfig
    from wsi_pipeline.training.data import LabelledPatches
    from wsi_pipeline.training.evaluate import Judgement
    from wsi_pipeline.training.folds import FoldsResult
    from wsi_pipeline.training.loop import Epoch
    from wsi_pipeline.training.run import TrainListener
    from wsi_pipeline.training.split import Division


@click.command()
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@click.option(
    "--out",
    "-o",
    type=FOLDER,
    required=True,
    help="Folder to make, with model.safetensors and the report.",
)
@sheet_option
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Cross-validate: train once per fold, every patient validates once.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=20,
    help="Passes over the training patches, at most.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=5,
    help="Stop after so many epochs that are not better by --stop-on.",
)
@click.option(
    "--stop-on",
    type=click.Choice(STOP_METRICS),
    default="auroc",
    help="What the best epoch is best at, on the validation patients.",
)
@click.option(
    "--threshold",
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
    type=click.IntRange(1),
    default=1,
    help="GPUs (or processes on the CPU) that share every batch.",
)
@device_option
@click.option(
    "--resume/--no-resume",
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
    from wsi_pipeline.models.checkpoint import load_checkpoint
    from wsi_pipeline.training.calibrate import parse_threshold_rule
    from wsi_pipeline.training.folds import train_folds
    from wsi_pipeline.training.run import train as train_network

    from .progress import make_bar, open_console

    config = read_config(
        options, epochs=epochs, patience=patience, stop_on=stop_on, devices=devices, device=device
    )
    choice = read_split(options, sheet)
    common: dict[str, Any] = {
        "pretrained": options["weights"], "rule": parse_threshold_rule(threshold), "force": force, "resume": resume,
    }  # fmt: skip
    with make_bar(open_console(), "patches") as bar:
        if folds is not None:
            if choice.val_patients or choice.is_random:
                raise click.UsageError(
                    "--folds draws the validation patients itself, by patient; leave out what names"
                    " them"
                )
            listener = report_to(bar, config)
            result = train_folds(
                stores,
                out,
                config,
                folds,
                test_patients=choice.test_patients,
                listener=listener,
                **common,
            )
        else:
            trained = train_network(
                stores, out, config, choice, listener=report_to(bar, config), **common
            )
    if folds is not None:
        click.echo(describe_folds(result))
        click.echo(f"→  {result.folder}")
    elif trained.judgement is None:
        click.echo(
            f"nothing to do: {trained.model} was already trained from these stores with these"
            " parameters"
        )
    else:
        checkpoint = load_checkpoint(trained.model)
        click.echo(
            describe_judgement(trained.judgement, checkpoint.class_names, checkpoint.is_leaky)
        )
        click.echo(f"→  {trained.model}  {trained.model.parent / REPORT_HTML}")


def report_to(bar: "Progress", config: "TrainConfig") -> "TrainListener":
    """A listener that moves a bar and prints the split and every epoch."""
    from wsi_pipeline.training.run import TrainListener

    task = bar.add_task("training", total=0)
    per_epoch = 0

    def on_start(patches: "LabelledPatches", division: "Division", events: Path) -> None:
        nonlocal per_epoch
        per_epoch = len(division.train)
        bar.reset(task, total=per_epoch * config.epochs)
        click.echo(describe_split(patches, division))
        click.echo(f"to watch: tensorboard --logdir {events}")

    def on_resume(epoch: int) -> None:
        bar.update(task, completed=per_epoch * epoch)
        click.echo(f"going on after epoch {epoch}, where this run was stopped")

    def on_epoch(epoch: "Epoch") -> None:
        bar.update(task, completed=per_epoch * epoch.epoch)
        click.echo(describe_epoch(epoch, config.epochs))

    return TrainListener(on_start, on_resume, on_epoch, lambda done: bar.advance(task, done))


def describe_split(patches: "LabelledPatches", division: "Division") -> str:
    """Who is on which side, in one line per side."""
    lines = []
    for side, members in (("training", division.train), ("validation", division.val)):
        count, positive = (
            len({*patches.patients[members].tolist()}),
            int((patches.labels[members] == 1).sum()),
        )
        lines.append(
            f"{side}: {count} patients, {len(members)} patches, {positive} {patches.class_names[1]}"
        )
    if test := division.record["test"]:
        labels = patches.labels[[name in test for name in patches.patients.tolist()]]
        lines.append(
            f"held out: {len(test)} patients, {len(labels)} patches, {int((labels == 1).sum())}"
            f" {patches.class_names[1]}"
        )
    if division.is_leaky:
        both = len(division.record["patients_on_both_sides"])
        lines.append(
            f"LEAKY: patches were divided at random, {both} patients are on both sides; every"
            " figure is inflated"
        )
    if patches.skipped:
        lines.append(f"skipped: {patches.skipped} patches without a label or unreadable")
    return "\n".join(lines)


def describe_epoch(epoch: "Epoch", epochs: int) -> str:
    """One epoch in one line."""
    best = "  best" if epoch.is_best else ""
    return (
        f"epoch {epoch.epoch:>3} of {epochs}  loss {epoch.train_loss:.4f}  validation loss"
        f" {epoch.val_loss:.4f}  AUROC {epoch.val_auroc:.4f}  {epoch.seconds:.0f} s{best}"
    )


def describe_judgement(judgement: "Judgement", class_names: tuple[str, str], is_leaky: bool) -> str:
    """Figures on the validation patients with their intervals, calibration before and after, and the confusion matrix."""
    from wsi_pipeline.training.metrics import draw_confusion

    lines = (
        ["LEAKY: patients are on both sides of this split; these figures are inflated"]
        if is_leaky
        else []
    )
    lines += [*draw_intervals(judgement, "validation patients"), "", *draw_calibration(judgement)]
    lines.append(
        "epoch, temperature and threshold were chosen on these patients; for figures to publish,"
        " run infer and evaluate on others"
    )
    lines += [
        "",
        f"at threshold {judgement.scores.threshold:.3f}:",
        draw_confusion(judgement.scores, class_names),
    ]
    return "\n".join(lines)


def describe_folds(result: "FoldsResult") -> str:
    """Every figure as mean ± standard deviation between folds."""
    lines = ["validation patients of all folds, mean ± standard deviation between folds:"]
    lines += [
        f"  {name.replace('_', ' '):<30} {spread.mean:.3f} ± {spread.deviation:.3f}"
        for name, spread in result.figures.items()
    ]
    return "\n".join(lines)
