"""The training loop: epochs over patches, with validation metrics and a saved state after each."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsi_pipeline.core.choices import LAST
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.limits import kept_memory
from wsi_pipeline.core.progress import Listener, describe_rate
from wsi_pipeline.models.batch_sizes import choose_cpu_batch
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.training.config import TrainConfig, derive_seed
from wsi_pipeline.training.data import PixelSource, cut_batches, sample_epoch
from wsi_pipeline.training.metrics import Floats, Labels, Names
from wsi_pipeline.training.optimise import (
    Objective,
    Steps,
    make_optimizer,
    make_scheduler,
    match_layout,
    measure_l1,
)
from wsi_pipeline.training.state import (
    SavedState,
    pack_optimizer,
    prefix,
    save_state,
    under,
    unpack_optimizer,
)
from wsi_pipeline.training.threads import map_in_lanes, prepare_ahead

READ_BATCH = 256
"""Patches read at once where no network limits them, and predicted at once on a GPU."""


class Learner:
    """A network with its optimiser, schedule, averaged weights and precision.

    It takes one step per batch; its whole state can be saved and restored.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        steps: Steps,
        normalisation: Normalisation,
        fabric: Fabric,
        objective: Objective,
    ) -> None:
        self.objective = objective
        self._choice = config.optimisation
        self._augmentation = config.augmentation
        self.fabric = fabric
        self._network = network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(normalisation.mean, device=fabric.device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(normalisation.std, device=fabric.device).reshape(1, 3, 1, 1)
        self._average: AveragedModel | None = None
        if self._choice.ema is not None:
            average = get_ema_multi_avg_fn(self._choice.ema)
            self._average = AveragedModel(self._network, multi_avg_fn=average, use_buffers=True)
        self._optimizer = make_optimizer(self._network, self._choice)
        self._scheduler = make_scheduler(self._optimizer, steps, config.schedule)
        if config.is_compiled and fabric.device.type != "cpu":
            self._network.compile()  # in place: the weights keep their names
        self._run, self._stepper = fabric.setup(self._network, self._optimizer)

    @property
    def model(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one if weights are averaged."""
        return self._network if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        """Rate of the body at the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 pixels (b, side, side, 3) augmented and standardised: the network's input.

        Reads nothing that a step changes, so that it may run in a thread beside a step.
        """
        return self._standardise(self._augmentation.apply(_to_unit(pixels), generator))

    def learn(self, x: Tensor, labels: Tensor) -> Tensor:
        """Take a step on a batch that `prepare` returned and its labels int64 (b,).

        Returns the loss before it, a scalar on the device.
        """
        self._run.train()
        logits = self.objective.read(self._run(x)).float()
        loss = self.objective.measure_loss(logits, labels)
        penalty = self._choice.l1 * measure_l1(self._network) if self._choice.l1 else 0.0
        self._optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss + penalty)
        if self._choice.clip_norm is not None:
            self.fabric.clip_gradients(
                self._run, self._stepper, max_norm=self._choice.clip_norm, error_if_nonfinite=False
            )
        self._stepper.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self._network)
        return loss.detach()

    @torch.inference_mode()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return float32 logits (b,) of the positive class, or (b, classes), of `model`.

        Always computed in float32, like inference: the threshold lies between two probabilities
        that must occur there.
        """
        self.model.eval()
        return self.objective.read(self.model(self._standardise(_to_unit(pixels))))

    def _standardise(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._std

    def state(self) -> SavedState:
        """Return everything that the next step depends on."""
        optimizer, plain = pack_optimizer(self._optimizer.state_dict())
        tensors = prefix("network", self._network.state_dict()) | prefix("optimizer", optimizer)
        if self._average is not None:
            tensors |= prefix("average", self._average.state_dict())
        scheduler = self._scheduler.state_dict()
        precision = self.fabric.strategy.precision.state_dict()
        rest = {"optimizer": plain, "scheduler": scheduler, "precision": precision}
        return SavedState(tensors, rest)

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore the parts of a state that `state` returned."""
        self._network.load_state_dict(under("network", tensors))
        if self._average is not None:
            self._average.load_state_dict(under("average", tensors))
        taken = unpack_optimizer(under("optimizer", tensors), plain["optimizer"])
        self._optimizer.load_state_dict(taken)
        match_layout(self._optimizer)
        self._scheduler.load_state_dict(dict(plain["scheduler"]))
        self.fabric.strategy.precision.load_state_dict(dict(plain["precision"]))


def _to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 (b, side, side, 3) as float32 (b, 3, side, side) from 0 to 1, channels last."""
    return (pixels.float() / 255).permute(0, 3, 1, 2)


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
    all_labels = torch.from_numpy(train.labels.astype(np.int64))
    for indices, pixels in zip(batches, train.pixels.stream(batches), strict=True):
        labels = all_labels[indices].to(learner.fabric.device)
        yield learner.prepare(pixels, generator), labels


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
        parts = list(map(learner.predict, part.pixels.stream(order.split(READ_BATCH))))
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
