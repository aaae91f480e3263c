"""Networks, checkpoints and the predictor."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.builders import make_checkpoint, make_patches, write_model
from tests.strangers import rewrite_card
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.errors import EnvironmentFault, ModelError
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import choose_device
from wsi_pipeline.models.model import count_levels, normalisation_of, normalise
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.predictor import Predictor


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ModelError, match="no such architecture; there are idc_cnn, wide_resnet"):
        build_network("resnet9000", 50)


def test_idc_cnn_has_the_guides_layers() -> None:
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in build_network("idc_cnn", 50, NetworkOptions(batch_norm=False))
        .state_dict()
        .items()
        if name.endswith("weight")
    }
    assert list(shapes.values()) == [
        (64, 3, 3, 3),
        (128, 64, 3, 3),
        (256, 128, 3, 3),
        (1024, 4096),
        (512, 1024),
        (1, 512),
    ]


def test_normalisation_by_hand() -> None:
    pixels = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    got = normalise(pixels, Normalisation((0.5, 0.5, 0.2), (0.5, 0.25, 0.1)))
    assert got.shape == (1, 3, 1, 1)
    assert got.flatten().tolist() == pytest.approx([1.0, -2.0, 0.0], abs=1e-6)


def test_measured_normalisation_by_hand() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 1, 3)
    measured = normalisation_of(count_levels(pixels))
    assert measured.mean == pytest.approx((0.5, 0.5, 0.5))
    assert measured.std == pytest.approx((0.5, 0.5, 0.5))


def test_one_colour_does_not_divide_by_zero() -> None:
    black = torch.zeros((2, 3, 3, 3), dtype=torch.uint8)
    assert min(normalisation_of(count_levels(black)).std) > 0


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    terms = ModelTerms(
        Terms(Calibration(0.7, -0.3), 0.37, 0.21, 84.0), Terms(count=0.6), 0.25, (-0.2, 0.1)
    )
    saved = make_checkpoint(mpp=4.0, terms=terms)
    loaded = load_checkpoint(write_model(tmp_path / "m.safetensors", saved))
    assert (loaded.spec, loaded.terms, loaded.class_names) == (
        saved.spec,
        terms,
        ("negative", "positive"),
    )
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in saved.weights.items())
    assert len(loaded.digest) == 64


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write_model(tmp_path / "1.safetensors").read_bytes()
    assert one == write_model(tmp_path / "2.safetensors").read_bytes()


GRID = Terms().to_json()


def change_terms(**changes: object) -> dict[str, object]:
    """Terms of a card, some of them changed."""
    return ModelTerms().to_json() | changes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 99}, "card format 99"),
        ({"format": 1}, "card format 1, this version of wsi reads 2 to 5; train it again"),
        ({"class_names": ["a", "b", "c"]}, "models of two classes only"),
        ({"options": {"dropout": 2}}, "dropout is 2"),
        ({"options": {"colour": 2}}, "options colour are unknown"),
        ({"options": {"head": "dense20"}}, "has no head"),
        ({"architecture": "timm:resnet10t"}, "weights do not fit timm:resnet10t"),
        (
            {"patch": {"side_px": 1_000_000, "stride_px": 50, "mpp": 0.5}},
            "patch size is 1000000 px",
        ),
        (
            {"patch": {"side_px": 2000, "stride_px": 50, "mpp": 0.5}},
            "more than 1,000,000,000; cut smaller",
        ),
        ({"architecture": "unknown"}, "no such architecture"),
        ({"patch": {"side_px": 64, "stride_px": 64, "mpp": 0.5}}, "weights do not fit idc_cnn"),
        ({"patch": {"side_px": 50, "stride_px": 50, "mpp": -1}}, "mpp is -1"),
        ({"patch": None}, "card is damaged"),
        ({"terms": None}, "card is damaged"),
        ({"terms": {}}, "card is damaged"),
        ({"terms": change_terms(count_errors=None)}, "card is damaged"),
        ({"terms": change_terms(count_errors=["a"])}, "card is damaged"),
        ({"terms": change_terms(positive_share=True)}, "card is damaged"),
        ({"terms": change_terms(on_grid=None)}, "card is damaged"),
        ({"terms": change_terms(on_grid=GRID | {"count": 1.5})}, "not a probability"),
        ({"terms": change_terms(on_grid=GRID | {"detect": None})}, "card is damaged"),
        ({"terms": change_terms(on_grid=GRID | {"context_um": 1e9})}, "context of 1000000000"),
        ({"terms": change_terms(alone=GRID | {"slope": 0})}, "slope 0.0 .* not a positive"),
        ({"terms": change_terms(alone=GRID | {"offset": "0"})}, "card is damaged"),
        ({"terms": change_terms(positive_share=1.5)}, "share of positive patches of 1.5"),
        ({"std": [0, 1, 1]}, "three positive deviations"),
        ({"mean": [0.5]}, "three means"),
        ({"mean": ["a", "b", "c"]}, "three means"),
        ({"weights_sha256": "0"}, "weights are damaged"),
        ({"scores": None}, "scores is 'None'"),
        ({"training": None}, "training is 'None'"),
        ({"training": {"parameters": None}}, "parameters is 'None'"),
        ({"training": {"split": []}}, r"split is '\[\]'"),
        ({"training": {"patches": {"train": 3}}}, "patches are '3'"),
        ({"training": {"tool": "wsi"}}, "tool is 'wsi'"),
        ({"training": {"tool": {"packages": 1}}}, "packages is '1'"),
        ({"training": {"stores": {}}}, r"stores is '\{\}'"),
    ],
)
def test_a_card_that_cannot_be_is_refused_by_name(
    changes: dict[str, object], fault: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "m.safetensors", make_checkpoint(architecture="idc_cnn"))
    rewrite_card(path, **changes)
    with pytest.raises(ModelError, match=fault) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_model_that_gives_no_number_is_refused_before_any_slide(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    rewrite_card(path, std=[1e-320] * 3, format=2)
    with pytest.raises(ModelError, match="gives no number for any of 12 synthetic patches"):
        open_predictor(load_checkpoint(path), "cpu", "torch")


def test_a_checkpoint_of_the_format_before_self_tests_is_still_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    rewrite_card(path, format=2)
    assert load_checkpoint(path).self_test is None


def test_an_edited_card_is_found(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes().replace(b'\\"count\\":0.5', b'\\"count\\":0.1'))
    with pytest.raises(ModelError, match="damaged or was edited"):
        load_checkpoint(path)


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_checkpoint(path)


def test_somebody_elses_safetensors_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="not a checkpoint of wsi"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.weights["classifier.bias"][0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        load_checkpoint(write_model(tmp_path / "m.safetensors", checkpoint))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file; train one"):
        load_checkpoint(tmp_path / "m.safetensors")


def predict(checkpoint: Checkpoint, pixels: np.ndarray, batch_size: int = 32) -> np.ndarray:
    return Predictor(checkpoint, batch_size=batch_size)(pixels)


def test_probabilities_are_those_of_the_plain_network() -> None:
    checkpoint, pixels = make_checkpoint(), make_patches(5)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = torch.sigmoid(checkpoint.build()((x - 0.5) / 0.25)).numpy()
    assert predict(checkpoint, pixels) == pytest.approx(expected, abs=1e-5)


def test_temperature_divides_the_logit() -> None:
    warm = make_checkpoint(bias=2.0, temperature=2.0)
    assert predict(warm, make_patches(1))[0] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_hardly_matters(batch_size: int) -> None:
    checkpoint, pixels = make_checkpoint(), make_patches(50)
    assert predict(checkpoint, pixels, batch_size) == pytest.approx(
        predict(checkpoint, pixels), abs=1e-5
    )


def test_the_same_patches_give_the_same_bits() -> None:
    checkpoint, pixels = make_checkpoint(), make_patches(70)
    assert np.array_equal(predict(checkpoint, pixels), predict(checkpoint, pixels))


@pytest.mark.parametrize("bias", [-1.0, 1.0])
def test_an_infinite_logit_is_unreadable_and_not_certain(bias: float) -> None:
    checkpoint = make_checkpoint(bias=bias * 3e38)
    checkpoint.weights["classifier.weight"].fill_(bias * 3e38)
    assert np.isnan(Predictor(checkpoint).predict_logits(make_patches(2))).all()
    assert np.isnan(predict(checkpoint, make_patches(2))).all()


def test_logits_are_the_networks_own() -> None:
    terms = ModelTerms(alone=Terms(Calibration(0.5, -1.0)))
    checkpoint = make_checkpoint(bias=2.0, terms=terms)
    assert Predictor(checkpoint).predict_logits(make_patches(1)) == pytest.approx([2.0])
    assert predict(checkpoint, make_patches(1)) == pytest.approx([0.5])


def test_a_score_that_is_no_number_is_nan_not_negative() -> None:
    checkpoint = make_checkpoint(architecture="idc_cnn")
    checkpoint.weights["features.1.bias"].fill_(float("inf"))
    checkpoint.weights["classifier.0.weight"].fill_(0.0)
    assert np.isnan(predict(checkpoint, make_patches(2))).all()


def test_no_patches_give_no_probabilities() -> None:
    got = predict(make_checkpoint(), make_patches(0))
    assert got.shape == (0,)
    assert got.dtype == np.float32


def test_patches_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match="50 × 50 px"):
        predict(make_checkpoint(), make_patches(2, side_px=64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_the_machines_fault() -> None:
    with pytest.raises(EnvironmentFault, match="--device cpu"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_gpu_and_cpu_agree() -> None:
    checkpoint, pixels = make_checkpoint(), make_patches(40)
    on_gpu = Predictor(checkpoint, EngineSetting("torch", "fp32", "cuda"))(pixels)
    assert on_gpu == pytest.approx(predict(checkpoint, pixels), abs=2e-3)


@pytest.mark.system
def test_fp32_is_exact_and_torch_can_still_read_and_export() -> None:
    """In a process of its own, for the settings are the whole process's."""
    code = """
import torch
from wsi_pipeline.models.device import compute_exactly
compute_exactly()
assert torch.get_float32_matmul_precision() == "highest"
assert not torch.backends.cuda.matmul.allow_tf32
assert not torch.backends.cudnn.allow_tf32
assert torch.backends.cudnn.conv.fp32_precision != "tf32"
network = torch.nn.Conv2d(3, 4, 3).eval()
torch.export.export(network, (torch.zeros(1, 3, 8, 8),))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
