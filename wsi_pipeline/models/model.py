"""What the pipeline knows of a trained model, whoever trained it."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models.self_test import SelfTest


class Model(Protocol):
    """A trained network with its terms of use: a checkpoint of ours, or a folder as in the WSInfer zoo."""

    @property
    def architecture(self) -> str: ...

    @property
    def spec(self) -> PatchSpec:
        """The patches that it was trained on; it must see no others."""
        ...

    @property
    def class_names(self) -> tuple[str, str]:
        """The negative and the positive one."""
        ...

    @property
    def positive_class(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    @property
    def threshold_source(self) -> str: ...

    @property
    def training(self) -> Mapping[str, Any]: ...

    @property
    def is_leaky(self) -> bool: ...

    @property
    def digest(self) -> str:
        """Names everything that decides its probabilities."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What results record about the model that made them."""
        ...

    @property
    def self_test(self) -> SelfTest | None:
        """Patches with the probabilities that it gave for them when it was made; None where nobody stored any."""
        ...

    @property
    def is_script(self) -> bool:
        """Whether its network is TorchScript, whose code cannot be read again."""
        ...

    @property
    def resizes_patches(self) -> bool:
        """Whether its network resizes patches before it looks at them."""
        ...

    def network(self) -> nn.Module:
        """A network of its own on the CPU: uint8 (b, side, side, 3) → output (b,) or (b, classes).

        Raises ModelError where it cannot run.
        """
        ...

    def probability(self, output: Tensor) -> Tensor:
        """The network's output, float32, as probability (b,) of the positive class."""
        ...


def hash_patient(patient_id: str) -> str:
    """A patient as results and exports remember them: enough to find them again, not to read their name."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16]
