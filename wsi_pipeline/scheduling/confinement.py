"""What a worker process may take of the machine's memory."""

import resource
import sys
from typing import Any

from distributed import WorkerPlugin
from distributed.system import MEMORY_LIMIT

from wsi_pipeline.scheduling.jobs import Workers

SMALLEST_SHARE = 4 * 1024**3
"""PyTorch, OpenVINO and the stacks of their threads alone take 1 to 2 GiB of address space."""


def share_memory(workers: Workers) -> int:
    """Bytes of private memory that each worker process of this machine may take: its (or its cgroup's) memory, divided among them.

    Those that drive a GPU may each take all of it: what drivers set aside for a GPU's memory is not to be mistaken for a slide's.
    """
    has_gpu = workers.gpus or workers.cluster == "cuda"
    return max(SMALLEST_SHARE, MEMORY_LIMIT // (1 if has_gpu else max(workers.processes, 1)))


def limit_memory(most_bytes: int) -> None:
    """Hold this process to that much private memory; what asks for more gets a MemoryError, and the machine never swaps for it.

    The limit is RLIMIT_DATA, which counts memory that a process may write to and shares with nobody. RLIMIT_AS would count all address
    space too, of which CUDA reserves hundreds of gigabytes that it never uses, and files that are mapped. Only Linux counts so.
    """
    if sys.platform != "linux":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


class MemoryLimit(WorkerPlugin):
    """Limits each worker process as it starts, also those that take the place of others."""

    name = "wsi-memory-limit"
    idempotent = True

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def setup(self, worker: Any) -> None:
        """Called in the worker process before its first task."""
        limit_memory(self._most_bytes)
