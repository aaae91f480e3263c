"""Training any network on images in memory, with the loop of `wsi train` but without stores."""

from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures.network import Network
from wsi_pipeline.models.card import Normalisation
from wsi_pipeline.models.model import normalise
from wsi_pipeline.training.config import TrainConfig, derive_seed
from wsi_pipeline.training.data import MemoryPixels
from wsi_pipeline.training.fit import count_steps, make_fabric, measure_normalisation
from wsi_pipeline.training.learner import Learner
from wsi_pipeline.training.loop import (
    READ_BATCH,
    FitHistory,
    SplitPart,
    fit,
)
from wsi_pipeline.training.lr_finder import Sweep, rise_to, sweep_learner
from wsi_pipeline.training.optimise import Objective, Steps, TwoClasses, initialise


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images."""

    pixels: NDArray[np.uint8]
    """(n, side, side, 3) RGB; grey ones have three equal channels."""
    labels: NDArray[np.int8]
    """(n,) 0 … classes - 1."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8:
            found = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ConfigError(f"images are {found}; they must be uint8 (n, side, side, 3)")
        if len(self.pixels) != len(self.labels):
            raise ConfigError(
                f"{len(self.pixels)} images and {len(self.labels)} labels; give one label per image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, members: NDArray[np.intp]) -> "Images":
        """Return some of the images."""
        return Images(self.pixels[members], self.labels[members])


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """A network with the weights of its kept epoch, and its training history."""

    network: Network
    history: FitHistory
    """All epochs, and the kept one's logits on the validation images."""

    @torch.inference_mode()
    def predict_logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits (n,) or (n, classes) of images uint8 (n, side, side, 3)."""
        network, normalisation = self.network.eval(), self.history.normalisation
        device = next(network.parameters()).device
        parts = torch.from_numpy(pixels).split(READ_BATCH)
        outputs = [network(normalise(part.to(device), normalisation)) for part in parts]
        return np.asarray(torch.cat(outputs).float().cpu().numpy())


def fit_images(
    network: Network,
    train: Images,
    val: Images,
    config: TrainConfig,
    objective: Objective | None = None,
    listener: Listener | None = None,
) -> FittedNetwork:
    """Train a network in place, and leave it with the weights of the epoch to keep.

    Two classes unless `objective` says otherwise. Settings of architecture, sampling by patient and
    stores in `config` have no effect. The same seed and number of threads give the same weights.
    """
    fabric = _launch(config)
    parts = _as_part(train, fabric), _as_part(val, fabric)
    history = FitHistory(measure_normalisation(parts[0].pixels))
    steps = count_steps(len(train), config)
    learner = _make_learner(network, config, steps, history.normalisation, fabric, objective)
    fit(learner, *parts, config, history, listener or Listener())
    network.load_state_dict(history.kept_weights)
    return FittedNetwork(network, history)


def sweep_images(
    network: Network,
    train: Images,
    config: TrainConfig,
    steps: int,
    highest: float,
    objective: Objective | None = None,
) -> Sweep:
    """Sweep the learning rate over `steps` steps up to `highest`, as `wsi lr-find` does.

    The network's weights are changed and of no further use.
    """
    fabric = _launch(config)
    config = rise_to(config, highest)
    part = _as_part(train, fabric)
    normalisation = measure_normalisation(part.pixels)
    learner = _make_learner(network, config, Steps(steps, steps), normalisation, fabric, objective)
    return sweep_learner(learner, part, config, steps, Listener())


def _launch(config: TrainConfig) -> Fabric:
    if config.devices != 1:
        raise ConfigError(f"{config.devices} devices for images in memory; give devices=1")
    fabric = make_fabric(config)
    fabric.launch()
    return fabric


def _make_learner(
    network: Network,
    config: TrainConfig,
    steps: Steps,
    normalisation: Normalisation,
    fabric: Fabric,
    objective: Objective | None,
) -> Learner:
    torch.manual_seed(derive_seed(config.seed, 0, 0))
    initialise(network, config.optimisation.initialisation)
    objective = objective or TwoClasses(config.optimisation.label_smoothing)
    return Learner(network, config, steps, normalisation, fabric, objective)


def _as_part(images: Images, fabric: Fabric) -> SplitPart:
    """Return the images with one patient per image."""
    patients = np.arange(len(images)).astype(str)
    pixels = MemoryPixels(torch.from_numpy(images.pixels), fabric.device)
    return SplitPart(images.labels, patients, pixels)
