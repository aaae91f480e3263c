"""The training loop: epochs over patches, with validation metrics and a saved state after each."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_pipeline.core.choices import LAST
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.limits import kept_memory
from wsi_pipeline.core.progress import Listener, describe_rate
from wsi_pipeline.models.batch_sizes import choose_cpu_batch
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.device import to_device
from wsi_pipeline.training.config import TrainConfig, derive_seed
from wsi_pipeline.training.data import PixelSource, cut_batches, sample_epoch
from wsi_pipeline.training.faults import predict_in_parts
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.metrics import Floats, Labels, Names
from wsi_pipeline.training.state import SavedState, prefix, save_state, under
from wsi_pipeline.training.threads import map_in_lanes, prepare_ahead

READ_BATCH = 256
"""Patches read at once where no network limits them, and predicted at once on a GPU."""


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
    """True if it is better than all before it; never where the last epoch is kept."""

    def describe(self, epochs: int) -> str:
        """Return the epoch in one line."""
        best = "  best" if self.is_best else ""
        return (
            f"epoch {self.epoch:>3} of {epochs}  loss {self.train_loss:.4f}  validation loss"
            f" {self.val_loss:.4f}  AUROC {self.val_auroc:.4f}  {self.seconds:.0f} s{best}"
        )


@dataclass(frozen=True, slots=True)
class SplitPart:
    """Training or validation patches: labels, patients and pixels."""

    labels: Labels
    patients: Names
    pixels: PixelSource

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class FitHistory:
    """Epochs of a training so far, and the results of the one that is kept."""

    normalisation: Normalisation
    """Mean and deviation of the training patches."""
    epochs: list[Epoch] = field(default_factory=list)
    kept_weights: dict[str, Tensor] = field(default_factory=dict)
    kept_logits: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    """Logits of the kept epoch on the validation patches: (n,), or (n, classes)."""

    @property
    def kept_epoch(self) -> int:
        """Number of the best epoch, or of the last where none is called best; 0 before any."""
        best = (epoch.epoch for epoch in self.epochs if epoch.is_best)
        return max(best, default=len(self.epochs))

    def is_finished(self, config: TrainConfig) -> bool:
        """Return True if all epochs are done, or too many passed without a better one.

        All epochs are done where the last one is kept.
        """
        done = len(self.epochs)
        if done >= config.epochs or config.stop_on == LAST:
            return done >= config.epochs
        return done > 0 and done - self.kept_epoch >= config.patience


def fit(
    learner: Learner,
    train: SplitPart,
    val: SplitPart,
    config: TrainConfig,
    history: FitHistory,
    listener: Listener,
    state_file: Path | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Train from the end of `history` to the last epoch, appending to it.

    Saves the state and `notes` after every epoch if a file is named. Raises ModelError where the
    loss stops being a number.
    """
    on_batch = _count_patches(listener, config, len(train), history)
    with kept_memory():
        while not history.is_finished(config):
            _fit_epoch(learner, train, val, config, history, on_batch)
            if state_file is not None and learner.fabric.is_global_zero:
                save_state(state_file, pack_state(learner, history, notes or {}))
            epoch = history.epochs[-1]
            listener.say(epoch.describe(config.epochs))
            listener.epoch_ended(epoch)


def _fit_epoch(
    learner: Learner,
    train: SplitPart,
    val: SplitPart,
    config: TrainConfig,
    history: FitHistory,
    on_batch: Callable[[int], None],
) -> None:
    """Train and validate one epoch and append it to the history, with what is kept of it."""
    started = time.perf_counter()
    number, rate = len(history.epochs) + 1, learner.learning_rate
    train_loss = _train_epoch(learner, train, config, number, on_batch)
    logits = predict_logits(learner, val)
    metrics = learner.objective.evaluate(val.labels, logits)
    epoch = Epoch(
        epoch=number,
        learning_rate=rate,
        train_loss=train_loss,
        val_loss=metrics.loss,
        val_auroc=metrics.auroc,
        val_average_precision=metrics.average_precision,
        val_balanced_accuracy_at_half=metrics.balanced_accuracy,
        val_f1_at_half=metrics.f1,
        seconds=time.perf_counter() - started,
        is_best=False,
    )
    is_best = config.stop_on != LAST and _is_best(epoch, history, config.stop_on)
    # The first process decides for all.
    epoch = learner.fabric.broadcast(replace(epoch, is_best=is_best))
    history.epochs.append(epoch)
    if epoch.is_best or (config.stop_on == LAST and history.is_finished(config)):
        weights = learner.model.state_dict()
        history.kept_weights = {
            name: tensor.detach().cpu().clone() for name, tensor in weights.items()
        }
        history.kept_logits = logits


def _is_best(epoch: Epoch, history: FitHistory, metric: str) -> bool:
    """Return True if the epoch is better by the metric than all before it."""
    past = (measure(before, metric) for before in history.epochs)
    return measure(epoch, metric) > max(past, default=-math.inf)


