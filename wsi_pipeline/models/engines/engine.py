"""The interface of engines: a model's network made ready on a device, in a precision."""

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
"""Computes uint8 patches (b, side, side, 3) → float32 (b,) or (b, outputs) on the CPU.

Several threads may call it at once; the same batch gives the same bits in each of them.
"""


class EngineFault(ModelError):
    """An engine cannot run a model; another engine may."""


BOUNDS: Mapping[str, float] = {FP32: 1e-4, BF16: 0.03, FP16: 0.01}
"""Largest allowed difference in probability from the reference network in fp32, by precision."""


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """Engine, precision and device: part of the recipe of predictions; a slide never mixes two."""

    engine: str = "torch"
    precision: str = FP32
    device: str = "cpu"
    """"cpu" or "cuda"."""

    @property
    def bound(self) -> float:
        """Largest allowed difference in probability from the reference network in fp32."""
        return BOUNDS[self.precision]

    def to_json(self) -> dict[str, Any]:
        """Return the setting as recipes and results record it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.engine} {self.precision} on {'the CPU' if self.device == 'cpu' else 'a GPU'}"


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: its devices, and the function that makes a network ready."""

    summary: str
    precisions: Mapping[str, tuple[str, ...]]
    """By type of device; the engine does not run on a type that is missing here."""
    find_fault: Callable[[Model, str], str | None]
    """Returns the reason, with a remedy, why a model cannot run on a type of device, or None."""
    load: Callable[[Model, EngineSetting, int], Run]
    """Makes the network ready for a batch size. Raises EngineFault where the engine cannot."""
    is_fixed_shape: bool = False
    """True if every batch must have that size; shorter batches are padded."""
