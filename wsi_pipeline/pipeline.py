"""Runs over many slides: one outcome per slide whatever happens, and the tables that people read.

Everything here is callable from Python; the command line adds nothing but options and printing. Scripts that use worker processes
need the usual `if __name__ == "__main__":` guard.
"""

from wsi_pipeline.crews import choose_tilers, choose_workers
from wsi_pipeline.inference_runs import InferConfig, infer_found, infer_slides, infer_stores
from wsi_pipeline.store_runs import LEFT_OUT_CSV, IngestAccount, TileOptions, ingest_patches, tile_found, tile_slides

__all__ = [
    "LEFT_OUT_CSV",
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
