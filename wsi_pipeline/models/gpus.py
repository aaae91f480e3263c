"""The GPUs of this machine, asked for without preparing CUDA.

A process that has prepared CUDA holds memory of the first GPU, and all of one in exclusive mode, so
that the process that starts others leaves that to them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from wsi_pipeline.core.choices import AUTO
from wsi_pipeline.core.errors import EnvironmentFault, one_line
from wsi_pipeline.models.choice import Gpu

PATIENCE_S = 120.0
"""Seconds in which torch has to say which GPUs there are."""
DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")))
"""Devices of which one is there where the driver of a GPU is."""


def find_gpus(device: str) -> list[Gpu]:
    """Return the GPUs that may be used; torch is loaded in a process of its own.

    Raises EnvironmentFault where a GPU is asked for and there is none.
    """
    if device == "cpu" or (device == AUTO and not any(path.exists() for path in DRIVERS)):
        return []
    found = ask_gpus()
    if device == "cuda" and not found:
        raise EnvironmentFault("cuda: no usable GPU here (see nvidia-smi); use --device cpu")
    return found


def ask_gpus() -> list[Gpu]:
    """Ask a child process for the GPUs. Raises EnvironmentFault where it cannot tell."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "wsi_pipeline.models.device"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            check=True,
            timeout=PATIENCE_S,
        )
        return [Gpu(*map(str, each)) for each in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        what = f"torch cannot tell which GPUs there are ({one_line(error)})"
        raise EnvironmentFault(f"{what}; see nvidia-smi, or use --device cpu") from error
