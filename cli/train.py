"""`wsi train`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import EXISTING, FOLDER, device_option, force_option, sheet_option

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi_pipeline.training.dataset import LabelledPatches
    from wsi_pipeline.training.loop import Epoch
    from wsi_pipeline.training.run import TrainListener
    from wsi_pipeline.training.split import PatientSplit


def read_patients(_ctx: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Patients from a comma-separated list, or from a file with one per line, or several between commas."""
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


@click.command()
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@click.option("--out", "-o", type=FOLDER, required=True, help="Folder to make, with model.safetensors and the report.")
@click.option("--arch", default="idc_cnn", help="Network: idc_cnn.")
@click.option("--val-patients", metavar="FILE|ID,ID…", callback=read_patients, help="Validation patients by name. [default: drawn]")
@sheet_option
@click.option("--val-fraction", type=float, default=0.2, help="Share of patches whose patients are drawn for validation.")
@click.option(
    "--test-patients", metavar="FILE|ID,ID…", callback=read_patients, help="Patients kept out of training and validation altogether."
)
@click.option("--epochs", type=click.IntRange(1), default=20, help="Passes over the training patches, at most.")
@click.option("--patience", type=click.IntRange(1), default=5, help="Stop after so many epochs without a better validation AUROC.")
@click.option("--batch-size", type=click.IntRange(2), default=64, help="Patches per step.")
@click.option("--lr", type=float, default=3e-4, help="Learning rate of AdamW.")
@click.option("--weight-decay", type=float, default=1e-4, help="Weight decay of AdamW.")
@click.option("--augment/--no-augment", default=True, help="Turn and mirror patches, shift brightness and contrast.")
@click.option("--seed", type=int, default=0, help="Of the split, the weights, the order and the augmentation.")
@device_option
@force_option
def train(
    stores: tuple[Path, ...],
    out: Path,
    arch: str,
    val_patients: tuple[str, ...],
    sheet: Path | None,
    val_fraction: float,
    test_patients: tuple[str, ...],
    epochs: int,
    patience: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    augment: bool,
    seed: int,
    device: str,
    force: bool,
) -> None:
    """Train a network on labelled patch stores, split by patient.

    No patient is on both sides of the split. The best epoch by AUROC on the validation patients is kept, and the threshold with the
    highest balanced accuracy on them goes into the checkpoint. OUT gets model.safetensors, history.csv, loss_curve.png, metrics.json and
    split.json.
    """
    from rich.console import Console

    from wsi_pipeline.models.checkpoint import load_checkpoint
    from wsi_pipeline.training.loop import TrainConfig
    from wsi_pipeline.training.metrics import describe_scores, draw_confusion
    from wsi_pipeline.training.run import SplitChoice
    from wsi_pipeline.training.run import train as train_network

    from .progress import make_bar

    if sheet is not None:
        if val_patients or test_patients:
            raise click.UsageError("--sheet says who is on which side; leave out --val-patients and --test-patients")
        val_patients, test_patients = read_sides(sheet)
    config = TrainConfig(
        architecture=arch,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        weight_decay=weight_decay,
        patience=patience,
        augment=augment,
        seed=seed,
        device=device,
    )
    choice = SplitChoice(val_patients, val_fraction, test_patients)
    with make_bar(Console(stderr=True), "patches") as bar:
        trained = train_network(stores, out, config, choice, force=force, listener=report_to(bar, epochs))
    if trained.scores is None:
        click.echo(f"nothing to do: {trained.model} was already trained from these stores with these parameters")
        return
    click.echo(
        f"validation patients: {describe_scores(trained.scores)} at threshold {trained.scores.threshold:.3f} (highest balanced accuracy)"
    )
    click.echo(draw_confusion(trained.scores, load_checkpoint(trained.model).class_names))
    click.echo(f"→  {trained.model}")


def report_to(bar: "Progress", epochs: int) -> "TrainListener":
    """A listener that moves a bar and prints the split and every epoch."""
    from wsi_pipeline.training.run import TrainListener

    task = bar.add_task("training", total=0)

    def on_start(patches: "LabelledPatches", split: "PatientSplit") -> None:
        bar.update(task, total=len(patches.of(split.train)[1]) * epochs)
        click.echo(describe_split(patches, split))

    def on_epoch(epoch: "Epoch") -> None:
        click.echo(describe_epoch(epoch, epochs))

    return TrainListener(on_start, on_epoch, lambda done: bar.advance(task, done))


def read_sides(sheet: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The validation and the test patients of a sample sheet."""
    from wsi_pipeline.slides.sheet import read_sheet

    rows = read_sheet(sheet)
    val, test = (tuple(sorted({row.patient_id for row in rows if row.split == side})) for side in ("val", "test"))
    return val, test


def describe_split(patches: "LabelledPatches", split: "PatientSplit") -> str:
    """Who is on which side, in one line per side."""
    lines = []
    for side, members in (("training", split.train), ("validation", split.val), ("held out", split.test)):
        if members:
            labels = patches.of(members)[1]
            lines.append(f"{side}: {len(members)} patients, {len(labels)} patches, {int((labels == 1).sum())} {patches.class_names[1]}")
    if patches.skipped:
        lines.append(f"skipped: {patches.skipped} patches without a label or unreadable")
    return "\n".join(lines)


def describe_epoch(epoch: "Epoch", epochs: int) -> str:
    """One epoch in one line."""
    best = "  best" if epoch.is_best else ""
    return (
        f"epoch {epoch.epoch:>3} of {epochs}  loss {epoch.train_loss:.4f}  validation loss {epoch.val_loss:.4f}  "
        f"AUROC {epoch.val_auroc:.4f}  {epoch.seconds:.0f} s{best}"
    )
