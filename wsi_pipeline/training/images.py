"""Training any network on pictures in memory, with the loop, the optimisers and the schedules of `wsi train`: no stores, no files."""

from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures.network import Network
from wsi_pipeline.models.inputs import Normalisation, normalise
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import MemoryPixels
from wsi_pipeline.training.fit import count_steps, make_fabric, measure_source
from wsi_pipeline.training.loop import (
    VALIDATION_BATCH,
    Course,
    Learner,
    Side,
    derive_seed,
    fit,
)
from wsi_pipeline.training.lr_finder import Sweep, rise_to, sweep_learner
from wsi_pipeline.training.optimise import Objective, Steps, TwoClasses, initialise


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled pictures."""

    pixels: NDArray[np.uint8]
    """(n, side, side, 3) RGB; grey ones have three equal channels."""
    labels: NDArray[np.int8]
    """(n,) 0 … classes - 1."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8:
            raise ConfigError(
                f"pictures are {self.pixels.dtype} {self.pixels.shape}; they must be uint8 (n,"
                " side, side, 3)"
            )
        if len(self.pixels) != len(self.labels):
            raise ConfigError(
                f"{len(self.pixels)} pictures and {len(self.labels)} labels; give one label per"
                " picture"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, members: NDArray[np.intp]) -> "Pictures":
        """Some of them."""
        return Pictures(self.pixels[members], self.labels[members])


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """A network with the weights of its best epoch, and how it came to them."""

    network: Network
    normalisation: Normalisation
    """Mean and deviation of the pictures that it was trained on."""
    course: Course
    """The history, and the best epoch's logits on the validation pictures."""

    @torch.inference_mode()
    def predict_logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's output, (n,) or (n, classes), for pictures uint8 (n, side, side, 3)."""
        device = next(self.network.parameters()).device
        parts = torch.from_numpy(pixels).split(VALIDATION_BATCH)
        outputs = [
            self.network.eval()(normalise(part.to(device), self.normalisation)).float().cpu()
            for part in parts
        ]
        return np.asarray(torch.cat(outputs).numpy(), dtype=np.float32)


def fit_pictures(
    network: Network,
    train: Pictures,
    val: Pictures,
    config: TrainConfig,
    objective: Objective | None = None,
    listener: Listener | None = None,
) -> FittedNetwork:
    """Train a network in place, and leave it with the weights of its best epoch.

    Two classes unless `objective` says otherwise. Of `config`, what speaks of architecture,
    sampling by patient and stores has no meaning here. The same seed and the same number of threads
    give the same weights.
    """
    fabric = _launch(config)
    sides = _as_side(train, fabric), _as_side(val, fabric)
    normalisation = measure_source(sides[0].pixels)
    learner = _make_learner(
        network, config, count_steps(len(train), config), normalisation, fabric, objective
    )
    course = Course()
    fit(learner, *sides, config, fabric, course, None, {}, listener or Listener())
    network.load_state_dict(course.best_weights)
    return FittedNetwork(network, normalisation, course)


def sweep_pictures(
    network: Network,
    train: Pictures,
    config: TrainConfig,
    steps: int,
    highest: float,
    objective: Objective | None = None,
) -> Sweep:
    """Sweep the learning rate over `steps` steps up to `highest`, as `wsi lr-find` does; the network's weights are spent by it."""
    fabric = _launch(config)
    config = rise_to(config, highest)
    side = _as_side(train, fabric)
    learner = _make_learner(
        network, config, Steps(steps, steps), measure_source(side.pixels), fabric, objective
    )
    return sweep_learner(learner, side, config, steps)


def _launch(config: TrainConfig) -> Fabric:
    if config.devices != 1:
        raise ConfigError(
            f"{config.devices} devices for pictures in memory; they are trained on by one"
        )
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
    return Learner(
        network,
        config,
        steps,
        normalisation,
        fabric,
        objective or TwoClasses(config.optimisation.label_smoothing),
    )


def _as_side(pictures: Pictures, fabric: Fabric) -> Side:
    """Every picture a patient of its own."""
    patients = np.arange(len(pictures)).astype(str)
    return Side(
        pictures.labels, patients, MemoryPixels(torch.from_numpy(pictures.pixels), fabric.device)
    )
