"""Patch stores: the pixels of a slide's patches in Zarr, one chunk per block."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Grid, block_slice, count_blocks
from wsi_pipeline.sources import PatchBlock, PatchTable, SlideInfo
from wsi_pipeline.store.arrays import create_array, flush_chunk, put_array, read_rows, write_rows
from wsi_pipeline.store.commit import Manifest, Staging, is_product, read_manifest
from wsi_pipeline.store.schema import check_kind, read_table, write_table

KIND = "wsi patch store"
SUFFIX = ".patches.zarr"


def prepare_patch_store(staging: Staging, table: PatchTable, attributes: dict[str, Any]) -> None:
    """Lay out an empty store for the table's patches."""
    staging.begin()
    side = table.grid.spec.side_px
    write_table(staging.product, KIND, table, attributes)
    create_array(staging.product, "patches", (table.patches, side, side, 3), (table.block_size, side, side, 3), "uint8")
    staging.mark_prepared()


def write_patch_block(staging: Staging, table: PatchTable, block: int, patches: PatchBlock) -> int:
    """Write one block; returns how many of its patches were unreadable."""
    write_rows(staging.product, "patches", block_slice(block, table.block_size, table.patches), patches.pixels)
    chunk = flush_chunk(staging.product, "patches", block, dimensions=4)
    unreadable = np.flatnonzero(~patches.readable).tolist()
    staging.mark_block(block, {"patches": len(patches.readable), "unreadable": unreadable}, chunk)
    return len(unreadable)


def finish_patch_store(staging: Staging, table: PatchTable) -> Manifest:
    """Write what the blocks reported and commit the store."""
    readable = np.ones(table.patches, dtype=np.bool_)
    for block, report in staging.check_complete(count_blocks(table.patches, table.block_size)).items():
        readable[block_slice(block, table.block_size, table.patches)][report["unreadable"]] = False
    put_array(staging.product, "readable", readable)
    counts = {
        "patches": table.patches,
        "unreadable": int(np.count_nonzero(~readable)),
        "labelled": int(np.count_nonzero(table.labels >= 0)),
    }
    return staging.commit(KIND, counts)


class PatchStore:
    """A finished patch store, opened read-only: a patch source."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError where the store is incomplete, of another kind, or contradicts its manifest."""
        self.path = path
        self.manifest = read_manifest(path)
        self.attributes = check_kind(path, KIND)
        self.table = read_table(path, self.attributes)
        if self.manifest.counts.get("patches") != self.table.patches:
            raise StoreError(f"{path}: damaged: its patches and its manifest disagree; make it again with --force")

    @property
    def slide(self) -> SlideInfo:
        """The slide that was cut."""
        return self.table.slide

    @property
    def grid(self) -> Grid:
        """Where the patches lie."""
        return self.table.grid

    @property
    def cells(self) -> NDArray[np.int32]:
        """(n, 2) row, col of each patch."""
        return self.table.cells

    @property
    def block_size(self) -> int:
        """Patches per block."""
        return self.table.block_size

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return count_blocks(self.table.patches, self.block_size)

    @cached_property
    def readable(self) -> NDArray[np.bool_]:
        """(n,) False where a patch could not be decoded; its pixels are white."""
        return read_rows(self.path, "readable")

    def read_block(self, block: int) -> PatchBlock:
        """Pixels of one block. Raises StoreError where a checksum fails."""
        rows = block_slice(block, self.block_size, self.table.patches)
        return PatchBlock(read_rows(self.path, "patches", rows), self.readable[rows])


def find_stores(places: list[Path]) -> list[Path]:
    """The patch stores among files and folders, sorted; a store names itself, a folder means every store in it."""
    stores: list[Path] = []
    for place in places:
        if is_product(place) or place.name.endswith(SUFFIX):
            stores.append(place)
        elif place.is_dir():
            stores += sorted(place.glob(f"*{SUFFIX}"))
        else:
            raise StoreError(f"{place}: no such store or folder; make stores with `wsi tile` or `wsi ingest`")
    if not stores:
        raise StoreError(f"{', '.join(map(str, places))}: no patch stores (*{SUFFIX}); make some with `wsi tile` or `wsi ingest`")
    return list({store.resolve(): store for store in stores}.values())
