"""The training loop: epochs over patches, judged on validation patches after each, its state on disk after each."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.objective import EpochFigures
from wsi_pipeline.training.pixels import PixelSource
from wsi_pipeline.training.sampling import cut_batches, draw_epoch
from wsi_pipeline.training.saved_state import SavedState, save_state

VALIDATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of the history."""

    epoch: int
    learning_rate: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_average_precision: float
    val_balanced_accuracy_at_half: float
    val_f1_at_half: float
    seconds: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class Side:
    """Training or validation patches: their labels, whom they are from, and their pixels."""

    labels: NDArray[np.int8]
    patients: NDArray[np.str_]
    pixels: PixelSource

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Course:
    """How far training has come: what is kept from epoch to epoch beside the learner's own state."""

    history: list[Epoch] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_logits: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    """Of the best epoch, on the validation patches: (n,) of the positive class, or (n, classes)."""

    @property
    def best_epoch(self) -> int:
        """Number of the best epoch; 0 before the first."""
        return max((epoch.epoch for epoch in self.history if epoch.is_best), default=0)

    def is_over(self, config: TrainConfig) -> bool:
        """Whether there are no epochs left, or too many went by without a better one."""
        done = len(self.history)
        return done >= config.epochs or (done > 0 and done - self.best_epoch >= config.patience)


@dataclass(frozen=True, slots=True)
class Watch:
    """Functions that are told how the loop gets on."""

    on_resume: Callable[[int], None] = field(default=lambda epoch: None)
    on_epoch: Callable[[Epoch], None] = field(default=lambda epoch: None)
    on_batch: Callable[[int], None] = field(default=lambda patches: None)


def fit(
    learner: Learner,
    train: Side,
    val: Side,
    config: TrainConfig,
    fabric: Fabric,
    course: Course,
    state_file: Path | None,
    notes: Mapping[str, Any],
    watch: Watch,
) -> None:
    """Train to the end from where `course` stands, carrying it on; saves the state and `notes` after every epoch where a file is named.

    Raises ModelError where the loss stops being a number.
    """
    while not course.is_over(config):
        number = len(course.history) + 1
        started = time.perf_counter()
        learning_rate = learner.learning_rate
        train_loss = _train_epoch(learner, train, config, number, fabric, watch.on_batch)
        logits = predict_logits(learner, val)
        figures = learner.objective.judge(val.labels, logits)
        epoch = _note_epoch(
            number,
            learning_rate,
            train_loss,
            figures,
            course,
            config,
            time.perf_counter() - started,
        )
        epoch = fabric.broadcast(epoch)  # all processes go by what the first one saw
        course.history.append(epoch)
        if epoch.is_best:
            course.best_weights = {
                name: tensor.detach().cpu().clone()
                for name, tensor in learner.judged.state_dict().items()
            }
            course.best_logits = logits
        if state_file is not None and fabric.is_global_zero:
            save_state(state_file, pack_course(learner, course, notes))
        watch.on_epoch(epoch)


def _train_epoch(
    learner: Learner,
    train: Side,
    config: TrainConfig,
    number: int,
    fabric: Fabric,
    on_batch: Callable[[int], None],
) -> float:
    """One pass over the training patches; returns the mean loss."""
    order_draws = torch.Generator().manual_seed(derive_seed(config.seed, number, 0))
    rank, ranks = fabric.global_rank, fabric.world_size
    drawn = draw_epoch(config.sampling, train.labels, train.patients, order_draws)
    batches = cut_batches(train.pixels.arrange(drawn, order_draws), config.batch_size, ranks)
    mine = [batch[rank::ranks] for batch in batches]
    augmentation_draws = torch.Generator().manual_seed(derive_seed(config.seed, number, 1 + rank))
    torch.manual_seed(derive_seed(config.seed, number, -1 - rank))  # dropout
    labels = torch.from_numpy(train.labels.astype(np.int64))
    total = torch.zeros((), device=fabric.device)
    for indices, pixels in zip(mine, train.pixels.stream(mine), strict=True):
        loss = learner.learn(pixels, labels[indices].to(fabric.device), augmentation_draws)
        total += loss * len(indices)
        on_batch(len(indices) * ranks)
    mean = float(torch.as_tensor(fabric.all_reduce(total, reduce_op="sum"))) / len(drawn)
    if not math.isfinite(mean):
        raise ModelError("the training loss is no longer a number; train again with a lower --lr")
    return mean


def derive_seed(seed: int, epoch: int, stream: int) -> int:
    """A seed for one stream of draws of one epoch: nothing of it depends on what was drawn before, so that any epoch can be resumed."""
    return int(
        np.random.SeedSequence([seed, epoch, stream % 2**32]).generate_state(1, np.uint64)[0] >> 1
    )


def predict_logits(learner: Learner, side: Side) -> NDArray[np.float32]:
    """Logits (n,) of patches, or (n, classes), float32."""
    order = side.pixels.order_for_reading()
    batches = list(order.split(VALIDATION_BATCH))
    parts = [learner.predict(pixels).cpu().numpy() for pixels in side.pixels.stream(batches)]
    found = np.concatenate(parts).astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ModelError(
            "the network's output is no longer a number; train again with a lower --lr"
        )
    logits = np.empty_like(found)
    logits[order.numpy()] = found
    return logits


def _note_epoch(
    number: int,
    learning_rate: float,
    train_loss: float,
    figures: EpochFigures,
    course: Course,
    config: TrainConfig,
    seconds: float,
) -> Epoch:
    epoch = Epoch(
        epoch=number,
        learning_rate=learning_rate,
        train_loss=train_loss,
        val_loss=figures.loss,
        val_auroc=figures.auroc,
        val_average_precision=figures.average_precision,
        val_balanced_accuracy_at_half=figures.balanced_accuracy,
        val_f1_at_half=figures.f1,
        seconds=seconds,
        is_best=False,
    )
    best_so_far = max((measure(past, config.stop_on) for past in course.history), default=-math.inf)
    return Epoch(**asdict(epoch) | {"is_best": measure(epoch, config.stop_on) > best_so_far})


def measure(epoch: Epoch, metric: str) -> float:
    """The figure that epochs are compared by; more is better."""
    if metric == "loss":
        return -epoch.val_loss
    name = f"val_{metric}_at_half" if metric in ("f1", "balanced_accuracy") else f"val_{metric}"
    return float(getattr(epoch, name))


def pack_course(learner: Learner, course: Course, notes: Mapping[str, Any]) -> SavedState:
    """Learner, course and notes as one state to save."""
    tensors = learner.tensors() | {
        f"best.{name}": tensor for name, tensor in course.best_weights.items()
    }
    tensors["best_logits"] = torch.from_numpy(course.best_logits)
    plain: dict[str, Any] = {
        **notes,
        "learner": learner.plain(),
        "history": [asdict(epoch) for epoch in course.history],
    }
    return SavedState(tensors, plain)


def unpack_course(state: SavedState) -> Course:
    """The course that `pack_course` put down."""
    return Course(
        history=[Epoch(**row) for row in state.plain["history"]],
        best_weights=state.under("best"),
        best_logits=state.tensors["best_logits"].numpy(),
    )
