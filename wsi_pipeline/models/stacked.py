"""Networks of several checkpoints side by side, as one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsi_pipeline.models.architectures.network import positive_logit, squeeze_logits
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.domain import Domains
from wsi_pipeline.models.ensemble import EnsembleCard, read_members
from wsi_pipeline.models.model import SelfTest


class StackedNetworks(nn.Module):
    """Networks side by side: uint8 (b, side, side, 3) → positive logits float32 (b, k).

    Members that give features beside their `logits` logits: those of all follow, (b, k + features).
    """

    def __init__(self, members: Sequence[nn.Module], logits: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._logits = tuple(logits)

    def forward(self, pixels: Tensor) -> Tensor:
        logits, features = [], []
        for member, count in zip(self.members, self._logits, strict=True):
            output = member(pixels).float()
            if output.ndim == 2:
                features.append(output[:, count:])
                output = squeeze_logits(output[:, :count])
            logits.append(positive_logit(output))
        return torch.cat([torch.stack(logits, dim=1), *features], dim=1)


@dataclass(frozen=True)
class Ensemble(EnsembleCard[Checkpoint]):
    """Two or more checkpoints for the same patches and classes, as one model."""

    self_test: ClassVar[SelfTest | None] = None
    """None: the members' own hold probabilities, of which the mean logit cannot be made exactly."""
    is_script: ClassVar[bool] = False
    resizes_patches: ClassVar[bool] = False

    @property
    def domain(self) -> Domains | None:
        known = tuple(member.domain for member in self.members if member.domain is not None)
        return Domains(known) if len(known) == len(self.members) else None

    def network(self, *, has_features: bool = False) -> nn.Module:
        wanted = has_features and self.domain is not None
        networks = [member.network(has_features=wanted) for member in self.members]
        return StackedNetworks(networks, [member.options.logits for member in self.members]).eval()

    def logit(self, output: Tensor) -> Tensor:
        return output[:, : len(self.members)].float().mean(dim=1)

    def spread(self, output: Tensor) -> Tensor:
        return output[:, : len(self.members)].float().std(dim=1, correction=0)

    def features(self, output: Tensor) -> Tensor | None:
        features = output[:, len(self.members) :]
        return features if features.shape[1] else None


def load_ensemble(folder: Path, terms: ExternalModelTerms | None = None) -> Ensemble:
    """Load all models of a folder of `wsi train --folds`. Raises ModelError as `read_members`."""
    return Ensemble(read_members(folder, lambda path: load_checkpoint(path, terms)))
