"""A model on a GPU: blocks of patches become numbers, in batches that suit the device."""

import logging
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from wsi_pipeline.core.buffers import PixelBuffers, allocate
from wsi_pipeline.core.choices import FP32
from wsi_pipeline.core.errors import EnvironmentFault, GpuLost, gpu_fault, memory_fault, one_line
from wsi_pipeline.core.patch_table import TiledBlock
from wsi_pipeline.models.batch_sizes import (
    GPU_FIXED_BATCH,
    LEAST_S,
    give_memory_back,
    halve,
    is_full,
    measure_batch,
)
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device_queue import Cuda, DeviceQueue, Slot, Task
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import EngineFault, Forward
from wsi_pipeline.models.engines.torch_eager import is_known
from wsi_pipeline.models.gathering import TiledPatches
from wsi_pipeline.models.lanes import Numbers
from wsi_pipeline.models.model import Model

PINNED_BUFFERS = 32
"""Blocks are read by as many threads as a GPU has cores beside it, each with one buffer."""
logger = logging.getLogger(__name__)


def pin(cuda: Cuda, size: int) -> NDArray[np.uint8]:
    """Return pinned memory; ordinary memory where no more can be pinned."""
    try:
        return cuda.pin(size)
    except RuntimeError as error:
        if not is_full(error):
            raise
        logger.warning("no memory can be pinned (%s); copies are slower", one_line(error))
        return allocate(size)


class DeviceRun:
    """A model's network on a GPU; threads may share it."""

    def __init__(
        self, model: Model, setting: EngineSetting, batch_size: int | None, measured: int | None
    ) -> None:
        """Load the network; both sizes None: measured here, before the first block.

        Raises ModelError, and EnvironmentFault where the device's memory is too small.
        """
        self._model, self._setting = model, setting
        self.is_exact = setting.precision == FP32
        self._engine = ENGINES[setting.engine]
        self._is_chosen_by_user = batch_size is not None
        self.batch_size = batch_size or measured or GPU_FIXED_BATCH
        is_given = batch_size is not None or measured is not None
        self._is_to_be_measured = not (is_given or self._engine.is_fixed_shape)
        self._cuda = Cuda()
        self._forward = self._place(setting)
        self._captured: tuple[Tensor, Callable[[], Tensor]] | None = None
        self._can_capture = isinstance(self._forward, nn.Module) and is_known(self._forward)
        self.buffers = PixelBuffers(PINNED_BUFFERS, partial(pin, self._cuda))
        self._queue = DeviceQueue(self._cuda)

    def compute(
        self, patches: NDArray[np.uint8] | TiledBlock, compared: NDArray[np.intp]
    ) -> Numbers:
        """Return the numbers of a block; `compared` (k,), ascending, are those with features.

        Raises EnvironmentFault where the device's memory is too small, GpuLost where it failed.
        """
        if not len(patches):
            width = 1 + self._model.is_ensemble
            return Numbers(np.empty((0, width), np.float32), None)
        if not isinstance(patches, TiledBlock):
            patches = self.buffers.copy(patches)
        numbers: Numbers = self._do(_Block(self, self._model, patches, compared))
        return numbers

    def settle_batch(self) -> int:
        """Return the batch size, measured now if it is to be. Raises EnvironmentFault."""
        self._do(_Measurement(self))
        return self.batch_size

    def _do(self, task: Task) -> Any:
        try:
            return self._queue.do(task)
        except RuntimeError as error:
            raise gpu_fault(error) or error from error

    def _place(self, setting: EngineSetting) -> Forward:
        place = ENGINES[setting.engine].place
        if place is None:
            raise EngineFault(f"engine {setting.engine}: does not run on a GPU; use another")
        try:
            return place(self._model, setting, self._cuda.device)
        except RuntimeError as error:
            raise memory_fault(error) or gpu_fault(error) or error from error

    # --- in the thread that owns the device

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the network's output; that of a whole batch is overwritten by the next one's."""
        count = len(pixels)
        if count == self.batch_size and self._can_capture and self._captured is None:
            self._capture()
        if count == self.batch_size and self._captured is not None:
            inputs, replay = self._captured
            inputs.copy_(pixels)
            return replay()
        if self._engine.is_fixed_shape and count < self.batch_size:
            pixels = pad(pixels, (0, 0, 0, 0, 0, 0, 0, self.batch_size - count))
        return self._forward(pixels)[:count]

    def forward_exactly(self, pixels: Tensor) -> Tensor:
        """Return the output of the same network in fp32."""
        return self._exact(pixels)

    @cached_property
    def _exact(self) -> Forward:
        logger.warning("%s: some results are not finite; they are computed in fp32", self._setting)
        with torch.inference_mode(mode=False):
            return self._place(EngineSetting("torch", FP32, self._setting.device))

    def _capture(self) -> None:
        """Make a whole batch one launch; a network that cannot be captured is launched in parts."""
        side = self._model.spec.side_px
        shape = (self.batch_size, side, side, 3)
        inputs = torch.zeros(shape, dtype=torch.uint8, device=self._cuda.device)
        try:
            self._captured = inputs, self._cuda.capture(self._forward, inputs)
        except RuntimeError as error:
            if isinstance(gpu_fault(error), GpuLost):
                raise
            logger.warning("batches are not captured as a CUDA graph (%s)", one_line(error))
            self._can_capture = False
            give_memory_back(error)

    def measure(self) -> None:
        """Choose the batch size that this device computes fastest; done once."""
        if self._is_to_be_measured:
            self.batch_size = measure_batch(self._time_batch)
            self._is_to_be_measured = False
            give_memory_back()
            logger.info("batches of %d patches", self.batch_size)

    def _time_batch(self, size: int) -> float:
        side, place = self._model.spec.side_px, self._cuda.device
        pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, device=place)

        def compute() -> None:
            self._forward(pixels)
            self._cuda.synchronise()

        compute()  # the first of a size prepares its memory
        started, runs = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < LEAST_S or runs < 2:
            compute()
            runs += 1
        return spent / runs

    def shrink(self, error: RuntimeError) -> None:
        """Halve the batch. Raises EnvironmentFault where it was chosen, or is one patch."""
        if self._is_chosen_by_user or self._engine.is_fixed_shape:
            held = f"the device's memory does not hold batches of {self.batch_size} patches"
            raise EnvironmentFault(f"{held}; give a smaller --batch-size, or auto") from error
        self._captured = None
        self.batch_size = halve(self.batch_size, error)
        give_memory_back(error)
        logger.warning("too little device memory: now batches of %d patches", self.batch_size)


class _Measurement:
    """Choosing the size of batches."""

    def __init__(self, run: DeviceRun) -> None:
        self._run = run

    def launch(self, slot: Slot) -> None:
        self._run.measure()

    def fetch(self, slot: Slot) -> None:
        """Return nothing: the size is the run's."""

    def shrink(self, error: RuntimeError) -> None:
        raise error


