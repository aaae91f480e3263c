"""Optimisers and what goes with them: rates of body and head, decay, clipping, initial weights. Each is one line in a table."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.architectures import find_head

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
