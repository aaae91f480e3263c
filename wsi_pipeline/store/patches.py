"""Patch stores: the pixels of a slide's patches in Zarr, one chunk per block."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from wsi_pipeline.core.choices import STORE_SUFFIX
from wsi_pipeline.core.errors import ConfigError, StoreError, damage_error
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.patch_table import PatchBlock, PatchTable
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.store.arrays import MEANINGS
from wsi_pipeline.store.codecs import ZSTD_HEADER_BYTES, PixelCodec, read_codec, read_zstd_size
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.files import link_file
from wsi_pipeline.store.manifest import Manifest, check_files, is_product, read_manifest
from wsi_pipeline.store.schema import check_tables, read_table, write_table
from wsi_pipeline.store.zarr_io import (
    AS_THEY_ARE,
    ArrayLayout,
    check_layout,
    check_one_chunk,
    chunk_file,
    consolidate,
    create_array,
    flush_chunk,
    map_chunk,
    name_chunk,
    put_array,
    read_rows,
    write_rows,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

KIND = "wsi patch store"
MAX_MAPS = 1024
"""Chunks that a store keeps mapped; they take address space, not memory."""


def prepare_patch_store(
    staging: Staging, table: PatchTable, attributes: dict[str, Any], codec: PixelCodec = AS_THEY_ARE
) -> None:
    """Create an empty store for the table's patches."""
    staging.begin()
    _lay_out(staging.product, table, attributes, codec)
    staging.mark_prepared()


def _lay_out(
    product: Path, table: PatchTable, attributes: dict[str, Any], codec: PixelCodec
) -> None:
    """Write everything but pixels and what was readable."""
    write_table(product, KIND, table, attributes | {"codec": codec.to_json()})
    layout, meaning = _pixel_layout(table, codec), MEANINGS["patches"]
    create_array(
        product,
        "patches",
        layout.shape,
        layout.chunks,
        layout.dtype,
        codec=codec,
        dimension_names=meaning.dimension_names,
        attributes=meaning.attributes,
    )


def _pixel_layout(table: PatchTable, codec: PixelCodec) -> ArrayLayout:
    patch = (table.grid.spec.side_px, table.grid.spec.side_px, 3)
    shape, chunks = (table.patches, *patch), (table.block_size, *patch)
    return ArrayLayout("uint8", shape, chunks, codec.zarr_names)


def write_patch_block(staging: Staging, table: PatchTable, block: int, patches: PatchBlock) -> int:
    """Write one block and return the number of its unreadable patches."""
    rows = table.block_slice(block)
    checksum = write_rows(staging.product, "patches", rows, patches.pixels)
    chunk = flush_chunk(staging.product, "patches", block, dimensions=4)
    unreadable = np.flatnonzero(~patches.readable).tolist()
    report = {"patches": len(patches.readable), "unreadable": unreadable}
    staging.mark_block(block, report | {"fallbacks": patches.fallbacks}, chunk, checksum)
    return len(unreadable)


def finish_patch_store(staging: Staging, table: PatchTable) -> Manifest:
    """Write what the blocks reported and commit the store."""
    readable = np.ones(table.patches, dtype=np.bool_)
    for block, report in staging.check_complete(table.blocks).items():
        readable[table.block_slice(block)][report["unreadable"]] = False
    return _finish(staging, table, readable)


def _finish(staging: Staging, table: PatchTable, readable: NDArray[np.bool_]) -> Manifest:
    put_array(staging.product, "readable", readable, MEANINGS["readable"])
    consolidate(staging.product)
    counts = {
        "patches": table.patches,
        "unreadable": int(np.count_nonzero(~readable)),
        "labelled": int(np.count_nonzero(table.labels >= 0)),
    }
    return staging.commit(KIND, counts)


def write_generation(
    staging: Staging, store: "PatchStore", table: PatchTable, attributes: dict[str, Any]
) -> Manifest:
    """Commit the pixels of a store with another table of the same patches.

    Pixels are hard links where the file system has them; `attributes` are added to the store's.
    """
    staging.begin()
    _lay_out(staging.product, table, store.attributes | attributes, store.codec)
    for name in store.manifest.files:
        if name.startswith("patches/c/"):
            link_file(store.path / name, staging.product / name)
    return _finish(staging, table, store.readable)


