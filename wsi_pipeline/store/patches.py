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
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.geometry import Grid, block_slice, count_blocks, positions_to_boxes_l0
from wsi_pipeline.core.slide import PatchBlock, PatchTable, SlideInfo
from wsi_pipeline.store.codecs import ZSTD_HEADER_BYTES, PixelCodec, read_codec, read_zstd_size
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.layout import ArrayLayout, check_layout, check_one_chunk, name_one_chunk
from wsi_pipeline.store.manifest import Manifest, check_files, is_product, read_manifest
from wsi_pipeline.store.schema import check_tables, read_table, write_table
from wsi_pipeline.store.zarr_io import (
    AS_THEY_ARE,
    chunk_file,
    create_array,
    flush_chunk,
    map_chunk,
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
    side = table.grid.spec.side_px
    write_table(staging.product, KIND, table, attributes | {"codec": codec.to_json()})
    shape = (table.patches, side, side, 3)
    create_array(
        staging.product, "patches", shape, (table.block_size, side, side, 3), "uint8", codec=codec
    )
    staging.mark_prepared()


def write_patch_block(staging: Staging, table: PatchTable, block: int, patches: PatchBlock) -> int:
    """Write one block and return the number of its unreadable patches."""
    write_rows(
        staging.product,
        "patches",
        block_slice(block, table.block_size, table.patches),
        patches.pixels,
    )
    chunk = flush_chunk(staging.product, "patches", block, dimensions=4)
    unreadable = np.flatnonzero(~patches.readable).tolist()
    report = {
        "patches": len(patches.readable),
        "unreadable": unreadable,
        "fallbacks": patches.fallbacks,
    }
    staging.mark_block(block, report, chunk)
    return len(unreadable)


def finish_patch_store(staging: Staging, table: PatchTable) -> Manifest:
    """Write what the blocks reported and commit the store."""
    readable = np.ones(table.patches, dtype=np.bool_)
    for block, report in staging.check_complete(
        count_blocks(table.patches, table.block_size)
    ).items():
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
        """Open a store and check everything but its pixels.

        Raises StoreError where it is incomplete, damaged, of another kind, or contradicts its
        manifest.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self.attributes = check_tables(path, self.manifest, KIND)
        self.table = read_table(path, self.attributes)
        if self.manifest.counts.get("patches") != self.table.patches:
            raise StoreError(
                f"{path}: damaged: its patches and its manifest disagree; make it again with"
                " --force"
            )
        try:
            self.codec = read_codec(self.attributes)
        except (ConfigError, AttributeError) as error:
            raise StoreError(
                f"{path}: its codec is unknown to this version of wsi ({error}); make it again"
            ) from error
        self._check_pixels()
        self._maps: LRUCache[int, NDArray[np.uint8]] = LRUCache(MAX_MAPS)
        self._mapping = threading.Lock()
        self._checked: set[int] = set()

    def _check_pixels(self) -> None:
        """Raise StoreError where pixels have another layout than the table says.

        Also where a chunk is not in the manifest or too large.
        """
        patches, side, size = self.table.patches, self.grid.spec.side_px, self.block_size
        wanted = ArrayLayout(
            "uint8", (patches, side, side, 3), (size, side, side, 3), self.codec.zarr_names
        )
        check_layout(self.path, "patches", wanted)
        check_one_chunk(self.path, "readable", "bool", (patches,))
        if patches:
            check_files(self.path, self.manifest, [name_one_chunk("readable", (patches,))])
        for block in range(self.blocks):
            found = self.manifest.files.get(f"patches/c/{block}/0/0/0")
            if found is None or not self.codec.is_possible_size(found[0], wanted.chunk_bytes):
                raise StoreError(
                    f"{self.path}: damaged: block {block} of its pixels is missing or of another"
                    " size; make it again"
                )

    @property
    def slide(self) -> SlideInfo:
        """The slide from which patches were cut."""
        return self.table.slide

    @property
    def grid(self) -> Grid:
        """The grid of the patches."""
        return self.table.grid

    @property
    def positions(self) -> NDArray[np.int32]:
        """(n, 2) row, col of each patch."""
        return self.table.positions

    @property
    def labels(self) -> NDArray[np.int8]:
        """(n,) class of each patch: 0 or 1 (index into `class_names`), -1 where it is not known."""
        return self.table.labels

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of the classes 0 and 1."""
        return self.table.class_names

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
        """Return the pixels of one block. Raises StoreError where they were changed."""
        self._check_block(block)
        rows = block_slice(block, self.block_size, self.table.patches)
        if self.codec.name == "zstd":
            self._check_frame(block)
        return PatchBlock(read_rows(self.path, "patches", rows), self.readable[rows])

    def _check_frame(self, block: int) -> None:
        """Raise StoreError where a compressed block would not unpack to the size of its pixels."""
        side = self.grid.spec.side_px
        with chunk_file(self.path, "patches", block, 4).open("rb") as stream:
            declared = read_zstd_size(stream.read(ZSTD_HEADER_BYTES))
        if declared != self.block_size * side * side * 3:
            raise StoreError(
                f"{self.path}: damaged: block {block} does not unpack to its pixels; make it again"
                " with --force"
            )

    def _check_block(self, block: int) -> None:
        """Compare the block's chunk with the manifest, once.

        Its own checksum does not tell that it is a chunk of another block.
        """
        if block not in self._checked and self.table.patches:
            check_files(
                self.path,
                self.manifest,
                [chunk_file(Path(), "patches", block, dimensions=4).as_posix()],
            )
            self._checked.add(block)

    def read_patches(self, numbers: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return any patches in any order, (b, side, side, 3). Raises StoreError and IndexError.

        Of pixels that are stored as they are, only those bytes are read, through a memory map, and
        checksums are not compared (`wsi train` compares those of whole stores before it starts).
        Compressed chunks are decoded whole.
        """
        wanted = np.asarray(numbers, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.table.patches):
            raise IndexError(f"{self.path}: patches are numbered 0 to {self.table.patches - 1}")
        side = self.grid.spec.side_px
        pixels = np.empty((len(wanted), side, side, 3), dtype=np.uint8)
        blocks, rows = np.divmod(wanted, self.block_size)
        for block in np.unique(blocks).tolist():
            members = np.flatnonzero(blocks == block)
            source = (
                self._map_block(block)
                if self.codec.name == "none"
                else self.read_block(block).pixels
            )
            pixels[members] = source[rows[members]]
        return pixels

    def _map_block(self, block: int) -> NDArray[np.uint8]:
        with self._mapping:
            if block not in self._maps:
                shape = (self.block_size, self.grid.spec.side_px, self.grid.spec.side_px, 3)
                self._maps[block] = map_chunk(self.path, "patches", block, shape)
            return self._maps[block]


def find_stores(places: list[Path]) -> list[Path]:
    """Return the stores among `places`, sorted; a folder stands for every store in it."""
    stores: list[Path] = []
    for place in places:
        if is_product(place) or place.name.endswith(STORE_SUFFIX):
            stores.append(place)
        elif place.is_dir():
            stores += sorted(place.glob(f"*{STORE_SUFFIX}"))
        else:
            raise StoreError(
                f"{place}: no such store or folder; make stores with `wsi tile` or `wsi ingest`"
            )
    if not stores:
        raise StoreError(
            f"{', '.join(map(str, places))}: no patch stores (*{STORE_SUFFIX}); make some with"
            " `wsi tile` or `wsi ingest`"
        )
    return list({store.resolve(): store for store in stores}.values())


def describe_store(store: PatchStore) -> dict[str, str]:
    """Return names and texts that describe a store to a person, from its tables alone."""
    table, spec, counts = store.table, store.grid.spec, store.manifest.counts
    labels = np.bincount(table.labels.astype(np.int64) + 1, minlength=3).tolist()
    names = ("unknown", *table.class_names)
    lossy = f", lossy, quality {store.codec.quality}" if store.codec.is_lossy else ""
    described = {
        "patches": f"{table.patches}, {counts.get('unreadable', 0)} of them unreadable",
        "patch": f"{spec.side_px} × {spec.side_px} px, every {spec.stride_px} px",
        "scale": f"{spec.mpp:g} µm/px, one patch is {spec.field_um:g} µm wide",
        "slide": f"{table.slide.slide_id}, {table.slide.size_l0[0]} × {table.slide.size_l0[1]} px",
        "slide's scale": f"{table.slide.mpp:g} µm/px (from: {table.slide.mpp_source})",
        "patient": table.patient_id,
        "grid": f"{store.grid.rows} rows × {store.grid.cols} columns",
        "labels": ", ".join(f"{count} {name}" for count, name in zip(labels, names, strict=True)),
        "tissue": _describe_tissue(table.tissue_fraction) if table.patches else "none",
        "codec": f"{store.codec.name}{lossy}",
        "blocks": f"{store.blocks} of at most {store.block_size} patches",
        "size": (
            f"{sum(size for size, _ in store.manifest.files.values()) / 1e6:,.1f} MB in"
            f" {len(store.manifest.files)} files"
        ),
        "made by": _describe_maker(store.attributes.get("provenance")),
    }
    if flags := table.count_flags():
        described["flags"] = ", ".join(f"{count} {name}" for name, count in flags.items())
    return described


def _describe_tissue(fraction: NDArray[np.float32]) -> str:
    known = fraction[~np.isnan(fraction)]
    return f"{float(known.mean()):.0%} of the patches' area" if len(known) else "not measured"


def _describe_maker(provenance: Any) -> str:
    return str(provenance.get("version", "unknown")) if isinstance(provenance, dict) else "unknown"
