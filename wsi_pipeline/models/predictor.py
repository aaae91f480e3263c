"""Running a model over patches."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.model import Model

DEFAULT_BATCH_SIZE = 32
"""Small batches stay in the CPU's cache: 32 was a third faster than 64 for idc_cnn on two cores."""


class Predictor:
    """Patches in, calibrated probabilities out; may be shared between threads, computes for one at a time."""

    def __init__(self, model: Model, device: torch.device, batch_size: int = DEFAULT_BATCH_SIZE) -> None:
        self.model = model
        self._device = device
        self._batch_size = batch_size
        self._score = model.place(device)
        self._lock = threading.Lock()
        # On the CPU each batch is computed by one thread, several batches side by side: the order of additions, and with it
        # the last bit of a result, would otherwise depend on the number of cores.
        threads = available_cores() if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(threads, "predict", initializer=_compute_on_one_thread)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (b, side, side, 3) → float32 (b,) probability of the positive class, NaN where the network gave no number.

        Raises ModelError for patches of another size than the model's.
        """
        side = self.model.spec.side_px
        if pixels.shape[1:] != (side, side, 3) or pixels.dtype != np.uint8:
            raise ModelError(f"the model takes uint8 patches of {side} × {side} px, these are {pixels.dtype} {pixels.shape[1:]}")
        starts = range(0, len(pixels), self._batch_size)
        with self._lock:
            batches = self._pool.map(lambda start: self._predict_batch(pixels[start : start + self._batch_size]), starts)
            return np.concatenate([np.empty(0, np.float32), *batches])

    @torch.inference_mode()
    def _predict_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)
        probability = self._score(x).cpu().numpy()
        probability[~np.isfinite(probability)] = np.nan
        return np.asarray(probability, dtype=np.float32)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compute_on_one_thread() -> None:
    torch.set_num_threads(1)
