"""Ensembles: the models of a cross-validation, run together.

A patch's logit is the mean of the members' logits; their spread tells how far the members differ.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.choices import FOLD, FOLDS_JSON, FOLDS_SUMMARY, MODEL_FILE
from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.core.recipe import recipe_digest
from wsi_pipeline.models.architectures.network import positive_logit, squeeze_logits
from wsi_pipeline.models.checkpoint import Checkpoint, load_checkpoint
from wsi_pipeline.models.domain import Domains
from wsi_pipeline.models.model import SelfTest

MAX_BYTES = 1_000_000
MEMBER = re.compile(rf"{FOLD}[1-9][0-9]{{0,3}}")


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
class Ensemble:
    """Two or more checkpoints for the same patches and classes, as one model."""

    members: tuple[Checkpoint, ...]

    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    self_test: ClassVar[SelfTest | None] = None
    """None: the members' own hold probabilities, of which the mean logit cannot be made exactly."""
    is_ensemble: ClassVar[bool] = True
    is_script: ClassVar[bool] = False
    resizes_patches: ClassVar[bool] = False

    @property
    def architecture(self) -> str:
        names = dict.fromkeys(member.architecture for member in self.members)
        return f"{len(self.members)} × {' or '.join(names)}"

    @property
    def spec(self) -> PatchSpec:
        return self.members[0].spec

    @property
    def class_names(self) -> tuple[str, str]:
        return self.members[0].class_names

    @property
    def positive_class(self) -> str:
        return self.members[0].positive_class

    @property
    def terms(self) -> ModelTerms:
        """The means of the members' terms, because no patient is unseen by all members."""
        return average_terms([member.terms for member in self.members])

    @property
    def threshold_source(self) -> str:
        return (
            f"means of {len(self.members)} models, each measured on patients it had not seen; all"
            " together were not measured"
        )

    @property
    def is_leaky(self) -> bool:
        return any(member.is_leaky for member in self.members)

    @property
    def seen_patients(self) -> tuple[str, ...]:
        """Hashes of the patients that any member has seen."""
        return tuple(sorted({name for member in self.members for name in member.seen_patients}))

    @property
    def digest(self) -> str:
        """Digest of the members' digests, in their order."""
        return recipe_digest({"members": [member.digest for member in self.members]})

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "architecture": self.architecture,
            "members": [member.digest for member in self.members],
            "patch": self.spec.to_json(),
            "class_names": list(self.class_names),
            "terms": self.terms.to_json(),
            "threshold_source": self.threshold_source,
            "is_leaky": self.is_leaky,
            "limits": None if (domain := self.domain) is None else domain.limits._asdict(),
            "seen_patients": list(self.seen_patients),
        }

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


def average_terms(members: Sequence[ModelTerms]) -> ModelTerms:
    """Return the means of models' terms, and all their errors of counts.

    Each error was measured on a patient that its own model had not seen.
    """
    shares = [member.positive_share for member in members if member.positive_share is not None]
    return ModelTerms(
        on_grid=_average([member.on_grid for member in members]),
        alone=_average([member.alone for member in members]),
        positive_share=float(np.mean(shares)) if len(shares) == len(members) else None,
        count_errors=tuple(sorted(error for member in members for error in member.count_errors)),
    )


def _average(terms: Sequence[Terms]) -> Terms:
    calibrations = [one.calibration for one in terms]
    return Terms(
        Calibration(
            slope=float(np.mean([one.slope for one in calibrations])),
            offset=float(np.mean([one.offset for one in calibrations])),
        ),
        count=float(np.mean([one.count for one in terms])),
        detect=float(np.mean([one.detect for one in terms])),
        context_um=float(round(np.mean([one.context_um for one in terms]))),
    )


def is_ensemble_folder(path: Path) -> bool:
    """Return whether a path is a folder of `wsi train --folds`, finished or not."""
    if (path / MODEL_FILE).is_file():
        return False
    marks = (path / FOLDS_SUMMARY / FOLDS_JSON, path / f"{FOLD}1" / MODEL_FILE)
    return any(mark.is_file() for mark in marks)


def load_ensemble(folder: Path) -> Ensemble:
    """Load all models of a folder of `wsi train --folds`.

    Raises ModelError where one is missing, damaged, or for other patches or classes than the first.
    """
    runs = [folder / name for name in _list_members(folder)]
    members = [load_checkpoint(run / MODEL_FILE) for run in runs]
    first = members[0]
    for run, member in zip(runs, members, strict=True):
        if (member.spec, member.class_names) != (first.spec, first.class_names):
            raise ModelError(
                f"{run}: was trained for {_describe_use(member)}, and {runs[0]} for"
                f" {_describe_use(first)}; name one fold's model, or train all folds again"
            )
    return Ensemble(tuple(members))


def _describe_use(model: Checkpoint) -> str:
    side_px, mpp = model.spec.side_px, model.spec.mpp
    return f"patches of {side_px} px at {mpp:g} µm/px of {' and '.join(model.class_names)}"


def _list_members(folder: Path) -> list[str]:
    """Return the names of the folds that the summary lists, in their order. Raises ModelError."""
    path = folder / FOLDS_SUMMARY / FOLDS_JSON
    again = "run `wsi train --folds` again to its end, or name one fold's model"
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size} bytes")
        names = sorted(parse_json(path.read_bytes())["models"])
        if len(names) < 2 or not all(MEMBER.fullmatch(name) for name in names):
            raise ValueError("its models are not two or more folds")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: is damaged ({one_line(error)}); {again}") from error
    return sorted(names, key=lambda name: int(name.removeprefix(FOLD)))
