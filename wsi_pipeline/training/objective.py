"""What a network is taught and what it is judged by: two classes, as everywhere in `wsi`, or more."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from wsi_pipeline.models.architectures import positive_logit
from wsi_pipeline.training.calibration import apply_temperature
from wsi_pipeline.training.metrics import score


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """What an epoch is judged by; of more than two classes each but the loss is the mean over the classes, one against the others."""

    loss: float
    auroc: float
    average_precision: float
    balanced_accuracy: float
    """Of two classes at a threshold of 0.5, of more by the highest logit; so is F1."""
    f1: float


class Objective(Protocol):
    """How a network's output is read, what it costs, and how good it is."""

    def read(self, output: Tensor) -> Tensor:
        """Logits from a network's output: (b,), or (b, classes)."""
        ...

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar, of logits for labels int64 (b,)."""
        ...

    def judge(self, labels: NDArray[np.int8], logits: NDArray[np.float32]) -> EpochFigures:
        """The figures of logits (n,) or (n, classes) for labels (n,); NaN where one has no meaning."""
        ...


@dataclass(frozen=True, slots=True)
class TwoClasses:
    """Negative and positive: binary cross-entropy on the logit of the positive class."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, float] = (1.0, 1.0)

    def read(self, output: Tensor) -> Tensor:
        return positive_logit(output)

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        negative, positive = self.class_weights
        weights = torch.where(
            labels == 1, positive, negative
        )  # of numbers: no copy to the device in every step
        return binary_cross_entropy_with_logits(logits, targets, weights)

    def judge(self, labels: NDArray[np.int8], logits: NDArray[np.float32]) -> EpochFigures:
        scores = score(labels, apply_temperature(logits, 1.0), threshold=0.5)
        target = torch.from_numpy(labels.astype(np.float32))
        return EpochFigures(
            loss=float(binary_cross_entropy_with_logits(torch.from_numpy(logits), target)),
            auroc=float(
                roc_auc_score(labels, logits)
            ),  # of logits: probabilities of a sure network tie at 1
            average_precision=float(average_precision_score(labels, logits)),
            balanced_accuracy=(
                math.nan if scores.balanced_accuracy is None else scores.balanced_accuracy
            ),
            f1=math.nan if scores.f1 is None else scores.f1,
        )


@dataclass(frozen=True, slots=True)
class ManyClasses:
    """Classes 0 … k-1, each with its logit: cross-entropy. Classes without a picture enter no figure."""

    label_smoothing: float = 0.0

    def read(self, output: Tensor) -> Tensor:
        return output

    def measure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def judge(self, labels: NDArray[np.int8], logits: NDArray[np.float32]) -> EpochFigures:
        present = np.unique(labels)
        one_of_each = (labels[:, None] == present).astype(np.int8)  # (n, classes that occur)
        called = logits.argmax(axis=1)
        return EpochFigures(
            loss=float(
                cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64)))
            ),
            auroc=float(roc_auc_score(one_of_each, logits[:, present], average="macro")),
            average_precision=float(
                average_precision_score(one_of_each, logits[:, present], average="macro")
            ),
            balanced_accuracy=float(recall_score(labels, called, labels=present, average="macro")),
            f1=float(f1_score(labels, called, labels=present, average="macro")),
        )
