"""Cards: what a checkpoint states of itself, read and checked without torch.

A checkpoint is safetensors weights, and in the same file a JSON card to use them by. The card
carries a SHA-256 over the weights, so that a flipped bit is found before use.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from wsi_pipeline.core.calibration import ModelTerms, read_limits
from wsi_pipeline.core.errors import DAMAGES, ConfigError, ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import Limits
from wsi_pipeline.core.recipe import canonical_json, file_sha256, recipe_digest
from wsi_pipeline.models.outlines import (
    MAX_PARAMETERS,
    NetworkOptions,
    Shapes,
    count_features,
    outline_own,
)
from wsi_pipeline.models.own_code import is_own_code
from wsi_pipeline.models.weight_file import COPY, check_weights, read_safetensors_card

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what batch normalisation counts."""


CARD_KEY = "wsi"
CARD_FORMAT = 5
READ_FORMATS = (2, 3, 4, 5)
"""Those of format 2 hold no self-test, those before 4 a temperature and one threshold as terms,
those before 5 no domain.
"""
DAMAGED = (ModelError, AttributeError, *DAMAGES)
MAX_TESTED = 256
"""Patches of a self-test: each engine computes all of them before a run."""
STAIN_MEASURES = 9
"""Quantiles of three stains in one patch, of which a domain has statistics."""
SELF_TEST_PREFIX, DOMAIN_PREFIX = "self_test.", "domain."
"""Prefixes of the names of tensors beside the weights."""
TEST_PIXELS, TEST_PROBABILITY = f"{SELF_TEST_PREFIX}pixels", f"{SELF_TEST_PREFIX}probability"


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation per RGB channel, of pixels scaled to 0–1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        values = (*self.mean, *self.std)
        is_finite = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        if len(self.mean) != 3 or len(self.std) != 3 or not is_finite or min(self.std) <= 0:
            raise ModelError(
                f"normalisation {self.mean} / {self.std} is not three means and three positive"
                " deviations"
            )


class ModelFacts(Protocol):
    """The facts of a model that a run needs before anything is computed."""

    @property
    def architecture(self) -> str: ...

    @property
    def spec(self) -> PatchSpec:
        """The patches that it was trained on; it accepts no other size or scale."""

    @property
    def class_names(self) -> tuple[str, str]:
        """The negative class and the positive class."""

    @property
    def positive_class(self) -> str: ...

    @property
    def terms(self) -> ModelTerms:
        """Context, calibration and thresholds for its logits."""

    @property
    def threshold_source(self) -> str: ...

    @property
    def training(self) -> Mapping[str, Any]: ...

    @property
    def is_leaky(self) -> bool: ...

    @property
    def is_ensemble(self) -> bool:
        """True if it is several networks, whose logits are averaged and have a spread."""

    @property
    def digest(self) -> str:
        """Identifier of everything that decides the model's probabilities."""

    def to_json(self) -> dict[str, Any]:
        """Return the description of the model that results record."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A trained network's terms of use."""

    architecture: str
    spec: PatchSpec
    """The patches that the model was trained on; it accepts no other size or scale."""
    class_names: tuple[str, str]
    """(negative, positive)"""
    normalisation: Normalisation
    terms: ModelTerms
    """Context, calibration and thresholds for its logits."""
    threshold_source: str
    """Rules and patients that the thresholds were chosen by."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Metrics on the validation patients."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Parameters, patients and tool versions of the training run."""
    options: NetworkOptions = field(default_factory=NetworkOptions)
    """Options of the network beyond its architecture."""
    is_leaky: bool = False
    """Split at random: patients on both sides, so that its metrics are too high."""
    limits: Limits | None = None
    """Largest distances of slides like the validation patients'; None: not known."""
    parameters: int = 0
    """Number of weights that were trained; 0: not counted."""
    digest: str = ""
    """SHA-256 of the file that it was read from."""
    is_ensemble: ClassVar[bool] = False

    @property
    def positive_class(self) -> str:
        """Name of the class whose probability is predicted."""
        return self.class_names[1]

    @property
    def code(self) -> Mapping[str, Any] | None:
        """Text and SHA-256 of its maker's code that builds the network; None: a known network."""
        code: Mapping[str, Any] | None = self.training.get("code")
        return code

    @property
    def seen_patients(self) -> tuple[str, ...]:
        """Hashes of the patients that it was trained on or its threshold chosen by, if known."""
        split = self.training.get("split", {})
        sides = [split.get(side) for side in ("train", "val", "patients_on_both_sides")]
        patients = [name for side in sides if isinstance(side, list | tuple) for name in side]
        return tuple(sorted({hash_patient(str(name)) for name in patients}))

    def to_json(self) -> dict[str, Any]:
        """Return the description of the model that results record."""
        seen = list(self.seen_patients)
        return {"digest": self.digest, **self.use_to_json(), "seen_patients": seen}

    def use_to_json(self) -> dict[str, Any]:
        """Return what its card and the results that it predicts both record."""
        return {
            "architecture": self.architecture,
            "options": self.options.to_json(),
            "patch": self.spec.to_json(),
            "class_names": list(self.class_names),
            "terms": self.terms.to_json(),
            "threshold_source": self.threshold_source,
            "is_leaky": self.is_leaky,
            "limits": None if self.limits is None else self.limits._asdict(),
        }

    def training_to_json(self) -> dict[str, Any]:
        """Return what only its card records: normalisation, metrics and training run."""
        return {
            "mean": list(self.normalisation.mean),
            "std": list(self.normalisation.std),
            "scores": dict(self.scores),
            "training": dict(self.training),
        }


