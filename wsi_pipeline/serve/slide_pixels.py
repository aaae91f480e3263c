"""Pixels of the served slides: checked, read by the decoding processes, kept in the cache.

The cache holds encoded tiles, bounded in bytes; the ones not asked for longest go first.
"""

import logging
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cachetools import LRUCache, TTLCache

from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.serve.catalogue import FileStamp, SlideEntry, stamp_file
from wsi_pipeline.serve.decoding import DecoderPool, DecodingError, Pyramid, TooSlow
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.settings import Limits

KEPT_FACTS = 4096
FAILURE_S = 10.0
"""A slide that could not be opened is not tried again before so many seconds."""
OPEN_FACTOR = 3
"""Opening takes longer than reading: the slide's whole index is read, and its fingerprint."""
ENTRY_OVERHEAD_BYTES = 400
"""Memory of an entry besides its content: key, dictionary slot, bytes object."""
logger = logging.getLogger(__name__)


class TileCache:
    """Bytes by key; safe to share between threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self._lock = threading.Lock()
        self._content: LRUCache[Hashable, bytes] = LRUCache(
            capacity_bytes, getsizeof=lambda content: len(content) + ENTRY_OVERHEAD_BYTES
        )
        self.hits = 0
        self.misses = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of all entries."""
        return int(self._content.currsize)

    def get(self, key: Hashable) -> bytes | None:
        """Return the content of that key, or None."""
        with self._lock:
            content = self._content.get(key)
            self.hits += content is not None
            self.misses += content is None
            return content

    def put(self, key: Hashable, content: bytes) -> None:
        """Keep the content at the expense of older ones, unless it is larger than the cache."""
        with self._lock, suppress(ValueError):
            self._content[key] = content


class FileKey(NamedTuple):
    """A slide's file as it is now, and as its results have it."""

    path: Path
    stamp: FileStamp
    slide_mpp: float | None
    fingerprint: str | None
    """None without results."""

    @property
    def request(self) -> dict[str, Any]:
        """The part of a request to a decoding process that names the slide."""
        return {"path": str(self.path), "stamp": list(self.stamp), "slide_mpp": self.slide_mpp}


@dataclass(frozen=True, slots=True)
class OpenedSlide:
    """A slide file that can be read."""

    key: FileKey
    info: SlideInfo
    pyramid: Pyramid
    coarsest: int
    """Coarsest level whose tiles stay within the region limit."""


class SlidePixels:
    """Reads slides for the server; safe to share between threads."""

    def __init__(
        self, pool: DecoderPool, cache: TileCache, limits: Limits, slide_mpp: float | None = None
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._limits = limits
        self._slide_mpp = slide_mpp
        self._lock = threading.Lock()
        self._facts: LRUCache[FileKey, OpenedSlide] = LRUCache(KEPT_FACTS)
        self._failures: TTLCache[FileKey, Exception] = TTLCache(KEPT_FACTS, FAILURE_S)

    def open(self, entry: SlideEntry) -> OpenedSlide:
        """Return the slide's file.

        Raises Refusal where it is missing or is not the one that was inferred, DecodingError where
        it is broken.
        """
        key = self._key(entry)
        with self._lock:
            opened, failure = self._facts.get(key), self._failures.get(key)
        if opened is not None:
            return opened
        if failure is not None:
            raise failure
        try:
            opened = self._open(key)
        except (DecodingError, Refusal) as error:
            with self._lock:
                self._failures[key] = error
            raise
        with self._lock:
            self._facts[key] = opened
        return opened

    def _key(self, entry: SlideEntry) -> FileKey:
        stamp = None if entry.file is None else stamp_file(entry.file)
        if entry.file is None or stamp is None:
            raise Refusal(404, "the slide's file is not here; serve its folder with --slides")
        if entry.recorded is None:
            return FileKey(entry.file, stamp, self._slide_mpp, None)
        # Its scale whatever the source: the map was made at it.
        return FileKey(entry.file, stamp, entry.recorded.mpp, entry.recorded.fingerprint)

    def _open(self, key: FileKey) -> OpenedSlide:
        open_s = OPEN_FACTOR * self._limits.read_s
        header = self._pool.ask(key.request | {"do": "describe"}, timeout_s=open_s).header
        info = SlideInfo.from_json(header["slide"])
        if key.fingerprint not in (None, info.fingerprint):
            raise Refusal(404, "the slide's file is not the one that was inferred; infer it again")
        pyramid = Pyramid(info.size_l0, self._limits.tile_px)
        coarsest = pyramid.coarsest_level(
            [float(ratio) for ratio in info.level_downsamples], self._limits.region_px
        )
        return OpenedSlide(key, info, pyramid, coarsest)

    def tile(self, entry: SlideEntry, level: int, col: int, row: int) -> bytes:
        """Return one tile as JPEG. Raises Refusal for a missing tile, before anything is read."""
        slide = self.open(entry)
        if not slide.pyramid.has_tile(level, col, row) or level > slide.coarsest:
            raise Refusal(404, "no such tile")
        limits = {"tile_px": self._limits.tile_px, "region_px": self._limits.region_px}
        request = {"do": "tile", "level": level, "col": col, "row": row} | limits
        return self._read_once((slide.key, level, col, row), request)

    def cached_tile(self, entry: SlideEntry, level: int, col: int, row: int) -> bytes | None:
        """Return the tile if it needs no waiting, else None."""
        try:
            key = self._key(entry)
        except Refusal:
            return None
        with self._lock:
            is_open = key in self._facts
        return self._cache.get((key, level, col, row)) if is_open else None

    def file_version(self, entry: SlideEntry) -> str:
        """Return a text that changes with the slide's file. Raises Refusal where it is missing."""
        return "-".join(f"{number:x}" for number in self._key(entry).stamp)

    def overview(self, entry: SlideEntry) -> bytes:
        """Return the scanned area as one small JPEG."""
        return self._read_once((self.open(entry).key, "overview"), {"do": "overview"})

    def patch(self, entry: SlideEntry, grid: Grid, row: int, col: int) -> bytes:
        """Return one patch as PNG, as the model saw it."""
        if not (0 <= row < grid.rows and 0 <= col < grid.cols):
            raise Refusal(404, "no such patch")
        if (grid.spec.side_px * float(grid.downsample)) ** 2 > self._limits.region_px:
            raise Refusal(413, "a patch of this grid covers more pixels than one read may take")
        request = {"do": "patch", "grid": grid.to_json(), "row": row, "col": col}
        return self._read(self.open(entry).key, request)

    def surroundings(self, entry: SlideEntry, grid: Grid, row: int, col: int) -> bytes:
        """Return a patch of the grid, outlined, with its neighbours as JPEG."""
        key = (self.open(entry).key, "surroundings", str(grid), row, col)
        request = {"do": "surroundings", "grid": grid.to_json(), "row": row, "col": col}
        return self._read_once(key, request | {"region_px": self._limits.region_px})

    def _read_once(self, key: tuple[FileKey, *tuple[Any, ...]], request: dict[str, Any]) -> bytes:
        """Return the answer to a request, from the cache where it is kept there."""
        if (content := self._cache.get(key)) is None:
            content = self._read(key[0], request)
            self._cache.put(key, content)
        return content

    def _read(self, file: FileKey, request: dict[str, Any]) -> bytes:
        request = file.request | request
        try:
            return self._pool.ask(request, timeout_s=self._limits.read_s).payload
        except TooSlow:
            raise
        except DecodingError as error:
            # The handle is dead or its process is; both have been replaced.
            logger.info("read again after a failure: %s", error)
            return self._pool.ask(request, timeout_s=self._limits.read_s).payload
