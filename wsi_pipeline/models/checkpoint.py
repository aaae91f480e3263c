"""Checkpoints: a card with its weights, written and loaded with torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.core.recipe import canonical_json, recipe_digest
from wsi_pipeline.models.architectures import build_network, outline_network
from wsi_pipeline.models.architectures.network import positive_logit, squeeze_logits
from wsi_pipeline.models.card import (
    CARD_FORMAT,
    CARD_KEY,
    DAMAGED,
    TEST_PIXELS,
    TEST_PROBABILITY,
    Card,
    check_domain,
    check_shapes,
    misread,
    read_card,
)
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.domain import Domain, find_last_linear, show_features
from wsi_pipeline.models.model import PatchNetwork, SelfTest
from wsi_pipeline.models.outlines import is_own
from wsi_pipeline.models.own_code import OwnCode, take_own_code
from wsi_pipeline.models.weight_file import broken_file, read_safetensors_card, unreadable_file


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Card):
    """A trained network and its terms of use."""

    weights: Mapping[str, Tensor] = field(repr=False)
    self_test: SelfTest | None = None
    """Patches with the probabilities that any engine must give for them."""
    domain: Domain | None = None
    """Colours and features of its training patches; None: not known. `limits` are its own."""
    own_code: OwnCode | None = field(default=None, repr=False, compare=False)
    """The user's code that builds the network; None: a known network."""
    is_script: ClassVar[bool] = False
    resizes_patches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", None if self.domain is None else self.domain.limits)

    def build(self) -> nn.Module:
        """Return the network with these weights for inference. Raises ModelError for a misfit."""
        network = build_network(self.architecture, self.spec.side_px, self.options, self.own_code)
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


def load_checkpoint(path: Path, terms: ExternalModelTerms | None = None) -> Checkpoint:
    """Read a checkpoint and check it through. Raises ModelError, naming the file and the fault.

    One whose network is its maker's code needs `terms` that name and trust it.
    """
    card = read_card(path)
    code = take_own_code(path, card.architecture, card.code, terms or ExternalModelTerms())
    if not is_own(card.architecture):
        _check_others_shapes(path, card, code)
    tensors = read_tensors(path)
    try:
        checkpoint = Checkpoint(
            **{entry.name: getattr(card, entry.name) for entry in fields(card)},
            self_test=_take_self_test(tensors, card.spec.side_px),
            domain=Domain.take(tensors, None if card.limits is None else card.limits._asdict()),
            weights=tensors,
            own_code=code,
        )
        checkpoint.build()
    except DAMAGED as error:
        raise misread(path, error) from error
    return checkpoint


def _check_others_shapes(path: Path, card: Card, code: OwnCode | None) -> None:
    """Raise ModelError, before any tensor is loaded, where they fit no network of their library."""
    shapes = read_safetensors_card(path, CARD_KEY).shapes
    if code is not None:
        network = build_network(card.architecture, card.spec.side_px, card.options, code)
        features = find_last_linear(network)[1].in_features if card.limits is not None else None
        check_domain(path, features, shapes)
        return
    try:
        wanted = outline_network(card.architecture, card.spec.side_px, card.options)
    except DAMAGED as error:
        raise misread(path, error) from error
    check_shapes(path, card.architecture, wanted, shapes)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file whose shapes are known to be right. Raises as above."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in list(stored.keys())}
    except RuntimeError as error:  # torch, where it cannot open the file; it names no number
        raise unreadable_file(path, one_line(error)) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise broken_file(path, error) from error


def _take_self_test(tensors: dict[str, Tensor], side_px: int) -> SelfTest | None:
    """Return the self-test, removed from the tensors."""
    if TEST_PIXELS not in tensors and TEST_PROBABILITY not in tensors:
        return None
    found = SelfTest(tensors.pop(TEST_PIXELS), tensors.pop(TEST_PROBABILITY))
    if found.pixels.shape[1:] != (side_px, side_px, 3):
        raise ModelError("its self-test has patches of another size; train it again")
    return found


def _weights_sha256(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        # Flat first: a channels-last tensor with a side of 1 counts as contiguous and yet cannot be
        # viewed as bytes.
        digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
