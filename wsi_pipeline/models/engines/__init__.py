"""What runs a model's network over batches of patches: one file per engine, and the table of them."""

from wsi_pipeline.core.choices import BF16, FP16, FP32
from wsi_pipeline.models.engines import openvino, torch_compiled, torch_eager
from wsi_pipeline.models.engines.engine import Engine

__all__ = ["ENGINES"]

ENGINES: dict[str, Engine] = {
    "torch": Engine(
        "PyTorch, channels last; on a GPU with AMP",
        {"cpu": (FP32, BF16), "cuda": (BF16, FP16, FP32)},
        torch_eager.find_fault,
        torch_eager.load,
    ),
    "torch-compile": Engine(
        "PyTorch's compiler, weights frozen",
        {"cpu": (FP32, BF16), "cuda": (BF16, FP16, FP32)},
        torch_compiled.find_fault,
        torch_compiled.load,
        is_fixed_shape=True,
    ),
    "openvino": Engine(
        "OpenVINO, on the CPU",
        {"cpu": (FP32, BF16)},
        openvino.find_fault,
        openvino.load,
        is_fixed_shape=True,
    ),
}
