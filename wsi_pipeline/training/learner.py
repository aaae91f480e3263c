"""A network together with what changes it: loss, optimiser, schedule, averaged weights, precision."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsi_pipeline.models.inputs import Normalisation
from wsi_pipeline.training.augment import Augmentation
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.objective import Objective
from wsi_pipeline.training.optimizer import Optimisation, make_optimizer, measure_l1
from wsi_pipeline.training.saved_state import pack_optimizer, unpack_optimizer
from wsi_pipeline.training.schedule import Steps, make_scheduler


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
