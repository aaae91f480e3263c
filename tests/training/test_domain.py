"""A model's domain, fitted on training patients, and its limits, on validation patients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import make_training_stores
from tests.commands import run
from wsi_pipeline.core.outcome import Distance, Limits
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.training.domain import Looked, fit_domain, fit_limits


def make_patients(count: int = 40, patches: int = 30) -> list[Looked]:
    """Patients whose stains deviate by 0.1 from 1; features of 3 around 0 or 5, by 2, 1 and 1."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        labels = (np.arange(patches) % 2).astype(np.int8)
        stains = 1 + 0.1 * rng.normal(size=9) + np.zeros((patches, 9))
        features = rng.normal(size=(patches, 3)) * [2, 1, 1] + 5 * labels[:, None]
        found.append(Looked(labels, stains.astype(np.float32), torch.from_numpy(features)))
    return found


def test_a_patient_like_the_others_is_at_a_distance_of_about_one() -> None:
    patients = make_patients()
    domain = fit_domain(patients)
    found = [
        domain.measure(each.stains, domain.compare_features(each.features)) for each in patients
    ]
    colour = [distance.colour for distance in found if distance.colour is not None]
    features = [distance.features for distance in found if distance.features is not None]
    assert np.mean(colour) == pytest.approx(1, abs=0.15)
    assert np.mean(features) == pytest.approx(0.9, abs=0.15)  # the median of a chi over root 3


def test_the_means_are_those_of_the_classes() -> None:
    domain = fit_domain(make_patients())
    assert domain.means.numpy() == pytest.approx(np.array([[0.0] * 3, [5.0] * 3]), abs=0.3)


def test_a_shift_of_all_stains_is_further_than_its_parts() -> None:
    """Stains that vary together between patients are far where they part."""
    rng = np.random.default_rng(1)
    patients = [
        patient._replace(stains=np.full((30, 9), 1 + 0.1 * rng.normal(), dtype=np.float32))
        for patient in make_patients()
    ]
    domain = fit_domain(patients)
    one, all_nine = np.ones((1, 9), dtype=np.float32), np.full((1, 9), 1.2, dtype=np.float32)
    one[0, 0] = 1.2
    near = np.ones(1, dtype=np.float32)
    apart, together = domain.measure(one, near).colour, domain.measure(all_nine, near).colour
    assert apart is not None
    assert together is not None
    assert apart > 2 * together


def test_a_limit_is_the_prediction_limit_of_a_log_normal_distribution() -> None:
    """Five logarithms of mean 0 and deviation 1: 3.747 is Student's t at .99 for 4 degrees."""
    distances = [Distance(math.exp(log), 2.0) for log in (-1, -1, 0, 1, 1)]
    limits = fit_limits(distances)
    assert limits.colour == pytest.approx(math.exp(3.747 * math.sqrt(1.2)), rel=1e-3)
    assert limits.features == pytest.approx(2.0)


def test_four_patients_give_no_limit() -> None:
    assert fit_limits([Distance(1.0, 1.0)] * 4) == Limits()


def test_training_leaves_a_domain_in_the_model(tmp_path: Path) -> None:
    make_training_stores(tmp_path / "stores", patients=12)
    done = run(
        *("train", tmp_path / "stores", "--out", tmp_path / "model", "--epochs", 1),
        *("--arch", "wide_resnet_10_1", "--device", "cpu", "--val-fraction", 0.45),
    )
    assert done.exit_code == 0, done.output
    domain = load_checkpoint(tmp_path / "model" / "model.safetensors").domain
    assert domain is not None
    assert domain.limits.colour is not None
    assert domain.limits.features is not None


def test_too_few_training_patients_have_no_domain(tmp_path: Path) -> None:
    make_training_stores(tmp_path / "stores", patients=4)
    done = run(
        *("train", tmp_path / "stores", "--out", tmp_path / "model", "--epochs", 1),
        *("--arch", "wide_resnet_10_1", "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    assert load_checkpoint(tmp_path / "model" / "model.safetensors").domain is None
