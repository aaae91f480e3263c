"""The training loop: epochs over patches in memory, judged on validation patches after each."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.models.inputs import Normalisation, normalise
from wsi_pipeline.training.augment import augment
from wsi_pipeline.training.metrics import score

VALIDATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a network is trained."""

    architecture: str = "idc_cnn"
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    patience: int = 5
    """Stop after this many epochs without a better AUROC on the validation patients."""
    augment: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.patience < 1:
            raise ConfigError(f"epochs {self.epochs}, batch size {self.batch_size} and patience {self.patience} must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning rate is {self.learning_rate}; it must be above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight decay is {self.weight_decay}; it must be 0 or more")

    def to_json(self) -> dict[str, Any]:
        """The parameters as they are recorded."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of the history."""

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float
    val_f1_at_half: float
    seconds: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class Batches:
    """Patches and their labels, with how they are normalised."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]
    normalisation: Normalisation
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised patches (b, 3, side, side) and labels (b,) as float32, on the device."""
        chosen = indices.numpy()
        pixels = torch.from_numpy(self.pixels[chosen]).to(self.device)
        labels = torch.from_numpy(self.labels[chosen].astype(np.float32)).to(self.device)
        return normalise(pixels, self.normalisation), labels


def fit(
    network: nn.Module,
    train: Batches,
    val: Batches,
    config: TrainConfig,
    on_epoch: Callable[[Epoch], None],
    on_batch: Callable[[int], None],
) -> tuple[dict[str, Tensor], NDArray[np.float32], list[Epoch]]:
    """Train; the best weights by validation AUROC, their logits on the validation patches, and the history.

    Raises ModelError where the loss stops being a number.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    history: list[Epoch] = []
    best_weights: dict[str, Tensor] = {}
    best_logits = np.empty(0, dtype=np.float32)
    best_epoch = 0
    for number in range(1, config.epochs + 1):
        started = time.perf_counter()
        train_loss = _train_epoch(network, train, optimizer, config, generator, on_batch)
        logits = predict_logits(network, val)
        epoch = _judge(number, train_loss, logits, val.labels, history, time.perf_counter() - started)
        history.append(epoch)
        on_epoch(epoch)
        if epoch.is_best:
            best_weights, best_logits, best_epoch = copy.deepcopy(network.state_dict()), logits, number
        elif number - best_epoch >= config.patience:
            break
    return best_weights, best_logits, history


def _train_epoch(
    network: nn.Module,
    train: Batches,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    generator: torch.Generator,
    on_batch: Callable[[int], None],
) -> float:
    """One pass over the training patches in random order; returns the mean loss."""
    network.train()
    total = 0.0
    for indices in shuffle_batches(len(train), config.batch_size, generator):
        x, labels = train.take(indices)
        if config.augment:
            x = augment(x, generator)
        optimizer.zero_grad(set_to_none=True)
        loss = binary_cross_entropy_with_logits(network(x), labels)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError("the training loss is no longer a number; train again with a lower --lr")
        total += value * len(indices)
        on_batch(len(indices))
    return total / len(train)


def shuffle_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices 0 … count-1 in random order, in batches; a last batch of one joins its neighbour."""
    order = torch.randperm(count, generator=generator)
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches


@torch.inference_mode()
def predict_logits(network: nn.Module, patches: Batches) -> NDArray[np.float32]:
    """Logits (n,) of patches, float32."""
    network.eval()
    parts = [network(patches.take(indices)[0]) for indices in torch.arange(len(patches)).split(VALIDATION_BATCH)]
    return torch.cat(parts).float().cpu().numpy()


def _judge(
    number: int,
    train_loss: float,
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    history: list[Epoch],
    seconds: float,
) -> Epoch:
    if not np.isfinite(logits).all():
        raise ModelError("the network's output is no longer a number; train again with a lower --lr")
    probability = sigmoid(logits)
    scores = score(labels, probability, threshold=0.5)
    target = torch.from_numpy(labels.astype(np.float32))
    val_loss = float(binary_cross_entropy_with_logits(torch.from_numpy(logits), target))
    val_auroc = scores.auroc if scores.auroc is not None else math.nan
    best_so_far = max((epoch.val_auroc for epoch in history), default=-math.inf)
    return Epoch(number, train_loss, val_loss, val_auroc, scores.f1 or 0.0, seconds, is_best=val_auroc > best_so_far)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits, computed as the predictor computes them."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()
