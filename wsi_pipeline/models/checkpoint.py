"""Checkpoints: weights as safetensors, and in the same file a JSON card with everything needed to use them.

No pickle is written or read. The card carries a SHA-256 over the weights, so that a flipped bit is
found before use.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.recipe import canonical_json, file_sha256, recipe_digest
from wsi_pipeline.models.architectures import build_network, outline_network
from wsi_pipeline.models.architectures.network import NetworkOptions, positive_logit
from wsi_pipeline.models.inputs import Normalisation, PatchNetwork
from wsi_pipeline.models.model import hash_patient
from wsi_pipeline.models.safetensors_io import read_safetensors_card, read_tensors
from wsi_pipeline.models.self_test import PREFIX, SelfTest

CARD_KEY = "wsi"
CARD_FORMAT = 3
READ_FORMATS = (2, 3)
"""Those of format 2 hold no self-test."""
MAX_TESTED = 256
"""Patches of a self-test: each engine computes all of them before a run."""
TEST_PIXELS, TEST_PROBABILITY = f"{PREFIX}pixels", f"{PREFIX}probability"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and its terms of use."""

    architecture: str
    spec: PatchSpec
    """The patches that it was trained on; it must see no others."""
    class_names: tuple[str, str]
    """(negative, positive)"""
    normalisation: Normalisation
    threshold: float
    """Probability from which on a patch counts as positive."""
    threshold_source: str
    """How the threshold was chosen, and on whom."""
    weights: Mapping[str, Tensor] = field(repr=False)
    temperature: float = 1.0
    """Logits are divided by it before the sigmoid."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Figures on the validation patients."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Parameters, patients and tool versions of the training run."""
    options: NetworkOptions = field(default_factory=NetworkOptions)
    """How the network was chosen to be, beyond its architecture."""
    is_leaky: bool = False
    """Split at random: patients on both sides; its figures are inflated."""
    self_test: SelfTest | None = None
    """Patches with the probabilities that any engine must give for them."""
    digest: str = ""
    """SHA-256 of the file that it was loaded from."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ModelError(
                f"a threshold of {self.threshold} is no probability; train or export the model"
                " again"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError(
                f"a temperature of {self.temperature} is not positive; train or export the model"
                " again"
            )

    @property
    def positive_class(self) -> str:
        """Name of the class whose probability is predicted."""
        return self.class_names[1]

    @property
    def seen_patients(self) -> tuple[str, ...]:
        """Hashes of the patients that it was trained, or its threshold chosen, on; none where its card names none."""
        split = self.training.get("split", {})
        sides = (split.get(side) for side in ("train", "val", "patients_on_both_sides"))
        return tuple(
            sorted(
                {
                    hash_patient(str(name))
                    for side in sides
                    if isinstance(side, list | tuple)
                    for name in side
                }
            )
        )

    def build(self) -> nn.Module:
        """The network with these weights, ready for inference. Raises ModelError where they do not fit."""
        network = build_network(self.architecture, self.spec.side_px, self.options)
        try:
            network.load_state_dict(dict(self.weights), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"weights do not fit {self.architecture}: {reason}") from error
        return network.eval()

    @property
    def is_script(self) -> bool:
        return False

    @property
    def resizes_patches(self) -> bool:
        return False

    def network(self) -> nn.Module:
        return PatchNetwork(self.build(), self.normalisation).eval()

    def probability(self, output: Tensor) -> Tensor:
        return torch.sigmoid(positive_logit(output) / self.temperature)

    def to_json(self) -> dict[str, Any]:
        """What results record about the model that made them."""
        return {
            "digest": self.digest,
            "architecture": self.architecture,
            "options": self.options.to_json(),
            "patch": self.spec.to_json(),
            "class_names": list(self.class_names),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "threshold_source": self.threshold_source,
            "is_leaky": self.is_leaky,
            "seen_patients": list(self.seen_patients),
        }


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint; the same content always gives the same bytes. Raises OSError where the disk does not take it."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()
    }
    if checkpoint.self_test is not None:
        tensors |= {
            TEST_PIXELS: checkpoint.self_test.pixels,
            TEST_PROBABILITY: checkpoint.self_test.probability,
        }
    card = {
        "format": CARD_FORMAT,
        "architecture": checkpoint.architecture,
        "options": checkpoint.options.to_json(),
        "patch": checkpoint.spec.to_json(),
        "class_names": list(checkpoint.class_names),
        "mean": list(checkpoint.normalisation.mean),
        "std": list(checkpoint.normalisation.std),
        "temperature": checkpoint.temperature,
        "threshold": checkpoint.threshold,
        "threshold_source": checkpoint.threshold_source,
        "scores": dict(checkpoint.scores),
        "training": dict(checkpoint.training),
        "is_leaky": checkpoint.is_leaky,
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
        known = " and ".join(map(str, READ_FORMATS))
        raise ModelError(
            f"{path}: card format {str(card.get('format'))[:20]}, this version of wsi reads"
            f" {known}; {_remedy(card)}"
        )
    said = recipe_digest({key: value for key, value in card.items() if key != "card_sha256"})
    if card.get("card_sha256") != said or text != canonical_json(card):
        raise ModelError(
            f"{path}: its card is damaged or was edited (checksum); copy it again or train anew"
        )
    _check_shapes(path, card, shapes)
    tensors = read_tensors(path)
    if card.get("weights_sha256") != _weights_sha256(tensors):
        raise ModelError(f"{path}: its weights are damaged (checksum); copy it again or train anew")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError(f"{path}: has weights that are not finite; train anew with a lower --lr")
    try:
        checkpoint = Checkpoint(
            architecture=str(card["architecture"]),
            spec=PatchSpec(**card["patch"]),
            options=NetworkOptions.from_json(card["options"]),
            class_names=_read_class_names(card["class_names"]),
            normalisation=Normalisation(mean=tuple(card["mean"]), std=tuple(card["std"])),
            threshold=float(card["threshold"]),
            threshold_source=str(card["threshold_source"]),
            temperature=float(card["temperature"]),
            scores=_read_entry(card, "scores"),
            training=_read_training(card),
            is_leaky=bool(card["is_leaky"]),
            weights={
                name: tensor
                for name, tensor in tensors.items()
                if name not in (TEST_PIXELS, TEST_PROBABILITY)
            },
            self_test=_read_self_test(tensors, int(card["patch"]["side_px"])),
            digest=file_sha256(path),
        )
        checkpoint.build()
    except (ModelError, ConfigError) as error:
        raise ModelError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{path}: its card is damaged ({error}); train or export it again"
        ) from error
    return checkpoint


def _read_entry(record: Mapping[str, Any], name: str, kind: type = dict) -> Any:
    """An entry of a card; empty where it has none. Raises TypeError where it is of another kind."""
    if not isinstance(value := record.get(name, kind()), kind):
        raise TypeError(f"{name} is {str(value)[:40]!r}")
    return value


def _read_training(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says of its making; whatever is told of a model relies on these entries being what they should be."""
    training: dict[str, Any] = _read_entry(card, "training")
    for name in ("parameters", "split", "patches", "tool"):
        _read_entry(training, name)
    _read_entry(training, "stores", list)
    for counts in training.get("patches", {}).values():
        if not isinstance(counts, dict):
            raise TypeError(f"patches are {str(counts)[:40]!r}")
    _read_entry(training.get("tool", {}), "packages")
    return training


