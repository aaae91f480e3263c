"""Memory for the pixels of blocks, used again and again.

A block is 31 MB. Fresh memory comes from the operating system page by page, each cleared first, and on virtual machines that takes longer
than decoding a third of the block; memory that was used before costs nothing.
"""

import threading
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 4
"""Buffers that wait to be used again: as many as blocks are under way."""


class PixelBuffers:
    """Hands out arrays whose memory comes back by itself when the last of their views is gone; safe to share between threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of that shape; its content is arbitrary, as of `numpy.empty`."""
        size = prod(shape)
        return np.asarray(_Lease(self, self._find(size), shape))

    def _find(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            for index, buffer in enumerate(self._free):
                if size <= buffer.nbytes <= 2 * size:
                    return self._free.pop(index)
        return np.empty(size, np.uint8)

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a buffer for the next one who needs its size; the one that waited longest goes."""
        with self._lock:
            self._free.append(buffer)
            del self._free[: -self._kept]


class _Lease:
    """The owner of one array's memory, as NumPy sees it."""

    def __init__(self, owner: PixelBuffers, buffer: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self._owner = owner
        self._buffer = buffer
        self.__array_interface__: dict[str, Any] = {"shape": shape, "typestr": "|u1", "data": (buffer.ctypes.data, False), "version": 3}

    def __del__(self) -> None:
        self._owner.give_back(self._buffer)


BUFFERS = PixelBuffers()
"""Those of this process."""
