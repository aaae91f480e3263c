"""Losses, optimisers, initial weights and learning rate schedules."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
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

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.architectures.network import find_head, positive_logit
from wsi_pipeline.training.metrics import Floats, Labels, score

ParameterGroups = Sequence[dict[str, Any]]
FINAL_SHARE = 1e-3
"""Last rate of the exponential schedule and lowest rate of the cosines, as share of the first."""
MOMENTUM_SWING = 0.05
"""Change of the momentum by one-cycle: lower while the rate is high, higher while it is low."""
RISE_FROM = 1e-8
"""First rate of `rise`, as share of the highest."""


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """Metrics after an epoch.

    With more than two classes all but the loss are means over the classes, each against the others.
    """

    loss: float
    auroc: float
    average_precision: float
    balanced_accuracy: float
    """For two classes at a threshold of 0.5, else by the highest logit; the same holds for F1."""
    f1: float


class Objective(Protocol):
    """Loss and metrics of a network's output."""

    def read(self, output: Tensor) -> Tensor:
        """Return logits from a network's output: (b,), or (b, classes)."""
        ...

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of logits for labels int64 (b,)."""
        ...

    def evaluate(self, labels: Labels, logits: Floats) -> EpochMetrics:
        """Return metrics of logits (n,) or (n, classes) for labels (n,); NaN if undefined."""
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
        # torch.where of plain numbers copies nothing to the device.
        weights = torch.where(labels == 1, positive, negative)
        return binary_cross_entropy_with_logits(logits, targets, weights)

    def evaluate(self, labels: Labels, logits: Floats) -> EpochMetrics:
        scores = score(labels, Calibration().apply(logits), threshold=0.5)
        target = torch.from_numpy(labels.astype(np.float32))
        return EpochMetrics(
            loss=float(binary_cross_entropy_with_logits(torch.from_numpy(logits), target)),
            # Of logits: large ones give probabilities that tie at 1.
            auroc=float(roc_auc_score(labels, logits)),
            average_precision=float(average_precision_score(labels, logits)),
            balanced_accuracy=math.nan
            if scores.balanced_accuracy is None
            else scores.balanced_accuracy,
            f1=math.nan if scores.f1 is None else scores.f1,
        )


@dataclass(frozen=True, slots=True)
class ManyClasses:
    """Classes 0 … k-1, each with its logit: cross-entropy. Classes without images are left out."""

    label_smoothing: float = 0.0

    def read(self, output: Tensor) -> Tensor:
        return output

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def evaluate(self, labels: Labels, logits: Floats) -> EpochMetrics:
        present = np.unique(labels)
        one_of_each = (labels[:, None] == present).astype(np.int8)  # (n, classes that occur)
        ranked = logits[:, present]
        called = logits.argmax(axis=1)
        target = torch.from_numpy(labels.astype(np.int64))
        return EpochMetrics(
            loss=float(cross_entropy(torch.from_numpy(logits), target)),
            auroc=float(roc_auc_score(one_of_each, ranked, average="macro")),
            average_precision=float(average_precision_score(one_of_each, ranked, average="macro")),
            balanced_accuracy=float(recall_score(labels, called, labels=present, average="macro")),
            f1=float(f1_score(labels, called, labels=present, average="macro")),
        )


@dataclass(frozen=True, slots=True)
class Optimisation:
    """The optimiser, its rates and penalties, and the initial weights."""

    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    """Highest rate of the schedule."""
    head_learning_rate: float | None = None
    """Rate of the network's head; None: that of the body."""
    momentum: float | None = None
    """Momentum of sgd and rmsprop, first beta of adam and adamw; None: 0.9, but 0 for rmsprop."""
    weight_decay: float = 0.05
    """L2 penalty on weights, not on biases and normalisations; decoupled for adamw."""
    l1: float = 0.0
    """Weight of the sum of absolute weights in the loss."""
    clip_norm: float | None = None
    """Gradients longer than this are shortened to it."""
    label_smoothing: float = 0.0
    """Targets become s/2 and 1 - s/2."""
    class_weights: bool = False
    """Give both classes the same total weight in the loss."""
    ema: float | None = None
    """Share that each step keeps of the running average of the weights, which is then the model."""
    initialisation: str = "default"
    """`xavier`, `he`, or `default`: the layers' own."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("initialisation", self.initialisation, INITIALISATIONS)
        for name in ("learning_rate", "head_learning_rate", "clip_norm"):
            _check_range(name, getattr(self, name), math.inf, above=True)
        for name in ("weight_decay", "l1"):
            _check_range(name, getattr(self, name), math.inf)
        for name in ("momentum", "label_smoothing", "ema"):
            _check_range(name, getattr(self, name), 1)


def check_choice(name: str, value: str, table: Iterable[str]) -> None:
    """Raise ConfigError unless the value is in the table."""
    if value not in table:
        raise ConfigError(f"{name} is {value}; choose one of {', '.join(table)}")


def _check_range(name: str, value: float | None, high: float, *, above: bool = False) -> None:
    """Raise ConfigError unless the value is None, or from 0 (or above it) to below high."""
    if value is None:
        return
    if not math.isfinite(value) or not 0 <= value < high or (above and value == 0):
        raise ConfigError(
            f"{name.replace('_', ' ')} is {value}; it must be {'above' if above else 'at least'}"
            f" 0 and below {high}"
        )


def _momentum(choice: Optimisation) -> float:
    return 0.9 if choice.momentum is None else choice.momentum


def _is_fused(groups: Sequence[dict[str, Any]]) -> bool | None:
    """Return True on the CPU, where one pass over each weight is fastest; None: torch chooses."""
    on_cpu = all(weight.device.type == "cpu" for group in groups for weight in group["params"])
    return True if on_cpu else None


OPTIMIZERS: dict[str, Callable[[ParameterGroups, Optimisation], Optimizer]] = {
    "sgd": lambda groups, choice: SGD(
        groups,
        momentum=_momentum(choice),
        weight_decay=choice.weight_decay,
        nesterov=_momentum(choice) > 0,
        fused=_is_fused(groups),
    ),
    "adam": lambda groups, choice: Adam(
        groups,
        betas=(_momentum(choice), 0.999),
        weight_decay=choice.weight_decay,
        fused=_is_fused(groups),
    ),
    "adamw": lambda groups, choice: AdamW(
        groups,
        betas=(_momentum(choice), 0.999),
        weight_decay=choice.weight_decay,
        fused=_is_fused(groups),
    ),
    "rmsprop": lambda groups, choice: RMSprop(
        groups, momentum=choice.momentum or 0.0, weight_decay=choice.weight_decay
    ),
    "adagrad": lambda groups, choice: Adagrad(
        groups, weight_decay=choice.weight_decay, fused=_is_fused(groups)
    ),
}
"""SGD has Nesterov's momentum unless momentum is 0; Adam after Kingma & Ba, AdamW after Loshchilov
& Hutter, Adagrad after Duchi et al."""


def make_optimizer(network: nn.Module, choice: Optimisation) -> Optimizer:
    """Return the optimiser over the network's parameters, body and head at their own rates.

    Biases and normalisations have no weight decay.
    """
    head = {id(parameter) for parameter in find_head(network).parameters()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    head_rate = choice.head_learning_rate or choice.learning_rate
    for is_head, rate in ((False, choice.learning_rate), (True, head_rate)):
        part = [parameter for parameter in trained if (id(parameter) in head) == is_head]
        weights = [parameter for parameter in part if parameter.ndim > 1]
        others = [parameter for parameter in part if parameter.ndim <= 1]
        groups.append({"params": weights, "lr": rate})
        groups.append({"params": others, "lr": rate, "weight_decay": 0.0})
    return OPTIMIZERS[choice.optimizer]([group for group in groups if group["params"]], choice)


def match_layout(optimizer: Optimizer) -> None:
    """Lay out what an optimiser remembers of each weight as the weight itself, such as NHWC.

    Fused optimisers go through the memory of both side by side and compare no strides.
    """
    for weight, remembered in optimizer.state.items():
        for name, value in remembered.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                remembered[name] = torch.empty_like(weight).copy_(value)


INITIALISATIONS: dict[str, Callable[[Tensor], object]] = {
    "default": lambda weight: None,
    "xavier": nn.init.xavier_uniform_,
    "he": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
}
"""Glorot & Bengio 2010; He et al. 2015."""


def initialise(network: nn.Module, name: str) -> None:
    """Set random weights of every convolution and linear layer, and their biases to 0.

    `default` changes nothing.
    """
    if name == "default":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            INITIALISATIONS[name](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def measure_l1(network: nn.Module) -> Tensor:
    """Return the sum of the absolute weights, biases and batch norms left out."""
    weights = (parameter for parameter in network.parameters() if parameter.ndim > 1)
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate over all steps of a training."""

    name: str = "one-cycle"
    step_epochs: int = 10
    """`step`: multiply by `gamma` every so many epochs; `sgdr`: length of the first cycle."""
    gamma: float = 0.1
    """Factor of `step`."""
    cycle_growth: int = 2
    """Each cycle of `sgdr` is this many times as long as the one before."""
    rise: float = 0.3
    """Share of all steps in which `one-cycle` rises."""

    def __post_init__(self) -> None:
        check_choice("schedule", self.name, SCHEDULES)
        if self.step_epochs < 1 or self.cycle_growth < 1:
            raise ConfigError(
                f"schedule: {self.step_epochs} epochs and a growth of {self.cycle_growth}; both"
                " must be at least 1"
            )
        if not (0 < self.gamma <= 1 and 0 < self.rise < 1):
            raise ConfigError(
                f"schedule: gamma {self.gamma} must be above 0 and at most 1, rise {self.rise}"
                " above 0 and below 1"
            )


