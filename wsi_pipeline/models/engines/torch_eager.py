"""The engine `torch`: PyTorch as it is, channels last in memory, batch normalisation folded into convolutions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from wsi_pipeline.core.choices import BF16, FP16, FP32
from wsi_pipeline.models.engines.engine import EngineSetting, Run
from wsi_pipeline.models.inputs import PatchNetwork
from wsi_pipeline.models.model import Model

DTYPES = {FP32: torch.float32, BF16: torch.bfloat16, FP16: torch.float16}


def find_fault(model: Model, device: str) -> str | None:
    """Nothing: every model runs here."""
    return None


def load(model: Model, setting: EngineSetting, batch_size: int) -> Run:
    """The model's network on the device; pixels travel as uint8 and become numbers there."""
    network = place_network(model, setting.device)

    def run(pixels: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode(), in_precision(setting):
            output: Tensor = network(send(pixels, setting.device))
        return output.float().cpu()

    return run


def place_network(model: Model, device: str) -> nn.Module:
    """The network for inference on a type of device: channels last, with batch normalisation folded where its graph can be read."""
    if device == "cuda":
        compute_exactly()
    network = model.network()
    if isinstance(network, PatchNetwork):
        network = PatchNetwork(fold_batch_norm(network.network), network.normalisation)
    placed: nn.Module = network.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed.eval()


def compute_exactly() -> None:
    """In fp32 GPUs otherwise round to TF32, and choose algorithms by what was fastest this time."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def in_precision(setting: EngineSetting) -> torch.autocast:
    """The context that networks run in."""
    return torch.autocast(
        setting.device,
        DTYPES[setting.precision] if setting.precision != FP32 else None,
        setting.precision != FP32,
    )


def send(pixels: NDArray[np.uint8], device: str) -> Tensor:
    """The pixels on the device, through pinned memory where there is a GPU, so that the copy runs beside other work."""
    x = torch.from_numpy(np.ascontiguousarray(pixels))
    return x.pin_memory().to(device, non_blocking=True) if device == "cuda" else x


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """The same network in which a convolution that only a batch normalisation reads has taken it in; for inference alone."""
    try:
        traced = fx.symbolic_trace(network.eval())
    except (
        fx.proxy.TraceError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ):  # its course depends on its input: as it is
        return network
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(
            modules.get(str(node.target)), nn.BatchNorm2d
        ):
            continue
        before = node.args[0]
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(before.users) != 1:
            continue
        modules[str(before.target)] = fused = fuse_conv_bn_eval(
            convolution, modules[str(node.target)]
        )
        traced.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced
