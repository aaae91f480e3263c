"""A model on the CPU: blocks of patches become numbers, several batches side by side."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.choices import FP32
from wsi_pipeline.core.errors import memory_fault
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.core.patch_table import TiledBlock
from wsi_pipeline.models.batch_sizes import choose_cpu_batch
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import Run
from wsi_pipeline.models.gathering import cut_patches
from wsi_pipeline.models.model import Model

logger = logging.getLogger(__name__)


class Numbers(NamedTuple):
    """A model's numbers for patches."""

    values: NDArray[np.float32]
    """(b, 1) logits, or (b, 2) logits and spreads of an ensemble; NaN where not finite."""
    features: Tensor | None
    """(b, d), or (k, d) of the patches that were chosen; None where the network gives none."""


class Lanes:
    """A model's network on the CPU; threads may share it and take turns."""

    def __init__(self, model: Model, setting: EngineSetting, batch_size: int | None) -> None:
        """Load the network; `batch_size` None: chosen. Raises ModelError, EnvironmentFault."""
        self._model, self._setting = model, setting
        # Each batch is computed by one thread, several batches side by side: the order of
        # additions, and with it the last bit of a result, would otherwise depend on the number of
        # cores.
        start = partial(torch.set_num_threads, 1)
        self._pool = ThreadPoolExecutor(available_cores(), "predict", start)
        self._computing, self._falling_back = threading.Lock(), threading.Lock()
        self.batch_size = batch_size or choose_cpu_batch(model.spec.side_px)
        self._run = self._load(setting)

    def settle_batch(self) -> int:
        """Return the batch size."""
        return self.batch_size

    def compute(
        self, patches: NDArray[np.uint8] | TiledBlock, compared: NDArray[np.intp]
    ) -> Numbers:
        """Return the numbers of patches; `compared` (k,), ascending, are those with features."""
        pixels = cut_patches(patches) if isinstance(patches, TiledBlock) else patches
        starts = range(0, len(pixels), self.batch_size)
        parts = [pixels[start : start + self.batch_size] for start in starts]
        with self._computing:
            batches = list(self._pool.map(self._compute_batch, parts))
        width = 1 + self._model.is_ensemble
        values = np.concatenate([np.empty((0, width), np.float32), *(b.values for b in batches)])
        features = [
            batch.features[compared[(compared >= start) & (compared < start + len(part))] - start]
            for start, part, batch in zip(starts, parts, batches, strict=True)
            if batch.features is not None
        ]
        return Numbers(values, torch.cat(features) if features else None)

    def _compute_batch(self, pixels: NDArray[np.uint8]) -> Numbers:
        values, features = self._compute(self._run, pixels)
        is_finite = np.asarray(np.isfinite(values).all(axis=1))
        if self._setting.precision != FP32 and not is_finite.all():
            exact = self._compute(self._fp32_run, pixels)
            values, features = np.where(is_finite[:, None], values, exact.values), exact.features
        values[~np.isfinite(values).all(axis=1)] = np.nan
        return Numbers(values, features)

    def _compute(self, run: Run, pixels: NDArray[np.uint8]) -> Numbers:
        count = len(pixels)
        if count < self.batch_size:
            # Whatever others there are, a patch has the same last bits: of a mask, of a sample.
            padding = np.zeros((self.batch_size - count, *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, padding])
        output = run(pixels)[:count]
        logit, spread = self._model.logit(output), self._model.spread(output)
        columns = [logit] if spread is None else [logit, spread]
        values = np.stack([column.numpy() for column in columns], axis=1, dtype=np.float32)
        return Numbers(values, self._model.features(output))

    @property
    def _fp32_run(self) -> Run:
        """The same network in fp32, for batches that a lower precision made infinite."""
        with self._falling_back:
            return self._loaded_fp32_run

    @cached_property
    def _loaded_fp32_run(self) -> Run:
        logger.warning("%s: some results are not finite; they are computed in fp32", self._setting)
        return self._load(EngineSetting("torch", FP32, self._setting.device))

    def _load(self, setting: EngineSetting) -> Run:
        try:
            return ENGINES[setting.engine].load(self._model, setting, self.batch_size)
        except RuntimeError as error:
            raise memory_fault(error) or error from error
