"""How the learning rate changes from step to step. Each schedule is one line in a table.

Exponential, cosine and one-cycle are stretched over all steps that training may have; the others go
by epochs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer
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
