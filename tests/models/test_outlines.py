"""Names and shapes of weights by arithmetic are those of the networks that are built."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models.architectures import find_architecture, outline_network
from wsi_pipeline.models.outlines import NetworkOptions, count_features, outline_own


def build_shapes(name: str, side_px: int, options: NetworkOptions) -> dict[str, tuple[int, ...]]:
    weights = find_architecture(name).build(side_px, options).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


@settings(max_examples=20, deadline=None)
@given(
    depth=st.sampled_from([10, 16, 22]),
    widening=st.integers(1, 3),
    logits=st.sampled_from([1, 2]),
    head=st.sampled_from(["linear", "dense20"]),
)
def test_wide_residual_networks_have_the_outlined_weights(
    depth: int, widening: int, logits: int, head: str
) -> None:
    name, options = f"wide_resnet_{depth}_{widening}", NetworkOptions(head=head, logits=logits)
    assert outline_own(name, 50, options) == build_shapes(name, 50, options)


@settings(max_examples=15, deadline=None)
@given(side_px=st.integers(22, 120), batch_norm=st.booleans(), logits=st.sampled_from([1, 2]))
def test_idc_cnn_has_the_outlined_weights(side_px: int, batch_norm: bool, logits: int) -> None:
    options = NetworkOptions(batch_norm=batch_norm, logits=logits)
    assert outline_own("idc_cnn", side_px, options) == build_shapes("idc_cnn", side_px, options)


def test_networks_of_other_libraries_are_outlined_by_building_them() -> None:
    assert outline_own("timm:resnet18", 50, NetworkOptions()) is None
    assert outline_network("timm:resnet18", 50)["body.fc.weight"] == (1, 512)


@pytest.mark.parametrize(
    ("name", "features"), [("idc_cnn", 512), ("wide_resnet_16_2", 128), ("timm:resnet18", 512)]
)
def test_features_are_the_inputs_of_the_last_linear_layer(name: str, features: int) -> None:
    assert count_features(outline_network(name, 50)) == features


@pytest.mark.parametrize(
    ("name", "side_px", "fault"),
    [
        ("idc_cnn", 21, "needs patches of 22 px or more"),
        ("wide_resnet_16_2", 4000, "takes patches up to 2048 px"),
        ("idc_cnn", 2048, "parameters for patches of 2048 px, more than"),
        ("wide_resnet_11_1", 50, "a depth of 11"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, side_px: int, fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        outline_own(name, side_px, NetworkOptions())


def test_an_outline_needs_no_torch() -> None:
    code = (
        "import sys; from wsi_pipeline.models.outlines import NetworkOptions, outline_own;"
        "outline_own('wide_resnet_16_2', 50, NetworkOptions()); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
