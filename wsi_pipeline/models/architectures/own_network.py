"""A user's network, from a function in a Python file, with the interface of the others."""

import torch
from torch import Tensor, nn

from wsi_pipeline.core.errors import ModelError, one_line
from wsi_pipeline.models.architectures.network import Network, squeeze_logits
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.own_code import OwnCode


class OwnNetwork(Network):
    """The module that a user's function made: (b, 3, side, side) → (b,) or (b, 2)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def head(self) -> nn.Module:
        """Its last linear layer, or all of it where it has none."""
        linear = [part for part in self.module.modules() if isinstance(part, nn.Linear)]
        return linear[-1] if linear else self.module

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x)
        return squeeze_logits(output) if output.ndim == 2 else output


def build_own(code: OwnCode, side_px: int, options: NetworkOptions) -> OwnNetwork:
    """Build a user's network, and run it once. Raises ModelError for other outputs than logits."""
    network = OwnNetwork(code.build(side_px, options.to_json()))
    wanted = (2,) if options.logits == 1 else (2, options.logits)
    try:
        with torch.inference_mode():
            output = network.eval()(torch.zeros(2, 3, side_px, side_px))
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{code.path}: does not take patches (2, 3, {side_px}, {side_px}) of float32"
            f" ({one_line(error)}); correct it, or cut others"
        ) from error
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != wanted or output.dtype != torch.float32:
        raise ModelError(
            f"{code.path}: gives {found} for 2 patches and --logits {options.logits}, not {wanted}"
            " of float32; correct it, or give --logits 2 for a network with two"
        )
    return network.train()
