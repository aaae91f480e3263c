"""The choice of a model and of what computes it; it travels between processes.

It needs no torch: a model is loaded where it computes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from wsi_pipeline.core.choices import AUTO, BF16, FP16, FP32
from wsi_pipeline.core.options import ExternalModelOptions

BOUNDS: Mapping[str, float] = {FP32: 1e-4, BF16: 0.03, FP16: 0.01}
"""Largest allowed difference in probability from the reference network in fp32, by precision."""


class Gpu(NamedTuple):
    """A GPU, or a part of one (MIG), that may be used."""

    name: str
    """As CUDA_VISIBLE_DEVICES names it: a number of the machine, or a UUID."""
    uuid: str
    """`GPU-…` or `MIG-…`; empty where it is not known."""


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """Engine, precision and device: part of the recipe of predictions; a slide never mixes two."""

    engine: str = "torch"
    precision: str = FP32
    device: str = "cpu"
    """"cpu" or "cuda"."""

    @property
    def bound(self) -> float:
        """Largest allowed difference in probability from the reference network in fp32."""
        return BOUNDS[self.precision]

    def to_json(self) -> dict[str, Any]:
        """Return the setting as recipes and results record it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.engine} {self.precision} on {'the CPU' if self.device == 'cpu' else 'a GPU'}"


@dataclass(frozen=True, slots=True)
class ExternalModelTerms:
    """Trust and positive class, given by the user, for a model that wsi did not train."""

    trust: str | None = None
    """`sha256:…` of the TorchScript file that may run."""
    positive_class: str | None = None
    """None: the last of at most two."""
    code: str | None = None
    """FILE.py:FUNCTION of the user's own network."""


def read_terms(options: ExternalModelOptions) -> ExternalModelTerms:
    """Return the terms that options state."""
    named = options.arch
    if named is not None:
        file, colon, function = named.rpartition(":")
        named = f"{Path(file).resolve()}{colon}{function}"  # workers may have another folder
    return ExternalModelTerms(options.trust_model, options.positive_class, named)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model and what computes it, chosen once for a run: no slide is computed by two engines."""

    path: Path
    digest: str
    setting: EngineSetting = field(default_factory=EngineSetting)
    batch_size: int | None = None
    """None: as the device has it."""
    terms: ExternalModelTerms = field(default_factory=ExternalModelTerms)
    """A worker trusts an external model by these alone, and checks its digest itself."""
    measured_batch: int | None = field(default=None, compare=False)
    """Batch size that was measured where the engine was chosen; a smaller GPU may halve it."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Device, engine, precision and batch size asked for; "auto" leaves each to the device."""

    device: str = AUTO
    engine: str = AUTO
    precision: str = AUTO
    batch_size: int | None = None
    """None: as the device has it."""


@dataclass(frozen=True, slots=True)
class ResolvedEngine:
    """A choice that runs on this machine and gives the right answers, and its description."""

    choice: ModelChoice
    line: str
