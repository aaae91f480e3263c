"""A published network and recipe for the public IDC patches, beside the corrected one.

The script shows why the first number means nothing.

    python examples/idc_cnn_guide.py IDC OUT

IDC is the folder of the set's <patient>_idx5_x<X>_y<Y>_class<C>.png. As published: patches divided
75/25 at random, so that patients stand on both sides, and a log-softmax over a single output.
Corrected: whole patients, and one logit with binary cross-entropy. The same convolutions, batches
of 128, SGD at 0.001 and 20 epochs in both. Writes OUT/losses.png and, of the corrected one,
OUT/model/report.html.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import log_softmax

from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures.idc_cnn import IdcCnn
from wsi_pipeline.models.architectures.network import NetworkOptions
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.augment import NO_AUGMENTATION
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import LabelledPatches, load_labelled, read_pixels
from wsi_pipeline.training.images import FittedNetwork, Images, fit_images
from wsi_pipeline.training.loop import Epoch
from wsi_pipeline.training.metrics import describe_scores
from wsi_pipeline.training.optimise import Optimisation, Schedule
from wsi_pipeline.training.run import HISTORY_CSV, train
from wsi_pipeline.training.split import SplitChoice, split_at_random

SOURCE = "https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images"


class PublishedCnn(IdcCnn):
    """The network with the published ending.

    A softmax divides 1 among the outputs; there is one output, so its logarithm is log 1 = 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        return log_softmax(super().forward(x)[:, None], dim=1)[:, 0]


def train_as_published(
    patches: LabelledPatches, config: TrainConfig
) -> tuple[FittedNetwork, float, float]:
    """Return the fitted network, its accuracy on the validation patches, and their share of
    negatives."""
    division = split_at_random(
        patches.patients, patches.labels, SplitChoice(val_fraction=0.25), config.seed
    )
    sides = [
        Images(read_pixels(patches, members), patches.labels[members])
        for members in (division.train, division.val)
    ]
    fitted = fit_images(
        PublishedCnn(options=config.network),
        *sides,
        config,
        listener=Listener(epoch_ended=print_epoch),
    )
    output = fitted.predict_logits(sides[1].pixels)[:, None]  # (n, 1)
    called = output.argmax(axis=1)  # the class with the highest output, of one
    return fitted, float(np.mean(called == sides[1].labels)), float(np.mean(sides[1].labels == 0))


def print_epoch(epoch: Epoch) -> None:
    print(
        f"epoch {epoch.epoch:>2}: loss {epoch.train_loss:.4f}, validation loss"
        f" {epoch.val_loss:.4f}, AUROC {epoch.val_auroc:.3f}"
    )


def draw_losses(path: Path, losses: dict[str, list[float]]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="validation loss")
    for name, values in losses.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("idc", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    if not any(options.idc.rglob("*_idx5_*.png")):
        raise SystemExit(
            f"{options.idc}: no patches called <patient>_idx5_….png below it; the set is at"
            f" {SOURCE}"
        )
    ingest_patches(options.idc, options.out / "stores", IngestOptions(mpp=4.0))
    sgd = Optimisation(optimizer="sgd", learning_rate=0.001, weight_decay=0.0)
    config = TrainConfig(
        architecture="idc_cnn",
        network=NetworkOptions(batch_norm=False),
        epochs=options.epochs,
        batch_size=128,
        optimisation=sgd,
        schedule=Schedule("constant"),
        augmentation=NO_AUGMENTATION,
    )

    print("as published: random split, log-softmax over one output")
    published, accuracy, negatives = train_as_published(
        load_labelled(find_stores([options.out / "stores"])), config
    )
    print("corrected: split by patient, one logit with binary cross-entropy")
    choice = SplitChoice(val_fraction=0.25)
    trained = train(
        [options.out / "stores"],
        options.out / "model",
        config,
        choice,
        listener=Listener(epoch_ended=print_epoch),
    )

    history = np.genfromtxt(
        options.out / "model" / HISTORY_CSV, delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    published_losses = [epoch.val_loss for epoch in published.history.epochs]
    draw_losses(
        options.out / "losses.png",
        {
            "as published": published_losses,
            "corrected": np.atleast_1d(history["val_loss"]).tolist(),
        },
    )
    print(f"as published: accuracy {accuracy:.3f}; negatives among these patches: {negatives:.3f}")
    print(
        "  Every output is 0 whatever the weights are: no gradient, a loss of log 2 for ever, and"
        " class 0 for every patch."
    )
    print("  What was reported as accuracy is therefore the share of negatives.")
    if trained.metrics is None:
        print("corrected: was trained before; see report.html")
    else:
        print(
            f"corrected: {describe_scores(trained.metrics.scores)} on validation patients, by"
            " whom the threshold was chosen"
        )


if __name__ == "__main__":
    main()
