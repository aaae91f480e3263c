"""Prediction: a model's engine applied to patches, in batches that suit the device."""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.core.choices import FP32
from wsi_pipeline.core.errors import (
    EnvironmentFault,
    ModelError,
    gpu_fault,
    is_gpu_full,
    memory_fault,
)
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.engines import ENGINES
from wsi_pipeline.models.engines.engine import Run
from wsi_pipeline.models.model import Model

GPU_LANES = 2
"""One batch is copied while the other is computed."""
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
logger = logging.getLogger(__name__)


class Predicted(NamedTuple):
    """A model's logits for patches, their spread in an ensemble, and how far some are from it."""

    logits: NDArray[np.float32]
    """(b,) of the positive class; NaN where the network gave no finite number."""
    spread: NDArray[np.float32] | None
    """(b,) standard deviation of the logits of an ensemble's members, NaN as above; None: one
    model.
    """
    distance: NDArray[np.float32] | None = None
    """(k,) of the features of the chosen patches from the training patches'; None: not known."""


class Predictor:
    """A model's logits for patches; threads may share it and take turns."""

    def __init__(
        self,
        model: Model,
        setting: EngineSetting | None = None,
        batch_size: int | None = None,
        measured: int | None = None,
    ) -> None:
        """Load the model; `batch_size` None: chosen for the device, or `measured` elsewhere.

        Raises ModelError, and EnvironmentFault where the device's memory is too small.
        """
        self.model = model
        self.setting = setting or EngineSetting()
        self._engine = ENGINES[self.setting.engine]
        self._is_chosen_by_user = batch_size is not None
        is_on_cpu = self.setting.device == "cpu"
        # On the CPU each batch is computed by one thread, several batches side by side: the order
        # of additions, and with it the last bit of a result, would otherwise depend on the number
        # of cores.
        lanes = available_cores() if is_on_cpu else GPU_LANES
        start = partial(torch.set_num_threads, 1) if is_on_cpu else None
        self._pool = ThreadPoolExecutor(lanes, "predict", start)
        self._computing, self._falling_back = threading.Lock(), threading.Lock()
        is_given = batch_size is not None or measured is not None
        self._is_to_be_measured = not (is_given or is_on_cpu or self._engine.is_fixed_shape)
        chosen = choose_cpu_batch(model.spec.side_px) if is_on_cpu else measured or GPU_FIXED_BATCH
        self.batch_size = batch_size or chosen
        self._run = self._load(self.setting)

    def __repr__(self) -> str:
        spec, setting = self.model.spec, self.setting
        return (
            f"Predictor({self.model.architecture}: patches of {spec.side_px} px at {spec.mpp:g}"
            f" µm/px, {setting.engine} {setting.precision})"
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (b,) probability of the positive class, each patch alone, no context.

        As `predict_logits`.
        """
        return self.model.terms.alone.calibration.apply(self.predict_logits(pixels))

    def predict_logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (b,) logit of the positive class for uint8 (b, side, side, 3).

        As `predict`.
        """
        return self.predict(pixels).logits

    def predict(
        self, pixels: NDArray[np.uint8], compared: NDArray[np.intp] | None = None
    ) -> Predicted:
        """Return the logits for uint8 (b, side, side, 3), and their spread in an ensemble.

        `compared` (k,) are the patches whose features are compared with the training patches'.

        Raises ModelError for patches of another size than the model's, EnvironmentFault where the
        device's memory is too small.
        """
        side = self.model.spec.side_px
        if pixels.shape[1:] != (side, side, 3) or pixels.dtype != np.uint8:
            found = f"{pixels.dtype} {pixels.shape[1:]}"
            raise ModelError(f"the model takes uint8 patches of {side} × {side} px, not {found}")
        with self._computing:
            while True:
                try:
                    if self._is_to_be_measured and len(pixels):
                        self._measure()
                    return self._predict(pixels, compared)
                except RuntimeError as error:
                    self._recover(error)

    def settle_batch(self) -> int:
        """Return the batch size, measured now if it is to be. Raises EnvironmentFault."""
        with self._computing:
            if self._is_to_be_measured:
                try:
                    self._measure()
                except RuntimeError as error:
                    raise gpu_fault(error) or error from error
        return self.batch_size

    def _predict(self, pixels: NDArray[np.uint8], compared: NDArray[np.intp] | None) -> Predicted:
        size, width, domain = self.batch_size, 1 + self.model.is_ensemble, self.model.domain
        starts = range(0, len(pixels), size)
        parts = [pixels[start : start + size] for start in starts]
        batches = list(self._pool.map(self._predict_batch, parts))
        columns = np.concatenate([np.empty((0, width), np.float32), *(b.values for b in batches)]).T
        spread = columns[1] if self.model.is_ensemble else None
        if domain is None or compared is None:
            return Predicted(columns[0], spread)
        features = [
            batch.features[compared[(compared >= start) & (compared < start + size)] - start]
            for start, batch in zip(starts, batches, strict=True)
            if batch.features is not None
        ]
        none = np.empty(0, np.float32)
        distance = domain.compare_features(torch.cat(features)) if features else none
        return Predicted(columns[0], spread, distance)

    def _predict_batch(self, pixels: NDArray[np.uint8]) -> "_Batch":
        values, features = self._compute(self._run, pixels)
        is_finite = np.asarray(np.isfinite(values).all(axis=1))
        if self.setting.precision != FP32 and not is_finite.all():
            exact = self._compute(self._fp32_run, pixels)
            values, features = np.where(is_finite[:, None], values, exact.values), exact.features
        values[~np.isfinite(values).all(axis=1)] = np.nan
        return _Batch(values, features)

    def _compute(self, run: Run, pixels: NDArray[np.uint8]) -> "_Batch":
        count = len(pixels)
        if self._engine.is_fixed_shape and count < self.batch_size:
            padding = np.zeros((self.batch_size - count, *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, padding])
        output = run(pixels)[:count]
        logit, spread = self.model.logit(output), self.model.spread(output)
        columns = [logit] if spread is None else [logit, spread]
        values = np.stack([column.numpy() for column in columns], axis=1, dtype=np.float32)
        return _Batch(values, self.model.features(output))

    @property
    def _fp32_run(self) -> Run:
        """The same network in fp32, for batches that a lower precision made infinite."""
        with self._falling_back:
            return self._loaded_fp32_run

    @cached_property
    def _loaded_fp32_run(self) -> Run:
        logger.warning("%s: some results are not finite; they are computed in fp32", self.setting)
        fp32 = EngineSetting("torch", FP32, self.setting.device)
        return self._load(fp32)

    def _load(self, setting: EngineSetting) -> Run:
        try:
            return ENGINES[setting.engine].load(self.model, setting, self.batch_size)
        except RuntimeError as error:
            raise memory_fault(error) or gpu_fault(error) or error from error

    def _measure(self) -> None:
        """Choose the batch size that this device computes fastest; done once per predictor."""
        self.batch_size = measure_batch(self._time_batch)
        self._is_to_be_measured = False
        give_memory_back()
        logger.info("batches of %d patches", self.batch_size)

    def _time_batch(self, size: int) -> float:
        side = self.model.spec.side_px
        pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
        self._run(pixels)  # the first of a size prepares its memory
        started, runs = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < LEAST_S or runs < 2:
            self._run(pixels)
            runs += 1
        return spent / runs

    def _recover(self, error: RuntimeError) -> None:
        """Halve the batch where memory ran out. Raises the GPU's fault, or the error itself."""
        if not is_full(error):
            raise gpu_fault(error) or error from error
        self._shrink(error)

    def _shrink(self, error: RuntimeError) -> None:
        if self._is_chosen_by_user or self._engine.is_fixed_shape:
            held = f"the device's memory does not hold batches of {self.batch_size} patches"
            raise EnvironmentFault(f"{held}; give a smaller --batch-size, or auto") from error
        self.batch_size = halve(self.batch_size, error)
        give_memory_back(error)
        logger.warning("too little device memory: now batches of %d patches", self.batch_size)


class _Batch(NamedTuple):
    values: NDArray[np.float32]
    """(b, 1) logits, or (b, 2) logits and spreads."""
    features: torch.Tensor | None
    """(b, d)"""


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
