"""Devices that networks run on, and their properties, found without a trial run."""

import json
import os
import sys
from functools import cache
from pathlib import Path

import torch

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.models.choice import Gpu

CPUINFO = Path("/proc/cpuinfo")
BF16_UNITS = ("amx_bf16", "avx512_bf16")
"""Linux's names of CPU units for bfloat16; emulated, it runs at half the speed of fp32."""


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto`: a GPU if present. Raises EnvironmentFault."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("cuda: no usable GPU here (see nvidia-smi); use --device cpu")
    return torch.device(name)


def cuda_version() -> str | None:
    """Return the CUDA that torch was built for; None: for none."""
    version: str | None = torch.version.cuda
    return version


def list_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use; prepares CUDA in it."""
    # Of what CUDA_VISIBLE_DEVICES names, CUDA takes the GPUs before the first that is not there.
    count = torch.cuda.device_count()
    visible = list(map(str.strip, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    names = visible[:count] if any(visible) else map(str, range(count))
    return tuple(Gpu(name, _find_uuid(index)) for index, name in enumerate(names))


def _find_uuid(index: int) -> str:
    try:
        uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    except RuntimeError:
        return ""  # a GPU in exclusive mode that another process has
    return f"GPU-{uuid}" if uuid and not uuid.startswith(("GPU-", "MIG-")) else uuid


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; a copy to a GPU is waited for there, not here."""
    is_copied = device.type == "cuda" and not x.is_cuda
    return x.pin_memory().to(device, non_blocking=True) if is_copied else x.to(device)


def compute_exactly() -> None:
    """Stop GPUs from rounding fp32 to TF32 and from choosing algorithms by their last speed.

    By torch's older settings: after its newer ones, torch.export fails to read them.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@cache
def cpu_flags() -> frozenset[str]:
    """Return the CPU's features by Linux's names; empty where the system does not list them."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, []))


def find_bf16_unit() -> str | None:
    """Return the CPU's unit for bfloat16; None where it has none."""
    return next((unit for unit in BF16_UNITS if unit in cpu_flags()), None)


def gpu_generation() -> tuple[int, int]:
    """NVIDIA's compute capability of the first GPU: 7.0 brought fast fp16, 8.0 fast bf16."""
    return torch.cuda.get_device_capability(0)


if __name__ == "__main__":  # asked by a process that must not prepare CUDA itself
    sys.stdout.write(json.dumps([list(gpu) for gpu in list_gpus()], allow_nan=False))
