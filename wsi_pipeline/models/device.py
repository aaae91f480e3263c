"""Choosing where networks run."""

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


def count_gpus() -> int:
    """GPUs that torch can use on this machine."""
    return torch.cuda.device_count()


def cuda_version() -> str | None:
    """The CUDA that torch was built for; None: for none."""
    version: str | None = torch.version.cuda
    return version
