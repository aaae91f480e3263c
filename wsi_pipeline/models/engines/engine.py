"""What every engine is to the rest: a model's network made ready on a device, in a precision."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.choices import BF16, FP16, FP32
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models.model import Model

Run = Callable[[NDArray[np.uint8]], Tensor]
"""uint8 patches (b, side, side, 3) → what the network gives for them, float32 (b,) or (b, classes), on the CPU.

Several threads may call it at once; the same batch gives the same bits in each of them.
"""


class EngineFault(ModelError):
    """An engine turns out not to be for a model; another may be."""


BOUNDS: Mapping[str, float] = {FP32: 1e-4, BF16: 0.03, FP16: 0.01}
"""How far a probability may lie from that of the plain network in fp32, by precision."""


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """What computes: a part of the recipe of predictions, so that two of them never meet in one slide."""

    engine: str = "torch"
    precision: str = FP32
    device: str = "cpu"
    """"cpu" or "cuda"."""

    @property
    def bound(self) -> float:
        """How far a probability may lie from that of the plain network in fp32."""
        return BOUNDS[self.precision]

    def to_json(self) -> dict[str, Any]:
        """As recipes and results record it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.engine} {self.precision} on {'the CPU' if self.device == 'cpu' else 'a GPU'}"


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: where it works, and how it makes a network ready."""

    summary: str
    precisions: Mapping[str, tuple[str, ...]]
    """By type of device; one that is not here is not for this engine."""
    find_fault: Callable[[Model, str], str | None]
    """Why it cannot run a model on a type of device, as half a sentence with a remedy; None where nothing is known against it."""
    load: Callable[[Model, EngineSetting, int], Run]
    """Make ready for batches of a size. Raises EngineFault where the model turns out not to be for this engine."""
    is_fixed_shape: bool = False
    """Whether it takes batches of that size alone; shorter ones are then filled up."""
