"""Where a training run's pixels come from: memory, the GPU's memory, or the stores block by block."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.store.zarr_io import read_rows
from wsi_pipeline.training.data import LabelledPatches, read_pixels

CACHES = ("auto", "device", "memory", "stores")
MEMORY_SHARE = 0.5
"""Share of the free memory that pixels may take."""
BUFFER_BYTES = 2**30
"""Pixels held at once when they are read from the stores."""
READ_THREADS = 2


class PixelSource(Protocol):
    """Pixels of some patches, asked for by their place 0 … n-1 among these."""

    def arrange(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        """The drawn places in an order that this source can serve."""
        ...

    def order_for_reading(self) -> Tensor:
        """Every place once, in the order that is quickest to read."""
        ...

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Pixels of each batch in turn: uint8 (b, side, side, 3) on the device."""
        ...


class MemoryPixels:
    """All pixels in memory, or in the device's; any order is as good as another."""

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        self._device = device
        self._pixels = pixels

    def arrange(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        return drawn

    def order_for_reading(self) -> Tensor:
        return torch.arange(len(self._pixels))

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            chosen = self._pixels[batch.to(self._pixels.device)]
            if self._device.type == "cuda" and not chosen.is_cuda:
                chosen = chosen.pin_memory()
            yield chosen.to(self._device, non_blocking=True)


class StorePixels:
    """Pixels read from the stores, some blocks at a time: blocks come in random order, patches are shuffled among those held together."""

    def __init__(
        self,
        patches: LabelledPatches,
        members: NDArray[np.intp],
        device: torch.device,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._paths = patches.paths
        self._device = device
        self._places = patches.places[members]
        sizes = patches.block_sizes
        self._sizes = sizes
        keys = np.stack(
            [self._places[:, 0], self._places[:, 1] // sizes[self._places[:, 0]]], axis=1
        )
        self._blocks, self._block_of = np.unique(keys, axis=0, return_inverse=True)
        self._block_of = self._block_of.reshape(-1)
        self._starts = self._blocks[:, 1] * sizes[self._blocks[:, 0]]
        held = max(2, buffer_bytes // (int(sizes[self._blocks[:, 0]].max()) * patches.patch_bytes))
        self._blocks_together = max(1, held // 2)
        """Half of the buffer is shuffled together while the other half is being read."""

    def arrange(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        ranks = torch.randperm(len(self._blocks), generator=generator).numpy()
        window = ranks[self._block_of[drawn.numpy()]] // self._blocks_together
        return drawn[
            torch.from_numpy(
                np.lexsort((torch.randperm(len(drawn), generator=generator).numpy(), window))
            )
        ]

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
                while len(held) < 2 * self._blocks_together or not all(
                    block in held for block in needed[number]
                ):
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
        # Not by way of PatchStore, which reads the whole table: blocks come in random order from
        # any number of stores.
        return read_rows(
            self._paths[store], "patches", slice(start, start + int(self._sizes[store]))
        )

    def _gather(
        self, batch: NDArray[np.int64], held: dict[int, "Future[NDArray[np.uint8]]"]
    ) -> Tensor:
        blocks = self._block_of[batch]
        rows = self._places[batch, 1] - self._starts[blocks]
        first = held[int(blocks[0])].result()
        pixels = np.empty((len(batch), *first.shape[1:]), dtype=np.uint8)
        for block in np.unique(blocks):
            here = blocks == block
            pixels[here] = held[int(block)].result()[rows[here]]
        return torch.from_numpy(pixels).to(self._device)


def choose_cache(
    wanted: str, patches: LabelledPatches, device: torch.device, copies: int = 1
) -> str:
    """`auto`: all on the device where half of its free memory is enough, else in memory likewise, else read from the stores.

    `copies` is how many processes of this machine will each hold them.
    """
    if wanted not in CACHES:
        raise ConfigError(f"{wanted}: no such cache; there are {', '.join(CACHES)}")
    if wanted != "auto":
        return wanted
    total = len(patches) * patches.patch_bytes
    if device.type == "cuda" and total <= MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if total * copies <= MEMORY_SHARE * free_memory() else "stores"


def open_pixels(
    patches: LabelledPatches, members: NDArray[np.intp], cache: str, device: torch.device
) -> PixelSource:
    """The pixels of some patches by a cache that `choose_cache` named."""
    if cache == "stores":
        return StorePixels(patches, members, device)
    return MemoryPixels(
        load_pixels(patches, members, device if cache == "device" else torch.device("cpu")), device
    )


def load_pixels(patches: LabelledPatches, members: NDArray[np.intp], place: torch.device) -> Tensor:
    """Pixels uint8 (k, side, side, 3) of some patches on a device, store by store, so that a GPU's share never lies in memory whole."""
    side = patches.spec.side_px
    pixels = torch.empty((len(members), side, side, 3), dtype=torch.uint8, device=place)
    numbers = patches.places[members, 0]
    for number in np.unique(numbers):
        wanted = np.flatnonzero(numbers == number)
        pixels[torch.from_numpy(wanted).to(place)] = torch.from_numpy(
            read_pixels(patches, members[wanted])
        ).to(place)
    return pixels


def free_memory() -> int:
    """Bytes that this process may still take: the machine's, or its control group's where that is less."""
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
