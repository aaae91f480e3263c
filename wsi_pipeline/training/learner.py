"""A network that learns: one optimiser step per batch, and everything that the next step needs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.training.captured_step import CapturedStep, CudaRecorder
from wsi_pipeline.training.config import TrainConfig
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
    under,
    unpack_optimizer,
)


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
        decay = self._choice.ema
        self._average = None if decay is None else RunningAverage(self._network, decay)
        self._optimizer = make_optimizer(self._network, self._choice)
        self._scheduler = make_scheduler(self._optimizer, steps, config.schedule)
        is_gpu = fabric.device.type == "cuda"
        if config.is_compiled and is_gpu:
            self._network.compile()  # in place: the weights keep their names
        self._run, self._stepper = fabric.setup(self._network, self._optimizer)
        self._descend: Callable[[Tensor, Tensor], Tensor] = self._measure_gradients
        if is_gpu and fabric.world_size == 1 and not config.is_compiled:
            weights = list(self._network.parameters())
            self._descend = CapturedStep(self._measure_gradients, weights, CudaRecorder())

    @property
    def model(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged one if weights are averaged."""
        return self._network if self._average is None else self._average.model

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
        loss = self._descend(x, labels)
        if self._choice.clip_norm is not None:
            self.fabric.clip_gradients(
                self._run, self._stepper, max_norm=self._choice.clip_norm, error_if_nonfinite=False
            )
        self._stepper.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.take_in()
        return loss

    def _measure_gradients(self, x: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a batch in the weights; return its loss."""
        logits = self.objective.read(self._run(x)).float()
        loss = self.objective.measure_loss(logits, labels)
        penalty = self._choice.l1 * measure_l1(self._network) if self._choice.l1 else 0.0
        self._optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss + penalty)
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
            tensors |= prefix("average", self._average.state())
        scheduler = self._scheduler.state_dict()
        precision = self.fabric.strategy.precision.state_dict()
        rest = {"optimizer": plain, "scheduler": scheduler, "precision": precision}
        return SavedState(tensors, rest)

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore the parts of a state that `state` returned."""
        self._network.load_state_dict(under("network", tensors))
        if self._average is not None:
            self._average.restore(under("average", tensors))
        taken = unpack_optimizer(under("optimizer", tensors), plain["optimizer"])
        self._optimizer.load_state_dict(taken)
        match_layout(self._optimizer)
        self._scheduler.load_state_dict(dict(plain["scheduler"]))
        self.fabric.strategy.precision.load_state_dict(dict(plain["precision"]))


class RunningAverage:
    """Exponential running average of a network's weights and buffers.

    Lists of both are made once: torch's own update groups them by device at every step, and copies
    its counter to the GPU.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(network, use_buffers=True)
        self._blend = get_ema_multi_avg_fn(decay)
        of_average, of_network = (
            [*one.parameters(), *one.buffers()] for one in (self._averaged.module, network)
        )
        pairs = [*zip((each.detach() for each in of_average), of_network, strict=True)]
        # Each kind of numbers by itself: the blend looks at the first tensor of a list.
        self._pairs = [
            [pair for pair in pairs if pair[0].is_floating_point() is is_float]
            for is_float in (True, False)
        ]

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._averaged.module

    @torch.no_grad()
    def take_in(self) -> None:
        """Take in the network's weights as they are now; the first ones are copied."""
        is_first = int(self._averaged.n_averaged) == 0  # kept on the CPU
        for pairs in filter(None, self._pairs):
            averages, weights = (list(column) for column in zip(*pairs, strict=True))
            if is_first:
                torch._foreach_copy_(averages, weights)
            else:
                self._blend(averages, weights, self._averaged.n_averaged)
        self._averaged.n_averaged += 1

    def state(self) -> dict[str, Tensor]:
        """Return the averages and their number, as torch names them."""
        return self._averaged.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self._averaged.load_state_dict(state)


def _to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 (b, side, side, 3) as float32 (b, 3, side, side) from 0 to 1, channels last."""
    return (pixels.float() / 255).permute(0, 3, 1, 2)
