"""Ensembles: the models of a cross-validation, run together; what their cards state.

A patch's logit is the mean of the members' logits; their spread tells how far the members differ.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.choices import FOLD, FOLDS_JSON, FOLDS_SUMMARY, MODEL_FILE
from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.core.outcome import Limits
from wsi_pipeline.core.recipe import recipe_digest
from wsi_pipeline.models.card import Card, read_card

MAX_BYTES = 1_000_000
MEMBER = re.compile(rf"{FOLD}[1-9][0-9]{{0,3}}")
Member = TypeVar("Member", bound=Card)


@dataclass(frozen=True)
class EnsembleCard(Generic[Member]):
    """Two or more models for the same patches and classes, as one."""

    members: tuple[Member, ...]

    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    is_ensemble: ClassVar[bool] = True

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
            "limits": None if self.limits is None else self.limits._asdict(),
            "seen_patients": list(self.seen_patients),
        }

    @property
    def limits(self) -> Limits | None:
        """The means of the members' limits; None where one has none."""
        return average_limits([member.limits for member in self.members])


def average_limits(members: Sequence[Limits | None]) -> Limits | None:
    """Return the means of models' limits; None for a limit that one does not have."""
    known = [limits for limits in members if limits is not None]
    if len(known) < len(members):
        return None
    return Limits(*(_mean_of_all(column) for column in zip(*known, strict=True)))


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


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


def read_ensemble(folder: Path) -> EnsembleCard[Card]:
    """Read the cards of all models of a folder of `wsi train --folds`. Raises as below."""
    return EnsembleCard(read_members(folder, read_card))


def read_members(folder: Path, read: Callable[[Path], Member]) -> tuple[Member, ...]:
    """Read all models of a folder of `wsi train --folds`.

    Raises ModelError where one is missing, damaged, or for other patches or classes than the first.
    """
    runs = [folder / name for name in _list_members(folder)]
    members = tuple(read(run / MODEL_FILE) for run in runs)
    first = members[0]
    for run, member in zip(runs, members, strict=True):
        if (member.spec, member.class_names) != (first.spec, first.class_names):
            raise ModelError(
                f"{run}: was trained for {_describe_use(member)}, and {runs[0]} for"
                f" {_describe_use(first)}; name one fold's model, or train all folds again"
            )
    return members


def _describe_use(model: Card) -> str:
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