@dataclass(frozen=True, slots=True)
class Steps:
    """Number of steps of a training."""

    per_epoch: int
    total: int


def _one_cycle(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    group = optimizer.param_groups[0]  # adam's momentum is its first beta; some have none
    momentum = float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
    return OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],
        total_steps=max(2, steps.total),
        pct_start=schedule.rise,
        cycle_momentum=momentum > 0,
        base_momentum=max(0.0, momentum - MOMENTUM_SWING),
        max_momentum=min(0.99, momentum + MOMENTUM_SWING),
    )


def _lowest_rate(optimizer: Optimizer) -> float:
    return FINAL_SHARE * min(float(group["lr"]) for group in optimizer.param_groups)


SCHEDULES: dict[str, Callable[[Optimizer, Steps, Schedule], LRScheduler]] = {
    "constant": lambda optimizer, steps, schedule: LambdaLR(optimizer, lambda step: 1.0),
    "step": lambda optimizer, steps, schedule: StepLR(
        optimizer, schedule.step_epochs * steps.per_epoch, schedule.gamma
    ),
    "exponential": lambda optimizer, steps, schedule: ExponentialLR(
        optimizer, FINAL_SHARE ** (1 / max(1, steps.total))
    ),
    "1/t": lambda optimizer, steps, schedule: LambdaLR(
        optimizer, lambda step: 1 / (1 + step / steps.per_epoch)
    ),
    "cosine": lambda optimizer, steps, schedule: CosineAnnealingLR(
        optimizer, max(1, steps.total), _lowest_rate(optimizer)
    ),
    "sgdr": lambda optimizer, steps, schedule: CosineAnnealingWarmRestarts(
        optimizer,
        schedule.step_epochs * steps.per_epoch,
        schedule.cycle_growth,
        _lowest_rate(optimizer),
    ),
    "one-cycle": _one_cycle,
    "rise": lambda optimizer, steps, schedule: LambdaLR(
        optimizer, lambda step: RISE_FROM ** (1 - step / max(1, steps.total - 1))
    ),
}
"""SGDR after Loshchilov & Hutter 2017, one-cycle after Smith & Topin 2018; 1/t falls as 1 / (1 +
epochs done). `rise` climbs evenly on a logarithmic axis: the sweep of the learning rate finder.

Exponential, cosine, one-cycle and rise span all steps that a training may have; the others count
epochs."""


def make_scheduler(optimizer: Optimizer, steps: Steps, schedule: Schedule) -> LRScheduler:
    """Return the scheduler, which is stepped once after every step of the optimiser."""
    return SCHEDULES[schedule.name](optimizer, steps, schedule)


def list_rates(schedule: Schedule, steps: Steps, learning_rate: float) -> list[float]:
    """Return the rate at each step, for plots and tests."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
    scheduler = make_scheduler(optimizer, steps, schedule)
    rates = []
    for _ in range(steps.total):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates
