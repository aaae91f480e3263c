"""A model's domain, fitted: stains and features of training patches, limits by validation patients.

Each patient counts as one slide, of which as many patches are looked at as of a slide to infer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.covariance import LedoitWolf
from torch import Tensor

from wsi_pipeline.core.outcome import Distance, Limits
from wsi_pipeline.counting.interval import FEWEST_PATCHES
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import to_device
from wsi_pipeline.models.domain import Domain, gives_features, show_features
from wsi_pipeline.models.engines.torch_eager import in_precision
from wsi_pipeline.models.model import PatchNetwork
from wsi_pipeline.models.stains import MOST_SAMPLED, measure_stains, sample_patches
from wsi_pipeline.training.data import LabelledPatches, read_pixels
from wsi_pipeline.training.faults import predict_in_parts
from wsi_pipeline.training.metrics import Floats, Labels
from wsi_pipeline.training.split import Division

BATCH = 256
MOST_PATCHES, MOST_OF_PATIENT = 10_000, 50
"""Training patches that are looked at, in all and of one patient."""
MAX_AXES, PATCHES_PER_AXIS = 64, 10
"""Directions of the features with a variance of their own, and training patches for each."""
FEWEST_PATIENTS = 5
"""Patients that a centre and limits are fitted to; fewer give none."""
QUANTILE = 0.99
"""Share of slides like the validation patients' that a limit lets pass."""
SMALLEST_SCALE, SMALLEST_VARIANCE = 0.005, 1e-3
"""Optical density, and share of the features' mean variance: well above the noise of bf16."""


class Looked(NamedTuple):
    """Patches of one patient that were looked at."""

    labels: Labels
    stains: Floats
    """(k, 9)"""
    features: Tensor
    """(k, d)"""


def learn_domain(
    checkpoint: Checkpoint, patches: LabelledPatches, division: Division, setting: EngineSetting
) -> Domain | None:
    """Return the domain of a trained network's training patches, computed as `setting` says.

    None where the training patches are of fewer than five patients, or a user's network has no
    features to compare.
    """
    own = checkpoint.own_code
    if own is not None and not gives_features(checkpoint.build(), checkpoint.spec.side_px):
        return None
    network = PatchNetwork(show_features(checkpoint.build()), checkpoint.normalisation).eval()
    network = network.to(torch.device(setting.device), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(batch: Tensor) -> Tensor:
        output: Tensor = network(to_device(batch, torch.device(setting.device)))
        return output.float().cpu()

    def look(members: NDArray[np.intp], most: int) -> Iterator[Looked]:
        names = np.unique(patches.patients[members])
        most = max(1, min(most, MOST_PATCHES // len(names)))
        for name in names:
            own = members[patches.patients[members] == name]
            own = own[sample_patches(len(own), most)]
            pixels = read_pixels(patches, own)
            with torch.inference_mode(), in_precision(setting):
                outputs = [
                    predict_in_parts(predict, batch)
                    for batch in torch.from_numpy(pixels).split(BATCH)
                ]
            features = torch.cat(outputs)[:, checkpoint.options.logits :]
            yield Looked(patches.labels[own], measure_stains(pixels), features)

    train = list(look(division.train, MOST_OF_PATIENT))
    if len(train) < FEWEST_PATIENTS:
        return None
    domain = fit_domain(train)
    val = look(division.val, MOST_SAMPLED)
    distances = [
        domain.measure(patient.stains, domain.compare_features(patient.features))
        for patient in val
        if len(patient.labels) >= FEWEST_PATCHES
    ]
    return replace(domain, limits=fit_limits(distances))


def fit_domain(patients: Sequence[Looked]) -> Domain:
    """Return the domain of the patients' patches, without limits.

    The covariance of the patients' stains is shrunk by the method of Ledoit and Wolf (2004).
    """
    medians = np.array([np.median(patient.stains, axis=0) for patient in patients])
    scale = np.maximum(medians.std(axis=0), SMALLEST_SCALE)
    covariance = LedoitWolf().fit(medians / scale)
    whiten = np.linalg.cholesky(covariance.precision_).T / scale
    labels = torch.from_numpy(np.concatenate([each.labels for each in patients]).astype(np.int64))
    x = torch.cat([patient.features for patient in patients]).double()
    means = torch.stack(
        [
            x[labels == label].mean(dim=0) if (labels == label).any() else x.mean(dim=0)
            for label in (0, 1)
        ]
    )
    off = x - means[labels]
    values, vectors = torch.linalg.eigh(off.T @ off / len(off))  # rising
    size = len(values)
    axes = max(0, min(MAX_AXES, size - 1, len(x) // PATCHES_PER_AXIS))
    variances = torch.cat([values.flip(0)[:axes], values[: size - axes].mean().view(1)])
    least = max(float(values.mean()) * SMALLEST_VARIANCE, torch.finfo(torch.float32).tiny)
    return Domain(
        stain_center=torch.from_numpy(medians.mean(axis=0).astype(np.float32)),
        stain_scale=torch.from_numpy(np.ascontiguousarray(whiten, dtype=np.float32)),
        means=means.float(),
        axes=vectors.T.flip(0)[:axes].float().contiguous(),
        variances=variances.clamp(min=least).float(),
    )


def fit_limits(distances: Sequence[Distance]) -> Limits:
    """Return the distances that one slide more like these stays below with a probability of .99.

    The prediction limit of a log-normal distribution, which few slides make wide; None for fewer
    than five.
    """
    if len(distances) < FEWEST_PATIENTS:
        return Limits()
    columns = zip(*distances, strict=True)
    return Limits(*(_predict_limit([value or 0.0 for value in column]) for column in columns))


def _predict_limit(distances: Sequence[float]) -> float:
    logs, count = np.log(np.maximum(distances, 1e-6)), len(distances)
    factor = float(student.ppf(QUANTILE, count - 1)) * math.sqrt(1 + 1 / count)
    return float(np.exp(logs.mean() + factor * logs.std(ddof=1)))
