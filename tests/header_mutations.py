"""TIFFs whose headers were tampered with."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tifffile

from tests.hostile_slides import tissue, write_aperio, write_level, write_tiled

TELLING = (0, 1, 2, 3, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


def write_pyramid_in_one(path: Path) -> Path:
    """Levels under one another, as some programs write them."""
    with tifffile.TiffWriter(path) as writer:
        write_level(writer, tissue(300, 250), tile=(64, 64), subifds=1)
        write_level(writer, tissue(150, 125), tile=(64, 64), subfiletype=1)
        write_level(writer, tissue(75, 62), tile=(64, 64), subfiletype=1)
    return path


SEEDS: dict[str, Callable[[Path], Path]] = {
    "tiled": lambda path: write_tiled(path, tissue(300, 250), tile=(64, 64)),
    "aperio": lambda path: write_aperio(path, macro=tissue(60, 50)),
    "big": lambda path: write_tiled(path, tissue(300, 250), bigtiff=True, compression="lzw"),
    "pyramid": write_pyramid_in_one,
}


class Seed(NamedTuple):
    """A sound file, and where what it says of itself lies."""

    content: bytes
    header: list[int]
    """Bytes that are no pixels."""
    entries: list[tuple[int, int]]
    """First byte of each tag, and how many bytes it has."""


def make_seed(name: str, folder: Path) -> Seed:
    path = SEEDS[name](folder / f"{name}.tiff")
    content = path.read_bytes()
    pixels: set[int] = set()
    entries = []
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            whole = page.aspage()
            entries += [(tag.offset, 20 if tiff.is_bigtiff else 12) for tag in whole.tags]
            for offset, count in zip(whole.dataoffsets, whole.databytecounts, strict=True):
                pixels.update(range(offset, offset + count))
    return Seed(content, [byte for byte in range(len(content)) if byte not in pixels], entries)


def mutate(seed: Seed, chance: random.Random) -> bytes:
    """Mostly one change of a bit, a byte, a word, a field of a tag, or a whole tag, sometimes
    several, and sometimes the end is cut off.
    """
    content = bytearray(seed.content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.randrange(6)
        at = chance.choice(seed.header)
        entry, length = chance.choice(seed.entries)
        if kind == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[at] = chance.randrange(256)
        elif kind == 2:
            start = entry + chance.choice((4, 8, 12))
            content[start : start + 4] = struct.pack(
                "<I", chance.choice((*TELLING, len(content), entry, chance.randrange(2**32)))
            )
        elif kind == 3:
            content[entry + 2 : entry + 4] = struct.pack("<H", chance.randrange(20))
        elif kind == 4:
            other, _ = chance.choice(seed.entries)
            content[entry : entry + length] = content[other : other + length]
        else:
            content[at : at + 4] = chance.randbytes(min(4, len(content) - at))
    return bytes(content[: chance.randrange(len(content))] if chance.random() < 0.05 else content)