def _read_self_test(tensors: Mapping[str, Tensor], side_px: int) -> SelfTest | None:
    if TEST_PIXELS not in tensors and TEST_PROBABILITY not in tensors:
        return None
    found = SelfTest(tensors[TEST_PIXELS], tensors[TEST_PROBABILITY])
    if found.pixels.shape[1:] != (side_px, side_px, 3):
        raise ModelError("its self-test has patches of another size; train it again")
    return found


def _read_class_names(value: Any) -> tuple[str, str]:
    if not (isinstance(value, list) and len(value) == 2):
        raise ModelError(
            f"classes {value} are not two, and wsi handles models of two classes only; use another"
            " model"
        )
    return str(value[0]), str(value[1])


def _remedy(card: Mapping[str, Any]) -> str:
    found = card.get("format")
    return (
        "update wsi"
        if isinstance(found, int) and found > CARD_FORMAT
        else "train it again with this one"
    )


def _check_shapes(
    path: Path, card: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ModelError where the file's tensors are not those of the card's network: before any of them is read, or the network built."""
    try:
        name, side_px = str(card["architecture"]), PatchSpec(**card["patch"]).side_px
        outline = outline_network(name, side_px, NetworkOptions.from_json(card["options"]))
    except (ModelError, ConfigError) as error:
        raise ModelError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: its card is damaged ({error}); train or export it again"
        ) from error
    wanted = {key: tuple(tensor.shape) for key, tensor in outline.state_dict().items()}
    found = {key: shape for key, shape in shapes.items() if not key.startswith(PREFIX)}
    if wrong := sorted({*wanted.items()} ^ {*found.items()}):
        key = wrong[0][0]
        raise ModelError(
            f"{path}: weights do not fit {name}: {key[:80]} has the shape {found.get(key, 'none')},"
            f" the network's has {wanted.get(key, 'none')}; train or export it again"
        )
    tested = [shape[0] for key, shape in shapes.items() if key.startswith(PREFIX) and shape]
    if max(tested, default=0) > MAX_TESTED:
        raise ModelError(
            f"{path}: its self-test has {max(tested)} patches, more than {MAX_TESTED}; train it"
            " again"
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
