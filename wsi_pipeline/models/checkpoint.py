"""Checkpoints: safetensors weights, and in the same file a JSON card to use them by.

No pickle is written or read. The card carries a SHA-256 over the weights, so that a flipped bit is
found before use. The header of an untrusted file is checked before any tensor is loaded.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.errors import DAMAGES, ConfigError, EnvironmentFault, ModelError, one_line
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.json_io import parse_json
from wsi_pipeline.core.recipe import canonical_json, file_sha256, recipe_digest
from wsi_pipeline.models.architectures import build_network, outline_network
from wsi_pipeline.models.architectures.network import positive_logit, squeeze_logits
from wsi_pipeline.models.domain import (
    DOMAIN_PREFIX,
    STAIN_MEASURES,
    Domain,
    show_features,
)
from wsi_pipeline.models.model import (
    SELF_TEST_PREFIX,
    Normalisation,
    PatchNetwork,
    SelfTest,
    hash_patient,
)
from wsi_pipeline.models.outlines import NetworkOptions, count_features

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Names and shapes of tensors, and the card: some hundred bytes for each patient."""
LENGTH_BYTES = 8
COPY = "copy it again or train it again"
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "U8"})
"""Types of weights and self-tests."""


class Declared(NamedTuple):
    """Card and tensor shapes declared in the header of a safetensors file."""

    text: str
    """The card as it is written."""
    card: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_safetensors_card(path: Path, key: str) -> Declared:
    """Return the JSON object under a key of the file's metadata, and the shape of every tensor.

    Reads no tensor. Raises ModelError, and EnvironmentFault where the file cannot be read.
    """
    try:
        _check_header_size(path)
        # As NumPy, for PyTorch would map the whole file as memory to write to.
        with safe_open(path, framework="numpy") as stored:
            text = (stored.metadata() or {})[key]
            names = list(stored.keys())
            shapes = {name: _read_shape(name, stored.get_slice(name)) for name in names}
        card = parse_json(text)
        if not isinstance(card, dict):
            raise ValueError("its card is not a JSON object")
        return Declared(text, card, shapes)
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from error
    except KeyError as error:
        raise ModelError(
            f"{path}: not a checkpoint of wsi (no card); give a model.safetensors of `wsi train`"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise _broken(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file whose shapes are known to be right. Raises as above."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in list(stored.keys())}
    except RuntimeError as error:  # torch, where it cannot open the file; it names no number
        raise _unreadable(path, one_line(error)) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from error


def _unreadable(path: Path, reason: object) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path}: cannot be read ({reason}); fix that and run the same line again"
    )


