"""Who does the work of a run."""

from dataclasses import replace
from typing import Any

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.limits import available_cores
from wsi_pipeline.scheduling import Workers

MOST_TILERS = 16
"""Processes that tile unless more are asked for: each takes about half a gigabyte."""


def choose_workers(
    count: int | None = None, scheduler: str | None = None, device: str = "cpu", **settings: Any
) -> Workers:
    """The cluster at `scheduler`, or `count` processes here, or one per GPU where `device` is one, or one.

    `settings` are further fields of Workers; `gpus` among them names the GPUs to use instead of
    all. Raises ConfigError.
    """
    gpus = tuple(settings.pop("gpus", ()))
    pool = Workers(count=count, scheduler=scheduler, wants_gpu=device != "cpu", **settings)
    if pool.is_elsewhere:
        return replace(pool, threads=max(2, available_cores()))
    names = _find_gpus(device)
    if gpus and not names:
        raise ConfigError(
            f"--gpus {','.join(gpus)}: no usable GPU on this machine, or --device cpu; leave it out"
        )
    pool = replace(pool, gpus=(gpus or names) if names else (), wants_gpu=bool(names))
    return replace(pool, threads=max(2, available_cores() // max(pool.processes, 1)))


def choose_tilers(
    count: int | None = None, scheduler: str | None = None, **settings: Any
) -> Workers:
    """The same for work that is all decoding: one process per core unless `count` says otherwise, for threads share an interpreter."""
    if count is None and scheduler is None and settings.get("cluster", "local") == "local":
        count = min(available_cores(), MOST_TILERS)
    return choose_workers(count, scheduler, **settings)


def _find_gpus(device: str) -> tuple[str, ...]:
    """The GPUs that may be used; none where none is wanted, for which torch need not be loaded."""
    if device == "cpu":
        return ()
    from wsi_pipeline.models.device import choose_device, list_gpus

    return list_gpus() if choose_device(device).type == "cuda" else ()