class PatchStore:
    """A finished patch store, opened read-only: a patch source."""

    def __init__(self, path: Path) -> None:
        """Open a store and check everything but its pixels. Raises StoreError."""
        self.path = path
        self.manifest = read_manifest(path)
        self.attributes = check_tables(path, self.manifest, KIND)
        table = self.table = read_table(path, self.attributes)
        if self.manifest.counts.get("patches") != table.patches:
            raise damage_error(path, "its patches and its manifest disagree")
        try:
            self.codec = read_codec(self.attributes)
        except (ConfigError, AttributeError) as error:
            raise damage_error(path, f"its codec is unknown ({error})") from error
        self.slide: SlideInfo = table.slide
        """The slide from which patches were cut."""
        self.grid: Grid = table.grid
        self.positions: NDArray[np.int32] = table.positions
        """(n, 2) row, col of each patch."""
        self.labels: NDArray[np.int8] = table.labels
        """(n,) class of each patch: 0 or 1 (index into `class_names`), -1 where it is not known."""
        self.class_names: tuple[str, str] = table.class_names
        self.block_size: int = table.block_size
        """Patches per block."""
        self.blocks: int = table.blocks
        """Number of blocks."""
        self._layout = _pixel_layout(table, self.codec)
        self._check_pixels()
        self._maps: LRUCache[int, NDArray[np.uint8]] = LRUCache(MAX_MAPS)
        self._mapping = threading.Lock()
        self._checked: set[int] = set()

    def _check_pixels(self) -> None:
        """Raise StoreError where the layout, or the size of a chunk, is not the table's."""
        check_layout(self.path, "patches", self._layout)
        check_one_chunk(self.path, "readable", "bool", (len(self),))
        if len(self):
            check_files(self.path, self.manifest, [name_chunk("readable", 0, 1)])
        for block in range(self.blocks):
            size, _ = self.manifest.files.get(name_chunk("patches", block, 4), (-1, ""))
            if not self.codec.is_possible_size(size, self._layout.chunk_bytes):
                fault = f"block {block} of its pixels is missing or of another size"
                raise damage_error(self.path, fault)

    @cached_property
    def coords(self) -> NDArray[np.int64]:
        """(n, 2) top-left corner of each patch as (x, y) in level-0 pixels of the slide."""
        return np.ascontiguousarray(positions_to_boxes_l0(self.positions, self.grid)[:, :2])

    def dataset(
        self, *, labelled: bool = True, transform: "Callable[[Tensor], Any] | None" = None
    ) -> "Dataset[tuple[Any, int]]":
        """Return the readable patches as a `torch.utils.data.Dataset` of (image, label).

        An image is float32 (3, side, side) in 0 … 1, or what `transform` makes of it. `labelled`
        False takes patches of unknown class in too, with label -1.
        """
        from wsi_pipeline.store.dataset import PatchDataset

        return PatchDataset(self, labelled=labelled, transform=transform)

    def __len__(self) -> int:
        return self.table.patches

    def __repr__(self) -> str:
        spec = self.grid.spec
        labelled = int(np.count_nonzero(self.labels >= 0))
        return (
            f"PatchStore({self.path}: {len(self)} patches of {spec.side_px} px at {spec.mpp:g}"
            f" µm/px, {labelled} labelled)"
        )

    @cached_property
    def readable(self) -> NDArray[np.bool_]:
        """(n,) False where a patch could not be decoded; its pixels are white."""
        return read_rows(self.path, "readable")

    def read_block(self, block: int) -> PatchBlock:
        """Return the pixels of one block. Raises StoreError where they were changed."""
        self._check_block(block)
        rows = self.table.block_slice(block)
        return PatchBlock(read_rows(self.path, "patches", rows), self.readable[rows])

    def _check_block(self, block: int) -> None:
        """Compare a block's chunk with the manifest, and the size that it would unpack to.

        Its own checksum does not tell that it is a chunk of another block.
        """
        if block not in self._checked and len(self):
            check_files(self.path, self.manifest, [name_chunk("patches", block, 4)])
            self._checked.add(block)
        if self.codec.name == "zstd":
            with chunk_file(self.path, "patches", block, 4).open("rb") as stream:
                declared = read_zstd_size(stream.read(ZSTD_HEADER_BYTES))
            if declared != self._layout.chunk_bytes:
                raise damage_error(self.path, f"block {block} does not unpack to its pixels")

    def read_patches(self, numbers: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return any patches in any order, (b, side, side, 3). Raises StoreError and IndexError.

        Of pixels that are stored as they are, only those bytes are read, through a memory map, and
        checksums are not compared (`wsi train` compares those of whole stores before it starts).
        Compressed chunks are decoded whole.
        """
        wanted = np.asarray(numbers, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.path}: patches are numbered 0 to {len(self) - 1}")
        pixels = np.empty((len(wanted), *self._layout.shape[1:]), dtype=np.uint8)
        blocks, rows = np.divmod(wanted, self.block_size)
        is_plain = self.codec.name == "none"
        for block in np.unique(blocks).tolist():
            members = np.flatnonzero(blocks == block)
            source = self._map_block(block) if is_plain else self.read_block(block).pixels
            pixels[members] = source[rows[members]]
        return pixels

    def _map_block(self, block: int) -> NDArray[np.uint8]:
        with self._mapping:
            if block not in self._maps:
                chunk = map_chunk(self.path, "patches", block, self._layout.chunks)
                self._maps[block] = chunk
            return self._maps[block]


def find_stores(places: Sequence[Path]) -> list[Path]:
    """Return the stores among `places`, sorted; a folder stands for every store in it."""
    remedy = "make some with `wsi tile` or `wsi ingest`"
    stores: list[Path] = []
    for place in places:
        if is_product(place) or place.name.endswith(STORE_SUFFIX):
            stores.append(place)
        elif place.is_dir():
            stores += sorted(place.glob(f"*{STORE_SUFFIX}"))
        else:
            raise StoreError(f"{place}: no such store or folder; {remedy}")
    if not stores:
        listed = ", ".join(map(str, places))
        raise StoreError(f"{listed}: no patch stores (*{STORE_SUFFIX}); {remedy}")
    return list({store.resolve(): store for store in stores}.values())


def describe_store(store: PatchStore) -> dict[str, str]:
    """Return names and texts that describe a store to a person, from its tables alone."""
    table, spec, counts = store.table, store.grid.spec, store.manifest.counts
    slide, files = table.slide, store.manifest.files
    labels = np.bincount(table.labels.astype(np.int64) + 1, minlength=3).tolist()
    names = ("unknown", *table.class_names)
    lossy = f", lossy, quality {store.codec.quality}" if store.codec.is_lossy else ""
    provenance = store.attributes.get("provenance")
    megabytes = sum(size for size, _ in files.values()) / 1e6
    described = {
        "patches": f"{table.patches}, {counts.get('unreadable', 0)} of them unreadable",
        "patch": f"{spec.side_px} × {spec.side_px} px, every {spec.stride_px} px",
        "scale": f"{spec.mpp:g} µm/px, one patch is {spec.field_um:g} µm wide",
        "slide": f"{slide.slide_id}, {slide.size_l0[0]} × {slide.size_l0[1]} px",
        "slide's scale": f"{slide.mpp:g} µm/px (from: {slide.mpp_source})",
        "patient": table.patient_id,
        "grid": f"{store.grid.rows} rows × {store.grid.cols} columns",
        "labels": ", ".join(f"{count} {name}" for count, name in zip(labels, names, strict=True)),
        "tissue": _describe_tissue(table.tissue_fraction) if table.patches else "none",
        "codec": f"{store.codec.name}{lossy}",
        "blocks": f"{store.blocks} of at most {store.block_size} patches",
        "size": f"{megabytes:,.1f} MB in {len(files)} files",
        "made by": str(
            (provenance if isinstance(provenance, dict) else {}).get("version", "unknown")
        ),
    }
    if slide.colour_profile:
        described["colours"] = f"{spec.icc}; the slide's profile is {slide.colour_profile}"
    if slide.reader_note:
        described["reader"] = slide.reader_note
    if table.columns:
        described["columns"] = f"{', '.join(table.columns)} (values are not shown)"
    if flags := table.count_flags():
        described["flags"] = ", ".join(f"{count} {name}" for name, count in flags.items())
    return described


def _describe_tissue(fraction: NDArray[np.float32]) -> str:
    known = fraction[~np.isnan(fraction)]
    return f"{float(known.mean()):.0%} of the patches' area" if len(known) else "not measured"
