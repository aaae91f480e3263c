"""Every usual way to set and change a learning rate, on one small problem.

Also the loss around the trained weights.

    python examples/learning_rates.py OUT

The problem: 1,797 handwritten digits of 8×8 pixels, which come with scikit-learn, and a network of
64, 32 and 10 units. OUT/curves.png has the rate and the validation loss of each way by epoch,
OUT/lr_find.png the learning rate finder's sweep, OUT/landscape.png a slice of the loss along two
random directions, each filter as long as the weights' own (Li et al. 2018).
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from wsi_pipeline.models.architectures.network import Network
from wsi_pipeline.training.augment import NO_AUGMENTATION
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.fit import count_steps
from wsi_pipeline.training.images import FittedNetwork, Images, fit_images, sweep_images
from wsi_pipeline.training.lr_finder import plot_sweep
from wsi_pipeline.training.optimise import ManyClasses, Optimisation, Schedule, list_rates

PLAIN = Optimisation(optimizer="sgd", learning_rate=0.05, momentum=0.0, weight_decay=0.0)
ANNEALED = replace(PLAIN, learning_rate=0.3)
MOMENTUM = replace(PLAIN, momentum=0.9)
WAYS: dict[str, tuple[Optimisation, Schedule]] = {
    "SGD, constant": (PLAIN, Schedule("constant")),
    "annealed: steps": (ANNEALED, Schedule("step", step_epochs=6, gamma=0.3)),
    "annealed: exponential": (ANNEALED, Schedule("exponential")),
    "annealed: cosine": (ANNEALED, Schedule("cosine")),
    "annealed: 1/t": (ANNEALED, Schedule("1/t")),
    "warm restarts (SGDR)": (ANNEALED, Schedule("sgdr", step_epochs=3)),
    "momentum": (MOMENTUM, Schedule("constant")),
    "momentum, one-cycle": (MOMENTUM, Schedule("one-cycle")),
    "differential: head 5 times": (replace(PLAIN, head_learning_rate=0.25), Schedule("constant")),
    "Xavier's initial weights": (replace(PLAIN, initialisation="xavier"), Schedule("constant")),
    "AdaGrad": (replace(PLAIN, optimizer="adagrad", learning_rate=0.02), Schedule("constant")),
    "RMSprop": (replace(PLAIN, optimizer="rmsprop", learning_rate=0.002), Schedule("constant")),
    "Adam": (
        Optimisation(optimizer="adam", learning_rate=0.003, weight_decay=0.0),
        Schedule("constant"),
    ),
}


class DigitNet(Network):
    """64 pixels → 64 → 32 ReLU units → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.classifier = nn.Linear(32, 10)

    @property
    def head(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x[:, 0].flatten(1)))


def draw_direction(network: nn.Module) -> list[Tensor]:
    """Return a random direction; each filter is as long as the network's own, biases are 0."""
    random = [
        torch.randn_like(weight) if weight.ndim > 1 else torch.zeros_like(weight)
        for weight in network.parameters()
    ]
    pairs = zip(random, network.parameters(), strict=True)
    return [
        way * weight.norm(dim=-1, keepdim=True) / (way.norm(dim=-1, keepdim=True) + 1e-12)
        for way, weight in pairs
    ]


@torch.no_grad()
def slice_loss(fitted: FittedNetwork, images: Images, at: np.ndarray) -> np.ndarray:
    """Return the loss at weights + a · one direction + b · another, for every a and b in `at`."""
    one, other = draw_direction(fitted.network), draw_direction(fitted.network)
    losses = np.empty((len(at), len(at)))
    for i, j in np.ndindex(losses.shape):
        moved = copy.deepcopy(fitted.network)
        for weight, first, second in zip(moved.parameters(), one, other, strict=True):
            weight += at[i] * first + at[j] * second
        losses[i, j] = (
            ManyClasses()
            .evaluate(images.labels, replace(fitted, network=moved).predict_logits(images.pixels))
            .loss
        )
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=21)
    parser.add_argument("--grid", type=int, default=25, help="points on each side of the landscape")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    pixels = np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, axis=3)
    order = np.random.default_rng(0).permutation(len(pixels))
    train, val = (
        Images(pixels[part], digits.target[part].astype(np.int8))
        for part in (order[:1400], order[1400:])
    )
    config = TrainConfig(
        epochs=options.epochs,
        batch_size=32,
        stop_on="loss",
        augmentation=NO_AUGMENTATION,
    )

    steps = count_steps(len(train), config)
    figure = Figure(figsize=(14, 9), layout="constrained")
    for panel, (name, (optimisation, schedule)) in enumerate(WAYS.items()):
        torch.manual_seed(0)
        fitted = fit_images(
            DigitNet(),
            train,
            val,
            replace(config, optimisation=optimisation, schedule=schedule),
            ManyClasses(),
        )
        losses = [epoch.val_loss for epoch in fitted.history.epochs]
        print(
            f"{name:<28} lowest validation loss {min(losses):.3f}, after epoch"
            f" {int(np.argmin(losses)) + 1}"
        )
        axes = figure.add_subplot(
            3, 5, panel + 1, title=f"{name}: {min(losses):.3f}", yscale="log", ylim=(0.015, 3)
        )
        axes.plot(range(1, len(losses) + 1), losses, color="#1f5fa8")
        rates = axes.twinx()
        rates.plot(
            np.arange(steps.total) / steps.per_epoch,
            list_rates(schedule, steps, optimisation.learning_rate),
            color="#c8501e",
            lw=0.8,
        )
        rates.set_ylim(bottom=0)
    figure.supxlabel("epoch; blue: validation loss, orange: learning rate")
    figure.savefig(options.out / "curves.png")

    sweep = sweep_images(
        DigitNet(), train, replace(config, optimisation=MOMENTUM), 300, 10.0, ManyClasses()
    )
    plot_sweep(options.out / "lr_find.png", sweep)
    print(f"learning rate finder: {sweep.suggestion:.2g}")
    at = np.linspace(-1, 1, options.grid)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="one direction", ylabel="another")
    figure.colorbar(
        axes.contourf(at, at, np.log10(slice_loss(fitted, train, at)), levels=30),
        label="log10 of the training loss",
    )
    figure.savefig(options.out / "landscape.png")


if __name__ == "__main__":
    main()
