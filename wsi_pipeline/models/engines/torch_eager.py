"""The engine `torch`: PyTorch, channels last in memory, batch normalisation folded."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from wsi_pipeline.core.choices import BF16, FP16
from wsi_pipeline.models.architectures.own_network import OwnNetwork
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import compute_exactly
from wsi_pipeline.models.engines.engine import Forward, Run
from wsi_pipeline.models.model import Model, PatchNetwork

DTYPES = {BF16: torch.bfloat16, FP16: torch.float16}


def find_fault(model: Model, device: str) -> str | None:
    """Return None: every model runs here."""
    return None


def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
    """Return the model's network on the CPU."""
    network = place_network(model, torch.device("cpu"))

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode(), in_precision(setting):
            output: Tensor = network(send(pixels, setting.device))
        return output.float()

    return run


def place(model: Model, setting: EngineSetting, device: torch.device) -> Forward:
    """Return the model's network on a GPU; a lower precision is that of its weights.

    A script, or a user's code, may name the precision of its numbers: torch chooses there, step by
    step.
    """
    network = place_network(model, device)
    dtype = DTYPES.get(setting.precision)
    if dtype is None:
        return network
    if is_known(network):
        return lower_precision(network, dtype)

    def forward(pixels: Tensor) -> Tensor:
        with in_precision(setting):
            output: Tensor = network(pixels)
        return output

    return forward


def place_network(model: Model, device: torch.device) -> nn.Module:
    """Return the network for inference on a device, channels last in memory.

    Batch normalisation is folded where the network's graph can be traced.
    """
    if device.type == "cuda":
        compute_exactly()
    network = model.network(has_features=True)
    for part in list(network.modules()):
        if isinstance(part, PatchNetwork):
            part.network = fold_batch_norm(part.network)
    placed: nn.Module = network.to(  # type: ignore[call-overload]
        device, memory_format=torch.channels_last
    )
    return placed.eval()


def in_precision(setting: EngineSetting) -> torch.autocast:
    """Return the autocast context of a precision."""
    dtype = DTYPES.get(setting.precision)
    return torch.autocast(setting.device, dtype, enabled=dtype is not None)


def send(pixels: NDArray[np.uint8], device: str) -> Tensor:
    """Return the pixels on the device; pinned memory lets the copy overlap other work."""
    x = torch.from_numpy(np.ascontiguousarray(pixels))
    return x.pin_memory().to(device, non_blocking=True) if device == "cuda" else x


class LowerNetwork(nn.Module):
    """A `PatchNetwork` whose weights are of a lower precision; pixels are normalised in one step.

    What is not folded of batch normalisation keeps its fp32 statistics.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, exact: PatchNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = exact.network.to(dtype)
        for part in self.network.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.float()
        self._dtype = dtype
        self.register_buffer("scale", 1 / exact.std)
        self.register_buffer("shift", -exact.mean / exact.std)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.addcmul(self.shift, pixels, self.scale)  # fp32 (b, side, side, 3)
        # (b, 3, side, side), channels last in memory
        output: Tensor = self.network(x.to(self._dtype).permute(0, 3, 1, 2))
        return output


def is_known(network: nn.Module) -> bool:
    """Return whether all of a network's code is this project's, or a library's that it knows.

    A user's code may do what neither a lower precision nor a CUDA graph allows.
    """
    return not any(
        isinstance(part, OwnNetwork | torch.jit.ScriptModule) for part in network.modules()
    )


def lower_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the network with every `PatchNetwork` in it in a lower precision."""
    if isinstance(network, PatchNetwork):
        return LowerNetwork(network, dtype)
    for name, part in list(network.named_children()):
        setattr(network, name, lower_precision(part, dtype))
    return network


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return the same network, for inference, with batch normalisation folded into convolutions."""
    try:
        traced = fx.symbolic_trace(network.eval())
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError):
        return network  # its control flow depends on its input: it stays unchanged
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        name = str(before.target)
        convolution = modules.get(name) if before.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(before.users) != 1:
            continue
        modules[name] = fused = fuse_conv_bn_eval(convolution, norm)
        traced.set_submodule(name, fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced
