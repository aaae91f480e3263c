"""Labelled patches of many stores, their pixels, and the order in which an epoch shows them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.choices import SCALE_TOLERANCE
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models.device import to_device
from wsi_pipeline.slides.colour_profile import warn_of_mixture
from wsi_pipeline.store.manifest import check_whole
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.zarr_io import read_rows
from wsi_pipeline.training.metrics import Labels, Names

MEMORY_SHARE = 0.5
"""Share of the free memory that pixels may take."""
BUFFER_BYTES = 2**30
"""Pixels held at once when they are read from the stores."""
READ_THREADS = 2
COMMON: tuple[tuple[str, str, Callable[[PatchStore], Any]], ...] = (
    ("patch size", " px", lambda store: store.grid.spec.side_px),
    ("stride", " px", lambda store: store.grid.spec.stride_px),
    ("kind of colours", "", lambda store: store.grid.spec.icc),
    ("pair of classes", "", lambda store: store.table.class_names),
)
"""Properties that all stores of a training share: name, unit, value."""


@dataclass(frozen=True, slots=True)
class LabelledPatches:
    """Patches of known class; their pixels stay in the stores until they are read."""

    labels: Labels
    """(n,) 0 negative, 1 positive."""
    patients: Names
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
    """Number of patches without a label, or unreadable."""
    columns: tuple[Mapping[str, str], ...] = ()
    """Free columns of each store's sample sheet."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch's pixels."""
        return self.spec.side_px**2 * 3

    def count_classes(self, members: NDArray[np.intp]) -> dict[str, int]:
        """Return the number of patches of each class among some."""
        counts = np.bincount(self.labels[members], minlength=2).tolist()
        return dict(zip(self.class_names, counts, strict=True))

    def describe(self, members: NDArray[np.intp]) -> str:
        """Return the number of patients and of patches of each class among some."""
        patients = len(np.unique(self.patients[members]))
        counts = ", ".join(f"{count} {name}" for name, count in self.count_classes(members).items())
        return f"{patients} patients, {len(members)} patches: {counts}"


def load_labelled(paths: Sequence[Path]) -> LabelledPatches:
    """Return the labelled, readable patches of the stores, sorted by patient, slide and position.

    Raises StoreError where a checksum fails, and ConfigError where the stores differ in patch size,
    scale or classes, or nothing is labelled: all before any pixel is used.
    """
    stores = sorted(
        (PatchStore(path) for path in paths),
        key=lambda store: (store.table.patient_id, store.slide.slide_id),
    )
    _check_alike(stores)
    warn_of_mixture([store.slide.colour_profile for store in stores], stores[0].grid.spec.icc)
    digests = tuple(check_whole(store.path).content_digest for store in stores)
    chosen = [_choose_in_raster_order(store) for store in stores]
    counts = list(map(len, chosen))
    if not any(counts):
        raise ConfigError(
            f"none of the {len(stores)} stores has a labelled patch; make labelled ones with `wsi"
            " ingest` or `wsi tile --labels`"
        )
    tables = [store.table for store in stores]
    numbers = np.repeat(np.arange(len(stores)), counts)
    return LabelledPatches(
        labels=np.concatenate(
            [table.labels[own] for table, own in zip(tables, chosen, strict=True)]
        ),
        patients=np.repeat([table.patient_id for table in tables], counts),
        places=np.stack([numbers, np.concatenate(chosen)], axis=1).astype(np.int64),
        spec=stores[0].grid.spec,
        class_names=tables[0].class_names,
        paths=tuple(store.path for store in stores),
        block_sizes=np.array([store.block_size for store in stores], dtype=np.int64),
        stores=digests,
        skipped=sum(table.patches for table in tables) - sum(counts),
        columns=tuple(table.columns for table in tables),
    )


def _choose_in_raster_order(store: PatchStore) -> NDArray[np.intp]:
    """Return the indices of usable patches by row and column, independent of their order there."""
    usable = np.flatnonzero((store.labels >= 0) & store.readable)
    return usable[np.lexsort(store.positions[usable].T[::-1])]


def _check_alike(stores: Sequence[PatchStore]) -> None:
    """Raise ConfigError where stores differ in patches or classes, or hold the same slide."""
    first = stores[0]
    for store in stores[1:]:
        for what, unit, pick in COMMON:
            value, wanted = pick(store), pick(first)
            if value != wanted:
                raise ConfigError(
                    f"{store.path}: {what} {value}{unit}, {first.path} has {wanted}{unit}; train on"
                    f" stores of one {what}"
                )
    finest, coarsest = (pick(stores, key=lambda store: store.grid.spec.mpp) for pick in (min, max))
    low, high = finest.grid.spec.mpp, coarsest.grid.spec.mpp
    if high - low > SCALE_TOLERANCE * low:
        raise ConfigError(
            f"{coarsest.path}: patches at {high:g} µm/px, {finest.path} has {low:g} µm/px; train on"
            " stores of one scale"
        )
    seen: dict[str, PatchStore] = {}
    for store in stores:  # a slide that occurs twice would count double, or leak in the split
        twin = seen.setdefault(store.slide.fingerprint, store)
        if twin is not store:
            raise ConfigError(
                f"{store.path}: holds the same slide as {twin.path}; leave one of them out"
            )


def read_pixels(patches: LabelledPatches, members: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return pixels (k, side, side, 3) of some patches, reading each block of a store once.

    Raises StoreError where a checksum fails.
    """
    side = patches.spec.side_px
    pixels = np.empty((len(members), side, side, 3), dtype=np.uint8)
    places = patches.places[members]
    for number in np.unique(places[:, 0]):
        here = places[:, 0] == number
        pixels[here] = read_verified(PatchStore(patches.paths[number]), places[here, 1])
    return pixels


