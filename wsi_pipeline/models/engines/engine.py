"""The interface of engines: a model's network made ready on a device, in a precision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.model import Model

Run = Callable[[NDArray[np.uint8]], Tensor]
"""Computes uint8 patches (b, side, side, 3) → float32 (b,) or (b, outputs), on the CPU.

Several threads may call it at once; the same batch gives the same bits in each of them.
"""
Forward = Callable[[Tensor], Tensor]
"""Computes uint8 patches (b, side, side, 3) where they are → (b,) or (b, outputs), on a GPU.

One thread calls it, in torch's inference mode; it queues the work and waits for nothing.
"""


class EngineFault(ModelError):
    """An engine cannot run a model; another engine may."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: its devices, and the functions that make a network ready."""

    summary: str
    precisions: Mapping[str, tuple[str, ...]]
    """By type of device; the engine does not run on a type that is missing here."""
    find_fault: Callable[[Model, str], str | None]
    """Returns the reason, with a remedy, why a model cannot run on a type of device, or None."""
    load: Callable[[Model, EngineSetting, int], Run]
    """Makes the network ready on the CPU, for a batch size. Raises EngineFault where it cannot."""
    is_fixed_shape: bool = False
    """True if every batch must have that size; shorter batches are padded."""
    place: Callable[[Model, EngineSetting, torch.device], Forward] | None = None
    """Makes the network ready on a GPU; None: the engine has none."""