def read_card(path: Path) -> Card:
    """Read a checkpoint's card and check the file through. Raises ModelError, naming the fault."""
    if path.suffix == ".py":
        raise ModelError(f"{path}: is no model; a network of your own is named {path}:FUNCTION")
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; train one with `wsi train`")
    text, card, shapes = read_safetensors_card(path, CARD_KEY)
    if card.get("format") not in READ_FORMATS:
        raise ModelError(f"{path}: card format {_misfit(card.get('format'))}")
    said = recipe_digest({key: value for key, value in card.items() if key != "card_sha256"})
    if card.get("card_sha256") != said or text != canonical_json(card):
        raise ModelError(f"{path}: its card is damaged or was edited (checksum); {COPY}")
    try:
        name, side_px = str(card["architecture"]), PatchSpec(**card["patch"]).side_px
        own = outline_own(name, side_px, NetworkOptions.from_json(card["options"]))
    except DAMAGED as error:
        raise misread(path, error) from error
    check_shapes(path, name, own, shapes)
    check_weights(path, str(card.get("weights_sha256")))
    try:
        limits = card.get("limits")
        return Card(
            architecture=name,
            spec=PatchSpec(**card["patch"]),
            options=NetworkOptions.from_json(card["options"]),
            class_names=_read_class_names(card["class_names"]),
            normalisation=Normalisation(mean=tuple(card["mean"]), std=tuple(card["std"])),
            terms=ModelTerms.of_record(card),
            threshold_source=str(card["threshold_source"]),
            scores=_read_entry(card, "scores"),
            training=_read_training(card),
            is_leaky=bool(card["is_leaky"]),
            limits=None if limits is None else read_limits(limits),
            parameters=_count_parameters(shapes),
            digest=file_sha256(path),
        )
    except DAMAGED as error:
        raise misread(path, error) from error


def _misfit(found: Any) -> str:
    """Return the end of the message on a card's unknown format."""
    is_newer = isinstance(found, int) and found > CARD_FORMAT
    remedy = "update wsi" if is_newer else "train it again with this one"
    known = f"{min(READ_FORMATS)} to {max(READ_FORMATS)}"
    return f"{str(found)[:20]}, this version of wsi reads {known}; {remedy}"


