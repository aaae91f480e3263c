"""The structure of a TIFF, read without a decoder: images, sizes, formats, tiles.

Every number is compared with the file's size and the limits below, so that a hostile file costs
little: every image is visited once, every table is read once, and no memory is taken for missing
content.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MAX_PAGES = 1024
"""Images in one file; scanners write about ten."""
MAX_ENTRIES = 4096
"""Tags of one image, as for libtiff."""
MAX_TILES = 16_000_000
"""In all images of a file together: 64 MB of byte counts, 128 MB of offsets."""
MAX_VALUES = 64
"""Of any tag except tables of tiles."""
MAX_JPEG_TABLES = 1 << 20

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION = 254, 256, 257, 258, 259
PHOTOMETRIC, FILL_ORDER, DESCRIPTION = 262, 266, 270
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 274, 277, 278, 279
PLANES, PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 284, 317, 322, 323, 324, 325
SUB_IFDS, SAMPLE_FORMAT, JPEG_TABLES, OLD_JPEG_OFFSET, OLD_JPEG_COUNT = 330, 339, 347, 513, 514
IMAGE_DEPTH, TILE_DEPTH = 32997, 32998
NDPI = 65420
"""The tag by which Hamamatsu's files are known, whose offsets have 64 bits in a TIFF of 32."""

NUMBERS = {SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES}
NUMBERS |= {ROWS_PER_STRIP, PLANES, PREDICTOR, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT}
NUMBERS |= {IMAGE_DEPTH, TILE_DEPTH}
TABLES = {STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS, OLD_JPEG_OFFSET, OLD_JPEG_COUNT}
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, ICC_PROFILE = 282, 283, 296, 34675
NUMBERS |= {RESOLUTION_UNIT}
FACTS = {DESCRIPTION, X_RESOLUTION, Y_RESOLUTION, ICC_PROFILE}
KNOWN = NUMBERS | TABLES | FACTS | {SUB_IFDS, JPEG_TABLES, NDPI}
MAX_FACT_BYTES = 16 * 1024 * 1024
"""Of a description or a colour profile."""

TYPES = dict(zip((1, 3, 4, 6, 7, 8), ("u1", "u2", "u4", "i1", "u1", "i2"), strict=True))
TYPES |= dict(zip((9, 13, 16, 17, 18), ("i4", "u4", "u8", "i8", "u8"), strict=True))
"""NumPy's names of TIFF's kinds of whole numbers, without the byte order."""
TEXT, RATIO = 2, 5
CIRCLE = "its images go round in a circle; export it again"
IMPOSSIBLE = "which is impossible; copy or export it again"


class BrokenTiff(Exception):
    """A fault of a file, with a remedy."""


class Entry(NamedTuple):
    """One tag of an image."""

    kind: int
    length: int
    """Number of values."""
    place: int
    """Byte of the file where its values begin."""
    is_inline: bool
    """They stand in the tag itself."""


@dataclass(frozen=True)
class TiffPage:
    """One image of the file, as its tags have it."""

    place: int
    """Byte of the file at which its tags begin; names it for a person."""
    is_sub: bool
    """Hangs on another image instead of standing in the row of images."""
    numbers: dict[int, tuple[int, ...]]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    """Bytes of each tile or strip; 0 where missing; as many as offsets, or none."""
    jpeg_tables: bytes | None

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return self.numbers.get(tag, (default,))[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels; 0 where a tag is missing."""
        return self.number(WIDTH, 0), self.number(LENGTH, 0)

    @property
    def is_tiled(self) -> bool:
        """True where the image is stored in tiles and not in strips."""
        return TILE_WIDTH in self.numbers or TILE_LENGTH in self.numbers

    @property
    def tile(self) -> tuple[int, int]:
        """(width, height) of a tile."""
        return self.number(TILE_WIDTH, 0), self.number(TILE_LENGTH, 0)


class TiffStructure(NamedTuple):
    """All images of a file, in its order, and the file's size in bytes."""

    pages: list[TiffPage]
    file_size: int


def read_structure(path: Path) -> TiffStructure:
    """Go through a TIFF's images. Raises BrokenTiff, and OSError where the file cannot be read."""
    with path.open("rb", buffering=0) as stream:
        walk = _Walk(stream.fileno())
        return TiffStructure(list(walk.pages()), walk.size)


class TiffFacts(NamedTuple):
    """Facts that an image's tags state about it."""

    description: str
    resolution: tuple[str, str]
    """Pixels per unit in x and y; "" where there is none."""
    unit: int
    """1: unknown, 2: inch, 3: centimetre."""
    profile: bytes | None
    """Its colour profile."""


def starts_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF; False where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) in TIFF_MAGIC
    except OSError:
        return False


