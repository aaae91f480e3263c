"""A first network, on MNIST: two convolutions, two linear layers, stochastic gradient descent.

    python examples/mnist_cnn.py MNIST OUT

MNIST is a folder with the set's idx files, packed or not; with --download they are fetched into it.
Where the 60,000 training images are missing, the 10,000 test images are divided. Writes
OUT/predictions.png (held-out digits, mistakes in red) and OUT/history.svg.
"""

import argparse
import gzip
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.datasets import MNIST

from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures.network import Network
from wsi_pipeline.training.augment import NO_AUGMENTATION
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.images import Images, fit_images
from wsi_pipeline.training.optimise import ManyClasses, Optimisation, Schedule
from wsi_pipeline.training.report import plot_history


class MnistCnn(Network):
    """Conv 5×5 1→16→32, each with ReLU and 2×2 max-pooling, then 512→120→10."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(512, 120), nn.ReLU(), nn.Linear(120, 10))

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x[:, :1])  # (b, 32, 4, 4); the three channels of a grey image are equal
        return self.classifier(x.flatten(1))  # (b, 10)


def read_digits(folder: Path, part: str) -> Images | None:
    """Return the images of `train` or `t10k`; None where a file is missing."""
    files = [
        path
        for name in ("images-idx3", "labels-idx1")
        for path in sorted(folder.rglob(f"{part}-{name}-ubyte*"))[:1]
    ]
    if len(files) < 2:
        return None
    images, labels = (
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in files
    )
    grey = np.frombuffer(images, np.uint8, offset=16).reshape(
        -1, 28, 28
    )  # 16 and 8 bytes of header
    return Images(
        np.repeat(grey[..., None], 3, axis=3),
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int8),
    )


def load_digits(folder: Path) -> tuple[Images, Images, Images]:
    """Return digits to learn from, to choose the epoch by, and held out from both."""
    known, held_out = read_digits(folder, "train"), read_digits(folder, "t10k")
    if held_out is None:
        raise SystemExit(
            f"{folder}: no t10k-images-idx3-ubyte with its labels; name the folder that has them,"
            " or add --download"
        )
    order = np.random.default_rng(0).permutation(len(known or held_out))
    if known is None:
        order, tested = np.split(order, [len(order) * 4 // 5])
        known, held_out = held_out, held_out.take(tested)
    learned, chosen = np.split(order, [len(order) * 9 // 10])
    return known.take(learned), known.take(chosen), held_out


def plot_predictions(images: Images, called: np.ndarray, path: Path) -> None:
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, pixels, label, call in zip(
        figure.subplots(5, 10).flat, images.pixels, images.labels, called, strict=False
    ):
        axes.imshow(255 - pixels)
        axes.set_title(
            f"{call}" if call == label else f"{call}, is {label}",
            color="black" if call == label else "red",
            fontsize=9,
        )
        axes.axis("off")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mnist", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--download", action="store_true", help="fetch MNIST into the folder first, by torchvision"
    )
    options = parser.parse_args()
    if options.download:
        _ = [
            MNIST(options.mnist, train=is_training, download=True) for is_training in (True, False)
        ]
    train, val, held_out = load_digits(options.mnist)
    options.out.mkdir(parents=True, exist_ok=True)

    sgd = Optimisation(optimizer="sgd", learning_rate=0.02, weight_decay=0.0)
    config = TrainConfig(
        epochs=options.epochs,
        stop_on="loss",
        optimisation=sgd,
        schedule=Schedule("constant"),
        augmentation=NO_AUGMENTATION,
    )
    listener = Listener(
        epoch_ended=lambda epoch: print(
            f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, validation {epoch.val_loss:.4f}"
        )
    )
    fitted = fit_images(MnistCnn(), train, val, config, ManyClasses(), listener)

    called = fitted.predict_logits(held_out.pixels).argmax(axis=1)
    (options.out / "history.svg").write_bytes(
        plot_history([asdict(epoch) for epoch in fitted.history.epochs])
    )
    plot_predictions(held_out, called, options.out / "predictions.png")
    print(f"accuracy on {len(held_out)} held-out digits: {np.mean(called == held_out.labels):.4f}")


if __name__ == "__main__":
    main()
