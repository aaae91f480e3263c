"""Runs over many slides: one outcome per slide whatever happens, and the tables that people read.

Everything here is callable from Python; the command line adds nothing but options and printing.
Scripts that use worker processes need the usual `if __name__ == "__main__":` guard.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "InferConfig",
    "IngestAccount",
    "TileOptions",
    "choose_tilers",
    "choose_workers",
    "infer_found",
    "infer_slides",
    "infer_stores",
    "ingest_patches",
    "tile_found",
    "tile_slides",
]

PLACES = {
    "InferConfig": "wsi_pipeline.runs.infer",
    "IngestAccount": "wsi_pipeline.runs.tile",
    "TileOptions": "wsi_pipeline.runs.tile",
    "choose_tilers": "wsi_pipeline.runs.workers",
    "choose_workers": "wsi_pipeline.runs.workers",
    "infer_found": "wsi_pipeline.runs.infer",
    "infer_slides": "wsi_pipeline.runs.infer",
    "infer_stores": "wsi_pipeline.runs.infer",
    "ingest_patches": "wsi_pipeline.runs.tile",
    "tile_found": "wsi_pipeline.runs.tile",
    "tile_slides": "wsi_pipeline.runs.tile",
}
"""The module of each name."""

if TYPE_CHECKING:
    from wsi_pipeline.runs.infer import InferConfig, infer_found, infer_slides, infer_stores
    from wsi_pipeline.runs.tile import (
        IngestAccount,
        TileOptions,
        ingest_patches,
        tile_found,
        tile_slides,
    )
    from wsi_pipeline.runs.workers import choose_tilers, choose_workers
else:

    def __getattr__(name: str) -> Any:
        """Load the module of a name when it is asked for: tiling needs no torch."""
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(PLACES[name]), name)
