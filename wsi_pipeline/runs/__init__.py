"""Runs over many slides: one outcome per slide in any case, and the tables that people read.

Everything here can be called from Python; a command adds options and printing. Scripts that use
worker processes need the usual `if __name__ == "__main__":` guard.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "InferOptions",
    "IngestAccount",
    "IngestOptions",
    "TileOptions",
    "WorkerOptions",
    "infer_slides",
    "ingest_patches",
    "list_stores",
    "preview_run",
    "tile_slides",
]

if TYPE_CHECKING:
    from wsi_pipeline.runs.dry_run import preview_run
    from wsi_pipeline.runs.infer import InferOptions, infer_slides, list_stores
    from wsi_pipeline.runs.tile import (
        IngestAccount,
        IngestOptions,
        TileOptions,
        ingest_patches,
        tile_slides,
    )
    from wsi_pipeline.runs.workers import WorkerOptions
else:
    MODULES = {
        "dry_run": ["preview_run"],
        "infer": ["InferOptions", "infer_slides", "list_stores"],
        "tile": ["IngestAccount", "IngestOptions", "TileOptions", "ingest_patches", "tile_slides"],
        "workers": ["WorkerOptions"],
    }

    def __getattr__(name: str) -> Any:
        """Load the module of a name when it is used: tiling needs no torch."""
        for module, names in MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
