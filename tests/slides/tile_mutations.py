"""Tiles of every codec, whole and damaged, in TIFFs that both readers read."""

import io
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.builders import paint_noise

SIDE, COLUMNS = 128, 20
SHORT, LONG, RATIONAL, TEXT, UNDEFINED = 3, 4, 5, 2, 7
FORMS = {SHORT: "H", LONG: "I", RATIONAL: "I"}


class Codec(NamedTuple):
    """One way to write tiles."""

    compression: int
    photometric: int
    encode: Callable[[NDArray[np.uint8]], Any]
    is_aperio: bool = False
    shares_tables: bool = False


def _jpeg(is_rgb: bool = False, **options: Any) -> Callable[[NDArray[np.uint8]], Any]:
    colours: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if is_rgb else {}
    return lambda pixels: imagecodecs.jpeg8_encode(pixels, level=87, **colours, **options)


def _progressive(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=87, progressive=True)
    return stream.getvalue()


def _jpeg_2000(**options: Any) -> Callable[[NDArray[np.uint8]], Any]:
    return lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", mct=False, **options)


CODECS: dict[str, Codec] = {
    "JPEG, YCbCr 4:2:0": Codec(7, 6, _jpeg(subsampling="420")),
    "JPEG, YCbCr 4:2:2, shared tables": Codec(
        7, 6, _jpeg(subsampling="422"), is_aperio=True, shares_tables=True
    ),
    "JPEG, YCbCr 4:4:0": Codec(7, 6, _jpeg(subsampling="440")),
    "JPEG, YCbCr 4:1:1, shared tables": Codec(7, 6, _jpeg(subsampling="411"), shares_tables=True),
    "JPEG, RGB": Codec(7, 2, _jpeg(is_rgb=True, subsampling="444"), is_aperio=True),
    "JPEG, RGB, shared tables": Codec(
        7, 2, _jpeg(is_rgb=True, subsampling="444"), shares_tables=True
    ),
    "JPEG, RGB by a stream of YCbCr": Codec(7, 2, _jpeg(subsampling="420")),
    "JPEG, progressive": Codec(7, 6, _progressive),
    "JPEG 2000": Codec(33005, 2, _jpeg_2000(level=30, reversible=False), is_aperio=True),
    "JPEG 2000, lossless": Codec(33005, 2, _jpeg_2000(level=0, reversible=True), is_aperio=True),
    "deflate": Codec(8, 2, lambda pixels: imagecodecs.zlib_encode(pixels.tobytes())),
    "deflate, stored": Codec(8, 2, lambda pixels: imagecodecs.zlib_encode(pixels.tobytes(), 0)),
    "LZW": Codec(5, 2, lambda pixels: imagecodecs.lzw_encode(pixels.tobytes())),
    "none": Codec(1, 2, lambda pixels: pixels.tobytes()),
}


def _cut(tile: bytes, chance: random.Random) -> bytes:
    return tile[: chance.randrange(1, len(tile))]


def _cut_end(tile: bytes, chance: random.Random) -> bytes:
    return tile[: -chance.randrange(1, 6)]


