"""Labelled patches of many stores: who they are from, what they are, and where their pixels lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.store.manifest import check_whole
from wsi_pipeline.store.patches import PatchStore

SCALE_TOLERANCE = 0.05
"""Stores whose scales differ by more than this share are not trained on together; `wsi tile` itself may be 2 % off either way."""


@dataclass(frozen=True, slots=True)
class LabelledPatches:
    """Patches whose class is known, by patient, slide and place on the slide; pixels stay in the stores until they are read."""

    labels: NDArray[np.int8]
    """(n,) 0 negative, 1 positive."""
    patients: NDArray[np.str_]
    """(n,)"""
    places: NDArray[np.int64]
    """(n, 2) index into `paths`, index within that store."""
    spec: PatchSpec
    class_names: tuple[str, str]
    paths: tuple[Path, ...]
    block_sizes: NDArray[np.int64]
    """Patches per block of each store."""
    stores: tuple[str, ...]
    """Content digest of each store."""
    skipped: int
    """Patches without a label, or unreadable."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch's pixels."""
        return self.spec.side_px**2 * 3


def load_labelled(paths: Sequence[Path]) -> LabelledPatches:
    """Every labelled, readable patch of the stores, in one order whatever order the stores were given or cut in.

    Raises StoreError where a checksum fails, and ConfigError where the stores differ in patch size,
    scale or classes, or nothing is labelled: all before a pixel is used.
    """
    stores = sorted(
        (PatchStore(path) for path in paths),
        key=lambda store: (store.table.patient_id, store.slide.slide_id),
    )
    _check_alike(stores)
    digests = tuple(check_whole(store.path).content_digest for store in stores)
    chosen = [_choose_in_raster_order(store) for store in stores]
    if not any(len(indices) for indices in chosen):
        raise ConfigError(
            f"none of the {len(stores)} stores has a labelled patch; make labelled ones with `wsi"
            " ingest` or --labels"
        )
    return LabelledPatches(
        labels=np.concatenate(
            [store.table.labels[indices] for store, indices in zip(stores, chosen, strict=True)]
        ),
        patients=np.concatenate(
            [
                np.full(len(indices), store.table.patient_id)
                for store, indices in zip(stores, chosen, strict=True)
            ]
        ),
        places=np.concatenate([_place(number, indices) for number, indices in enumerate(chosen)]),
        spec=stores[0].grid.spec,
        class_names=stores[0].table.class_names,
        paths=tuple(store.path for store in stores),
        block_sizes=np.array([store.block_size for store in stores], dtype=np.int64),
        stores=digests,
        skipped=sum(
            store.table.patches - len(indices)
            for store, indices in zip(stores, chosen, strict=True)
        ),
    )


def read_pixels(patches: LabelledPatches, members: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Pixels (k, side, side, 3) of some patches, each block of a store read once. Raises StoreError where a checksum fails."""
    side = patches.spec.side_px
    pixels = np.empty((len(members), side, side, 3), dtype=np.uint8)
    places = patches.places[members]
    for number in np.unique(places[:, 0]):
        store = PatchStore(patches.paths[number])
        wanted = np.flatnonzero(places[:, 0] == number)
        inside = places[wanted, 1]
        for block in np.unique(inside // store.block_size):
            here = inside // store.block_size == block
            pixels[wanted[here]] = store.read_block(int(block)).pixels[
                inside[here] - block * store.block_size
            ]
    return pixels


def _choose_in_raster_order(store: PatchStore) -> NDArray[np.intp]:
    """The store's labelled, readable patches from top left to bottom right: the same however the store was cut."""
    usable = np.flatnonzero((store.table.labels >= 0) & store.readable)
    positions = store.positions[usable]
    return usable[np.lexsort((positions[:, 1], positions[:, 0]))]


def _place(number: int, indices: NDArray[np.intp]) -> NDArray[np.int64]:
    return np.stack([np.full(len(indices), number), indices], axis=1).astype(np.int64)


def _check_alike(stores: Sequence[PatchStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        one, other = first.grid.spec, store.grid.spec
        if one.side_px != other.side_px:
            raise ConfigError(
                f"{store.path}: patches of {other.side_px} px, {first.path} has {one.side_px} px;"
                " train on stores of one patch size"
            )
        if one.stride_px != other.stride_px:
            raise ConfigError(
                f"{store.path}: patches every {other.stride_px} px, {first.path} has them every"
                f" {one.stride_px}; train on stores cut alike"
            )
        if first.table.class_names != store.table.class_names:
            raise ConfigError(
                f"{store.path}: classes {store.table.class_names}, {first.path} has"
                f" {first.table.class_names}; train on stores of the same"
            )
    finest, coarsest = (pick(stores, key=lambda store: store.grid.spec.mpp) for pick in (min, max))
    low, high = finest.grid.spec.mpp, coarsest.grid.spec.mpp
    if high - low > SCALE_TOLERANCE * low:
        raise ConfigError(
            f"{coarsest.path}: patches at {high:g} µm/px, {finest.path} has {low:g} µm/px; train on"
            " stores of one scale"
        )
    _check_distinct(stores)


def _check_distinct(stores: Sequence[PatchStore]) -> None:
    """Raise ConfigError where a slide is there twice: its patches would count double, or stand on two sides of the split."""
    seen: dict[str, PatchStore] = {}
    for store in stores:
        twin = seen.setdefault(store.slide.fingerprint, store)
        if twin is not store:
            raise ConfigError(
                f"{store.path}: holds the same slide as {twin.path}; leave one of them out"
            )
