"""TIFF slides with tiles decoded here: OpenSlide's pixels, several times as fast.

OpenSlide still gives the slide's properties (size, scale, levels, bounds), so that only the speed
depends on the reader. It also reads the rest: levels of other formats; levels whose downsample is
not a whole number, because OpenSlide blends their pixels and a slide must give the same patches
either way; and regions in which a tile cannot be decoded.

Decoded tiles that a neighbouring macro-tile may need again are kept, within a limit for the whole
process.
"""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from wsi_pipeline.core.buffers import PixelBuffers
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.patch_table import TiledBlock
from wsi_pipeline.slides.base import (
    Box,
    Boxes,
    Level,
    UserScale,
    is_within,
    show_reader,
)
from wsi_pipeline.slides.openslide_reader import (
    OpenSlideReader,
    detect_vendor,
)
from wsi_pipeline.slides.patches import Cut, TileCutter, cut_region, find_tiles
from wsi_pipeline.slides.tiff_pages import PAGE_VENDORS
from wsi_pipeline.slides.tiff_tiles import (
    ForgedTile,
    LevelLayout,
    TileFault,
    decode_tile,
    find_layouts,
)

PROBED_TILES = 2
"""Tiles of each level compared with OpenSlide's first: library versions may differ."""

_numbers = itertools.count()
MAX_BYTES = 128 * 1024 * 1024
"""About 650 tiles of 256 px: the borders of neighbouring macro-tiles, in the order of the store."""
MOST_LENT_BYTES = 128 * 1024 * 1024
"""Tiles of one block: where patches lie close together, about a third of it."""
MOST_AT_ONCE = 16
"""Tiles of one read: each read gives the interpreter's lock away, and waits for it."""
logger = logging.getLogger(__name__)


