"""The engine `torch`: PyTorch, channels last in memory, batch normalisation folded."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from wsi_pipeline.core.choices import BF16, FP16
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.device import compute_exactly
from wsi_pipeline.models.engines.engine import Run
from wsi_pipeline.models.model import Model, PatchNetwork

DTYPES = {BF16: torch.bfloat16, FP16: torch.float16}


def find_fault(model: Model, device: str) -> str | None:
    """Return None: every model runs here."""
    return None


def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
    """Return the model's network on the device; pixels are copied there as uint8."""
    network = place_network(model, setting.device)

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode(), in_precision(setting):
            output: Tensor = network(send(pixels, setting.device))
        return output.float().cpu()

    return run


def place_network(model: Model, device: str) -> nn.Module:
    """Return the network for inference on a type of device, channels last in memory.

    Batch normalisation is folded where the network's graph can be traced.
    """
    if device == "cuda":
        compute_exactly()
    network = model.network(has_features=True)
    for part in list(network.modules()):
        if isinstance(part, PatchNetwork):
            part.network = fold_batch_norm(part.network)
    placed: nn.Module = network.to(  # type: ignore[call-overload]
        torch.device(device), memory_format=torch.channels_last
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
