"""What a training run leaves to read: history, figures, loss curve, who was on which side."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsi_pipeline.training.judgement import Judgement
from wsi_pipeline.training.loop import Epoch
from wsi_pipeline.training.metrics import Scores
from wsi_pipeline.training.split import PatientSplit

HISTORY_CSV = "history.csv"
LOSS_CURVE_PNG = "loss_curve.png"
METRICS_JSON = "metrics.json"
SPLIT_JSON = "split.json"


def write_report(folder: Path, history: Sequence[Epoch], figures: Scores | Judgement, split: PatientSplit) -> None:
    """Every file of the report."""
    _write_history(folder / HISTORY_CSV, history)
    _draw_loss_curve(folder / LOSS_CURVE_PNG, history)
    (folder / METRICS_JSON).write_text(json.dumps(figures.to_json(), indent=1, allow_nan=False) + "\n")
    (folder / SPLIT_JSON).write_text(json.dumps(asdict(split), indent=1) + "\n")


def _write_history(path: Path, history: Sequence[Epoch]) -> None:
    # Without the seconds, so that the same training gives the same bytes.
    names = [field.name for field in fields(Epoch) if field.name != "seconds"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)


def _draw_loss_curve(path: Path, history: Sequence[Epoch]) -> None:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    numbers = [epoch.epoch for epoch in history]
    axes.plot(numbers, [epoch.train_loss for epoch in history], marker="o", label="loss, training patients")
    axes.plot(numbers, [epoch.val_loss for epoch in history], marker="o", label="loss, validation patients")
    axes.plot(numbers, [epoch.val_auroc for epoch in history], marker="s", linestyle="--", label="AUROC, validation patients")
    best = max((epoch for epoch in history if epoch.is_best), key=lambda epoch: epoch.epoch)
    axes.axvline(best.epoch, color="grey", linewidth=1, linestyle=":", label=f"best: epoch {best.epoch}")
    axes.set(xlabel="epoch", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})
