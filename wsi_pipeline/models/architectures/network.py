"""What every network is to the rest: patches in, one or two logits out, and a head that may learn at its own rate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsi_pipeline.core.choices import HEADS
from wsi_pipeline.core.errors import ConfigError, ModelError

DENSE_WIDTH = 20


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What may be chosen about a network, apart from its architecture and the size of its patches."""

    dropout: float | None = None
    """Share of activations dropped while training, 0 to below 1; None: the architecture's own default."""
    head: str = "linear"
    """"linear": pooled features → logits; "dense20": pooled features → Dense 20 → ReLU → logits."""
    batch_norm: bool = False
    """idc_cnn only: batch normalisation after each convolution; the other networks have it anyway."""
    logits: int = 1
    """1: one, of the positive class, for a sigmoid; 2: one per class, for a softmax."""

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.head not in HEADS:
            raise ConfigError(f"head {self.head!r}; it must be one of {', '.join(HEADS)}")
        if self.logits not in (1, 2):
            raise ConfigError(
                f"{self.logits} logits; there may be 1 or 2, for more than two classes are not"
                " trained yet"
            )

    def to_json(self) -> dict[str, Any]:
        """The options as a checkpoint's card records them."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NetworkOptions":
        """The options of a card. Raises ModelError where it names others than there are."""
        if unknown := sorted({*value} - {*cls.__dataclass_fields__}):
            raise ModelError(
                f"options {', '.join(unknown)} are unknown to this version of wsi; update it, or"
                " train the model again"
            )
        return cls(**value)


class Network(nn.Module):
    """The base of every network: normalised float patches (b, 3, side, side) → (b,) for one logit, (b, 2) for two."""

    @property
    def head(self) -> nn.Module:
        """The last part, from features to logits."""
        raise NotImplementedError

    def rename_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights published for this architecture, under the names that they have in this network."""
        return dict(weights)

    def download_weights(self) -> Mapping[str, Tensor]:
        """Published weights. Raises ModelError where there are none, EnvironmentFault where they cannot be fetched."""
        raise ModelError(
            f"{type(self).__name__}: nobody publishes weights for it; give a file of them, or train"
            " from fresh ones"
        )


def squeeze_logits(x: Tensor) -> Tensor:
    """(b, 1) → (b,); (b, 2) stays."""
    return x.squeeze(1)


def positive_logit(output: Tensor) -> Tensor:
    """The logit (b,) of the positive class, from a network's output (b,) or (b, 2); its sigmoid is the softmax of the two."""
    return output if output.ndim == 1 else output[:, 1] - output[:, 0]


def find_head(network: nn.Module) -> nn.Module:
    """The part of a network of `build_network` that learns at the head's rate. Raises ModelError for others."""
    if not isinstance(network, Network):
        raise ModelError(
            f"{type(network).__name__}: not a network of wsi, so its head is unknown; build it with"
            " build_network"
        )
    return network.head


def make_head(features: int, options: NetworkOptions) -> nn.Module:
    """From pooled features (b, features) to logits (b, 1 or 2)."""
    if options.head == "linear":
        return nn.Linear(features, options.logits)
    return nn.Sequential(
        nn.Linear(features, DENSE_WIDTH), nn.ReLU(), nn.Linear(DENSE_WIDTH, options.logits)
    )


def count_parameters(network: nn.Module) -> int:
    """Numbers that the network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def fits_patches(network: nn.Module, side_px: int) -> str | None:
    """Why a network on the meta device cannot take patches of that side; None where it can."""
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, 3, side_px, side_px, device="meta"))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return " ".join(str(error).split())[:160]
    return None
