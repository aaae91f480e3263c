"""The training loop: epochs over patches, metrics on the validation patches and a saved state after each."""

import json
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
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.progress import Listener, describe_rate
from wsi_pipeline.core.recipe import bytes_sha256
from wsi_pipeline.models.inputs import Normalisation
from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.augment import Augmentation
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import PixelSource, cut_batches, draw_epoch
from wsi_pipeline.training.optimise import (
    EpochFigures,
    Objective,
    Optimisation,
    Steps,
    make_optimizer,
    make_scheduler,
    measure_l1,
)

DIGEST_BYTES = 64


@dataclass(frozen=True, slots=True)
class SavedState:
    """What a run needs to go on: named tensors, and the rest as JSON values."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    plain: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix.`, without it."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


def save_state(path: Path, state: SavedState) -> None:
    """Write the state whole or not at all, behind the SHA-256 of what follows. Raises EnvironmentFault where the disk is full."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    # Only this run reads its state, in which a loss may be infinite.
    plain = json.dumps(dict(state.plain), allow_nan=True)
    content = save(tensors, metadata={"plain": plain})
    write_file(path, bytes_sha256(content).encode() + content)


def load_state(path: Path) -> SavedState | None:
    """The state that was saved; None where none was. Raises ModelError where it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    try:
        if bytes_sha256(content).encode() != digest:
            raise ValueError("checksum")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return SavedState(load(content), json.loads(header["__metadata__"]["plain"]))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: the state of this training run is damaged ({error}); begin anew with --force"
        ) from error


def pack_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's `state_dict()` as named tensors and JSON values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"groups": state["param_groups"], "numbers": {}}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain["numbers"][f"{index}.{name}"] = value
    return tensors, plain


def unpack_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict()` that `pack_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *plain["numbers"].items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


class Learner:
    """Takes one step per batch; its whole state can be taken out and put back."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        steps: Steps,
        normalisation: Normalisation,
        fabric: Fabric,
        objective: Objective,
    ) -> None:
        self._choice: Optimisation = config.optimisation
        self._augmentation: Augmentation = config.augmentation
        self._fabric = fabric
        self._network = network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(normalisation.mean, device=fabric.device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(normalisation.std, device=fabric.device).reshape(1, 3, 1, 1)
        self._objective = objective
        self._average: AveragedModel | None = None
        if self._choice.ema is not None:
            self._average = AveragedModel(
                self._network, multi_avg_fn=get_ema_multi_avg_fn(self._choice.ema), use_buffers=True
            )
        self._optimizer = make_optimizer(self._network, self._choice)
        self._scheduler = make_scheduler(self._optimizer, steps, config.schedule)
        if config.is_compiled:
            self._network.compile()  # in place: the weights keep their names
        self._run, self._stepper = fabric.setup(self._network, self._optimizer)

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and saved: the averaged one where weights are averaged."""
        return self._network if self._average is None else self._average.module

    @property
    def objective(self) -> Objective:
        """What it is taught."""
        return self._objective

    @property
    def learning_rate(self) -> float:
        """Rate of the body at the coming step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def learn(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """One step on uint8 pixels (b, side, side, 3) and labels int64 (b,); returns the loss before it, a scalar on the device."""
        self._run.train()
        x = self._augmentation.apply(_to_unit(pixels), generator)
        logits = self._objective.read(self._run(self._standardise(x))).float()
        loss = self._objective.measure_loss(logits, labels)
        penalty = self._choice.l1 * measure_l1(self._network) if self._choice.l1 else 0.0
        self._optimizer.zero_grad(set_to_none=True)
        self._fabric.backward(loss + penalty)
        if self._choice.clip_norm is not None:
            self._fabric.clip_gradients(
                self._run, self._stepper, max_norm=self._choice.clip_norm, error_if_nonfinite=False
            )
        self._stepper.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self._network)
        return loss.detach()

    @torch.inference_mode()
    def predict(self, pixels: Tensor) -> Tensor:
        """float32 logits (b,) of the positive class, or (b, classes), by the network that is judged.

        Always in float32, as inference computes: the threshold lies between two probabilities that
        must occur there.
        """
        self.judged.eval()
        return self._objective.read(self.judged(self._standardise(_to_unit(pixels))))

    def _standardise(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._std

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name."""
        state = {f"network.{name}": tensor for name, tensor in self._network.state_dict().items()}
        if self._average is not None:
            state |= {
                f"average.{name}": tensor for name, tensor in self._average.state_dict().items()
            }
        return state | {
            f"optimizer.{name}": tensor
            for name, tensor in pack_optimizer(self._optimizer.state_dict())[0].items()
        }

    def plain(self) -> dict[str, Any]:
        """Whatever else the next step depends on, as JSON values."""
        return {
            "optimizer": pack_optimizer(self._optimizer.state_dict())[1],
            "scheduler": self._scheduler.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `plain` gave."""
        self._network.load_state_dict(_under("network", tensors))
        if self._average is not None:
            self._average.load_state_dict(_under("average", tensors))
        self._optimizer.load_state_dict(
            unpack_optimizer(_under("optimizer", tensors), plain["optimizer"])
        )
        self._scheduler.load_state_dict(dict(plain["scheduler"]))
        self._fabric.strategy.precision.load_state_dict(dict(plain["precision"]))


def _to_unit(pixels: Tensor) -> Tensor:
    """uint8 (b, side, side, 3) → float32 (b, 3, side, side) from 0 to 1, channels last in memory."""
    return (pixels.float() / 255).permute(0, 3, 1, 2)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }


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

    def describe(self, epochs: int) -> str:
        """Return the epoch in one line."""
        best = "  best" if self.is_best else ""
        return (
            f"epoch {self.epoch:>3} of {epochs}  loss {self.train_loss:.4f}  validation loss"
            f" {self.val_loss:.4f}  AUROC {self.val_auroc:.4f}  {self.seconds:.0f} s{best}"
        )


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


def fit(
    learner: Learner,
    train: Side,
    val: Side,
    config: TrainConfig,
    fabric: Fabric,
    course: Course,
    state_file: Path | None,
    notes: Mapping[str, Any],
    listener: Listener,
) -> None:
    """Train to the end from where `course` stands, carrying it on; saves the state and `notes` after every epoch where a file is named.

    Raises ModelError where the loss stops being a number.
    """
    pace = EpochPace(listener, config.epochs, len(train), len(course.history))
    while not course.is_over(config):
        number = len(course.history) + 1
        started = time.perf_counter()
        learning_rate = learner.learning_rate
        train_loss = _train_epoch(learner, train, config, number, fabric, pace.add)
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
        pace.epochs_done += 1
        listener.say(epoch.describe(config.epochs))
        listener.epoch_ended(epoch)


@dataclass
class EpochPace:
    """Tells a listener after every batch how far training has come."""

    listener: Listener
    epochs: int
    per_epoch: int
    """Patches."""
    epochs_done: int
    done: int = 0
    """Patches trained on by this run."""
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._before = self.epochs_done * self.per_epoch
        self.add(0)

    def add(self, patches: int) -> None:
        """Count a batch."""
        self.done += patches
        total = self.epochs * self.per_epoch
        rate = describe_rate(
            self.done, total - self._before, time.perf_counter() - self.started, "patches"
        )
        line = f"epoch {min(self.epochs_done + 1, self.epochs)} of {self.epochs}{rate}"
        self.listener.progress(line, self._before + self.done, total)


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
