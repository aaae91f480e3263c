"""How many patches a network is given at once."""

from collections.abc import Callable

import torch

from wsi_pipeline.core.errors import EnvironmentFault

CPU_BATCH = 32
"""Small batches stay in the CPU's cache: 32 patches of 50 px were a fifth faster than 64 for idc_cnn on two cores."""
CPU_PIXELS = CPU_BATCH * 50 * 50
"""Larger patches come in smaller batches."""
GPU_FIXED_BATCH = 256
"""For engines that make themselves ready for one size."""
SMALLEST_MEASURED, LARGEST_MEASURED = 32, 4096
WORTHWHILE = 1.05
"""A doubled batch has to bring this much more."""


def choose_cpu_batch(side_px: int) -> int:
    """The batch for patches of a size on a CPU: read from a table, so that every run gives the same bits."""
    return max(1, min(CPU_BATCH, CPU_PIXELS // side_px**2))


def measure_batch(seconds_of: Callable[[int], float]) -> int:
    """The batch, doubled from 32 on while that brings more patches per second, halved where memory does not suffice.

    `seconds_of` computes a batch of a size. Raises EnvironmentFault where not even one patch fits.
    """
    size, best, best_rate = SMALLEST_MEASURED, 0, 0.0
    while size <= LARGEST_MEASURED:
        try:
            rate = size / max(seconds_of(size), 1e-9)
        except torch.OutOfMemoryError as error:
            if best:
                return best
            size = halve(size, error)
            continue
        if rate < WORTHWHILE * best_rate:
            return best
        best, best_rate = size, rate
        if size < SMALLEST_MEASURED:
            return best
        size *= 2
    return best


def halve(size: int, error: BaseException) -> int:
    """Half the batch. Raises EnvironmentFault where it was one patch already."""
    if size == 1:
        raise EnvironmentFault("the device's memory does not hold the model and one patch; free it, or use --device cpu") from error
    return size // 2