def _broken(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: not a whole safetensors file ({error}); {COPY}")


def _check_header_size(path: Path) -> None:
    """Raise ValueError for a header that no checkpoint has; the library reads up to 100 MB."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, more than {MAX_HEADER_BYTES}")


def _read_shape(name: str, tensor: Any) -> tuple[int, ...]:
    dtype = tensor.get_dtype()
    if dtype not in DTYPES:
        raise ValueError(f"{name[:80]} is of type {dtype}, and weights are floating-point numbers")
    return tuple(tensor.get_shape())


CARD_KEY = "wsi"
CARD_FORMAT = 5
READ_FORMATS = (2, 3, 4, 5)
"""Those of format 2 hold no self-test, those before 4 a temperature and one threshold as terms,
those before 5 no domain.
"""
DAMAGED = (ModelError, AttributeError, *DAMAGES)
MAX_TESTED = 256
"""Patches of a self-test: each engine computes all of them before a run."""
TEST_PIXELS, TEST_PROBABILITY = f"{SELF_TEST_PREFIX}pixels", f"{SELF_TEST_PREFIX}probability"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and its terms of use."""

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
    weights: Mapping[str, Tensor] = field(repr=False)
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Metrics on the validation patients."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Parameters, patients and tool versions of the training run."""
    options: NetworkOptions = field(default_factory=NetworkOptions)
    """Options of the network beyond its architecture."""
    is_leaky: bool = False
    """Split at random: patients on both sides, so that its metrics are too high."""
    self_test: SelfTest | None = None
    """Patches with the probabilities that any engine must give for them."""
    domain: Domain | None = None
    """Colours and features of its training patches; None: not known."""
    digest: str = ""
    """SHA-256 of the file that it was loaded from."""
    is_ensemble: ClassVar[bool] = False
    is_script: ClassVar[bool] = False
    resizes_patches: ClassVar[bool] = False

    @property
    def positive_class(self) -> str:
        """Name of the class whose probability is predicted."""
        return self.class_names[1]

    @property
    def seen_patients(self) -> tuple[str, ...]:
        """Hashes of the patients that it was trained on or its threshold chosen by, if known."""
        split = self.training.get("split", {})
        sides = [split.get(side) for side in ("train", "val", "patients_on_both_sides")]
        patients = [name for side in sides if isinstance(side, list | tuple) for name in side]
        return tuple(sorted({hash_patient(str(name)) for name in patients}))

    def build(self) -> nn.Module:
        """Return the network with these weights for inference. Raises ModelError for a misfit."""
        network = build_network(self.architecture, self.spec.side_px, self.options)
        try:
            network.load_state_dict(dict(self.weights), strict=True)
        except RuntimeError as error:
            fault = f"weights do not fit {self.architecture}: {one_line(error)}"
            raise ModelError(fault) from error
        return network.eval()

    def network(self, *, has_features: bool = False) -> nn.Module:
        network = self.build()
        if has_features and self.domain is not None:
            network = show_features(network)
        return PatchNetwork(network, self.normalisation).eval()

    def logit(self, output: Tensor) -> Tensor:
        return positive_logit(self._split(output)[0])

    def features(self, output: Tensor) -> Tensor | None:
        return self._split(output)[1]

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits, and the features if the network was made to give them."""
        logits = self.options.logits
        if self.domain is None or output.ndim == 1 or output.shape[1] == logits:
            return output, None
        return squeeze_logits(output[:, :logits]), output[:, logits:]

    def spread(self, output: Tensor) -> None:
        return None

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
            "limits": None if self.domain is None else self.domain.limits._asdict(),
        }

    def training_to_json(self) -> dict[str, Any]:
        """Return what only its card records: normalisation, metrics and training run."""
        return {
            "mean": list(self.normalisation.mean),
            "std": list(self.normalisation.std),
            "scores": dict(self.scores),
            "training": dict(self.training),
        }


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint; the same content gives the same bytes. Raises OSError."""
    weights, test = checkpoint.weights, checkpoint.self_test
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if test is not None:
        tensors |= {TEST_PIXELS: test.pixels, TEST_PROBABILITY: test.probability}
    if checkpoint.domain is not None:
        tensors |= checkpoint.domain.to_tensors()
    card = {
        "format": CARD_FORMAT,
        **checkpoint.use_to_json(),
        **checkpoint.training_to_json(),
        "weights_sha256": _weights_sha256(tensors),
    }
    card["card_sha256"] = recipe_digest(card)
    path.write_bytes(save(tensors, metadata={CARD_KEY: canonical_json(card)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check it through. Raises ModelError, naming the file and the fault."""
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; train one with `wsi train`")
    text, card, shapes = read_safetensors_card(path, CARD_KEY)
    if card.get("format") not in READ_FORMATS:
        raise ModelError(f"{path}: card format {_misfit(card.get('format'))}")
    said = recipe_digest({key: value for key, value in card.items() if key != "card_sha256"})
    if card.get("card_sha256") != said or text != canonical_json(card):
        raise ModelError(f"{path}: its card is damaged or was edited (checksum); {COPY}")
    _check_shapes(path, card, shapes)
    tensors = read_tensors(path)
    if card.get("weights_sha256") != _weights_sha256(tensors):
        raise ModelError(f"{path}: its weights are damaged (checksum); {COPY}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError(f"{path}: weights are not finite; train it again with a lower --lr")
    try:
        self_test = _take_self_test(tensors, int(card["patch"]["side_px"]))
        domain = Domain.take(tensors, card.get("limits"))
        checkpoint = Checkpoint(
            architecture=str(card["architecture"]),
            spec=PatchSpec(**card["patch"]),
            options=NetworkOptions.from_json(card["options"]),
            class_names=_read_class_names(card["class_names"]),
            normalisation=Normalisation(mean=tuple(card["mean"]), std=tuple(card["std"])),
            terms=ModelTerms.of_record(card),
            threshold_source=str(card["threshold_source"]),
            scores=_read_entry(card, "scores"),
            training=_read_training(card),
            is_leaky=bool(card["is_leaky"]),
            weights=tensors,
            self_test=self_test,
            domain=domain,
        )
        checkpoint.build()
    except DAMAGED as error:
        raise _misread(path, error) from error
    return replace(checkpoint, digest=file_sha256(path))


def _misfit(found: Any) -> str:
    """Return the end of the message on a card's unknown format."""
    is_newer = isinstance(found, int) and found > CARD_FORMAT
    remedy = "update wsi" if is_newer else "train it again with this one"
    known = f"{min(READ_FORMATS)} to {max(READ_FORMATS)}"
    return f"{str(found)[:20]}, this version of wsi reads {known}; {remedy}"


def _misread(path: Path, error: Exception) -> ModelError:
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
    for name in ("parameters", "split", "patches", "tool", "about"):
        _read_entry(training, name)
    _read_entry(training, "stores", list)
    for counts in training.get("patches", {}).values():
        if not isinstance(counts, dict):
            raise TypeError(f"patches are {str(counts)[:40]!r}")
    _read_entry(training.get("tool", {}), "packages")
    return training


def _take_self_test(tensors: dict[str, Tensor], side_px: int) -> SelfTest | None:
    """Return the self-test, removed from the tensors."""
    if TEST_PIXELS not in tensors and TEST_PROBABILITY not in tensors:
        return None
    found = SelfTest(tensors.pop(TEST_PIXELS), tensors.pop(TEST_PROBABILITY))
    if found.pixels.shape[1:] != (side_px, side_px, 3):
        raise ModelError("its self-test has patches of another size; train it again")
    return found


def _read_class_names(value: Any) -> tuple[str, str]:
    if not (isinstance(value, list) and len(value) == 2):
        raise ModelError(f"classes {value}: wsi takes models of two classes only; use another")
    return str(value[0]), str(value[1])


def _check_shapes(
    path: Path, card: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ModelError, before any tensor is read, where they are not of the card's network."""
    try:
        name, side_px = str(card["architecture"]), PatchSpec(**card["patch"]).side_px
        wanted = outline_network(name, side_px, NetworkOptions.from_json(card["options"]))
    except DAMAGED as error:
        raise _misread(path, error) from error
    beside = (SELF_TEST_PREFIX, DOMAIN_PREFIX)
    found = {key: shape for key, shape in shapes.items() if not key.startswith(beside)}
    if wrong := sorted({*wanted.items()} ^ {*found.items()}):
        key = wrong[0][0]
        raise ModelError(
            f"{path}: weights do not fit {name}: {key[:80]} has the shape {found.get(key, 'none')},"
            f" the network's has {wanted.get(key, 'none')}; train or export it again"
        )
    _check_domain(path, wanted, shapes)
    tests = [key for key in shapes if key.startswith(SELF_TEST_PREFIX) and shapes[key]]
    tested = max((shapes[key][0] for key in tests), default=0)
    if tested > MAX_TESTED:
        raise ModelError(
            f"{path}: its self-test has {tested} patches, more than {MAX_TESTED}; train it again"
        )


def _check_domain(
    path: Path, wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ModelError where the domain is of other features than the network's."""
    found = {key: shape for key, shape in shapes.items() if key.startswith(DOMAIN_PREFIX)}
    if not found:
        return
    features = count_features(wanted) or 0
    if found.get(f"{DOMAIN_PREFIX}means") != (2, features) or any(
        max(shape, default=0) > max(features, STAIN_MEASURES) + 1 for shape in found.values()
    ):
        raise ModelError(
            f"{path}: the statistics of its training patches are not of its {features} features;"
            " train it again"
        )


def _weights_sha256(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        # Flat first: a channels-last tensor with a side of 1 counts as contiguous and yet cannot be
        # viewed as bytes.
        digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
