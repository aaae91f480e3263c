"""The table of networks: each is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.core.choices import HEADS
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.models import outlines
from wsi_pipeline.models.architectures import (
    idc_cnn,
    timm_networks,
    torchvision_networks,
    wide_resnet,
)
from wsi_pipeline.models.architectures.network import (
    Network,
    check_network,
    fit_weights,
    fits_patches,
    read_weights,
)
from wsi_pipeline.models.architectures.own_network import build_own
from wsi_pipeline.models.outlines import NetworkOptions, Shapes
from wsi_pipeline.models.own_code import OwnCode, is_own_code

OUTLINES_KEPT = 16
"""Every start of a run needs the same one several times."""


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
        outlines.RESNET_MIN_SIDE_PX,
        f"WRN-{depth}-{widening} after Zagoruyko & Komodakis",
        HEADS,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "idc_cnn": Architecture(
        idc_cnn.IdcCnn,
        outlines.CNN_MIN_SIDE_PX,
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


def find_architecture(name: str, code: OwnCode | None = None) -> Architecture:
    """Return the architecture of that name, or of a user's code. Raises ModelError for none."""
    if code is not None:
        return Architecture(
            lambda side_px, options: build_own(code, side_px, options),
            min_side_px=1,
            summary=f"the function {code.function} of {code.path.name}",
            heads=HEADS,
            may_lack_batch_norm=True,
        )
    if is_own_code(name):
        raise ModelError(f"{name}: is code of its maker, and runs only where its file is named")
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if shape := outlines.parse_wide_resnet(name):
        return _wide_resnet(*shape)
    if name.startswith(timm_networks.PREFIX):
        short = name.removeprefix(timm_networks.PREFIX)
        return Architecture(partial(timm_networks.build_timm, short), 1, f"{short} of timm")
    raise ModelError(
        f"{name}: no such architecture; there are {', '.join(sorted(ARCHITECTURES))},"
        " wide_resnet_<depth>_<widening> and timm:NAME"
    )


def build_network(
    name: str, side_px: int, options: NetworkOptions | None = None, code: OwnCode | None = None
) -> nn.Module:
    """Return a network with fresh weights: (b, 3, side, side) → (b,) for one logit, (b, 2) for two.

    Raises ModelError as `outline_network` does, before memory is taken for it; a user's `code` is
    run at once.
    """
    if code is None:
        outline_network(name, side_px, options)
    return find_architecture(name, code).build(side_px, options or NetworkOptions())


@lru_cache(maxsize=OUTLINES_KEPT)
def outline_network(name: str, side_px: int, options: NetworkOptions | None = None) -> Shapes:
    """Return the names and shapes of a network's weights; it takes no memory for them.

    Those of other libraries are built on the meta device. The result is cached: do not change it.
    Raises ModelError where the name, the patch size or an option does not fit, or the network would
    be absurdly large.
    """
    options = options or NetworkOptions()
    own = outlines.outline_own(name, side_px, options)
    return _outline_by_building(name, side_px, options) if own is None else own


def _outline_by_building(name: str, side_px: int, options: NetworkOptions) -> Shapes:
    architecture = find_architecture(name)
    least, heads = architecture.min_side_px, architecture.heads
    outlines.check_network(name, side_px, least, options, heads)
    with torch.device("meta"):
        built = architecture.build(side_px, options)
    shapes = {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()}
    outlines.check_size(name, side_px, shapes)
    if fault := fits_patches(built, side_px):
        raise ModelError(f"{name}: does not take patches of {side_px} px ({fault}); cut others")
    return shapes


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
