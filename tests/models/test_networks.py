"""Every network of the table keeps the same contract; options, bounds and trained bodies."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models.architectures import (
    ARCHITECTURES,
    build_network,
    find_architecture,
    load_pretrained,
)
from wsi_pipeline.models.architectures.idc_cnn import IdcCnn
from wsi_pipeline.models.architectures.network import (
    count_parameters,
    find_head,
    positive_logit,
)
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_pipeline.models.outlines import NetworkOptions

NAMES = [*ARCHITECTURES, "wide_resnet_10_1", "timm:resnet10t"]
SIDE = 32
"""Small patches, so that the large networks answer quickly."""
SMALL = [
    name
    for name in NAMES
    if name not in ("wide_resnet_16_4", "wide_resnet_16_8", "wide_resnet_28_10", "wide_resnet50_2")
]
"""Without those that take seconds to train a step of; their code is that of smaller ones, and the
test of every name runs them.
"""


def build(name: str, side_px: int = SIDE, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, side_px, NetworkOptions(**options))  # type: ignore[arg-type]


def noise(count: int, side_px: int = SIDE) -> torch.Tensor:
    return torch.randn((count, 3, side_px, side_px), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_every_network_in_evaluation_treats_each_patch_for_itself_and_alike(name: str) -> None:
    network = build(name).eval()
    x = noise(2)
    with torch.inference_mode():
        once, again, alone = network(x), network(x), network(x[1:2])
    assert once.shape == (2,)
    assert torch.equal(once, again)
    assert alone[0].item() == pytest.approx(once[1].item(), abs=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_may_have_two_logits(name: str) -> None:
    with torch.inference_mode():
        assert build(name, logits=2).eval()(noise(3)).shape == (3, 2)


@pytest.mark.parametrize("logits", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name: str, logits: int) -> None:
    network = build(name, logits=logits).train()
    for parameter in network.parameters():
        if not bool(
            parameter.any()
        ):  # a residual that begins at zero lets gradients through from the second step on
            nn.init.constant_(parameter, 0.5)
    output = positive_logit(network(noise(4)))
    (output * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum().backward()
    without = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ]
    assert without == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_works_at_its_smallest_patch_and_refuses_smaller_ones(name: str) -> None:
    least = ARCHITECTURES[name].min_side_px
    with torch.inference_mode():
        assert bool(torch.isfinite(build(name, least).eval()(noise(2, least))).all())
    with pytest.raises(ModelError, match="cut larger ones"):
        build(name, least - 1)


@pytest.mark.parametrize("logits", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_comes_back_from_a_checkpoint(name: str, logits: int, tmp_path: Path) -> None:
    network = build(name, logits=logits).eval()
    save_checkpoint(
        make_card(name, network, NetworkOptions(logits=logits)), tmp_path / "m.safetensors"
    )
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded.build()(noise(2)), network(noise(2)))


def make_card(name: str, network: nn.Module, options: NetworkOptions) -> Checkpoint:
    return Checkpoint(
        architecture=name,
        spec=PatchSpec(SIDE, SIDE, 0.5),
        class_names=("negative", "positive"),
        normalisation=Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        terms=ModelTerms(),
        threshold_source="set by a test",
        weights=network.state_dict(),
        options=options,
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_head_is_the_last_part_alone(name: str) -> None:
    with torch.device("meta"):
        network = find_architecture(name).build(SIDE, NetworkOptions())
    head = {id(parameter) for parameter in find_head(network).parameters()}
    names = [id(parameter) in head for parameter in network.parameters()]
    assert 0 < sum(names) < len(names)
    assert names == sorted(names)  # body first, then head


def test_the_head_of_a_strangers_network_is_unknown() -> None:
    with pytest.raises(ModelError, match="build_network"):
        find_head(nn.Linear(2, 1))


# The paper's totals for 10 classes of CIFAR: 2.7, 11.0 and 36.5 million; a logit instead of ten
# classes takes off 9 · (64 k + 1).
@pytest.mark.parametrize(
    ("name", "millions"),
    [("wide_resnet", 2.7), ("wide_resnet_16_8", 11.0), ("wide_resnet_28_10", 36.5)],
)
def test_wide_residual_networks_have_the_papers_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = find_architecture(name).build(32, NetworkOptions())
    widest = 64 * int(name.split("_")[-1]) if name != "wide_resnet" else 64 * 4
    assert round((count_parameters(network) + 9 * (widest + 1)) / 1e6, 1) == millions


def test_wrn_10_1_has_the_parameters_worked_out_by_hand() -> None:
    stem = 3 * 16 * 9
    groups = (16 * 16 * 9 * 2 + 32 + 32) + sum(
        a * b * 9 + b * b * 9 + a * b + 2 * a + 2 * b for a, b in ((16, 32), (32, 64))
    )
    assert count_parameters(build("wide_resnet_10_1")) == stem + groups + 2 * 64 + 65


def test_the_articles_head_is_dense_20_relu_logit() -> None:
    head = find_head(build("wide_resnet_10_1", head="dense20"))
    assert [type(module).__name__ for module in head.children()] == ["Linear", "ReLU", "Linear"]
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [
        (20, 64),
        (20,),
        (1, 20),
        (1,),
    ]


def test_dropout_acts_while_training_only() -> None:
    network, x = build("wide_resnet_10_1", dropout=0.5), noise(4)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_idc_cnn_has_batch_normalisation_and_drops_the_biases_it_cancels() -> None:
    names = [name for name, _ in build("idc_cnn").named_parameters() if name.startswith("features")]
    assert names == [
        f"features.{i}.{part}"
        for i, part in (
            (0, "weight"),
            (1, "weight"),
            (1, "bias"),
            (4, "weight"),
            (5, "weight"),
            (5, "bias"),
            (8, "weight"),
            (9, "weight"),
            (9, "bias"),
        )
    ]


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("idc_cnn", {"head": "dense20"}, "has no head 'dense20'"),
        ("timm:resnet10t", {"head": "dense20"}, "has no head"),
        ("wide_resnet_17_2", {}, "a depth of 17"),
        ("wide_resnet_16_0", {}, "a widening of 0"),
        ("wide_resnet_9994_2", {}, "a depth of 9994"),
        ("timm:no_such_network", {}, "no such model"),
        ("timm:hf_hub:somebody/something", {}, "no such model"),
        ("timm:test_vit", {}, "does not take patches of 40 px"),
        ("timm:resnet10t", {"dropout": 0.2, "head": "dense20"}, "has no head"),
    ],
)
def test_what_a_network_cannot_be_is_refused(
    name: str, options: dict[str, object], fault: str
) -> None:
    with pytest.raises(ModelError, match=fault):
        build(name, 40, **options)


@pytest.mark.parametrize(
    "options", [{"dropout": 1.0}, {"dropout": -0.1}, {"head": "tail"}, {"logits": 3}, {"logits": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NetworkOptions(**options)  # type: ignore[arg-type]


def test_options_come_back_from_json() -> None:
    options = NetworkOptions(0.25, "dense20", True, 2)
    assert NetworkOptions.from_json(options.to_json()) == options
    with pytest.raises(ModelError, match="options depth are unknown"):
        NetworkOptions.from_json({"depth": 3})


def test_a_card_without_the_option_is_of_a_network_without_batch_normalisation() -> None:
    assert not NetworkOptions.from_json({"dropout": None, "head": "linear", "logits": 1}).batch_norm


@pytest.mark.parametrize(
    ("name", "side_px"),
    [("idc_cnn", 2048), ("idc_cnn", 10**6), ("wide_resnet", 10**6), ("wide_resnet_100_32", 50)],
)
def test_an_absurd_size_is_refused_before_memory_is_taken(name: str, side_px: int) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="cut smaller"):
        build(name, side_px)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'wsi-pipeline\[timm\]'"):
        build("timm:resnet10t")


def test_positive_logit_by_hand() -> None:
    assert positive_logit(torch.tensor([3.0, -1.0])).tolist() == [3.0, -1.0]
    assert positive_logit(torch.tensor([[1.0, 4.0], [2.0, 0.5]])).tolist() == [3.0, -1.5]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["wide_resnet_10_1", "timm:resnet10t"])
def test_a_body_is_taken_over_and_a_head_of_another_shape_stays_fresh(
    name: str, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    old, new = build_network(name, SIDE, NetworkOptions(logits=2)), build(name)
    weights, fresh = (
        old.state_dict(),
        {key: value.clone() for key, value in find_head(new).state_dict().items()},
    )
    path = tmp_path / f"weights{suffix}"
    (
        save_file(weights, path)
        if suffix == ".safetensors"
        else torch.save({"state_dict": weights}, path)
    )
    load_pretrained(new, name, path, download=False)
    assert all(torch.equal(value, fresh[key]) for key, value in find_head(new).state_dict().items())
    body = [key for key, value in new.state_dict().items() if value.shape == weights[key].shape]
    assert len(weights) - len(body) == 2
    assert all(torch.equal(new.state_dict()[key], weights[key]) for key in body)


def test_weights_of_torchvision_fit_by_their_own_names() -> None:
    from torchvision.models import wide_resnet50_2

    with torch.device("meta"):
        theirs = wide_resnet50_2(weights=None).state_dict()
        ours = find_architecture("wide_resnet50_2").build(50, NetworkOptions())
    named = ours.rename_weights(theirs)
    own = ours.state_dict()
    assert set(named) == set(own)
    assert [name for name, tensor in named.items() if tensor.shape != own[name].shape] == [
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stem.weight": None}, "stem.weight are missing"),
        ({"stem.weight": torch.zeros(16, 3, 5, 5)}, "stem.weight have another shape"),
        ({"other.weight": torch.zeros(2)}, "other.weight are unknown"),
        ({"stem.weight": torch.full((16, 3, 3, 3), torch.nan)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(
    change: dict[str, torch.Tensor | None], fault: str, tmp_path: Path
) -> None:
    network = build("wide_resnet_10_1")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    save_file(
        {key: value for key, value in (before | change).items() if value is not None},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(ModelError, match=fault):
        load_pretrained(network, "wide_resnet_10_1", tmp_path / "w.safetensors", download=False)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def test_a_pickle_with_code_in_it_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"stem.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="not a file of weights alone"):
        load_pretrained(
            build("wide_resnet_10_1"), "wide_resnet_10_1", tmp_path / "w.pth", download=False
        )
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "fault"),
    [("w.h5", "are read from .safetensors and .pth"), ("absent.pth", "no such file")],
)
def test_files_that_hold_no_weights_are_refused(name: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "w.h5").touch()
    with pytest.raises(ModelError, match=fault):
        load_pretrained(
            build("wide_resnet_10_1"), "wide_resnet_10_1", tmp_path / name, download=False
        )


def test_nothing_is_downloaded_for_a_network_that_nobody_publishes() -> None:
    with pytest.raises(ModelError, match="no weights are published"):
        load_pretrained(build("idc_cnn"), "idc_cnn", None, download=True)


def test_idc_cnn_trains_with_the_values_and_gradients_of_its_layers_in_order() -> None:
    """In training ReLU comes after pooling, which changes neither."""
    network = IdcCnn(22).train()
    x = torch.rand(4, 3, 22, 22, generator=torch.Generator().manual_seed(0))
    results = []
    for features in (network.features, network._pool_first):
        network.zero_grad()
        output = features(x)
        output.square().sum().backward()
        gradients = [parameter.grad for parameter in network.features.parameters()]
        results.append([output.detach(), *(grad.clone() for grad in gradients if grad is not None)])
    assert len(results[0]) == 10
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
