"""How far patches are from the training patches: stains, features, the slide's distance, limits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import make_checkpoint, make_patches, write_folds, write_model
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.outcome import Distance, Limits, find_unlike
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import STAIN_MEASURES
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.domain import Domain, Domains, find_last_linear, show_features
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.stacked import Ensemble
from wsi_pipeline.models.stains import EOSIN, HAEMATOXYLIN, measure_stains, sample_patches

FEATURES = 64
LIMITS = Limits(2.0, 3.0)
"""Of wide_resnet_10_1."""


def make_domain(features: int = FEATURES, limits: Limits = LIMITS) -> Domain:
    """Deviations count twice in colour; features have variance 4 along the first, 1 beside it."""
    axes = torch.zeros(1, features)
    axes[0, 0] = 1
    means = torch.zeros(2, features)
    means[1, 0] = 4
    return Domain(
        stain_center=torch.zeros(STAIN_MEASURES),
        stain_scale=2 * torch.eye(STAIN_MEASURES),
        means=means,
        axes=axes,
        variances=torch.tensor([4.0, 1.0]),
        limits=limits,
    )


def with_domain(limits: Limits = LIMITS) -> Checkpoint:
    return replace(make_checkpoint(), domain=make_domain(limits=limits))


def test_white_has_no_stain() -> None:
    white = np.full((2, 50, 50, 3), 255, dtype=np.uint8)
    assert measure_stains(white).tolist() == [[0.0] * 9] * 2


@pytest.mark.parametrize(("stain", "place"), [(HAEMATOXYLIN, 0), (EOSIN, 3)])
def test_a_pure_stain_is_found_by_its_density(
    stain: tuple[float, float, float], place: int
) -> None:
    """Density 0.5 of one stain, in 8-bit colour: within half a level of each channel."""
    unit = np.array(stain) / np.linalg.norm(stain)
    pixels = np.broadcast_to(np.round(255 * 10 ** (-0.5 * unit)), (1, 50, 50, 3)).astype(np.uint8)
    expected = np.zeros(9)
    expected[place : place + 3] = 0.5
    assert measure_stains(pixels)[0] == pytest.approx(expected, abs=0.01)


def test_quantiles_are_those_of_the_patch() -> None:
    """One pixel in four is black: the lowest quantile is bare, the highest is not."""
    pixels = np.full((1, 50, 50, 3), 255, dtype=np.uint8)
    pixels[:, :25, :25] = 40
    low, middle, high = measure_stains(pixels)[0, :3]
    assert low == middle == 0
    assert high > 0.5


@pytest.mark.parametrize(
    ("count", "most", "sample"),
    [(0, 3, []), (2, 3, [0, 1]), (1001, 3, [0, 500, 1000]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_a_sample_is_spread_evenly(count: int, most: int, sample: list[int]) -> None:
    assert sample_patches(count, most).tolist() == sample


@pytest.mark.parametrize(
    ("name", "options", "features"),
    [
        ("idc_cnn", NetworkOptions(), 512),
        ("wide_resnet_10_1", NetworkOptions(), 64),
        ("wide_resnet_10_1", NetworkOptions(head="dense20"), 20),
        ("wide_resnet_10_1", NetworkOptions(logits=2), 64),
        pytest.param("wide_resnet50_2", NetworkOptions(), 2048, marks=pytest.mark.system),
        pytest.param("timm:resnet18", NetworkOptions(), 512, marks=pytest.mark.system),
    ],
)
def test_features_follow_the_same_logits(name: str, options: NetworkOptions, features: int) -> None:
    network = build_network(name, 50, options).eval()
    x = torch.rand(3, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(x).reshape(3, -1)
        shown = show_features(network)(x)
    assert shown.shape == (3, options.logits + features)
    assert torch.equal(shown[:, : options.logits], logits)


def test_a_network_without_linear_layer_has_no_features() -> None:
    with pytest.raises(ModelError, match="has no linear layer, so no features"):
        find_last_linear(torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1)))


@pytest.mark.parametrize(
    ("feature", "distance"),
    [
        ((2.0, 0.0), (2**2 / 4 / 2) ** 0.5),  # as far from either class
        ((5.0, 0.0), (1**2 / 4 / 2) ** 0.5),  # the second class is nearer
        ((0.0, 3.0), (3**2 / 1 / 2) ** 0.5),  # beside the axis
        ((0.0, 0.0), 0.0),
    ],
)
def test_features_are_compared_with_the_nearer_class(
    feature: tuple[float, float], distance: float
) -> None:
    found = make_domain(2).compare_features(torch.tensor([feature]))
    assert found.tolist() == pytest.approx([distance])


def test_a_slides_distance_is_of_its_median_stains_and_the_median_of_its_features() -> None:
    """Stains 1, 2 and 9 deviate by 2, twice: 4; the features' distances are 1, 5 and 7."""
    stains = np.repeat(np.array([[1.0], [2.0], [9.0]], dtype=np.float32), 9, axis=1)
    found = make_domain().measure(stains, np.array([7, 1, 5], dtype=np.float32))
    assert found == Distance(4.0, 5.0)


