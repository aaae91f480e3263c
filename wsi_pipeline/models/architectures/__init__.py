"""The table of networks: each is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.core.choices import HEADS
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models.architectures import (
    idc_cnn,
    timm_networks,
    torchvision_networks,
    wide_resnet,
)
from wsi_pipeline.models.architectures.network import (
    Network,
    NetworkOptions,
    check_network,
    count_parameters,
    fit_weights,
    fits_patches,
    read_weights,
)

MAX_SIDE_PX = 2048
MAX_PARAMETERS = 1_000_000_000
"""Four gigabytes of weights: more is a mistake, or a card made to fill the memory."""
OUTLINES_KEPT = 16
"""One takes a quarter of a second, and every start of a run needs the same one several times."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A function that builds a network from normalised patches (b, 3, side, side) to logits."""

    build: Callable[[int, NetworkOptions], Network]
    """Takes `side_px` and the options."""
    min_side_px: int
    summary: str
    heads: tuple[str, ...] = ("linear",)
    """Heads that it can have, as in `NetworkOptions`."""
    may_lack_batch_norm: bool = False
    """True if `batch_norm` is a choice."""


def _wide_resnet(depth: int, widening: int) -> Architecture:
    return Architecture(
        lambda side_px, options: wide_resnet.WideResNet(depth, widening, options),
        wide_resnet.MIN_SIDE_PX,
        f"WRN-{depth}-{widening} after Zagoruyko & Komodakis",
        HEADS,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "idc_cnn": Architecture(
        idc_cnn.IdcCnn,
        idc_cnn.MIN_SIDE_PX,
        "3 convolutions and 3 linear layers, 5.1 M parameters at 50 px",
        may_lack_batch_norm=True,
    ),
    "wide_resnet": _wide_resnet(16, 4),
    "wide_resnet_16_2": _wide_resnet(16, 2),
    "wide_resnet_16_4": _wide_resnet(16, 4),
    "wide_resnet_16_8": _wide_resnet(16, 8),
    "wide_resnet_28_10": _wide_resnet(28, 10),
    "wide_resnet50_2": Architecture(
        lambda side_px, options: torchvision_networks.WideResNet50(options),
        torchvision_networks.MIN_SIDE_PX,
        "torchvision's wide ResNet-50, 66.8 M parameters",
        HEADS,
    ),
}
"""Networks by name; `wide_resnet_<depth>_<widening>` and `timm:NAME` exist besides."""


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name. Raises ModelError where there is none."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if shape := wide_resnet.parse_name(name):
        return _wide_resnet(*shape)
    if name.startswith(timm_networks.PREFIX):
        short = name.removeprefix(timm_networks.PREFIX)
        return Architecture(partial(timm_networks.build_timm, short), 1, f"{short} of timm")
    raise ModelError(
        f"{name}: no such architecture; there are {', '.join(sorted(ARCHITECTURES))},"
        " wide_resnet_<depth>_<widening> and timm:NAME"
    )


def build_network(name: str, side_px: int, options: NetworkOptions | None = None) -> nn.Module:
    """Return a network with fresh weights: (b, 3, side, side) → (b,) for one logit, (b, 2) for two.

    Raises ModelError as `outline_network` does, before memory is taken for it.
    """
    outline_network(name, side_px, options)
    return find_architecture(name).build(side_px, options or NetworkOptions())


@lru_cache(maxsize=OUTLINES_KEPT)
def outline_network(name: str, side_px: int, options: NetworkOptions | None = None) -> nn.Module:
    """Return the network on the meta device: names and shapes of its weights, no memory.

    The result is cached: do not change it. Raises ModelError where the name, the patch size or an
    option does not fit, or the network would be absurdly large.
    """
    architecture = find_architecture(name)
    options = options or NetworkOptions()
    _check_options(name, architecture, options)
    if side_px < (least := architecture.min_side_px):
        raise ModelError(
            f"{name}: needs patches of {least} px or more, not {side_px}; cut larger ones"
        )
    if side_px > MAX_SIDE_PX:
        raise ModelError(
            f"{name}: takes patches up to {MAX_SIDE_PX} px, not {side_px}; cut smaller"
        )
    with torch.device("meta"):
        outline = architecture.build(side_px, options)
    if (parameters := count_parameters(outline)) > MAX_PARAMETERS:
        raise ModelError(
            f"{name}: would have {parameters:,} parameters for patches of {side_px} px, more than"
            f" {MAX_PARAMETERS:,}; cut smaller patches"
        )
    if fault := fits_patches(outline, side_px):
        raise ModelError(f"{name}: does not take patches of {side_px} px ({fault}); cut others")
    return outline


def _check_options(name: str, architecture: Architecture, options: NetworkOptions) -> None:
    heads = " or ".join(architecture.heads)
    if options.head not in architecture.heads:
        raise ModelError(f"{name}: has no head {options.head!r}; leave it {heads}")


def load_pretrained(network: nn.Module, name: str, source: Path | None, download: bool) -> None:
    """Start a network of `build_network(name, …)` from given or published weights.

    `source` names a file of weights; `download` fetches published ones; without either, nothing
    happens. The head keeps fresh weights where its shape differs. Raises ModelError naming the
    weights that do not fit, and EnvironmentFault where the download fails.
    """
    network = check_network(network)
    if source is not None:
        fit_weights(network, read_weights(source), str(source))
    elif download:
        fit_weights(network, network.download_weights(), name)
