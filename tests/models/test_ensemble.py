"""The models of a cross-validation as one model: mean, spread, terms, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from tests.builders import make_checkpoint, make_patches, write_folds, write_model
from tests.commands import run
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint
from wsi_pipeline.models.engines.torch_eager import place_network
from wsi_pipeline.models.ensemble import average_terms
from wsi_pipeline.models.loading import load_model, load_unchanged
from wsi_pipeline.models.model import PatchNetwork
from wsi_pipeline.models.opening import open_predictor
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.stacked import Ensemble

BIASES = (-1.0, 0.0, 4.0)
"""Mean 1; deviations -2, -1 and 3, whose mean square is 14 / 3."""
SPREAD = (14 / 3) ** 0.5


def make_members(biases: Sequence[float] = BIASES) -> list[Checkpoint]:
    return [make_checkpoint(bias=bias) for bias in biases]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folds(tmp_path / "folds", make_members())


def test_the_logit_is_the_mean_and_the_spread_the_standard_deviation(folder: Path) -> None:
    logits, spread, _ = Predictor(load_model(folder)).predict(make_patches(3))
    assert logits.tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert spread is not None
    assert spread.tolist() == pytest.approx([SPREAD] * 3, abs=1e-6)
    assert logits.dtype == spread.dtype == np.float32


def test_one_model_has_no_spread() -> None:
    assert Predictor(make_checkpoint()).predict(make_patches(2)).spread is None


def test_no_patches_have_no_logits_and_no_spreads(folder: Path) -> None:
    logits, spread, _ = Predictor(load_model(folder)).predict(make_patches(0))
    assert spread is not None
    assert logits.shape == spread.shape == (0,)


def test_a_patch_that_one_member_gives_no_number_for_is_unreadable() -> None:
    ensemble = Ensemble(tuple(make_members([1.0, float("inf")])))
    logits, spread, _ = Predictor(ensemble).predict(make_patches(2))
    assert spread is not None
    assert np.isnan(logits).all()
    assert np.isnan(spread).all()


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_engines_give_the_members_own_logits(engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    members = [make_checkpoint(seed=seed, side_px=12) for seed in (0, 1)]
    pixels = make_patches(5, 12)
    alone = np.stack([Predictor(member).predict_logits(pixels) for member in members])
    opened = open_predictor(Ensemble(tuple(members)), "cpu", engine, "fp32", batch_size=4)
    logits, spread, _ = opened.predictor.predict(pixels)
    assert np.allclose(logits, alone.mean(axis=0), atol=1e-4)
    assert spread is not None
    assert np.allclose(spread, alone.std(axis=0), atol=1e-4)
    assert spread.min() > 1e-3


def test_members_of_two_logits_count_by_their_difference() -> None:
    network = make_checkpoint(bias=0.0)
    two = replace(network.options, logits=2)
    weights = dict(network.weights)
    weights["classifier.weight"] = weights["classifier.weight"].repeat(2, 1)
    weights["classifier.bias"] = weights["classifier.bias"].new_tensor([1.0, 4.0])
    member = replace(network, options=two, weights=weights)
    logits, spread, _ = Predictor(Ensemble((network, member))).predict(make_patches(1))
    assert logits.tolist() == pytest.approx([1.5])
    assert spread is not None
    assert spread.tolist() == pytest.approx([1.5])


def test_members_may_be_of_different_networks() -> None:
    ensemble = Ensemble((make_checkpoint(), make_checkpoint(architecture="idc_cnn")))
    assert ensemble.architecture == "2 × wide_resnet_10_1 or idc_cnn"


def test_the_terms_are_means_and_the_errors_of_counts_are_all_kept() -> None:
    one = ModelTerms(
        Terms(Calibration(1.0, -0.5), count=0.25, detect=0.25, context_um=100.0),
        Terms(Calibration(2.0, 0.0), count=0.5, detect=0.25),
        positive_share=0.25,
        count_errors=(-0.1, 0.3),
    )
    other = ModelTerms(
        Terms(Calibration(2.0, 1.0), count=0.75, detect=0.5, context_um=141.0),
        Terms(Calibration(4.0, 1.0), count=0.75, detect=0.5),
        positive_share=0.5,
        count_errors=(0.0,),
    )
    found = average_terms([one, other])
    assert found.on_grid == Terms(Calibration(1.5, 0.25), 0.5, 0.375, context_um=120.0)
    assert found.alone == Terms(Calibration(3.0, 0.5), 0.625, 0.375)
    assert found.positive_share == 0.375
    assert found.count_errors == (-0.1, 0.0, 0.3)


def test_a_share_that_one_member_does_not_know_is_not_known() -> None:
    known = replace(ModelTerms(), positive_share=0.2)
    assert average_terms([known, ModelTerms()]).positive_share is None


def test_what_any_member_has_seen_is_seen_and_one_leaky_member_makes_it_leaky() -> None:
    one = replace(make_checkpoint(), training={"split": {"train": ["a"], "val": ["b"]}})
    other = replace(make_checkpoint(), training={"split": {"train": ["b"], "val": ["c"]}})
    both = Ensemble((one, replace(other, is_leaky=True)))
    assert both.seen_patients == tuple(sorted({*one.seen_patients, *other.seen_patients}))
    assert len(both.seen_patients) == 3
    assert both.is_leaky
    assert not Ensemble((one, other)).is_leaky


def test_the_digest_depends_on_the_members_and_their_order(tmp_path: Path, folder: Path) -> None:
    turned = write_folds(tmp_path / "turned", make_members(BIASES[::-1]))
    same = write_folds(tmp_path / "same", make_members())
    assert load_model(turned).digest != load_model(folder).digest
    assert load_model(same).digest == load_model(folder).digest


def test_a_changed_member_is_found(folder: Path) -> None:
    digest = load_model(folder).digest
    write_model(folder / "fold-2" / "model.safetensors", make_checkpoint(bias=9.0))
    with pytest.raises(ModelError, match="folds: has changed since the run began"):
        load_unchanged(folder, digest)


def test_ten_folds_are_taken_by_number(tmp_path: Path) -> None:
    folder = write_folds(tmp_path / "folds", [make_checkpoint(bias=float(k)) for k in range(10)])
    model = load_model(folder)
    assert isinstance(model, Ensemble)
    biases = [float(member.weights["classifier.bias"]) for member in model.members]
    assert biases == list(range(10))


@pytest.mark.parametrize(
    "other", [make_checkpoint(mpp=0.25), replace(make_checkpoint(), class_names=("a", "b"))]
)
def test_members_of_other_patches_or_classes_are_refused(tmp_path: Path, other: Checkpoint) -> None:
    folder = write_folds(tmp_path / "folds", [make_checkpoint(), other])
    with pytest.raises(ModelError, match=r"fold-2: was trained for .*, and .*fold-1 for"):
        load_model(folder)


def test_a_folder_whose_folds_are_not_all_trained_is_refused(folder: Path) -> None:
    (folder / "summary" / "folds.json").unlink()
    with pytest.raises(ModelError, match=r"folds\.json: cannot be read .* again to its end"):
        load_model(folder)


def test_a_missing_member_is_named(folder: Path) -> None:
    (folder / "fold-3" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"fold-3/model\.safetensors: no such model file"):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        "{}",
        '{"models": 3}',
        '{"models": {"fold-1": ""}}',
        '{"models": {"fold-1": "", "../x": ""}}',
        " " * 1_000_001,
    ],
)
def test_a_damaged_list_of_folds_is_refused(folder: Path, content: str) -> None:
    (folder / "summary" / "folds.json").write_text(content)
    with pytest.raises(ModelError, match=r"folds\.json: is damaged"):
        load_model(folder)


def test_a_fold_that_is_not_in_the_summary_is_left_out(folder: Path) -> None:
    write_model(folder / "fold-4" / "model.safetensors", make_checkpoint(bias=9.0))
    model = load_model(folder)
    assert isinstance(model, Ensemble)
    assert len(model.members) == 3


def test_info_describes_the_ensemble(folder: Path) -> None:
    text = run("model", "info", folder).output
    assert "3 × wide_resnet_10_1" in text
    assert "negative, positive (positive: positive)" in text
    assert "means of 3 models, each measured on patients it had not seen" in text
    assert load_checkpoint(folder / "fold-2" / "model.safetensors").digest in text


def test_info_as_json_holds_every_card(folder: Path) -> None:
    facts = json.loads(run("model", "info", folder, "--json").output)
    assert facts["kind"] == "ensemble"
    assert facts["digest"] == load_model(folder).digest
    assert facts["members"] == [card["digest"] for card in facts["models"]]
    assert facts["parameters"] == 3 * facts["models"][0]["parameters"]


def test_check_says_ok(folder: Path) -> None:
    done = run("model", "check", folder)
    assert done.exit_code == 0
    assert "ok: 3 × wide_resnet_10_1" in done.output


def test_check_names_a_damaged_member(folder: Path) -> None:
    path = folder / "fold-2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    done = run("model", "check", folder)
    assert done.exit_code == 1
    assert "fold-2" in done.output


def test_an_ensemble_is_not_exported(folder: Path, tmp_path: Path) -> None:
    done = run("export", folder, "--to", "torchscript", "--out", tmp_path / "zoo")
    assert done.exit_code != 0
    assert "holds the models of several folds, and this takes one; name one of them" in done.output
    assert not (tmp_path / "zoo").exists()


def test_the_network_has_its_batch_normalisation_folded_in_every_member() -> None:
    placed = place_network(
        Ensemble((make_checkpoint(), make_checkpoint(seed=1))), torch.device("cpu")
    )
    parts = [part for part in placed.modules() if isinstance(part, PatchNetwork)]
    assert len(parts) == 2
    assert all(isinstance(part.network, fx.GraphModule) for part in parts)
