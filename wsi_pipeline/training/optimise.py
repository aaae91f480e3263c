"""Losses, optimisers, initial weights and learning rate schedules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.architectures import find_head, positive_logit
from wsi_pipeline.training.calibrate import apply_temperature
from wsi_pipeline.training.metrics import score


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """What an epoch is judged by; of more than two classes each but the loss is the mean over the classes, one against the others."""

    loss: float
    auroc: float
    average_precision: float
    balanced_accuracy: float
    """Of two classes at a threshold of 0.5, of more by the highest logit; so is F1."""
    f1: float


class Objective(Protocol):
    """How a network's output is read, what it costs, and how good it is."""

    def read(self, output: Tensor) -> Tensor:
        """Logits from a network's output: (b,), or (b, classes)."""
        ...

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits for labels int64 (b,)."""
        ...

    def judge(self, labels: NDArray[np.int8], logits: NDArray[np.float32]) -> EpochFigures:
        """The figures of logits (n,) or (n, classes) for labels (n,); NaN where one has no meaning."""
        ...


@dataclass(frozen=True, slots=True)
class TwoClasses:
    """Negative and positive: binary cross-entropy on the logit of the positive class."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, float] = (1.0, 1.0)

    def read(self, output: Tensor) -> Tensor:
        return positive_logit(output)

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        negative, positive = self.class_weights
        weights = torch.where(
            labels == 1, positive, negative
        )  # of numbers: no copy to the device in every step
        return binary_cross_entropy_with_logits(logits, targets, weights)

    def judge(self, labels: NDArray[np.int8], logits: NDArray[np.float32]) -> EpochFigures:
        scores = score(labels, apply_temperature(logits, 1.0), threshold=0.5)
        target = torch.from_numpy(labels.astype(np.float32))
        return EpochFigures(
            loss=float(binary_cross_entropy_with_logits(torch.from_numpy(logits), target)),
            auroc=float(
                roc_auc_score(labels, logits)
            ),  # of logits: probabilities of a sure network tie at 1
            average_precision=float(average_precision_score(labels, logits)),
            balanced_accuracy=(
                math.nan if scores.balanced_accuracy is None else scores.balanced_accuracy
            ),
            f1=math.nan if scores.f1 is None else scores.f1,
        )


@dataclass(frozen=True, slots=True)
class ManyClasses:
    """Classes 0 … k-1, each with its logit: cross-entropy. Classes without a picture enter no figure."""

    label_smoothing: float = 0.0

    def read(self, output: Tensor) -> Tensor:
        return output

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def judge(self, labels: NDArray[np.int8], logits: NDArray[np.float32]) -> EpochFigures:
        present = np.unique(labels)
        one_of_each = (labels[:, None] == present).astype(np.int8)  # (n, classes that occur)
        called = logits.argmax(axis=1)
        return EpochFigures(
            loss=float(
                cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64)))
            ),
            auroc=float(roc_auc_score(one_of_each, logits[:, present], average="macro")),
            average_precision=float(
                average_precision_score(one_of_each, logits[:, present], average="macro")
            ),
            balanced_accuracy=float(recall_score(labels, called, labels=present, average="macro")),
            f1=float(f1_score(labels, called, labels=present, average="macro")),
        )