def read_verified(store: PatchStore, numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Return any patches (k, side, side, 3) of a store, reading and verifying each block once."""
    side = store.grid.spec.side_px
    pixels = np.empty((len(numbers), side, side, 3), dtype=np.uint8)
    blocks, rows = np.divmod(numbers, store.block_size)
    for block in np.unique(blocks).tolist():
        here = blocks == block
        pixels[here] = store.read_block(block).pixels[rows[here]]
    return pixels


class PixelSource(Protocol):
    """Pixels of n patches, which are asked for by their index 0 … n-1."""

    side_px: int
    """Side of a patch."""

    def arrange(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        """Return the drawn indices in an order that this source can serve."""
        ...

    def order_for_reading(self) -> Tensor:
        """Return every index once, in the order that is quickest to read."""
        ...

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield pixels of each batch: uint8 (b, side, side, 3) on the device."""
        ...


class MemoryPixels:
    """All pixels in main memory or in the device's memory; they can be read in any order."""

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        self._device = device
        self._pixels = pixels
        self.side_px = pixels.shape[1]

    def arrange(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        return drawn

    def order_for_reading(self) -> Tensor:
        return torch.arange(len(self._pixels))

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        holder = self._pixels.device
        order = torch.cat([torch.empty(0, dtype=torch.int64), *batches]).to(holder)
        for batch in order.split(list(map(len, batches))):  # on the device: nothing waits for it
            yield to_device(self._pixels[batch], self._device)


class StorePixels:
    """Pixels read from the stores, some blocks at a time.

    Blocks come in random order; patches are shuffled among the blocks held together.
    """

    def __init__(
        self,
        patches: LabelledPatches,
        members: NDArray[np.intp],
        device: torch.device,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.side_px = patches.spec.side_px
        self._paths = patches.paths
        self._device = device
        self._places = patches.places[members]
        self._sizes = sizes = patches.block_sizes
        stores, inside = self._places[:, 0], self._places[:, 1]
        keys = np.stack([stores, inside // sizes[stores]], axis=1)
        self._blocks, block_of = np.unique(keys, axis=0, return_inverse=True)
        self._block_of = block_of.reshape(-1)
        self._starts = self._blocks[:, 1] * sizes[self._blocks[:, 0]]
        held = max(2, buffer_bytes // (int(sizes[self._blocks[:, 0]].max()) * patches.patch_bytes))
        self._blocks_together = max(1, held // 2)
        """Half of the buffer is shuffled together while the other half is being read."""

    def arrange(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        ranks = torch.randperm(len(self._blocks), generator=generator).numpy()
        window = ranks[self._block_of[drawn.numpy()]] // self._blocks_together
        within = torch.randperm(len(drawn), generator=generator).numpy()
        return drawn[torch.from_numpy(np.lexsort((within, window)))]

    def order_for_reading(self) -> Tensor:
        return torch.from_numpy(np.argsort(self._block_of, kind="stable"))

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        needed = [np.unique(self._block_of[batch.numpy()]).tolist() for batch in batches]
        last_use = {block: number for number, blocks in enumerate(needed) for block in blocks}
        coming = iter(dict.fromkeys(block for blocks in needed for block in blocks))
        held: dict[int, Future[NDArray[np.uint8]]] = {}
        pool = ThreadPoolExecutor(READ_THREADS, "read")
        try:
            for number, batch in enumerate(batches):
                while len(held) < 2 * self._blocks_together or not held.keys() >= {*needed[number]}:
                    block = next(coming, None)
                    if block is None:
                        break
                    held[block] = pool.submit(self._read, block)
                yield self._gather(batch.numpy(), held)
                for block in needed[number]:
                    if last_use[block] == number:
                        del held[block]
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, block: int) -> NDArray[np.uint8]:
        store, start = int(self._blocks[block, 0]), int(self._starts[block])
        rows = slice(start, start + int(self._sizes[store]))
        # PatchStore would read the whole table; blocks come in random order from many stores.
        return read_rows(self._paths[store], "patches", rows)

    def _gather(
        self, batch: NDArray[np.int64], held: dict[int, Future[NDArray[np.uint8]]]
    ) -> Tensor:
        blocks = self._block_of[batch]
        rows = self._places[batch, 1] - self._starts[blocks]
        first = held[int(blocks[0])].result()
        pixels = np.empty((len(batch), *first.shape[1:]), dtype=np.uint8)
        for block in np.unique(blocks):
            here = blocks == block
            pixels[here] = held[int(block)].result()[rows[here]]
        return to_device(torch.from_numpy(pixels), self._device)


def choose_cache(
    wanted: str, patches: LabelledPatches, device: torch.device, copies: int = 1
) -> str:
    """Return the cache to use: the wanted one, or for `auto` the fastest that fits.

    `auto` takes the device where half of its free memory is enough, else main memory likewise, else
    the stores. `copies` is how many processes of this machine each hold the pixels.
    """
    if wanted != "auto":
        return wanted
    total = len(patches) * patches.patch_bytes
    if device.type == "cuda" and total <= MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if total * copies <= MEMORY_SHARE * free_memory() else "stores"


def open_pixels(
    patches: LabelledPatches, members: NDArray[np.intp], cache: str, device: torch.device
) -> PixelSource:
    """Return the pixels of some patches by a cache that `choose_cache` named."""
    if cache == "stores":
        return StorePixels(patches, members, device)
    holder = device if cache == "device" else torch.device("cpu")
    side = patches.spec.side_px
    pixels = torch.empty((len(members), side, side, 3), dtype=torch.uint8, device=holder)
    numbers = patches.places[members, 0]
    for number in np.unique(numbers):  # one store at a time: a GPU's pixels never fill main memory
        wanted = np.flatnonzero(numbers == number)
        read = torch.from_numpy(read_pixels(patches, members[wanted]))
        pixels[torch.from_numpy(wanted).to(holder)] = read.to(holder)
    return MemoryPixels(pixels, device)


def free_memory() -> int:
    """Return the bytes that this process may still take, within its control group's limit."""
    free = 2**62
    for line in _read_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = _read_lines(Path("/sys/fs/cgroup/memory.max"))
    used = _read_lines(Path("/sys/fs/cgroup/memory.current"))
    if limit and used and limit[0].isdigit():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux, or not in a control group
        return []


def sample_epoch(
    sampling: str, labels: Labels, patients: Names, generator: torch.Generator
) -> Tensor:
    """Return indices (n,) into the n training patches, for one epoch."""
    if sampling == "shuffle":
        return torch.randperm(len(labels), generator=generator)
    weights = torch.from_numpy(_weigh_patches(sampling, labels, patients))
    # torch.multinomial takes 2^24 categories at most.
    edges = torch.cumsum(weights, dim=0)
    draws = torch.rand(len(labels), generator=generator, dtype=torch.float64) * edges[-1]
    return torch.searchsorted(edges, draws, right=True).clamp_max(len(labels) - 1)


def _weigh_patches(sampling: str, labels: Labels, patients: Names) -> NDArray[np.float64]:
    """Return how often each patch is drawn, (n,), up to a factor."""
    if sampling == "class":
        return _share(labels)
    if sampling == "patient":
        return _share(patients)
    weights = np.empty(len(labels))
    for label in np.unique(labels):
        members = labels == label
        weights[members] = _share(patients[members])
    return weights


def _share(groups: NDArray[Any]) -> NDArray[np.float64]:
    """Return weights that sum to 1 and give every group the same sum."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) * counts[group]))


def cut_batches(order: Tensor, batch_size: int, ranks: int = 1) -> list[Tensor]:
    """Return an epoch's order cut into batches.

    A last batch with fewer than two patches for each rank joins the batch before it: batch
    normalisation needs two patches.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < 2 * ranks:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def weigh_classes(labels: Labels) -> tuple[float, float]:
    """Return weights of both classes in the loss: n / (2 · patches of the class)."""
    negatives, positives = np.bincount(labels, minlength=2)[:2]
    return len(labels) / (2 * negatives), len(labels) / (2 * positives)
