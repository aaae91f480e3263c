"""Sizes of batches: a CPU's by a rule, a GPU's measured, and halved where memory runs out."""

import traceback
from collections.abc import Callable

import torch

from wsi_pipeline.core.errors import EnvironmentFault, is_gpu_full

CPU_BATCH = 32
"""Small batches stay in the CPU's cache: 32 patches of 50 px were a fifth faster than 64."""
CPU_PIXELS = CPU_BATCH * 50 * 50
"""Larger patches come in smaller batches."""
GPU_FIXED_BATCH = 256
"""For engines that make themselves ready for one size."""
SIZES_MEASURED = (256, 512, 1024, 2048, 4096)
LEAST_S = 0.05
"""A size is measured for so long: a GPU changes its clock within milliseconds."""
WORTHWHILE = 1.05
"""A larger batch has to bring this much more."""


def choose_cpu_batch(side_px: int) -> int:
    """Return a CPU's batch size from a fixed rule, so that every run gives the same bits."""
    return max(1, min(CPU_BATCH, CPU_PIXELS // side_px**2))


def measure_batch(seconds_of: Callable[[int], float]) -> int:
    """Return the smallest batch size within 5 % of the fastest of `SIZES_MEASURED`.

    `seconds_of` computes a batch of a given size. Where memory holds not even the smallest, that is
    halved until it fits. Raises EnvironmentFault where one patch does not fit.
    """
    rates: dict[int, float] = {}
    for size in SIZES_MEASURED:
        try:
            rates[size] = size / max(seconds_of(size), 1e-9)
        except RuntimeError as error:
            if not is_full(error):
                raise
            give_memory_back(error)
            if not rates:
                return _halve_until_it_fits(size, seconds_of, error)
            break
    return next(size for size in rates if rates[size] * WORTHWHILE >= max(rates.values()))


def _halve_until_it_fits(size: int, seconds_of: Callable[[int], float], error: RuntimeError) -> int:
    while True:
        size = halve(size, error)
        try:
            seconds_of(size)
        except RuntimeError as another:
            if not is_full(another):
                raise
            error = another
            give_memory_back(error)
        else:
            return size


def is_full(error: RuntimeError) -> bool:
    """Return True where the device's memory ran out, in whatever words."""
    return isinstance(error, torch.OutOfMemoryError) or is_gpu_full(error)


def give_memory_back(error: BaseException | None = None) -> None:
    """Return a GPU's unused memory to the others; the frames of an error hold some of it."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halve(size: int, error: BaseException) -> int:
    """Return half the batch. Raises EnvironmentFault where it was one patch already."""
    if size == 1:
        raise EnvironmentFault(
            "the device's memory does not hold the model and one patch; free it or use --device cpu"
        ) from error
    return size // 2
