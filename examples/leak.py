"""The flattery of a random split.

Each patch is evaluated by a model that knows other patches of its patient, and by one that does
not.

    python examples/leak.py IDC OUT

IDC is a folder of patches as <patient>_idx5_x<X>_y<Y>_class<C>.png. The same network and recipe is
cross-validated twice on the same patches: in folds of patches drawn at random, as published code
does, and in folds of whole patients. The difference is the inflation, with an interval from drawing
patients again. Writes OUT/leak.png.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedKFold

from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import LabelledPatches, load_labelled
from wsi_pipeline.training.evaluate import compare
from wsi_pipeline.training.optimise import Optimisation, Schedule
from wsi_pipeline.training.run import VALIDATION_CSV, train_division
from wsi_pipeline.training.split import Division, split_folds

SOURCE = "https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images"


def divide_at_random(patches: LabelledPatches, folds: int) -> list[Division]:
    """Return folds of patches, flagged as a leak: this is the mistake that the example measures."""
    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(
        patches.labels, patches.labels
    )
    everybody = sorted({*patches.patients.tolist()})
    records = [
        {"random": True, "fold": fold, "patients_on_both_sides": everybody, "test": []}
        for fold in range(folds)
    ]
    return [
        Division(train, val, record, is_leaky=True)
        for (train, val), record in zip(parts, records, strict=True)
    ]


def cross_validate(
    patches: LabelledPatches, divisions: list[Division], out: Path, config: TrainConfig
) -> NDArray[np.float32]:
    """Return the probability (n,) of every patch by the model of the fold that holds it out."""
    probability = np.empty(len(patches), dtype=np.float32)
    for number, division in enumerate(divisions, start=1):
        listener = Listener(
            epoch_ended=lambda epoch, at=f"{out.name}, fold {number}": print(
                f"{at}: AUROC {epoch.val_auroc:.3f}"
            )
        )
        trained = train_division(
            patches, division, out / f"fold-{number}", config, listener=listener
        )
        table = np.genfromtxt(
            trained.model.parent / VALIDATION_CSV,
            delimiter=",",
            names=True,
            usecols=["probability"],
        )
        probability[division.val] = table["probability"]
    return probability


def draw(path: Path, labels: NDArray[np.int8], curves: dict[str, NDArray[np.float32]]) -> None:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    for name, probability in curves.items():
        axes.plot(*roc_curve(labels, probability)[:2], label=name)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("idc", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folds", type=int, default=3)
    options = parser.parse_args()
    if not any(options.idc.rglob("*_idx5_*.png")):
        raise SystemExit(
            f"{options.idc}: no patches called <patient>_idx5_….png below it; the set is at"
            f" {SOURCE}"
        )
    ingest_patches(options.idc, options.out / "stores", IngestOptions(mpp=4.0))
    patches = load_labelled(find_stores([options.out / "stores"]))
    config = TrainConfig(
        epochs=options.epochs,
        architecture="idc_cnn",
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.01, ema=0.99),
        schedule=Schedule("one-cycle"),
    )
    leaky = cross_validate(
        patches, divide_at_random(patches, options.folds), options.out / "at-random", config
    )
    by_patient = [
        split.divide(patches.patients)
        for split in split_folds(patches.patients, patches.labels, options.folds)
    ]
    honest = cross_validate(patches, by_patient, options.out / "by-patient", config)

    draw(
        options.out / "leak.png",
        patches.labels,
        {"folds of patches, leaky": leaky, "folds of patients": honest},
    )
    found = compare(patches.labels, leaky, honest, patches.patients, thresholds=(0.5, 0.5))
    print(
        f"{found.patches} patches of {found.patients} patients, each evaluated by both; inflation,"
        " and 95 % interval over patients:"
    )
    for row in found.differences:
        if row.interval is not None and row.metric in (
            "auroc",
            "average_precision",
            "f1",
            "balanced_accuracy",
        ):
            low, high = row.interval
            name = row.metric.replace("_", " ")
            print(
                f"{name:<18} at random {row.one:.3f}  by patient {row.other:.3f} "
                f" {row.difference:+.3f} ({low:+.3f} to {high:+.3f})"
            )


if __name__ == "__main__":
    main()
