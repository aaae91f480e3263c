"""Which patches an epoch shows, and in what batches."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.errors import ConfigError

SAMPLINGS = ("shuffle", "class", "patient", "class-patient")
"""Every patch once; or as many draws with replacement, evenly between the classes, between the patients, or between the classes and
within each class between its patients."""


def draw_epoch(
    how: str, labels: NDArray[np.int8], patients: NDArray[np.str_], generator: torch.Generator
) -> Tensor:
    """Indices (n,) into the n training patches, for one epoch."""
    if how == "shuffle":
        return torch.randperm(len(labels), generator=generator)
    if how not in SAMPLINGS:
        raise ConfigError(f"{how}: no such sampling; there are {', '.join(SAMPLINGS)}")
    weights = torch.from_numpy(_weigh(how, labels, patients))
    # Not torch.multinomial, which takes 2^24 categories at most.
    edges = torch.cumsum(weights, dim=0)
    draws = torch.rand(len(labels), generator=generator, dtype=torch.float64) * edges[-1]
    return torch.searchsorted(edges, draws, right=True).clamp_max(len(labels) - 1)


def _weigh(how: str, labels: NDArray[np.int8], patients: NDArray[np.str_]) -> NDArray[np.float64]:
    """How often each patch is drawn, (n,), up to a factor."""
    if how == "class":
        return _share(labels)
    if how == "patient":
        return _share(patients)
    weights = np.empty(len(labels))
    for label in np.unique(labels):
        members = labels == label
        weights[members] = _share(patients[members])
    return weights


def _share(groups: NDArray[Any]) -> NDArray[np.float64]:
    """Weights that sum to 1 and give every group the same sum."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(counts) * counts[group]), dtype=np.float64)


def cut_batches(order: Tensor, batch_size: int, ranks: int = 1) -> list[Tensor]:
    """An epoch's order cut into batches; a last batch with fewer than two patches for each rank joins its neighbour.

    Batch normalisation needs two patches to learn from.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < 2 * ranks:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def weigh_classes(labels: NDArray[np.int8]) -> tuple[float, float]:
    """Weights of the two classes in the loss that give both the same sum: n / (2 · patches of the class)."""
    negatives, positives = np.bincount(labels, minlength=2)[:2]
    return len(labels) / (2 * negatives), len(labels) / (2 * positives)
