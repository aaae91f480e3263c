"""Two GPUs on a machine without one, for processes that must leave them to others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from wsi_pipeline.models.choice import Gpu

TWO = [Gpu("0", "GPU-aa"), Gpu("1", "GPU-bb")]
USES = (
    *("is_available", "device_count", "mem_get_info", "get_device_properties", "empty_cache"),
    *("is_bf16_supported", "get_device_capability", "set_device", "_lazy_init"),
)


def refuse_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be two GPUs, and this process fail where it uses torch.cuda at all."""

    def refuse(*given: object, **options: object) -> Any:
        raise AssertionError("this process touched CUDA")

    for name in USES:
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr("wsi_pipeline.models.gpus.ask_gpus", lambda: TWO)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Do what happens in another process, where torch.cuda may be used; it finds no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        yield
