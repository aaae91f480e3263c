"""The table of networks: each is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.idc_cnn import MIN_SIDE_PX, IdcCnn


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build a network that maps (b, 3, side, side) normalised patches to (b,) logits of the positive class."""

    build: Callable[[int], nn.Module]
    """Takes `side_px`."""
    min_side_px: int
    summary: str


ARCHITECTURES: dict[str, Architecture] = {
    "idc_cnn": Architecture(IdcCnn, MIN_SIDE_PX, "3 convolutions and 3 linear layers, 4.9 M parameters at 50 px"),
}


def build_network(name: str, side_px: int) -> nn.Module:
    """A network with fresh weights. Raises ModelError where the name or the patch size does not fit."""
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise ModelError(f"{name}: no such architecture; there are {', '.join(sorted(ARCHITECTURES))}")
    if side_px < architecture.min_side_px:
        raise ModelError(f"{name}: needs patches of at least {architecture.min_side_px} px, these have {side_px}; cut larger ones")
    return architecture.build(side_px)