def misread(path: Path, error: Exception) -> ModelError:
    """Return the error for a card whose content cannot be."""
    if isinstance(error, ModelError | ConfigError):
        return ModelError(f"{path}: {error}")
    return ModelError(f"{path}: its card is damaged ({error}); train or export it again")


def _read_entry(record: Mapping[str, Any], name: str, kind: type = dict) -> Any:
    """Return an entry of a card, else an empty one. Raises TypeError for another kind."""
    if not isinstance(value := record.get(name, kind()), kind):
        raise TypeError(f"{name} is {str(value)[:40]!r}")
    return value


def _read_training(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `training` entry of a card. Raises TypeError for entries of another type."""
    training: dict[str, Any] = _read_entry(card, "training")
    for name in ("parameters", "split", "patches", "tool", "about", "code"):
        _read_entry(training, name)
    if ("code" in training) != is_own_code(str(card["architecture"])):
        raise TypeError("code is named without its text, or the other way round")
    _read_entry(training, "stores", list)
    for counts in training.get("patches", {}).values():
        if not isinstance(counts, dict):
            raise TypeError(f"patches are {str(counts)[:40]!r}")
    _read_entry(training.get("tool", {}), "packages")
    return training


def _read_class_names(value: Any) -> tuple[str, str]:
    if not (isinstance(value, list) and len(value) == 2):
        raise ModelError(f"classes {value}: wsi takes models of two classes only; use another")
    return str(value[0]), str(value[1])


def check_shapes(path: Path, name: str, wanted: Shapes | None, shapes: Shapes) -> None:
    """Raise ModelError where tensors are not of the card's network; None: not known without torch.

    Nothing but the header has been read then.
    """
    beside = (SELF_TEST_PREFIX, DOMAIN_PREFIX)
    found = {key: shape for key, shape in shapes.items() if not key.startswith(beside)}
    if wanted is not None and (wrong := sorted({*wanted.items()} ^ {*found.items()})):
        key = wrong[0][0]
        raise ModelError(
            f"{path}: weights do not fit {name}: {key[:80]} has the shape {found.get(key, 'none')},"
            f" the network's has {wanted.get(key, 'none')}; train or export it again"
        )
    if sum(map(math.prod, shapes.values())) > 2 * MAX_PARAMETERS:
        raise ModelError(f"{path}: declares more weights than any network has; {COPY}")
    if wanted is not None or not is_own_code(name):
        features = count_features(found if wanted is None else wanted)
        check_domain(path, features, shapes)
    tests = [key for key in shapes if key.startswith(SELF_TEST_PREFIX) and shapes[key]]
    tested = max((shapes[key][0] for key in tests), default=0)
    if tested > MAX_TESTED:
        raise ModelError(
            f"{path}: its self-test has {tested} patches, more than {MAX_TESTED}; train it again"
        )


def check_domain(path: Path, features: int | None, shapes: Shapes) -> None:
    """Raise ModelError where the domain is of another number of features than the network's."""
    found = {key: shape for key, shape in shapes.items() if key.startswith(DOMAIN_PREFIX)}
    if not found:
        return
    features = features or 0
    if found.get(f"{DOMAIN_PREFIX}means") != (2, features) or any(
        max(shape, default=0) > max(features, STAIN_MEASURES) + 1 for shape in found.values()
    ):
        raise ModelError(
            f"{path}: the statistics of its training patches are not of its {features} features;"
            " train it again"
        )


def _count_parameters(shapes: Shapes) -> int:
    """Return the number of weights that are trained: no statistics of batch normalisation."""
    beside = (SELF_TEST_PREFIX, DOMAIN_PREFIX)
    return sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if not key.startswith(beside) and not key.endswith(STATISTICS)
    )


def hash_patient(patient_id: str) -> str:
    """Return the hash that results and exports record for a patient, in place of the name."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16]