def test_unreadable_patches_are_left_out_of_the_distance() -> None:
    stains = np.ones((2, 9), dtype=np.float32)
    distances = np.array([np.nan, 3], dtype=np.float32)
    assert make_domain().measure(stains, distances) == Distance(2.0, 3.0)
    assert make_domain().measure(stains, distances[:1].repeat(2)) == Distance()


@pytest.mark.parametrize(
    ("distance", "limits", "unlike"),
    [
        (Distance(1.0, 1.0), Limits(2.0, 3.0), ""),
        (Distance(2.1, 1.0), Limits(2.0, 3.0), "colour"),
        (Distance(1.0, 3.1), Limits(2.0, 3.0), "features"),
        (Distance(9.0, 9.0), Limits(2.0, 3.0), "colour and features"),
        (Distance(9.0, 9.0), Limits(), None),
        (Distance(), Limits(2.0, 3.0), None),
    ],
)
def test_a_slide_beyond_a_limit_is_unlike_by_that(
    distance: Distance, limits: Limits, unlike: str | None
) -> None:
    assert find_unlike(distance, limits) == unlike


@pytest.mark.parametrize(
    "setting",
    [EngineSetting(), EngineSetting("torch", "bf16"), EngineSetting("openvino")],
    ids=str,
)
def test_engines_agree_on_distances_and_leave_logits_as_they_are(setting: EngineSetting) -> None:
    pixels, chosen = make_patches(70), np.array([0, 31, 32, 69])
    plain = Predictor(with_domain()).predict(pixels, chosen)
    found = Predictor(with_domain(), setting).predict(pixels, chosen)
    assert plain.distance is not None
    assert plain.distance.shape == (4,)
    assert found.distance == pytest.approx(plain.distance, rel=0.02)
    without = Predictor(make_checkpoint(), setting).predict(pixels)
    assert found.logits == pytest.approx(without.logits, abs=1e-5)
    assert without.distance is None


def test_distances_are_those_of_the_chosen_patches() -> None:
    predictor, pixels = Predictor(with_domain()), make_patches(40)
    each = predictor.predict(pixels, np.arange(40)).distance
    some = predictor.predict(pixels, np.array([3, 39])).distance
    assert each is not None
    assert some is not None
    assert some.tolist() == each[[3, 39]].tolist()


def test_a_checkpoint_keeps_its_domain(tmp_path: Path) -> None:
    found = load_checkpoint(write_model(tmp_path / "m.safetensors", with_domain()))
    assert found.domain is not None
    assert found.domain.limits == Limits(2.0, 3.0)
    for name, tensor in make_domain().to_tensors().items():
        assert torch.equal(found.domain.to_tensors()[name], tensor), name
    assert found.to_json()["limits"] == {"colour": 2.0, "features": 3.0}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"means": torch.zeros(2, 65), "axes": torch.zeros(1, 65)}, "not of its 64 features"),
        ({"stain_center": torch.zeros(400)}, "not of its 64 features"),
        ({"axes": torch.zeros(3, 64)}, "do not fit together"),
        ({"variances": torch.tensor([1.0, 0.0])}, "a variance of its features is not positive"),
    ],
)
def test_statistics_that_cannot_be_are_refused(
    change: dict[str, torch.Tensor], fault: str, tmp_path: Path
) -> None:
    domain = make_domain()
    for name, tensor in change.items():
        object.__setattr__(domain, name, tensor)
    save_checkpoint(replace(make_checkpoint(), domain=domain), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=fault):
        load_checkpoint(tmp_path / "m.safetensors")


def test_a_missing_statistic_is_refused() -> None:
    with pytest.raises(ModelError, match="a statistic of its training patches is missing"):
        Domain.take({"domain.means": torch.zeros(2, 3)}, {})


@pytest.mark.parametrize("limit", [0, -1.0, "2", True])
def test_limits_that_cannot_be_are_refused(limit: object) -> None:
    tensors = make_domain().to_tensors()
    with pytest.raises(ModelError, match=r"a limit of .* for distances"):
        Domain.take(tensors, {"colour": limit, "features": None})


def test_an_ensemble_has_the_mean_of_its_members_distances_and_limits(tmp_path: Path) -> None:
    members = [with_domain(Limits(2.0, 3.0)), with_domain(Limits(4.0, None))]
    ensemble = load_model(write_folds(tmp_path / "folds", members))
    assert ensemble.domain is not None
    assert ensemble.domain.limits == Limits(3.0, None)
    pixels, chosen = make_patches(3), np.arange(3)
    found = Predictor(ensemble).predict(pixels, chosen)
    one = Predictor(members[0]).predict(pixels, chosen)
    assert found.distance == pytest.approx(one.distance, rel=1e-5)
    assert found.spread == pytest.approx(np.zeros(3), abs=1e-6)


def test_an_ensemble_measures_a_slide_by_all_its_members() -> None:
    further = replace(make_domain(), stain_scale=4 * torch.eye(9))
    stains = np.ones((1, 9), dtype=np.float32)
    found = Domains((make_domain(), further)).measure(stains, np.ones(1, dtype=np.float32))
    assert found == Distance(3.0, 1.0)


def test_an_ensemble_with_a_member_without_domain_has_none() -> None:
    ensemble = Ensemble((with_domain(), make_checkpoint()))
    assert ensemble.domain is None
    assert Predictor(ensemble).predict(make_patches(2), np.arange(2)).distance is None