def read_facts(path: Path, page: TiffPage) -> TiffFacts:
    """Read what an image of a file says of itself. Raises BrokenTiff and OSError."""
    with path.open("rb", buffering=0) as stream:
        return _Walk(stream.fileno()).facts(page)


class _Walk:
    """One way through a file, whose limits are those of the whole file."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.size = os.fstat(file).st_size
        head = self._read(0, 8)
        if head[:4] not in TIFF_MAGIC:
            raise BrokenTiff("no TIFF")
        self._order = "<" if head.startswith(b"II") else ">"
        self._is_big = self._unpack("H", head[2:4]) == 43
        self._is_ndpi = False
        self._images = 0
        self._tiles = 0

    def pages(self) -> Iterator[TiffPage]:
        """Yield every image, those that hang on another one after it."""
        place, form = (8, "Q") if self._is_big else (4, "I")
        start = self._unpack(form, self._read(place, struct.calcsize("<" + form)))
        row = self._read_row(self._find_ndpi(start))
        above: set[int] = set()
        done = set(row)
        for place, entries in row.items():
            above.add(place)
            yield self._page(place, False, entries)
            yield from self._hanging(entries, above, done)

    def _read_row(self, place: int) -> dict[int, dict[int, Entry]]:
        """Return the tags of the images in the file's row, by their places."""
        row: dict[int, dict[int, Entry]] = {}
        while place:
            if place in row:
                raise BrokenTiff(CIRCLE)
            entries, following = self._read_entries(place)
            row[place] = entries
            place = following
        return row

    def _hanging(
        self, entries: dict[int, Entry], above: set[int], done: set[int]
    ) -> Iterator[TiffPage]:
        """Yield the images that hang on one, each once.

        Lists and pointers to the next image may both lead to one: tifffile chains the images of a
        list, libtiff does not. A circle is what leads back to an image from which it began.
        """
        ways = {0: iter(self._values(entries, SUB_IFDS, MAX_PAGES))}
        while ways:
            place = next(filter(None, next(reversed(ways.values()))), None)
            if place is None:
                done.add(ways.popitem()[0])
            elif place in ways or place in above:
                raise BrokenTiff(CIRCLE)
            elif place not in done:
                inner, following = self._read_entries(place)
                subs = self._values(inner, SUB_IFDS, MAX_PAGES)
                ways[place] = iter((*subs, following))
                yield self._page(place, True, inner)

    def _find_ndpi(self, start: int) -> int:
        """Return the offset of the first image; NDPI files have 64 bits there, and a tag."""
        if self._is_big or self._order == ">" or self.size < 12:
            return start
        long_start = self._unpack("Q", self._read(4, 8))
        if not 0 < long_start <= self.size - 2:
            return start
        count = min(self._unpack("H", self._read(long_start, 2)), MAX_ENTRIES)
        if long_start + 2 + count * 12 + 8 > self.size:
            return start
        content = self._read(long_start + 2, count * 12)
        self._is_ndpi = any(code == NDPI for code, *_ in struct.iter_unpack("<HHII", content))
        return long_start if self._is_ndpi else start

    def facts(self, page: TiffPage) -> TiffFacts:
        """Return what the tags of an image say."""
        entries, _ = self._read_entries(page.place)
        description = self._bytes_of(entries, DESCRIPTION).decode(errors="replace")
        resolution = [self._ratio_of(entries, tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
        return TiffFacts(
            description.rstrip("\0"),
            (resolution[0], resolution[1]),
            page.number(RESOLUTION_UNIT, 2),
            self._bytes_of(entries, ICC_PROFILE) or None,
        )

    def _bytes_of(self, entries: dict[int, Entry], code: int) -> bytes:
        entry = entries.get(code)
        if entry is None or entry.kind not in (TEXT, 1, 7):
            return b""
        return self._read(entry.place, min(entry.length, MAX_FACT_BYTES))

    def _ratio_of(self, entries: dict[int, Entry], code: int) -> str:
        entry = entries.get(code)
        if entry is None or entry.kind != RATIO:
            return ""
        above, below = struct.unpack(self._order + "II", self._read(entry.place, 8))
        return f"{above / below:.17g}" if below else ""

    def _read_entries(self, place: int) -> tuple[dict[int, Entry], int]:
        """Return the tags of the image at `place`, and where the next image is."""
        self._images += 1
        if self._images > MAX_PAGES:
            raise BrokenTiff(f"has more than {MAX_PAGES:,} images, {IMPOSSIBLE}")
        wide, form, length = ("Q", "HHQ8s", 20) if self._is_big else ("H", "HHI4s", 12)
        head = struct.calcsize(wide)
        count = self._unpack(wide, self._read(place, head))
        if not 0 < count <= MAX_ENTRIES:
            raise BrokenTiff(f"image at byte {place} has {count:,} tags, {IMPOSSIBLE}")
        entries: dict[int, Entry] = {}
        content = self._read(place + head, count * length)
        for index, (code, kind, values, inline) in enumerate(
            struct.iter_unpack(self._order + form, content)
        ):
            if code in KNOWN and code not in entries:
                at = place + head + (index + 1) * length - len(inline)
                entries[code] = self._entry(kind, values, inline, at)
        end = place + head + count * length
        is_long = self._is_big or self._is_ndpi
        return entries, self._unpack("Q" if is_long else "I", self._read(end, 8 if is_long else 4))

    def _entry(self, kind: int, count: int, inline: bytes, at: int) -> Entry:
        width = {TEXT: 1, RATIO: 8}.get(kind, 0)
        width = np.dtype(TYPES[kind]).itemsize if kind in TYPES else width
        is_inline = count * width <= len(inline)
        place = at if is_inline else self._unpack("Q" if self._is_big else "I", inline)
        return Entry(kind, count, place, is_inline)

    def _page(self, place: int, is_sub: bool, entries: dict[int, Entry]) -> TiffPage:
        description = entries.get(DESCRIPTION)
        if description is not None and description.kind == TEXT:
            self._check_end(DESCRIPTION, description.place + description.length)
        numbers = {
            code: values for code in NUMBERS if (values := self._values(entries, code, MAX_VALUES))
        }
        is_tiled = TILE_OFFSETS in entries
        if is_tiled:
            names = TILE_OFFSETS, TILE_COUNTS
        elif OLD_JPEG_OFFSET in entries and STRIP_OFFSETS not in entries:
            names = OLD_JPEG_OFFSET, OLD_JPEG_COUNT
        else:
            names = STRIP_OFFSETS, STRIP_COUNTS
        offsets, counts = (self._table(entries, name) for name in names)
        if self._is_ndpi and len(offsets) == 1:
            offsets = self._widen(place, entries[names[0]], offsets)
        if not is_tiled and len(counts):  # labels and macro images, which are never read
            offsets, counts = offsets[: len(counts)], counts[: len(offsets)]
        if len(counts) not in (0, len(offsets)):
            raise BrokenTiff(
                f"lists {len(offsets):,} tiles but {len(counts):,} lengths of tiles; copy or export"
                " it again"
            )
        tables = self._values_of(entries, JPEG_TABLES, MAX_JPEG_TABLES).astype("u1").tobytes()
        return TiffPage(place, is_sub, numbers, offsets, counts, tables or None)

    def _widen(self, place: int, entry: Entry, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the offset of Hamamatsu's strip; its upper half follows the next image's."""
        count = self._unpack("H", self._read(place, 2))
        index = (entry.place - place - 2) // 12
        if not entry.is_inline:
            return offsets
        upper = self._unpack("I", self._read(place + 2 + 12 * count + 8 + 4 * index, 4)) << 32
        return offsets + upper if int(offsets[0]) + upper < self.size else offsets

    def _values(self, entries: dict[int, Entry], code: int, most: int) -> tuple[int, ...]:
        return tuple(self._values_of(entries, code, most).tolist())

    def _table(self, entries: dict[int, Entry], code: int) -> NDArray[np.int64]:
        # Numbers of 2⁶³ and more come out negative, which is as impossible.
        table = self._values_of(entries, code, MAX_TILES - self._tiles).astype(np.int64)
        self._tiles += len(table) // 2  # offsets and counts
        return table

    def _values_of(self, entries: dict[int, Entry], code: int, most: int) -> NDArray[np.integer]:
        """Return the whole numbers of a tag; none where it is missing or holds something else."""
        entry = entries.get(code)
        if entry is None or entry.kind not in TYPES:
            return np.empty(0, np.int64)
        if entry.length > most:
            raise BrokenTiff(f"tag {code} claims {entry.length:,} values, {IMPOSSIBLE}")
        form = np.dtype(self._order + TYPES[entry.kind])
        self._check_end(code, entry.place + entry.length * form.itemsize)
        return np.frombuffer(self._read(entry.place, entry.length * form.itemsize), form)

    def _check_end(self, code: int, end: int) -> None:
        if end > self.size:
            raise BrokenTiff(
                f"truncated: tag {code} ends at byte {end} of a file of {self.size}; copy it again"
            )

    def _unpack(self, form: str, content: bytes) -> int:
        return int(struct.unpack(self._order + form, content)[0])

    def _read(self, place: int, count: int) -> bytes:
        # No seek beyond what an offset may hold; a file that became shorter meanwhile was cut.
        is_within = place >= 0 and place + count <= self.size
        content = os.pread(self._file, count, place) if is_within else b""
        if len(content) != count:
            end = f"byte {place + count} of a file of {self.size}"
            raise BrokenTiff(f"truncated: goes on to {end}; copy it again")
        return content