class TiffReader:
    """A TIFF or SVS slide with some levels decoded directly; safe to share between threads."""

    __repr__ = show_reader

    def __init__(
        self,
        path: Path,
        slide_id: str,
        scale: UserScale | None = None,
        decode_threads: int | None = None,
    ) -> None:
        self._path = path
        self._openslide = OpenSlideReader(path, slide_id, scale)
        self.info = self._openslide.info
        self.levels = self._openslide.levels
        whole = [level for level in self.levels if self._openslide.is_whole(level)]
        self._layouts = find_layouts(path, whole) if self.info.vendor in PAGE_VENDORS else {}
        self._threads = decode_threads or len(os.sched_getaffinity(0))
        self._key = next(_numbers)
        self._opening = threading.Lock()
        self._probed: dict[int, LevelLayout | None] = {}
        self._file: int | None = None
        self._here = threading.local()
        self._white: NDArray[np.uint8] = np.full(3, 255, np.uint8)

    @property
    def direct_levels(self) -> tuple[int, ...]:
        """Numbers of the levels that are decoded here."""
        return tuple(level.number for level in self.levels if self.layout_of(level) is not None)

    @property
    def fallbacks(self) -> int:
        """Regions that this thread had OpenSlide read because of a fault in a tile."""
        return getattr(self._here, "fallbacks", 0)

    def read(
        self, level: Level, x: int, y: int, width: int, height: int, only: Boxes | None = None
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y) in the level's own pixels; white where absent.

        Pixels under no box of `only` may be white.
        """
        layout = self.layout_of(level)
        if layout is not None:
            try:
                return self._assemble(level, layout, (x, y, width, height), only)
            except TileFault as fault:
                self._note(level, (x, y, width, height), fault)
        return self._openslide.read(level, x, y, width, height, only)

    def use_srgb(self) -> None:
        """Give pixels in sRGB from now on, where the slide has a profile. Raises SlideError."""
        self._openslide.use_srgb()
        white = np.full((1, 1, 3), 255, np.uint8)
        self._white = self._openslide.to_wanted(white)[0, 0]

    def read_rgba(self, level: Level, box: Box) -> NDArray[np.uint8]:
        """Return RGBA (height, width, 4) of a box of a level; alpha is 0 where pixels are absent.

        Raises SlideError.
        """
        return self._openslide.read_rgba(level, box)

    def _note(self, level: Level, box: Box, fault: TileFault) -> None:
        """Count a region that OpenSlide must read. Raises SlideError where it must not."""
        if isinstance(fault, ForgedTile):
            raise SlideError(
                f"{self._path}: level {level.number} at {box[0]},{box[1]}: {fault}; scan or copy it"
                " again"
            ) from fault
        self._here.fallbacks = self.fallbacks + 1
        logger.info(
            "%s: level %d at %s: %s; OpenSlide reads it", self._path, level.number, box[:2], fault
        )

    def cut(self, level: Level, cut: Cut, pixels: NDArray[np.uint8]) -> bool:
        """Fill `pixels` (b, side, side, 3) from the tiles, or return False. Raises SlideError."""
        layout = self.layout_of(level)
        box = cut.box
        if layout is None or not is_within(box, (0, 0, *layout.size)):
            return False
        only = None if cut.is_full else cut.boxes
        cutter = TileCutter(cut, pixels)

        def take(index: int) -> None:
            left, top = layout.corner(index)
            is_inside = is_within((left, top, layout.form.width, layout.form.height), box)
            cutter.take(self._tile(level, layout, index, keep=not is_inside), left, top)

        try:
            self._share_out(layout.tiles_wanted(box, only), take)
        except TileFault as fault:
            self._note(level, box, fault)
            cut_region(self._openslide.read(level, *box, only), cut, pixels)
        return True

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        self._openslide.close()
        TILES.forget(self._key)
        with self._opening:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def layout_of(self, level: Level) -> LevelLayout | None:
        """Return the level's tiles, compared with OpenSlide's first; None: OpenSlide reads it."""
        if level.number not in self._probed:
            layout = self._layouts.get(level.number)
            is_ours = layout is not None and self._agrees(level, layout)
            self._probed[level.number] = layout if is_ours else None
        return self._probed[level.number]

    def _agrees(self, level: Level, layout: LevelLayout) -> bool:
        """Return whether OpenSlide's pixels come out of the probes, of at least one if of several.

        A single tile that only OpenSlide can read may be damaged; several are of another format.
        """
        # Above a missing tile OpenSlide draws the finer level, which takes it minutes where many
        # are missing; the stored tile shows what was there.
        is_drawn = self._openslide.lost_tiles.is_drawn
        probes = [index for index in _choose_probes(layout) if not is_drawn(level, index)]
        found = [self._is_equal(level, layout, index) for index in probes]
        return False not in found and not (len(found) > 1 and set(found) == {None})

    def _is_equal(self, level: Level, layout: LevelLayout, index: int) -> bool | None:
        """Return whether a tile has OpenSlide's pixels; None where only OpenSlide can read it."""
        x, y = layout.corner(index)
        width = min(layout.form.width, level.size[0] - x)
        height = min(layout.form.height, level.size[1] - y)
        ours = theirs = None
        with suppress(TileFault):
            ours = self._assemble(level, layout, (x, y, width, height), None)
        with suppress(SlideError):
            theirs = self._openslide.read(level, x, y, width, height)
        if ours is None:
            return True if theirs is None else None
        is_equal = theirs is not None and np.array_equal(ours, theirs)
        if not is_equal:
            text = "%s: level %d is decoded otherwise than by OpenSlide, which therefore reads it"
            logger.warning(text, self._path, level.number)
        return is_equal

    def _assemble(
        self, level: Level, layout: LevelLayout, box: Box, only: Boxes | None
    ) -> NDArray[np.uint8]:
        """Return the tiles under a box, each decoded once, side by side. Raises TileFault."""
        x, y, width, height = box
        indices = layout.tiles_wanted(box, only)
        region = np.empty((height, width, 3), np.uint8)
        rows, cols = layout.tiles_under(*box)
        if len(indices) < len(rows) * len(cols) or not is_within(box, (0, 0, *layout.size)):
            region[:] = self._white

        def place(index: int) -> None:
            left, top = layout.corner(index)
            x0, y0 = max(x, left), max(y, top)
            x1 = min(x + width, left + layout.form.width, layout.size[0])
            y1 = min(y + height, top + layout.form.height, layout.size[1])
            is_whole = (x1 - x0, y1 - y0) == (layout.form.width, layout.form.height)
            tile = self._tile(level, layout, index, keep=not is_whole)
            part = tile[y0 - top : y1 - top, x0 - left : x1 - left]
            region[y0 - y : y1 - y, x0 - x : x1 - x] = part

        self._share_out(indices, place)
        return region

    def _share_out(self, indices: Sequence[int], work: Callable[[int], None]) -> None:
        """Do the work for every tile, in several threads where there are. Raises TileFault."""
        threads = min(self._threads, len(indices))

        def do_part(part: int) -> None:
            for index in indices[part::threads]:
                work(index)

        pending = [self._pool.submit(do_part, part) for part in range(1, threads)]
        try:
            if threads:
                do_part(0)
        finally:
            wait(pending)
        for future in pending:
            future.result()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def lend_tiles(self, level: Level, cut: Cut, buffers: PixelBuffers) -> TiledBlock | None:
        """Return patches as the tiles under them, or None where `cut` or `read` must cut them."""
        layout = self.layout_of(level)
        if layout is None or not is_within(cut.box, (0, 0, *layout.size)):
            return None
        form = layout.form
        found = find_tiles(cut, (form.width, form.height), layout.across)
        shape = len(found.numbers), form.height, form.width, 3
        if prod(shape) > MOST_LENT_BYTES:
            return None
        tiles, contents = buffers.take(shape), self._read_contents(layout, found.numbers)
        numbers, is_shared = found.numbers.tolist(), found.is_shared.tolist()
        try:
            for number, keep, tile, content in zip(
                numbers, is_shared, tiles, contents, strict=True
            ):
                self._tile(level, layout, number, keep, tile, content)
        except TileFault:
            return None
        return TiledBlock(tiles, found.under, found.corners, cut.side)

    def _tile(
        self,
        level: Level,
        layout: LevelLayout,
        index: int,
        keep: bool,
        into: NDArray[np.uint8] | None = None,
        content: bytes | None = None,
    ) -> NDArray[np.uint8]:
        """Return one tile's pixels, white where missing; kept where a region takes a part of it.

        They are put `into` memory of that shape, where it is given; `content` is read where it is
        not. Raises TileFault.
        """
        key = (self._key, level.number, index)
        tile = TILES.get(key)
        if tile is None:
            tile = self._decode(level, layout, index, into, content)
            if keep:
                TILES.put(key, tile if into is None else tile.copy())
        if into is not None and tile is not into:
            np.copyto(into, tile)
        return tile

    def _decode(
        self,
        level: Level,
        layout: LevelLayout,
        index: int,
        into: NDArray[np.uint8] | None,
        content: bytes | None,
    ) -> NDArray[np.uint8]:
        lost_tiles = self._openslide.lost_tiles
        if level.number == 0 and lost_tiles.holds(index):
            raise TileFault("a lost tile")
        count = int(layout.counts[index])
        if count == 0 and self.info.vendor == "aperio" and level.number > 0:
            raise TileFault("a missing tile, which OpenSlide draws from a finer level")
        if count == 0:
            return np.full((layout.form.height, layout.form.width, 3), self._white, np.uint8)
        if content is None:
            content = self._read_bytes(int(layout.offsets[index]), count)
        return self._openslide.to_wanted(decode_tile(content, layout.form, into))

    def _read_contents(self, layout: LevelLayout, numbers: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the bytes of tiles; those that follow one another in the file are read at once."""
        offsets, counts = layout.offsets[numbers], layout.counts[numbers]
        is_break = offsets[1:] != offsets[:-1] + counts[:-1]
        is_break |= np.arange(1, len(numbers)) % MOST_AT_ONCE == 0
        for start, stop in pairwise([0, *(np.flatnonzero(is_break) + 1).tolist(), len(numbers)]):
            ends = np.cumsum(counts[start:stop]).tolist()
            content = self._read_bytes(int(offsets[start]), ends[-1])
            yield from (content[begin:end] for begin, end in pairwise([0, *ends]))

    def _read_bytes(self, offset: int, count: int) -> bytes:
        # Read, not mapped: a file that is cut short meanwhile is a fault here and would kill the
        # process there.
        try:
            content = os.pread(self._handle(), count, offset)
        except OSError as error:
            raise TileFault(f"cannot be read ({error.strerror})") from error
        if len(content) != count:
            raise TileFault("the file ends within a tile")
        return content

    def _handle(self) -> int:
        if self._file is None:
            with self._opening:
                if self._file is None:
                    self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._file


def recognises(path: Path) -> bool:
    """Return whether the file is of a format whose tiles may be decoded here."""
    return detect_vendor(path) in PAGE_VENDORS


def _choose_probes(layout: LevelLayout) -> list[int]:
    """Return the tiles with the most bytes, which show most of what a decoder does."""
    largest = np.argsort(layout.counts, kind="stable")[::-1][:PROBED_TILES]
    return [int(index) for index in largest if layout.counts[index]]


class TileCache:
    """The tiles that were used last; safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._tiles: LRUCache[Hashable, NDArray[np.uint8]] = LRUCache(
            max_bytes, getsizeof=lambda tile: tile.nbytes
        )

    def get(self, key: Hashable) -> NDArray[np.uint8] | None:
        """Return the tile of that key, or None."""
        with self._lock:
            return self._tiles.get(key)

    def put(self, key: Hashable, tile: NDArray[np.uint8]) -> None:
        """Keep a tile, and drop those that were not used for the longest time."""
        with self._lock, suppress(ValueError):  # larger than the whole cache
            self._tiles[key] = tile

    def forget(self, owner: Hashable) -> None:
        """Drop the tiles whose key begins with `owner`; where the cache is in use, later ones do.

        A garbage collection may close a slide at any moment, also within `get` of this thread.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            for key in [key for key in self._tiles if isinstance(key, tuple) and key[0] == owner]:
                del self._tiles[key]
        finally:
            self._lock.release()


TILES = TileCache(MAX_BYTES)
"""Of this process; slides share it, so that several open ones take no more memory than one."""
