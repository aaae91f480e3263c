"""Decoded tiles that a neighbouring macro-tile may want again, within a bound for the whole process."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 128 * 1024 * 1024
"""About 650 tiles of 256 px: the borders of macro-tiles that lie close together, in the order in which cells are stored."""


class TileCache:
    """The tiles that were used last; safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> NDArray[np.uint8] | None:
        """The tile of that key; None where it is not kept (any more)."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: Hashable, tile: NDArray[np.uint8]) -> None:
        """Keep a tile, and let go of those that were not used for the longest time."""
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._bytes += tile.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    def forget(self, owner: Hashable) -> None:
        """Let go of the tiles whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._tiles if isinstance(key, tuple) and key[0] == owner]:
                self._bytes -= self._tiles.pop(key).nbytes


TILES = TileCache(MAX_BYTES)
"""Of this process; slides share it, so that several open ones take no more memory than one."""