class _Block:
    """One block of patches on its way over the device."""

    def __init__(
        self,
        run: DeviceRun,
        model: Model,
        patches: NDArray[np.uint8] | TiledBlock,
        compared: NDArray[np.intp],
    ) -> None:
        self._run, self._model = run, model
        self._patches, self._compared = patches, compared
        self._there: Tensor | TiledPatches
        self._chosen: Tensor

    def launch(self, slot: Slot) -> None:
        self._run.measure()
        self._send(slot)
        slot.answer(*self._compute(self._run.forward))

    def _send(self, slot: Slot) -> None:
        """Begin to copy the block to the device, its small parts first."""
        patches = self._patches
        if isinstance(patches, TiledBlock):
            parts = self._compared, patches.under, patches.corners, patches.tiles
            self._chosen, under, corners, tiles = slot.send(parts)
            self._there = TiledPatches(tiles, under, corners)
        else:
            self._chosen, self._there = slot.send((self._compared, patches))

    def fetch(self, slot: Slot) -> Numbers:
        """Return the numbers; where a lower precision gave no finite ones, those of fp32."""
        values, *features = slot.fetch()
        if not self._run.is_exact and not bool(torch.isfinite(values).all()):
            exact, *features = (part.cpu() for part in self._compute(self._run.forward_exactly))
            values = torch.where(torch.isfinite(values).all(dim=1, keepdim=True), values, exact)
        values[~torch.isfinite(values).all(dim=1)] = torch.nan
        return Numbers(values.numpy(), features[0] if features else None)

    def shrink(self, error: RuntimeError) -> None:
        self._run.shrink(error)

    def _compute(self, forward: Forward) -> list[Tensor]:
        """Queue all batches; logits (with spreads), and the chosen features if there are any."""
        values, features = [], []
        for start in range(0, len(self._patches), self._run.batch_size):
            pixels = self._batch(start, start + self._run.batch_size)
            output = forward(pixels).float()
            logit, spread = self._model.logit(output), self._model.spread(output)
            values.append(torch.stack([logit] if spread is None else [logit, spread], dim=1))
            found = self._model.features(output)
            if found is not None:
                first, last = np.searchsorted(self._compared, [start, start + len(pixels)])
                features.append(found.index_select(0, self._chosen[first:last] - start))
        return [torch.cat(values), *([torch.cat(features)] if features else [])]

    def _batch(self, start: int, stop: int) -> Tensor:
        """Return the pixels of some patches on the device, (b, side, side, 3)."""
        there = self._there
        if isinstance(there, Tensor):
            return there[start:stop]
        part = TiledPatches(there.tiles, there.under[start:stop], there.corners[start:stop])
        return part.gather(self._model.spec.side_px)