def _flip(tile: bytes, chance: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """Flip one to three bits between two bytes."""
    changed, places = bytearray(tile), range(len(tile))[first:last]
    for _ in range(chance.randrange(1, 4)):
        changed[chance.choice(places)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _replace(tile: bytes, chance: random.Random, length: int, content: bytes | None) -> bytes:
    """Put `content` (None: the same number of ones) in the place of up to `length` bytes."""
    place = chance.randrange(len(tile))
    stop = min(len(tile), place + chance.randrange(1, length))
    return tile[:place] + (b"\xff" * (stop - place) if content is None else content) + tile[stop:]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "end cut": _cut_end,
    "bits flipped": _flip,
    "bits of the head flipped": lambda tile, chance: _flip(tile, chance, 0, 60),
    "bits of the tail flipped": lambda tile, chance: _flip(tile, chance, -24),
    "bytes added": lambda tile, chance: tile + chance.randbytes(chance.randrange(1, 40)),
    "bytes lost": lambda tile, chance: _replace(tile, chance, 20, b""),
    "bytes inserted": lambda tile, chance: _replace(tile, chance, 2, chance.randbytes(9)),
    "zeros": lambda tile, chance: _replace(tile, chance, 200, bytes(chance.randrange(200))),
    "ones": lambda tile, chance: _replace(tile, chance, 20, None),
}


def draw_tiles(codec: Codec, count: int = 4) -> tuple[list[bytes], bytes | None]:
    """Whole tiles, and the tables that they share where they do."""
    tiles = [bytes(codec.encode(_draw(seed))) for seed in range(count)]
    if not codec.shares_tables:
        return tiles, None
    split = [split_tables(tile) for tile in tiles]
    return [rest for _, rest in split], split[0][0]


def _draw(seed: int) -> NDArray[np.uint8]:
    coarse = np.kron(paint_noise(SIDE // 8, SIDE // 8, seed), np.ones((8, 8, 1)))
    return (coarse * 0.8 + paint_noise(SIDE, SIDE, seed + 100) * 0.2).astype(np.uint8)


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """Quantisation and Huffman tables of a JPEG as a stream of their own, and the rest."""
    tables, rest, place, marker = b"", b"", 2, 0
    while marker != 0xDA:
        marker, stop = jpeg[place + 1], place + 2 + int.from_bytes(jpeg[place + 2 : place + 4])
        if marker in (0xDB, 0xC4):
            tables += jpeg[place:stop]
        elif not 0xE0 <= marker <= 0xEF:
            rest += jpeg[place:stop]
        place = stop
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[place:]


def mutate(tiles: Sequence[bytes], chance: random.Random, count: int) -> list[bytes]:
    """Damaged tiles of every kind, `count` in all, and some made of the halves of two."""
    kinds = [*MUTATIONS.values(), None]
    damaged = []
    for number in range(count):
        tile, kind = chance.choice(tiles), kinds[number % len(kinds)]
        place = chance.randrange(len(tile))
        halves = tile[:place] + chance.choice(tiles)[place:]
        damaged.append((halves if kind is None else kind(tile, chance)) or b"\0")
    return damaged


def write_tiles(path: Path, codec: Codec, tiles: Sequence[bytes], tables: bytes | None) -> Path:
    """A TIFF of one level whose tiles are those streams, in rows of COLUMNS."""
    rows = -(-len(tiles) // COLUMNS)
    content, offsets = b"", []
    streams = [*tiles, *[tiles[0]] * (rows * COLUMNS - len(tiles))]
    for stream in streams:
        offsets.append(8 + len(content))
        content += stream + b"\0" * (len(stream) % 2)
    size = COLUMNS * SIDE, rows * SIDE
    entries: dict[int, tuple[int, Any]] = {
        256: (LONG, [size[0]]),
        257: (LONG, [size[1]]),
        258: (SHORT, [8, 8, 8]),
        259: (SHORT, [codec.compression]),
        262: (SHORT, [codec.photometric]),
        277: (SHORT, [3]),
        282: (RATIONAL, [20_000, 1]),
        283: (RATIONAL, [20_000, 1]),
        296: (SHORT, [3]),
        322: (SHORT, [SIDE]),
        323: (SHORT, [SIDE]),
        324: (LONG, offsets),
        325: (LONG, list(map(len, streams))),
    }
    if codec.is_aperio:
        words = f"Aperio Image Library v1 \r\n{size[0]}x{size[1]}|AppMag = 20|MPP = 0.5\0"
        entries[270] = (TEXT, words.encode())
    if tables is not None:
        entries[347] = (UNDEFINED, tables)
    path.write_bytes(_pack(content, entries))
    return path


def _pack(content: bytes, entries: dict[int, tuple[int, Any]]) -> bytes:
    """A little-endian TIFF of one image, whose tags follow its content."""
    records = []
    for tag, (kind, values) in sorted(entries.items()):
        packed = values if isinstance(values, bytes) else None
        if packed is None:
            packed = struct.pack(f"<{len(values)}{FORMS[kind]}", *values)
        count = len(values) // (2 if kind == RATIONAL else 1)
        if len(packed) > 4:
            place = struct.pack("<I", 8 + len(content))
            content += packed + b"\0" * (len(packed) % 2)
            packed = place
        records.append(struct.pack("<HHI4s", tag, kind, count, packed.ljust(4, b"\0")))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    return head + content + struct.pack("<H", len(records)) + b"".join(records) + bytes(4)
