"""Outlines of networks: their options, and the names and shapes of their weights, by arithmetic.

It needs no torch, so that a checkpoint's header can be checked before anything large is imported.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wsi_pipeline.core.choices import HEADS
from wsi_pipeline.core.errors import ConfigError, ModelError

Shapes = dict[str, tuple[int, ...]]
MAX_SIDE_PX = 2048
MAX_PARAMETERS = 1_000_000_000
"""Four gigabytes of weights: more is a mistake, or a card made to fill the memory."""
DENSE_WIDTH = 20
"""Width of the hidden layer of the head "dense20"."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Options of a network apart from its architecture and the size of its patches."""

    dropout: float | None = None
    """Share of activations dropped in training, 0 to below 1; None: the architecture's default."""
    head: str = "linear"
    """"linear": pooled features → logits; "dense20": pooled features → Dense 20 → ReLU → logits."""
    batch_norm: bool = True
    """False: idc_cnn without batch normalisation after each convolution. Others always have it."""
    logits: int = 1
    """1: one, of the positive class, for a sigmoid; 2: one per class, for a softmax."""

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.head not in HEADS:
            raise ConfigError(f"head {self.head!r}; it must be one of {', '.join(HEADS)}")
        if self.logits not in (1, 2):
            raise ConfigError(f"{self.logits} logits; there may be 1, or 2 for two classes")

    def to_json(self) -> dict[str, Any]:
        """Return the options as a checkpoint's card records them."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NetworkOptions":
        """Return the options of a card. Raises ModelError for an unknown option.

        A card that does not mention batch normalisation is of a network without the choice.
        """
        if unknown := sorted({*value} - {*cls.__dataclass_fields__}):
            raise ModelError(
                f"options {', '.join(unknown)} are unknown to this version; update wsi"
            )
        return cls(**{"batch_norm": False, **value})


CNN_WIDTHS = (64, 128, 256)
CNN_DENSE = (1024, 512)
CNN_MIN_SIDE_PX = 22


def outline_idc_cnn(side_px: int, options: NetworkOptions) -> Shapes:
    """Return names and shapes of the weights of `idc_cnn`: features.*, classifier.*."""
    shapes: Shapes = {}
    channels, side, index = 3, side_px, 0
    for width in CNN_WIDTHS:
        shapes[f"features.{index}.weight"] = (width, channels, 3, 3)
        if options.batch_norm:
            shapes |= _norm(f"features.{index + 1}", width)
        else:
            shapes[f"features.{index}.bias"] = (width,)
        index += 4 if options.batch_norm else 3
        channels, side = width, (side - 2) // 2
    before = channels * side * side
    for position, width in zip((0, 3, 6), (*CNN_DENSE, options.logits), strict=True):
        shapes |= _linear(f"classifier.{position}", before, width)
        before = width
    return shapes


STEM_WIDTH = 16
RESNET_MIN_SIDE_PX = 8
MAX_DEPTH, MAX_WIDENING = 100, 32
RESNET_NAME = re.compile(r"wide_resnet_(\d{1,4})_(\d{1,4})")
GROUP_STRIDES = (1, 2, 2)
"""Stride of the first block of each group."""


def outline_wide_resnet(depth: int, widening: int, options: NetworkOptions) -> Shapes:
    """Return names and shapes of the weights of WRN-depth-widening."""
    shapes: Shapes = {"stem.weight": (STEM_WIDTH, 3, 3, 3)}
    channels, number = STEM_WIDTH, 0
    for group, group_stride in enumerate(GROUP_STRIDES):
        width = STEM_WIDTH * widening * 2**group
        for stride in (group_stride, *[1] * ((depth - 4) // 6 - 1)):
            block = f"blocks.{number}"
            shapes |= _norm(f"{block}.norm1", channels) | _norm(f"{block}.norm2", width)
            shapes[f"{block}.conv1.weight"] = (width, channels, 3, 3)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            if channels != width or stride != 1:
                shapes[f"{block}.shortcut.weight"] = (width, channels, 1, 1)
            channels, number = width, number + 1
    return shapes | _norm("norm", channels) | _head("classifier", channels, options)


def parse_wide_resnet(name: str) -> tuple[int, int] | None:
    """Return d and k of `wide_resnet_<d>_<k>`; None for other names. Raises ModelError."""
    match = RESNET_NAME.fullmatch(name)
    if match is None:
        return None
    depth, widening = int(match[1]), int(match[2])
    if depth < 10 or depth > MAX_DEPTH or (depth - 4) % 6:
        raise ModelError(f"{name}: a depth of {depth}; it must be 10, 16, 22 … up to {MAX_DEPTH}")
    if not 1 <= widening <= MAX_WIDENING:
        raise ModelError(f"{name}: a widening of {widening}; it must be 1 to {MAX_WIDENING}")
    return depth, widening


def _norm(name: str, width: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def _linear(name: str, before: int, after: int) -> Shapes:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _head(name: str, features: int, options: NetworkOptions) -> Shapes:
    if options.head == "linear":
        return _linear(name, features, options.logits)
    hidden = _linear(f"{name}.0", features, DENSE_WIDTH)
    return hidden | _linear(f"{name}.2", DENSE_WIDTH, options.logits)


DEFAULT_RESNET = "wide_resnet"
"""Short for wide_resnet_16_4."""


def is_own(name: str) -> bool:
    """Return whether a network is one of this project, not of another library."""
    return name in ("idc_cnn", DEFAULT_RESNET) or RESNET_NAME.fullmatch(name) is not None


def outline_own(name: str, side_px: int, options: NetworkOptions) -> Shapes | None:
    """Return names and shapes of a network of this project; None for those of other libraries.

    Raises ModelError where the name, the patch size or an option does not fit, or the network would
    be absurdly large.
    """
    if name == "idc_cnn":
        check_network(name, side_px, CNN_MIN_SIDE_PX, options, ("linear",))
        return check_size(name, side_px, outline_idc_cnn(side_px, options))
    shape = (16, 4) if name == DEFAULT_RESNET else parse_wide_resnet(name)
    if shape is None:
        return None
    check_network(name, side_px, RESNET_MIN_SIDE_PX, options, HEADS)
    return check_size(name, side_px, outline_wide_resnet(*shape, options))


def check_network(
    name: str, side_px: int, min_side_px: int, options: NetworkOptions, heads: tuple[str, ...]
) -> None:
    """Raise ModelError where a network has no such head, or takes no such patches."""
    if options.head not in heads:
        raise ModelError(f"{name}: has no head {options.head!r}; leave it {' or '.join(heads)}")
    if side_px < min_side_px:
        raise ModelError(
            f"{name}: needs patches of {min_side_px} px or more, not {side_px}; cut larger ones"
        )
    if side_px > MAX_SIDE_PX:
        raise ModelError(
            f"{name}: takes patches up to {MAX_SIDE_PX} px, not {side_px}; cut smaller"
        )


def check_size(name: str, side_px: int, shapes: Shapes) -> Shapes:
    """Return the shapes. Raises ModelError for more weights than any network has."""
    parameters = sum(map(math.prod, shapes.values()))
    if parameters > MAX_PARAMETERS:
        raise ModelError(
            f"{name}: would have {parameters:,} parameters for patches of {side_px} px, more than"
            f" {MAX_PARAMETERS:,}; cut smaller patches"
        )
    return shapes


def count_features(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the number of inputs of a network's last linear layer; None for no such layer."""
    linear = [shape for name, shape in shapes.items() if len(shape) == 2]
    return linear[-1][1] if linear else None
