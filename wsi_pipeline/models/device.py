"""Choosing where networks run."""

import os

import torch

from wsi_pipeline.errors import EnvironmentFault

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one. Raises EnvironmentFault where it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("cuda: no usable GPU on this machine (see nvidia-smi); use --device cpu")
    return torch.device(name)


def list_gpus() -> tuple[str, ...]:
    """GPUs that torch can use on this machine, named as CUDA_VISIBLE_DEVICES names them: those that this process may see."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(visible or map(str, range(torch.cuda.device_count())))
