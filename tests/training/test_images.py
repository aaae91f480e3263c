"""Training on images in memory, and on more than two classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.architectures.network import Network
from wsi_pipeline.training.augment import NO_AUGMENTATION
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.images import Images, fit_images, sweep_images
from wsi_pipeline.training.lr_finder import Sweep
from wsi_pipeline.training.optimise import ManyClasses, Optimisation, TwoClasses

QUICK = TrainConfig(
    epochs=4,
    batch_size=8,
    device="cpu",
    augmentation=NO_AUGMENTATION,
    optimisation=Optimisation(learning_rate=0.05, weight_decay=0.0),
)


class ColourNet(Network):
    """One linear layer on the mean colour."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, outputs)

    @property
    def head(self) -> nn.Module:
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(x.mean(dim=(2, 3)))
        return z.squeeze(1) if z.shape[1] == 1 else z


def colours(classes: int, each: int = 20) -> Images:
    """Images of class k are bright in channel k, and dark in the others."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(classes, dtype=np.int8), each)
    pixels = rng.integers(0, 60, (len(labels), 4, 4, 3)).astype(np.uint8)
    pixels[np.arange(len(labels)), ..., labels] += 150
    return Images(pixels, labels)


def test_three_classes_are_learned_and_predicted() -> None:
    torch.manual_seed(0)
    fitted = fit_images(ColourNet(3), colours(3), colours(3), QUICK, ManyClasses())
    assert fitted.history.kept_logits.shape == (60, 3)
    assert fitted.history.epochs[-1].val_auroc == 1.0
    assert np.array_equal(
        fitted.predict_logits(colours(3).pixels).argmax(axis=1), colours(3).labels
    )


def test_the_network_is_left_with_the_epoch_to_keep() -> None:
    torch.manual_seed(0)
    fitted = fit_images(ColourNet(1), colours(2), colours(2), replace(QUICK, stop_on="loss"))
    again = fitted.predict_logits(colours(2).pixels)
    np.testing.assert_allclose(again, fitted.history.kept_logits, atol=1e-6)


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        weights.append(fit_images(ColourNet(1), colours(2), colours(2), QUICK).network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_images_and_labels_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match="4 images and 3 labels"):
        Images(np.zeros((4, 8, 8, 3), dtype=np.uint8), np.zeros(3, dtype=np.int8))


def test_grey_images_without_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be uint8 \(n, side, side, 3\)"):
        Images(np.zeros((4, 8, 8), dtype=np.uint8), np.zeros(4, dtype=np.int8))


def test_several_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 devices"):
        fit_images(ColourNet(1), colours(2), colours(2), replace(QUICK, devices=2))


def test_a_sweep_of_images_suggests_a_rate() -> None:
    torch.manual_seed(0)
    sweep = sweep_images(ColourNet(3), colours(3), QUICK, 80, 10.0, ManyClasses())
    assert len(sweep.rates) > 40
    assert 1e-5 < sweep.suggestion < 10


def test_nothing_is_suggested_behind_the_lowest_loss() -> None:
    """The loss falls slowly to 0.5 at 1e-2, leaps to 5 (diverged), and then falls fastest."""
    exponents = np.linspace(-6, 1, 71)
    losses = np.interp(exponents, [-6, -4, -2, -1.5, 1], [0.7, 0.7, 0.5, 5.0, 3.0])
    assert 1e-4 <= Sweep(10**exponents, losses).suggestion <= 1e-2


def test_metrics_of_three_classes_are_means_over_the_classes() -> None:
    """Classes 0, 1, 2 with two images each; one of class 2 is called 1.

    Recalls are 1, 1, 0.5; precisions 1, 2/3, 1.
    """
    labels = np.array([0, 0, 1, 1, 2, 2], dtype=np.int8)
    called = np.array([0, 0, 1, 1, 2, 1])
    logits = np.where(called[:, None] == np.arange(3), 4.0, 0.0).astype(np.float32)
    metrics = ManyClasses().evaluate(labels, logits)
    assert metrics.balanced_accuracy == pytest.approx((1 + 1 + 0.5) / 3)
    assert metrics.f1 == pytest.approx((1 + 0.8 + 2 / 3) / 3)
    # One against the others: class 0 without fault; of 2 × 4 pairs class 1 ties two, class 2 ties
    # the four of its missed image.
    assert metrics.auroc == pytest.approx((1 + 7 / 8 + 6 / 8) / 3)


def test_a_class_without_images_enters_no_metric() -> None:
    labels = np.array([0, 0, 1, 1], dtype=np.int8)
    logits = np.array([[4, 0, 0], [4, 0, 0], [0, 4, 0], [0, 4, 0]], dtype=np.float32)
    metrics = ManyClasses().evaluate(labels, logits)
    assert (metrics.auroc, metrics.balanced_accuracy, metrics.f1) == (1.0, 1.0, 1.0)


def test_class_weights_weigh_the_loss() -> None:
    """At logit 0 every image costs log 2; weights of 3 and 1 make that 2 log 2 on average."""
    loss = TwoClasses(class_weights=(3.0, 1.0)).measure_loss(torch.zeros(2), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(2 * np.log(2))


def test_label_smoothing_moves_both_targets() -> None:
    """At logit 2 a positive target of 0.9 costs 0.9 log(1 + e⁻²) + 0.1 log(1 + e²)."""
    loss = TwoClasses(label_smoothing=0.2).measure_loss(torch.tensor([2.0]), torch.tensor([1]))
    assert float(loss) == pytest.approx(
        0.9 * np.log1p(np.exp(-2)) + 0.1 * np.log1p(np.exp(2)), abs=1e-6
    )
