"""Memory that runs out while a network is trained, and other faults of a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from wsi_pipeline.core.errors import EnvironmentFault, gpu_fault, memory_fault
from wsi_pipeline.models.batch_sizes import give_memory_back, is_full
from wsi_pipeline.training.config import TrainConfig


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Raise a fault of memory or of a GPU as EnvironmentFault, with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not is_full(error):
            raise memory_fault(error) or gpu_fault(error) or error from error
        give_memory_back(error)
        each = config.batch_size // config.devices
        what = f"the GPU's memory does not hold the network and a batch of {each} patches"
        remedy = "give a smaller --batch-size, --cache memory or a smaller network"
        raise EnvironmentFault(f"{what}; {remedy}, or end what else is on the GPU") from error


def predict_in_parts(predict: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Return the predictions (b, …) of a batch, in halves where memory does not hold it whole."""
    try:
        return predict(batch)
    except RuntimeError as error:
        if not is_full(error) or len(batch) < 2:
            raise
        give_memory_back(error)
    return torch.cat([predict_in_parts(predict, half) for half in batch.chunk(2)])
