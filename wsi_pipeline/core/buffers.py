"""Memory for pixels that is used again and again: a block is 31 MB.

Fresh memory comes from the operating system page by page, each cleared first, and on virtual
machines that takes longer than decoding a third of the block; memory that was used before costs
nothing.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 4
"""Buffers that wait to be used again: as many as blocks are under way."""


def allocate(size: int) -> NDArray[np.uint8]:
    """Return that many bytes of ordinary memory; their content is arbitrary."""
    return np.empty(size, np.uint8)


class PixelBuffers:
    """Arrays whose memory is used again when the last of their views is gone; thread-safe.

    Without a lock: a garbage collection may give a buffer back at any moment, also within `take`.
    """

    def __init__(
        self, kept: int = KEPT, allocate: Callable[[int], NDArray[np.uint8]] = allocate
    ) -> None:
        """`allocate` returns so many new bytes."""
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=kept)
        self._allocate = allocate

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array of that shape; its content is arbitrary, as of `numpy.empty`."""
        return np.asarray(_Lease(self, self._find(prod(shape)), shape))

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of an array."""
        taken = self.take((array.nbytes,)).view(array.dtype).reshape(array.shape)
        np.copyto(taken, array)
        return taken

    def _find(self, size: int) -> NDArray[np.uint8]:
        with suppress(IndexError):  # none is left
            for _ in range(len(self._free)):
                buffer = self._free.popleft()
                if size <= buffer.nbytes <= 2 * size:
                    return buffer
                self._free.append(buffer)
        return self._allocate(size)

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a buffer for the next one who needs its size; the one that waited longest goes."""
        self._free.append(buffer)


class _Lease:
    """The owner of one array's memory, as NumPy sees it."""

    def __init__(
        self, owner: PixelBuffers, buffer: NDArray[np.uint8], shape: tuple[int, ...]
    ) -> None:
        self._owner = owner
        self._buffer = buffer
        place = buffer.ctypes.data, False
        self.__array_interface__ = {"shape": shape, "typestr": "|u1", "data": place, "version": 3}

    def __del__(self) -> None:
        self._owner.give_back(self._buffer)