def _count_patches(
    listener: Listener, config: TrainConfig, per_epoch: int, history: FitHistory
) -> Callable[[int], None]:
    """Return a function that counts a batch's patches and tells the listener of the progress."""
    started, done = time.perf_counter(), 0
    before, total = len(history.epochs) * per_epoch, config.epochs * per_epoch

    def count(patches: int) -> None:
        nonlocal done
        done += patches
        epoch = min(len(history.epochs) + 1, config.epochs)
        rate = describe_rate(done, total - before, time.perf_counter() - started, "patches")
        listener.progress(f"epoch {epoch} of {config.epochs}{rate}", before + done, total)

    count(0)
    return count


def _train_epoch(
    learner: Learner,
    train: SplitPart,
    config: TrainConfig,
    number: int,
    on_batch: Callable[[int], None],
) -> float:
    """Train on one epoch of patches; return the mean loss."""
    order_draws = torch.Generator().manual_seed(derive_seed(config.seed, number, 0))
    fabric = learner.fabric
    rank, ranks = fabric.global_rank, fabric.world_size
    drawn = sample_epoch(config.sampling, train.labels, train.patients, order_draws)
    batches = cut_batches(train.pixels.arrange(drawn, order_draws), config.batch_size, ranks)
    mine = [batch[rank::ranks] for batch in batches]
    augmentation_draws = torch.Generator().manual_seed(derive_seed(config.seed, number, 1 + rank))
    torch.manual_seed(derive_seed(config.seed, number, -1 - rank))  # dropout
    total = torch.zeros((), device=fabric.device)
    prepared = _prepare(learner, train, mine, augmentation_draws)
    # A GPU computes beside this thread as it is.
    is_ahead = fabric.device.type == "cpu"
    with prepare_ahead(prepared) if is_ahead else closing(prepared) as ready:
        for x, labels in ready:
            total += learner.learn(x, labels) * len(x)
            on_batch(len(x) * ranks)
    mean = float(torch.as_tensor(fabric.all_reduce(total, reduce_op="sum"))) / len(drawn)
    if not math.isfinite(mean):
        raise ModelError("the training loss is not finite; train again with a lower --lr")
    return mean


def _prepare(
    learner: Learner, train: SplitPart, batches: Sequence[Tensor], generator: torch.Generator
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the network's input (b, 3, side, side) and labels (b,) of each batch, on the device."""
    labels = send_labels(train.labels, batches, learner.fabric.device)
    for own, pixels in zip(labels, train.pixels.stream(batches), strict=True):
        yield learner.prepare(pixels, generator), own


def send_labels(
    labels: Labels, batches: Sequence[Tensor], device: torch.device
) -> tuple[Tensor, ...]:
    """Return the labels int64 (b,) of each batch, all of an epoch sent to the device at once."""
    shown = torch.from_numpy(labels.astype(np.int64))[torch.cat([*batches])]
    parts: tuple[Tensor, ...] = to_device(shown, device).split(list(map(len, batches)))
    return parts


def predict_logits(learner: Learner, part: SplitPart) -> Floats:
    """Return float32 logits (n,) or (n, classes) of patches.

    On the CPU in small batches, which stay in its cache, one to a core: they took two thirds of the
    time of large ones.
    """
    order = part.pixels.order_for_reading()
    if learner.fabric.device.type == "cpu":
        size = choose_cpu_batch(part.pixels.side_px)
        stream = part.pixels.stream(order.split(size))
        parts = list(map_in_lanes(learner.predict, stream, torch.get_num_threads()))
    else:
        predict = partial(predict_in_parts, learner.predict)
        parts = list(map(predict, part.pixels.stream(order.split(READ_BATCH))))
    found = torch.cat(parts).cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelError("the network's output is not finite; train again with a lower --lr")
    logits = np.empty_like(found)
    logits[order.numpy()] = found
    return logits


def measure(epoch: Epoch, metric: str) -> float:
    """Return the metric by which epochs are compared; more is better."""
    if metric == "loss":
        return -epoch.val_loss
    name = f"val_{metric}_at_half" if metric in ("f1", "balanced_accuracy") else f"val_{metric}"
    return float(getattr(epoch, name))


def pack_state(learner: Learner, history: FitHistory, notes: Mapping[str, Any]) -> SavedState:
    """Return learner, history and notes as one state to save."""
    state = learner.state()
    kept = prefix("best", history.kept_weights)
    kept["best_logits"] = torch.from_numpy(history.kept_logits)
    epochs = [asdict(epoch) for epoch in history.epochs]
    plain = {**notes, **asdict(history.normalisation), "learner": state.plain, "history": epochs}
    return SavedState({**state.tensors, **kept}, plain)


def unpack_history(state: SavedState) -> FitHistory:
    """Return the history that `pack_state` saved."""
    return FitHistory(
        Normalisation(tuple(state.plain["mean"]), tuple(state.plain["std"])),
        epochs=[Epoch(**row) for row in state.plain["history"]],
        kept_weights=under("best", state.tensors),
        kept_logits=state.tensors["best_logits"].numpy(),
    )
