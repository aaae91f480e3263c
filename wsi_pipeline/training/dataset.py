"""Labelled patches from stores, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import PatchSpec
from wsi_pipeline.store.commit import check_whole
from wsi_pipeline.store.patches import PatchStore

SCALE_TOLERANCE = 0.05
"""Stores whose scales differ by more than this share are not trained on together; `wsi tile` itself may be 2 % off either way."""


@dataclass(frozen=True, slots=True)
class LabelledPatches:
    """Patches whose class is known, with the patient that each is from."""

    pixels: NDArray[np.uint8]
    """RGB, (n, side, side, 3)."""
    labels: NDArray[np.int8]
    """(n,) 0 negative, 1 positive."""
    patients: NDArray[np.str_]
    """(n,)"""
    spec: PatchSpec
    class_names: tuple[str, str]
    stores: tuple[str, ...]
    """Content digest of each store they are from."""
    skipped: int
    """Patches without a label, or unreadable."""

    def of(self, patients: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        """Pixels and labels of some patients."""
        members = np.isin(self.patients, list(patients))
        return self.pixels[members], self.labels[members]


def load_labelled(paths: Sequence[Path]) -> LabelledPatches:
    """Every labelled, readable patch of the stores, by patient, slide and place, whatever order they were given or stored in.

    Raises StoreError where a checksum fails, and ConfigError where the stores differ in patch size, scale or classes, or nothing is
    labelled: all before a pixel is used.
    """
    stores = sorted((PatchStore(path) for path in paths), key=lambda store: (store.table.patient_id, store.slide.slide_id))
    _check_alike(stores)
    digests = tuple(check_whole(store.path).content_digest for store in stores)
    usable = [(store.table.labels >= 0) & store.readable for store in stores]
    total = sum(int(mask.sum()) for mask in usable)
    if total == 0:
        raise ConfigError(f"none of the {len(stores)} stores has a labelled patch; make labelled ones with `wsi ingest` or --labels")
    side = stores[0].grid.spec.side_px
    pixels = np.empty((total, side, side, 3), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int8)
    filled = 0
    for store, mask in zip(stores, usable, strict=True):
        count = int(mask.sum())
        places = _raster_places(store, mask)
        _fill(pixels[filled : filled + count], store, mask, places)
        labels[filled + places] = store.table.labels[mask]
        filled += count
    return LabelledPatches(
        pixels=pixels,
        labels=labels,
        patients=np.concatenate([np.full(mask.sum(), store.table.patient_id) for store, mask in zip(stores, usable, strict=True)]),
        spec=stores[0].grid.spec,
        class_names=stores[0].table.class_names,
        stores=digests,
        skipped=sum(int(np.count_nonzero(~mask)) for mask in usable),
    )


def _raster_places(store: PatchStore, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """For each chosen patch of a store, its place among them in raster order: the same however the store was cut."""
    cells = store.cells[mask]
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    places = np.empty(len(cells), dtype=np.intp)
    places[order] = np.arange(len(cells))
    return places


def _fill(target: NDArray[np.uint8], store: PatchStore, mask: NDArray[np.bool_], places: NDArray[np.intp]) -> None:
    filled = 0
    for block in range(store.blocks):
        start = block * store.block_size
        chosen = mask[start : start + store.block_size]
        if not chosen.any():
            continue
        patches = store.read_block(block).pixels[chosen]
        target[places[filled : filled + len(patches)]] = patches
        filled += len(patches)


def _check_alike(stores: Sequence[PatchStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        one, other = first.grid.spec, store.grid.spec
        if one.side_px != other.side_px:
            raise ConfigError(
                f"{store.path}: patches of {other.side_px} px, {first.path} has {one.side_px} px; train on stores of one patch size"
            )
        if abs(one.mpp - other.mpp) > SCALE_TOLERANCE * one.mpp:
            raise ConfigError(
                f"{store.path}: patches at {other.mpp:g} µm/px, {first.path} has {one.mpp:g} µm/px; train on stores of one scale"
            )
        if first.table.class_names != store.table.class_names:
            raise ConfigError(
                f"{store.path}: classes {store.table.class_names}, {first.path} has {first.table.class_names}; train on stores of the same"
            )
