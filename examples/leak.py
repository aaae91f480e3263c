"""How much a random split flatters: one recipe, patches divided by patch and by patient, judged on patients held out from both.

    python examples/leak.py IDC OUT

IDC is a folder of patches as <patient>_idx5_x<X>_y<Y>_class<C>.png. A fifth of the patients is held out. Of the others, one model divides
the patches at random, so that it is judged on patches of patients that it learned from; the other divides the patients. Each claims an
AUROC on its validation patches; what it is worth shows on the held-out patients. Writes OUT/leak.png and OUT/leak.csv.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wsi_pipeline.geometry import PatchSpec
from wsi_pipeline.models.architectures import NetworkOptions
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.pipeline import ingest_patches
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.dataset import LabelledPatches, load_labelled, read_pixels
from wsi_pipeline.training.metrics import score
from wsi_pipeline.training.optimisation import Optimisation
from wsi_pipeline.training.run import SplitChoice, TrainListener, train
from wsi_pipeline.training.schedule import Schedule
from wsi_pipeline.training.split import split_patients

SOURCE = "https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images"
NAMES = {True: "at random", False: "by patient"}


def measure(patches: LabelledPatches, out: Path, config: TrainConfig, held_out: tuple[str, ...], is_random: bool) -> tuple[float, float]:
    """The AUROC that a split claims, and the one on the held-out patients."""
    listener = TrainListener(on_epoch=lambda epoch: print(f"  {NAMES[is_random]}, epoch {epoch.epoch}: AUROC {epoch.val_auroc:.3f}"))
    choice = SplitChoice(test_patients=held_out, is_random=is_random)
    trained = train(list(patches.paths), out, config, choice, listener=listener)
    checkpoint = load_checkpoint(trained.model)
    members = np.flatnonzero(np.isin(patches.patients, held_out))
    probability = Predictor(checkpoint, choose_device("auto"))(read_pixels(patches, members))
    honest = score(patches.labels[members], probability, checkpoint.threshold)
    return float(checkpoint.scores["validation"]["auroc"]), float(honest.auroc or np.nan)


def draw(path: Path, figures: dict[bool, np.ndarray]) -> None:
    """What each split claims and what held-out patients show, a line per repetition."""
    picture = Figure(figsize=(7, 4), layout="constrained")
    axes = picture.add_subplot(
        ylabel="AUROC", xticks=(0, 1), xticklabels=("claimed by its split", "on held-out patients"), xlim=(-0.3, 1.3)
    )
    for is_random, values in figures.items():
        axes.plot(values.T, "o-", color="#c8501e" if is_random else "#1f5fa8", label=[NAMES[is_random], *[None] * (len(values) - 1)])
    axes.legend(title="split")
    picture.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idc", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="how often, each time with other patients held out")
    options = parser.parse_args()
    if not any(options.idc.rglob("*_idx5_*.png")):
        raise SystemExit(f"{options.idc}: no patches called <patient>_idx5_….png below it; the set is at {SOURCE}")
    ingest_patches(options.idc, options.out / "stores", PatchSpec(50, 50, mpp=4.0))
    patches = load_labelled(find_stores([options.out / "stores"]))
    figures: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for seed in range(options.repeats):
        held_out = split_patients(patches.patients, patches.labels, val_fraction=0.2, seed=seed).val
        config = TrainConfig(
            epochs=options.epochs,
            patience=options.epochs,
            seed=seed,
            network=NetworkOptions(batch_norm=True),
            optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.01, ema=0.99),
            schedule=Schedule("one-cycle"),
        )
        for is_random, values in figures.items():
            values.append(measure(patches, options.out / f"{NAMES[is_random].replace(' ', '-')}-{seed}", config, held_out, is_random))
    with (options.out / "leak.csv").open("w", newline="") as stream:
        rows = [(NAMES[is_random], seed, *pair) for is_random, values in figures.items() for seed, pair in enumerate(values)]
        csv.writer(stream).writerows([("split", "repetition", "claimed_auroc", "held_out_auroc"), *rows])
    draw(options.out / "leak.png", {is_random: np.array(values) for is_random, values in figures.items()})
    for is_random, values in figures.items():
        claimed, honest = np.mean(values, axis=0)
        print(
            f"split {NAMES[is_random]:<10} claims {claimed:.3f}, held-out patients show {honest:.3f}: inflated by {claimed - honest:+.3f}"
        )


if __name__ == "__main__":
    main()
