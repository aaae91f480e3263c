"""Prediction: a model's engine applied to patches, on the CPU or a GPU."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.buffers import PixelBuffers
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.patch_table import TiledBlock
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device_run import DeviceRun
from wsi_pipeline.models.gathering import cut_patches
from wsi_pipeline.models.lanes import Lanes
from wsi_pipeline.models.model import Model


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
    """A model's logits for patches; threads may share it."""

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
        self._run: Lanes | DeviceRun = (
            Lanes(model, self.setting, batch_size)
            if self.setting.device == "cpu"
            else DeviceRun(model, self.setting, batch_size, measured)
        )

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
        self, patches: NDArray[np.uint8] | TiledBlock, compared: NDArray[np.intp] | None = None
    ) -> Predicted:
        """Return the logits for uint8 (b, side, side, 3), and their spread in an ensemble.

        A GPU also takes them as the tiles under them. `compared` (k,), ascending, are the patches
        whose features are compared with the training patches'.

        Raises ModelError for patches of another size than the model's, EnvironmentFault where the
        device's memory is too small.
        """
        self._check(patches)
        domain, nothing = self.model.domain, np.empty(0, np.intp)
        values, features = self._run.compute(patches, nothing if compared is None else compared)
        logits, *spread = values.T
        result = Predicted(logits, spread[0] if spread else None)
        if domain is None or compared is None:
            return result
        none = np.empty(0, np.float32)
        return result._replace(
            distance=none if features is None else domain.compare_features(features)
        )

    def _check(self, patches: NDArray[np.uint8] | TiledBlock) -> None:
        side = self.model.spec.side_px
        if isinstance(patches, TiledBlock):
            found, is_right = f"{patches.side_px} px", patches.side_px == side
        else:
            found = f"{patches.dtype} {patches.shape[1:]}"
            is_right = patches.shape[1:] == (side, side, 3) and patches.dtype == np.uint8
        if not is_right:
            raise ModelError(f"the model takes uint8 patches of {side} × {side} px, not {found}")

    @property
    def batch_size(self) -> int:
        """Patches that are computed together."""
        return self._run.batch_size

    @property
    def tile_buffers(self) -> PixelBuffers | None:
        """Memory from which a GPU takes decoded tiles; None: patches are cut before, on the CPU."""
        return None if isinstance(self._run, Lanes) else self._run.buffers

    def cut(self, block: TiledBlock, chosen: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return the pixels of some patches of a block, (k, side, side, 3)."""
        return cut_patches(block, chosen)

    def settle_batch(self) -> int:
        """Return the batch size, measured now if it is to be. Raises EnvironmentFault."""
        return self._run.settle_batch()
