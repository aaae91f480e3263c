"""Patches of a store as a PyTorch data set; apart from the store so that tiling loads no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from wsi_pipeline.core.geometry import Grid


class ReadableStore(Protocol):
    """A patch store, as far as its pixels and labels are read."""

    path: Path
    grid: Grid
    labels: NDArray[np.int8]

    @property
    def readable(self) -> NDArray[np.bool_]: ...

    def read_patches(self, numbers: NDArray[np.intp]) -> NDArray[np.uint8]: ...


class PatchDataset(Dataset[tuple[Any, int]]):
    """The readable patches of a store, as (image, label) in the order of the store.

    An image is float32 (3, side, side) in 0 … 1, as torchvision's `ToTensor` gives it, or the
    result of `transform` for that tensor. A label is 0 or 1, or -1 where the class is not known.
    """

    def __init__(
        self,
        store: ReadableStore,
        *,
        labelled: bool = True,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self._store: ReadableStore | None = store
        self._path = store.path
        self._open: Callable[[Path], ReadableStore] = type(store)
        self._transform = transform
        self.mpp = store.grid.spec.mpp
        """µm per pixel of every image."""
        wanted = store.readable & (store.labels >= 0) if labelled else store.readable
        self.numbers: NDArray[np.intp] = np.flatnonzero(wanted)
        """(n,) number of each item in the store: `store.coords[data.numbers]` are its places."""
        self.labels: NDArray[np.int8] = store.labels[self.numbers]
        """(n,) label of each item."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one item. Raises IndexError, or StoreError where the store is damaged."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Return several items, read together; torch's DataLoader reads its batches so."""
        chosen = np.asarray(indices, dtype=np.intp)
        if self._store is None:
            self._store = self._open(self._path)
        pixels = self._store.read_patches(self.numbers[chosen])  # (b, side, side, 3)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255  # (b, 3, side, side)
        shown = images if self._transform is None else map(self._transform, images)
        return list(zip(shown, self.labels[chosen].tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open store out: each worker process of a DataLoader opens its own."""
        return {**self.__dict__, "_store": None}

    def __repr__(self) -> str:
        found = f"{len(self)} patches at {self.mpp:g} µm/px, {(self.labels == 1).sum()} positive"
        return f"PatchDataset({self._path}: {found})"
