"""Encoded tiles in memory, bounded in bytes; the ones not asked for longest go first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

ENTRY_OVERHEAD_BYTES = 400
"""What an entry costs besides its content: key, dictionary slot, bytes object."""


class TileCache:
    """Bytes by key; safe to share between threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._lock = threading.Lock()
        self._content: OrderedDict[Hashable, bytes] = OrderedDict()
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable) -> bytes | None:
        """The content of that key; None where it is not here."""
        with self._lock:
            content = self._content.get(key)
            if content is None:
                self.misses += 1
                return None
            self.hits += 1
            self._content.move_to_end(key)
            return content

    def put(self, key: Hashable, content: bytes) -> None:
        """Keep the content, at the expense of older ones; what is larger than the whole cache is not kept."""
        cost = _cost(content)
        with self._lock:
            if (old := self._content.pop(key, None)) is not None:
                self.used_bytes -= _cost(old)
            if cost > self._capacity:
                return
            self._content[key] = content
            self.used_bytes += cost
            while self.used_bytes > self._capacity:
                _, oldest = self._content.popitem(last=False)
                self.used_bytes -= _cost(oldest)


def _cost(content: bytes) -> int:
    return len(content) + ENTRY_OVERHEAD_BYTES
