"""Pixels of the served slides: checked, read by the decoding processes, kept in the cache.

The cache holds encoded tiles, bounded in bytes; the ones not asked for longest go first.
"""

import logging
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class OpenedSlide:
    """A slide file that can be read."""

    path: Path
    stamp: FileStamp
    slide_mpp: float | None
    info: SlideInfo
    pyramid: Pyramid
    coarsest: int
    """Coarsest level whose tiles stay within the region limit."""

    @property
    def request(self) -> dict[str, Any]:
        """The part of a request to a decoding process that names the slide."""
        return {"path": str(self.path), "stamp": list(self.stamp), "slide_mpp": self.slide_mpp}


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
        self._facts: LRUCache[tuple[Any, ...], OpenedSlide] = LRUCache(KEPT_FACTS)
        self._failures: TTLCache[tuple[Any, ...], Exception] = TTLCache(KEPT_FACTS, FAILURE_S)

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
            opened = self._open(entry, key)
        except (DecodingError, Refusal) as error:
            with self._lock:
                self._failures[key] = error
            raise
        with self._lock:
            self._facts[key] = opened
        return opened

    def _key(self, entry: SlideEntry) -> tuple[Any, ...]:
        stamp = None if entry.file is None else stamp_file(entry.file)
        if entry.file is None or stamp is None:
            raise Refusal(404, "the slide's file is not here; serve its folder with --slides")
        return (entry.file, stamp, self._mpp_of(entry), _fingerprint(entry))

    def _mpp_of(self, entry: SlideEntry) -> float | None:
        recorded = next(
            (result.slide for result in entry.results.values() if result.slide is not None), None
        )
        if recorded is None:
            return self._slide_mpp
        return recorded.mpp  # whatever its source: the map was made at that scale

    def _open(self, entry: SlideEntry, key: tuple[Any, ...]) -> OpenedSlide:
        path, stamp, slide_mpp, fingerprint = key
        request = {
            "do": "describe",
            "path": str(path),
            "stamp": list(stamp),
            "slide_mpp": slide_mpp,
        }
        header = self._pool.ask(request, timeout_s=OPEN_FACTOR * self._limits.read_s).header
        info = SlideInfo.from_json(header["slide"])
        if fingerprint is not None and info.fingerprint != fingerprint:
            raise Refusal(404, "the slide's file is not the one that was inferred; infer it again")
        pyramid = Pyramid(info.size_l0, self._limits.tile_px)
        coarsest = pyramid.coarsest_level(
            [float(ratio) for ratio in info.level_downsamples], self._limits.region_px
        )
        return OpenedSlide(path, stamp, slide_mpp, info, pyramid, coarsest)

    def tile(self, entry: SlideEntry, level: int, col: int, row: int) -> bytes:
        """Return one tile as JPEG. Raises Refusal for a missing tile, before anything is read."""
        slide = self.open(entry)
        if not slide.pyramid.has_tile(level, col, row) or level > slide.coarsest:
            raise Refusal(404, "no such tile")
        key = (slide.path, slide.stamp, level, col, row)
        if (content := self._cache.get(key)) is None:
            place = {
                "level": level,
                "col": col,
                "row": row,
                "tile_px": self._limits.tile_px,
                "region_px": self._limits.region_px,
            }
            content = self._read(slide, {"do": "tile"} | place)
            self._cache.put(key, content)
        return content

    def cached_tile(self, entry: SlideEntry, level: int, col: int, row: int) -> bytes | None:
        """Return the tile if it needs no waiting, else None."""
        try:
            key = self._key(entry)
        except Refusal:
            return None
        with self._lock:
            slide = self._facts.get(key)
        return (
            None if slide is None else self._cache.get((slide.path, slide.stamp, level, col, row))
        )

    def file_version(self, entry: SlideEntry) -> str:
        """Return a text that changes with the slide's file. Raises Refusal where it is missing."""
        size, changed_ns, inode = self._key(entry)[1]
        return f"{size:x}-{changed_ns:x}-{inode:x}"

    def overview(self, entry: SlideEntry) -> bytes:
        """Return the scanned area as one small JPEG."""
        slide = self.open(entry)
        key = (slide.path, slide.stamp, "overview")
        if (content := self._cache.get(key)) is None:
            content = self._read(slide, {"do": "overview"})
            self._cache.put(key, content)
        return content

    def patch(self, entry: SlideEntry, grid: Grid, row: int, col: int) -> bytes:
        """Return one patch as PNG, as the model saw it."""
        if not (0 <= row < grid.rows and 0 <= col < grid.cols):
            raise Refusal(404, "no such patch")
        if (grid.spec.side_px * float(grid.downsample)) ** 2 > self._limits.region_px:
            raise Refusal(413, "a patch of this grid covers more pixels than one read may take")
        return self._read(
            self.open(entry), {"do": "patch", "grid": grid.to_json(), "row": row, "col": col}
        )

    def _read(self, slide: OpenedSlide, request: dict[str, Any]) -> bytes:
        try:
            return self._pool.ask(slide.request | request, timeout_s=self._limits.read_s).payload
        except TooSlow:
            raise
        except DecodingError as error:
            logger.info(
                "read again after a failure: %s", error
            )  # the handle is dead or its process is; both are replaced
            return self._pool.ask(slide.request | request, timeout_s=self._limits.read_s).payload


def _fingerprint(entry: SlideEntry) -> str | None:
    return next(
        (result.slide.fingerprint for result in entry.results.values() if result.slide is not None),
        None,
    )