ParameterGroups = Iterable[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are changed."""

    optimizer: str = "adamw"
    learning_rate: float = 3e-4
    """The highest rate of the schedule."""
    head_learning_rate: float | None = None
    """Rate of the network's head; None: that of the body."""
    momentum: float | None = None
    """Of sgd and rmsprop; the first beta of adam and adamw. None: 0.9, but 0 for rmsprop."""
    weight_decay: float = 1e-4
    """L2 penalty on weights, not on biases and normalisations; decoupled for adamw."""
    l1: float = 0.0
    """Weight of the sum of absolute weights in the loss."""
    clip_norm: float | None = None
    """Gradients longer than this are shortened to it."""
    label_smoothing: float = 0.0
    """Targets become s/2 and 1 - s/2."""
    class_weights: bool = False
    """Both classes weigh the same in the loss, however many patches they have."""
    ema: float | None = None
    """Share of the running average of the weights that each step keeps; the average is what is judged and saved."""
    initialisation: str = "default"
    """`xavier`, `he`, or the layers' own."""

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("initialisation", self.initialisation, INITIALISATIONS)
        for name in ("learning_rate", "head_learning_rate", "clip_norm"):
            _check_range(name, getattr(self, name), low=0, high=math.inf, above=True)
        for name in ("weight_decay", "l1"):
            _check_range(name, getattr(self, name), low=0, high=math.inf)
        for name in ("momentum", "label_smoothing", "ema"):
            _check_range(name, getattr(self, name), low=0, high=1)


def _check_choice(name: str, value: str, table: Iterable[str]) -> None:
    if value not in table:
        raise ConfigError(f"{name} is {value}; there are {', '.join(table)}")


def _check_range(
    name: str, value: float | None, *, low: float, high: float, above: bool = False
) -> None:
    """From low (or above it) to below high; None is no value to check."""
    if value is None:
        return
    if not math.isfinite(value) or value < low or value >= high or (above and value == low):
        raise ConfigError(
            f"{name.replace('_', ' ')} is {value}; it must be {'above' if above else 'at least'}"
            f" {low} and below {high}"
        )


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value


def _sgd(groups: ParameterGroups, choice: Optimisation) -> Optimizer:
    momentum = _or_default(choice.momentum, 0.9)
    return SGD(groups, momentum=momentum, weight_decay=choice.weight_decay, nesterov=momentum > 0)


def _adam(groups: ParameterGroups, choice: Optimisation) -> Optimizer:
    return Adam(
        groups, betas=(_or_default(choice.momentum, 0.9), 0.999), weight_decay=choice.weight_decay
    )


def _adamw(groups: ParameterGroups, choice: Optimisation) -> Optimizer:
    return AdamW(
        groups, betas=(_or_default(choice.momentum, 0.9), 0.999), weight_decay=choice.weight_decay
    )


def _rmsprop(groups: ParameterGroups, choice: Optimisation) -> Optimizer:
    return RMSprop(
        groups, momentum=_or_default(choice.momentum, 0.0), weight_decay=choice.weight_decay
    )


def _adagrad(groups: ParameterGroups, choice: Optimisation) -> Optimizer:
    return Adagrad(groups, weight_decay=choice.weight_decay)


OPTIMIZERS: dict[str, Callable[[ParameterGroups, Optimisation], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
}
"""SGD has Nesterov's momentum unless momentum is 0; Adam and AdamW after Kingma & Ba and Loshchilov & Hutter; Adagrad after Duchi et al."""


def make_optimizer(network: nn.Module, choice: Optimisation) -> Optimizer:
    """The optimiser over the network's parameters: body and head at their rates, biases and normalisations without weight decay."""
    head = {id(parameter) for parameter in find_head(network).parameters()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for is_head, rate in (
        (False, choice.learning_rate),
        (True, choice.head_learning_rate or choice.learning_rate),
    ):
        part = [parameter for parameter in trained if (id(parameter) in head) == is_head]
        groups.append(
            {"params": [parameter for parameter in part if parameter.ndim > 1], "lr": rate}
        )
        groups.append(
            {
                "params": [parameter for parameter in part if parameter.ndim <= 1],
                "lr": rate,
                "weight_decay": 0.0,
            }
        )
    return OPTIMIZERS[choice.optimizer]([group for group in groups if group["params"]], choice)


def _keep(weight: Tensor) -> None:
    """Leave the layer's own initial weights."""


def _xavier(weight: Tensor) -> None:
    nn.init.xavier_uniform_(weight)


def _he(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")


INITIALISATIONS: dict[str, Callable[[Tensor], None]] = {
    "default": _keep,
    "xavier": _xavier,
    "he": _he,
}
"""Glorot & Bengio 2010; He et al. 2015."""


def initialise(network: nn.Module, how: str) -> None:
    """Fresh weights for every convolution and linear layer; their biases 0 unless the layers' own are kept."""
    if how == "default":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            INITIALISATIONS[how](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def measure_l1(network: nn.Module) -> Tensor:
    """Sum of the absolute values of all weights of more than one dimension: biases and batch norms are not penalised."""
    return torch.stack(
        [parameter.abs().sum() for parameter in network.parameters() if parameter.ndim > 1]
    ).sum()


FINAL_SHARE = 1e-3
"""Share of the first rate at which the exponential schedule ends, and below which cosines do not fall."""


MOMENTUM_SWING = 0.05
"""One-cycle lowers the momentum by this while the rate is high, and raises it by this while it is low."""
RISE_FROM = 1e-8
"""Share of the highest rate at which `rise` begins."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The course of the learning rate over all steps."""

    name: str = "constant"
    step_epochs: int = 10
    """`step`: multiply by `gamma` every so many epochs; `sgdr`: length of the first cycle."""
    gamma: float = 0.1
    """Factor of `step`."""
    cycle_growth: int = 2
    """Each cycle of `sgdr` is this many times as long as the one before."""
    rise: float = 0.3
    """Share of all steps in which `one-cycle` rises."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ConfigError(f"schedule is {self.name}; there are {', '.join(SCHEDULES)}")
        if self.step_epochs < 1 or self.cycle_growth < 1:
            raise ConfigError(
                f"schedule: {self.step_epochs} epochs and a growth of {self.cycle_growth}; both"
                " must be at least 1"
            )
        if not (0 < self.gamma <= 1 and 0 < self.rise < 1):
            raise ConfigError(
                f"schedule: gamma {self.gamma} and rise {self.rise} must lie above 0 and at most"
                " at 1"
            )


@dataclass(frozen=True, slots=True)
class Steps:
    """How long training is."""

    per_epoch: int
    total: int


def _constant(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 1.0)


def _step(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    return StepLR(optimizer, step_size=schedule.step_epochs * steps.per_epoch, gamma=schedule.gamma)


def _exponential(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    return ExponentialLR(optimizer, gamma=FINAL_SHARE ** (1 / max(1, steps.total)))


def _one_over_t(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 1 / (1 + step / steps.per_epoch))


def _cosine(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=max(1, steps.total), eta_min=_floor(optimizer))


def _warm_restarts(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    first = schedule.step_epochs * steps.per_epoch
    return CosineAnnealingWarmRestarts(
        optimizer, T_0=first, T_mult=schedule.cycle_growth, eta_min=_floor(optimizer)
    )


def _one_cycle(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    momentum = _momentum(optimizer)
    return OneCycleLR(
        optimizer,
        max_lr=rates,
        total_steps=max(2, steps.total),
        pct_start=schedule.rise,
        cycle_momentum=momentum > 0,
        base_momentum=max(0.0, momentum - MOMENTUM_SWING),
        max_momentum=min(0.99, momentum + MOMENTUM_SWING),
    )


def _momentum(optimizer: Optimizer) -> float:
    """The optimiser's momentum, or first beta; 0 where it has neither."""
    group = optimizer.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def _rise(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: RISE_FROM ** (1 - step / max(1, steps.total - 1)))


def _floor(optimizer: Optimizer) -> float:
    return FINAL_SHARE * min(float(group["lr"]) for group in optimizer.param_groups)


SCHEDULES: dict[str, Callable[[Optimizer, Steps, Schedule], LRScheduler]] = {
    "constant": _constant,
    "step": _step,
    "exponential": _exponential,
    "1/t": _one_over_t,
    "cosine": _cosine,
    "sgdr": _warm_restarts,
    "one-cycle": _one_cycle,
    "rise": _rise,
}
"""SGDR after Loshchilov & Hutter 2017, one-cycle after Smith & Topin 2018; 1/t falls as 1 / (1 + epochs done).

`rise` climbs evenly on a logarithmic axis: the sweep of the learning rate finder, no course to train by."""


def make_scheduler(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    """The schedule, to be stepped once after every step of the optimiser."""
    return SCHEDULES[schedule.name](optimizer, steps, schedule)


def list_rates(schedule: Schedule, steps: Steps, learning_rate: float) -> list[float]:
    """The rate at each of all steps, for plots and tests."""
    optimizer = torch.optim.SGD(
        [torch.nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9
    )
    scheduler = make_scheduler(optimizer, steps, schedule)
    rates = []
    for _ in range(steps.total):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates
