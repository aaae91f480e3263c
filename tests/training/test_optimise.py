"""Learning rate schedules, optimisers, initial weights."""

import math

import pytest
import torch
from torch import nn

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.architectures.network import find_head
from wsi_pipeline.training.optimise import (
    OPTIMIZERS,
    SCHEDULES,
    Optimisation,
    Schedule,
    Steps,
    initialise,
    list_rates,
    make_optimizer,
    make_scheduler,
    match_layout,
    measure_l1,
)
from wsi_pipeline.training.state import pack_optimizer, unpack_optimizer

STEPS = Steps(per_epoch=10, total=100)


def rates(name: str, **settings: float) -> list[float]:
    return list_rates(Schedule(name, **settings), STEPS, learning_rate=0.1)  # type: ignore[arg-type]


def test_constant_stays() -> None:
    assert set(rates("constant")) == {0.1}


def test_step_falls_by_gamma_every_so_many_epochs() -> None:
    curve = rates("step", step_epochs=4, gamma=0.5)
    assert (curve[39], curve[40], curve[80]) == pytest.approx((0.1, 0.05, 0.025))


def test_exponential_loses_the_same_share_each_step() -> None:
    curve = rates("exponential")
    assert curve[50] == pytest.approx(0.1 * math.sqrt(1e-3))
    assert curve[99] / curve[98] == pytest.approx(curve[1] / curve[0])


def test_one_over_t_is_halved_after_one_epoch_and_a_third_after_two() -> None:
    curve = rates("1/t")
    assert (curve[0], curve[10], curve[20]) == pytest.approx((0.1, 0.05, 0.1 / 3))


def test_cosine_is_half_way_down_in_the_middle() -> None:
    curve = rates("cosine")
    assert curve[50] == pytest.approx((0.1 + 0.0001) / 2)
    assert curve[99] < 0.0002


def test_sgdr_restarts_and_each_cycle_is_twice_as_long() -> None:
    curve = rates("sgdr", step_epochs=2)
    assert [step for step, rate in enumerate(curve) if rate == pytest.approx(0.1)] == [0, 20, 60]
    assert curve[10] == pytest.approx((0.1 + 0.0001) / 2)


def test_one_cycle_rises_then_falls_below_where_it_began() -> None:
    curve = rates("one-cycle")
    assert curve[0] == pytest.approx(0.1 / 25)
    assert max(curve) == pytest.approx(0.1, rel=1e-3)
    assert 28 <= curve.index(max(curve)) <= 30
    assert curve[99] < curve[0] / 100


def test_the_finder_rises_evenly_on_a_logarithmic_axis() -> None:
    curve = rates("rise")
    assert (curve[0], curve[99]) == pytest.approx((1e-9, 0.1))
    assert curve[60] / curve[59] == pytest.approx(curve[2] / curve[1])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_schedule_goes_on_where_it_was_put_down(name: str, optimizer: str) -> None:
    """As a killed run resumes, through JSON and named tensors: rates and weights are equal."""
    import json

    def begin() -> tuple[nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 1)
        taker = OPTIMIZERS[optimizer](
            [{"params": list(layer.parameters()), "lr": 0.1}], Optimisation(learning_rate=0.1)
        )
        return layer, taker, make_scheduler(taker, STEPS, Schedule(name, step_epochs=1))

    def go(
        layer: nn.Linear,
        taker: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        steps: range,
    ) -> None:
        for step in steps:
            taker.zero_grad()
            (layer(torch.full((2, 4), step / 7)) ** 2).sum().backward()
            taker.step()
            scheduler.step()

    layer, taker, scheduler = begin()
    go(layer, taker, scheduler, range(30))
    other_layer, other_taker, other_scheduler = begin()
    go(other_layer, other_taker, other_scheduler, range(13))
    tensors, plain = pack_optimizer(other_taker.state_dict())
    plain, curve = (
        json.loads(json.dumps(plain)),
        json.loads(json.dumps(other_scheduler.state_dict())),
    )
    weights = {name: tensor.clone() for name, tensor in other_layer.state_dict().items()}
    third_layer, third_taker, third_scheduler = begin()
    third_layer.load_state_dict(weights)
    third_taker.load_state_dict(unpack_optimizer(tensors, plain))
    third_scheduler.load_state_dict(curve)
    go(third_layer, third_taker, third_scheduler, range(13, 30))
    assert torch.equal(third_layer.weight, layer.weight)
    assert third_taker.param_groups[0]["lr"] == taker.param_groups[0]["lr"]


def test_the_head_has_its_own_rate() -> None:
    network = build_network("idc_cnn", 50)
    optimizer = make_optimizer(network, Optimisation(learning_rate=0.01, head_learning_rate=0.1))
    head = {id(parameter) for parameter in find_head(network).parameters()}
    rates = {
        id(parameter) in head: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates == {True: 0.1, False: 0.01}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(network.parameters())
    )


def test_biases_and_normalisations_have_no_weight_decay() -> None:
    optimizer = make_optimizer(
        build_network("wide_resnet_10_1", 50), Optimisation(weight_decay=0.3)
    )
    decays = {
        (parameter.ndim > 1, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {(True, 0.3), (False, 0.0)}


def test_xavier_and_he_have_their_deviations() -> None:
    layer = nn.Linear(200, 300)
    initialise(layer, "xavier")
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / (200 + 300)), rel=0.02)
    assert float(layer.bias.detach().abs().max()) == 0
    initialise(layer, "he")
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / 200), rel=0.02)


def test_the_layers_own_weights_are_kept_by_default() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.clone()
    initialise(layer, "default")
    assert torch.equal(layer.weight, before)


def test_l1_sums_weights_but_no_biases() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
        layer.bias.fill_(100)
    assert float(measure_l1(layer).detach()) == 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "magic"}, {"initialisation": "zero"}, {"learning_rate": 0.0},
        {"learning_rate": float("nan")}, {"weight_decay": -1.0}, {"head_learning_rate": -1.0},
        {"momentum": 1.0}, {"label_smoothing": 1.0}, {"ema": 1.0}, {"clip_norm": 0.0}, {"l1": -0.1},
    ],
)  # fmt: skip
def test_impossible_optimisations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Optimisation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "never"},
        {"step_epochs": 0},
        {"gamma": 0.0},
        {"gamma": 1.5},
        {"rise": 1.0},
        {"cycle_growth": 0},
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_fused_steps_are_plain_steps_also_after_a_state_is_restored(name: str) -> None:
    """Weights lie in memory by pixels (NHWC); a saved state is laid out by channels."""
    found = []
    for is_fused in (False, True):
        layer = nn.Conv2d(3, 5, kernel_size=3)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))
        layer.to(memory_format=torch.channels_last)
        network = nn.Sequential(layer)
        for _ in range(2):
            optimizer = OPTIMIZERS[name]([{"params": [*layer.parameters()]}], Optimisation(name))
            for group in optimizer.param_groups:
                assert group["fused"] is True
                group["fused"] = is_fused or None
            if found_state := getattr(network, "state", None):
                optimizer.load_state_dict(found_state)
                match_layout(optimizer)
            x = torch.linspace(0, 1, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
            network(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
            optimizer.step()
            saved = optimizer.state_dict()
            saved["state"] = {
                number: {key: value.contiguous() for key, value in entries.items()}
                for number, entries in saved["state"].items()
            }
            network.state = saved  # type: ignore[assignment]
        found.append(layer.weight.detach())
    plain, fused = found
    assert torch.allclose(plain, fused, atol=1e-6)
