"""Files that a folder of slides may hold by accident or malice, each with what a run must make of
it.

All are small and made here. A good one among them is GOOD_PX large, in tiles of 256 px at 0.5
µm/px, and all tissue: 12 × 10 patches of 50 px. Its tiles are numbered 0 1 2 / 3 4 5; tile 1 lies
under x 256–511, y 0–255, which are patches of the columns 5–10 and the rows 0–5: 36 of 120. Without
the tiles 0, 1 and 2 OpenSlide begins the scanned area at y 256: 244 px, 4 rows of patches; in an
SVS it does not, and the rows 5–9 are left.
"""

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.builders import PINK

GOOD_PX = (600, 500)
TILE = 256
PATCHES = 120
OK, ZERO, DAMAGED, FAILED, PASSED_OVER = "ok", "zero", "damaged", "failed", "passed over"

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS = 322, 323, 324, 325, 330
BYTE, SHORT, LONG, RATIONAL, SLONG = 1, 3, 4, 5, 9
FORMS = {BYTE: "B", SHORT: "H", LONG: "I", SLONG: "i"}
APERIO = (
    "Aperio Image Library v11.2.1 \r\n{0}x{1} [0,0 {0}x{1}] (256x256) JPEG/RGB Q=87|AppMag = 20|MPP"
    " = {2}"
)


class Case(NamedTuple):
    """One file."""

    make: Callable[[Path], object]
    state: str
    says: str = ""
    """Part of the one line that the run has to say of it."""
    name: str = ""
    """Of the file; none: the case's own, as a TIFF."""


def tissue(width: int = GOOD_PX[0], height: int = GOOD_PX[1]) -> NDArray[np.uint8]:
    """Pink with a fine pattern that tells one place from another."""
    y, x = np.indices((height, width))
    return (np.array(PINK) - np.stack([x % 16, y % 16, (x + y) % 16], axis=-1)).astype(np.uint8)


def write_tiled(
    path: Path, pixels: NDArray[Any] | None = None, mpp: float = 0.5, **options: Any
) -> Path:
    """A TIFF in tiles, its first image's tags before its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as writer:
        write_level(writer, tissue() if pixels is None else pixels, mpp, **options)
    return path


def write_level(
    writer: tifffile.TiffWriter, pixels: NDArray[Any], mpp: float = 0.5, **options: Any
) -> None:
    defaults: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "deflate",
        "photometric": "rgb",
        "metadata": None,
        "software": False,
    }
    writer.write(
        pixels, resolution=(10_000 / mpp,) * 2, resolutionunit="CENTIMETER", **(defaults | options)
    )


def write_levels(path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    with tifffile.TiffWriter(path) as writer:
        for number, size in enumerate(sizes):
            write_level(writer, tissue(*size), subfiletype=int(number > 0))


def write_aperio(
    path: Path, mpp: str = "0.5", macro: NDArray[np.uint8] | None = None, **options: Any
) -> Path:
    """An SVS; no scale but the one in its description."""
    with tifffile.TiffWriter(path) as writer:
        common: dict[str, Any] = {"metadata": None, "software": False, "photometric": "rgb"}
        jpeg: dict[str, Any] = {"compression": "jpeg", "tile": (TILE, TILE)}
        writer.write(
            tissue(), description=APERIO.format(*GOOD_PX, mpp), **(common | jpeg | options)
        )
        writer.write(tissue(60, 50), description="Aperio", **common)
        if macro is not None:
            writer.write(
                macro,
                description="Aperio\r\nmacro 600x500",
                subfiletype=9,
                compression="deflate",
                **common,
            )
    return path


def set_tag(
    path: Path,
    tag: int,
    *,
    kind: int | None = None,
    count: int | None = None,
    value: int | None = None,
    page: int = 0,
) -> Path:
    """Patch the twelve bytes of a tag of a little-endian TIFF."""
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[page].aspage().tags[tag].offset
    with path.open("r+b") as stream:
        stream.seek(place)
        old = list(struct.unpack("<HHII", stream.read(12)))
        new = [
            old[0],
            *(
                was if now is None else now
                for was, now in zip(old[1:], (kind, count, value), strict=True)
            ),
        ]
        stream.seek(place)
        stream.write(struct.pack("<HHII", *(number & 0xFFFFFFFF for number in new)))
    return path


def set_tile(
    path: Path, tile: int, *, offset: int | None = None, count: int | None = None, page: int = 0
) -> Path:
    """Patch one entry of the tables of tiles."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[page].aspage().tags
        for tag, value in ((TILE_OFFSETS, offset), (TILE_COUNTS, count)):
            if value is not None:
                tags[tag].overwrite(
                    [value if index == tile else old for index, old in enumerate(tags[tag].value)]
                )
    return path


def spoil_tiles(path: Path, tiles: Sequence[int], content: int = 0x5A, page: int = 0) -> Path:
    """Overwrite the data of tiles."""
    with tifffile.TiffFile(path) as tiff:
        whole = tiff.pages[page]
        places = [(whole.dataoffsets[tile], whole.databytecounts[tile]) for tile in tiles]
    with path.open("r+b") as stream:
        for offset, count in places:
            stream.seek(offset)
            stream.write(bytes([content]) * count)
    return path


def put_tile(path: Path, tile: int, content: bytes) -> Path:
    """Give a tile other data, at the file's end."""
    end = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(content)
    return set_tile(path, tile, offset=end, count=len(content))


def cut(path: Path, bytes_kept: int) -> Path:
    os.truncate(path, bytes_kept if bytes_kept >= 0 else path.stat().st_size + bytes_kept)
    return path


def write_raw(
    path: Path,
    pages: Sequence[Mapping[int, tuple[int, Sequence[int]]]],
    following: Mapping[int, int] | None = None,
) -> Path:
    """A TIFF of nothing but tags: {tag: (kind, values)} for each image; `following` names the image
    after an image, by its number.
    """
    sizes = [2 + 12 * len(page) + 4 for page in pages]
    starts = [8 + sum(sizes[:index]) for index in range(len(pages))]
    extra, end = b"", 8 + sum(sizes)
    content = struct.pack("<2sHI", b"II", 42, 8)
    for number, page in enumerate(pages):
        content += struct.pack("<H", len(page))
        for tag, (kind, values) in sorted(page.items()):
            packed = struct.pack(f"<{len(values)}{FORMS[kind]}", *values)
            if len(packed) > 4:
                packed, extra = struct.pack("<I", end + len(extra)), extra + packed
            content += struct.pack("<HHI4s", tag, kind, len(values), packed.ljust(4, b"\0"))
        after = (following or {}).get(number, number + 1)
        content += struct.pack("<I", starts[after] if after < len(pages) else 0)
    path.write_bytes(content + extra + bytes(64))
    return path


def tags_of(
    width: int, height: int, tile: int = TILE, tiles: int = 1
) -> dict[int, tuple[int, Sequence[int]]]:
    """An image whose tiles all lie at byte 8."""
    numbers: dict[int, int] = {
        WIDTH: width,
        LENGTH: height,
        COMPRESSION: 1,
        PHOTOMETRIC: 2,
        SAMPLES: 3,
        TILE_WIDTH: tile,
        TILE_LENGTH: tile,
    }
    tables: dict[int, tuple[int, Sequence[int]]] = {
        BITS: (SHORT, (8, 8, 8)),
        TILE_OFFSETS: (LONG, (8,) * tiles),
        TILE_COUNTS: (LONG, (16,) * tiles),
    }
    tables.update({tag: (LONG, (value,)) for tag, value in numbers.items()})
    return tables


def write_many_pages(path: Path, pages: int) -> None:
    """An image after an image, with one tag each."""
    record = np.dtype(
        [
            ("count", "<u2"),
            ("tag", "<u2"),
            ("kind", "<u2"),
            ("length", "<u4"),
            ("value", "<u4"),
            ("next", "<u4"),
        ]
    )
    table = np.zeros(pages, record)
    table["count"], table["tag"], table["kind"], table["length"], table["value"] = (
        1,
        WIDTH,
        LONG,
        1,
        600,
    )
    table["next"] = 8 + record.itemsize * np.arange(1, pages + 1)
    table["next"][-1] = 0
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + table.tobytes())


def hang_on_itself(path: Path) -> None:
    write_raw(path, [tags_of(256, 256) | {SUB_IFDS: (LONG, (8,))}])


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG of 64 px whose header claims another size."""
    content = bytearray(imagecodecs.jpeg8_encode(tissue(64, 64)))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size and 0.5 µm/px, whatever its data are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    scale = chunk(b"pHYs", struct.pack(">IIB", 2_000_000, 2_000_000, 1))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + scale
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def save_image(mode: str, **options: Any) -> Callable[[Path], object]:
    """A plain picture of one mode, all tissue, at 0.5 µm/px."""

    def save(path: Path) -> None:
        image = Image.fromarray(tissue())
        picture = (
            Image.fromarray(np.full((500, 600), 300, np.uint16))
            if mode == "I;16"
            else image.convert(mode)
        )
        picture.save(path, dpi=(50_800, 50_800), **options)

    return save


def sixteen_bit_colours(path: Path) -> None:
    write_level_in_strips(path, tissue().astype(np.uint16) * 257)


def write_level_in_strips(path: Path, pixels: NDArray[Any]) -> None:
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def jpeg_2000(path: Path, spoiled: NDArray[np.uint8]) -> None:
    """Aperio's JPEG 2000; its tile 1 holds another picture."""
    whole = np.full((512, 768, 3), 255, np.uint8)
    whole[:500, :600] = tissue()
    tiles = [whole[y : y + TILE, x : x + TILE] for y in (0, TILE) for x in (0, TILE, 2 * TILE)]
    tiles[1] = spoiled
    packed: Any = iter(
        [
            imagecodecs.jpeg2k_encode(
                np.ascontiguousarray(tile), level=0, codecformat="j2k", mct=False
            )
            for tile in tiles
        ]
    )
    options: dict[str, Any] = {
        "compression": 33005,
        "photometric": "rgb",
        "tile": (TILE, TILE),
        "metadata": None,
        "software": False,
    }
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            packed,
            shape=(500, 600, 3),
            dtype="uint8",
            description=APERIO.format(*GOOD_PX, "0.5"),
            **options,
        )


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def good(path: Path) -> None:
    write_tiled(path, tissue(300, 200))


def half_transparent(path: Path) -> None:
    """Left half tissue, right half absent: the columns 0–5 of 12, for column 5 ends at x 299."""
    alpha = np.full((500, 600, 1), 255, np.uint8)
    alpha[:, 300:] = 0
    write_tiled(path, np.concatenate([tissue(), alpha], axis=-1), extrasamples=["unassalpha"])


def bomb_tile() -> bytes:
    return bytes(imagecodecs.zlib_encode(bytes(20_000_000)))


def write_macro_bomb(path: Path) -> None:
    """A macro image that claims 1,000,000² px."""
    write_aperio(path, macro=tissue(60, 50))
    set_tag(path, WIDTH, value=1_000_000, kind=LONG, page=2)
    set_tag(path, LENGTH, value=1_000_000, kind=LONG, page=2)


def two_tags_of_huge(path: Path) -> None:
    set_tag(set_tag(write_tiled(path), TILE_OFFSETS, count=2**32 - 1), TILE_COUNTS, count=2**32 - 1)


NOT_REGULAR, NO_SLIDE, NO_RGB, SCALE = (
    "not a regular file",
    "not a slide",
    "convert it to 8-bit RGB",
    "--slide-mpp",
)
ALL = f"{PATCHES} patches"
FEW = "24 patches"
BAD_TILE = f"{PATCHES} patches, 36 unreadable"
LOWER_HALF = "48 patches"

CASES: dict[str, Case] = {
    # Not a regular file.
    "fifo": Case(os.mkfifo, FAILED, NOT_REGULAR),
    "socket": Case(lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), FAILED, NOT_REGULAR),
    "device": Case(link_to("/dev/zero"), FAILED, NOT_REGULAR),
    "terminal": Case(link_to("/dev/tty"), FAILED, "not a regular file"),
    "loop": Case(lambda path: path.symlink_to(path.name), FAILED, "cannot be examined"),
    "dangling": Case(link_to("nowhere.tiff"), FAILED, "no such file"),
    "link through a file": Case(link_to("/etc/hostname/slide.tiff"), FAILED, "cannot be examined"),
    "process memory": Case(link_to("/proc/self/mem"), FAILED, "empty"),
    "folder": Case(lambda path: path.mkdir(), PASSED_OVER, name="folder.svs"),
    "link to its folder": Case(link_to("."), PASSED_OVER),
    # Not a slide.
    "empty": Case(text(b""), FAILED, "empty"),
    "text": Case(text(b"copied on Monday"), FAILED, NO_SLIDE, "text.svs"),
    "pdf": Case(
        text(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\ntrailer\n%%EOF\n"),
        FAILED,
        NO_SLIDE,
    ),
    "zip": Case(text(b"PK\5\6" + bytes(18)), FAILED, NO_SLIDE, "zip.mrxs"),
    "html": Case(
        text(b"<!DOCTYPE html><html><title>403 Forbidden</title></html>"),
        FAILED,
        NO_SLIDE,
        "html.svs",
    ),
    "random": Case(text(np.random.default_rng(0).bytes(5000)), FAILED, NO_SLIDE, "random.ndpi"),
    "zeros": Case(text(bytes(5000)), FAILED, NO_SLIDE, "zeros.scn"),
    "ini": Case(text(b"[GENERAL]\r\nSLIDE_VERSION = 01.9\r\n"), FAILED, NO_SLIDE, "ini.mrxs"),
    "dicom of zeros": Case(text(bytes(128) + b"DICM" + bytes(200)), FAILED, "", "dicom.dcm"),
    # Cut short.
    "magic only": Case(text(b"II*\0"), FAILED, "truncated"),
    "cut in the head": Case(lambda path: cut(write_tiled(path), 7), FAILED, "truncated"),
    "cut in the tags": Case(lambda path: cut(write_tiled(path), 60), FAILED, "truncated"),
    "cut in the tables": Case(lambda path: cut(write_tiled(path), 230), FAILED, "truncated"),
    "cut in half": Case(
        lambda path: cut(write_tiled(path), path.stat().st_size // 2), FAILED, "truncated"
    ),
    "last byte gone": Case(lambda path: cut(write_tiled(path), -1), FAILED, "truncated"),
    "last byte of an SVS gone": Case(
        lambda path: cut(write_aperio(path), -1), FAILED, "truncated", "cut.svs"
    ),
    "one tile beyond the end": Case(
        lambda path: set_tile(write_tiled(path), 4, offset=10_000_000), FAILED, "truncated"
    ),
    "png cut short": Case(
        lambda path: cut(_png(path), -2000), FAILED, "not a whole image", "cut.png"
    ),
    "jpeg cut short": Case(
        lambda path: cut(_jpeg(path), -3000), FAILED, "not a whole image", "cut.jpg"
    ),
    # Tiles that cannot be decoded, or are not there.
    "bad tile": Case(lambda path: spoil_tiles(write_tiled(path), [1]), DAMAGED, BAD_TILE),
    "bad tile of zeros": Case(
        lambda path: spoil_tiles(write_tiled(path), [1], 0), DAMAGED, BAD_TILE
    ),
    "bad tile in an SVS": Case(
        lambda path: spoil_tiles(write_aperio(path), [1]), DAMAGED, BAD_TILE, "bad.svs"
    ),
    "every tile bad": Case(
        lambda path: spoil_tiles(write_tiled(path), range(6)), FAILED, "cannot be decoded"
    ),
    "a tile in the header": Case(
        lambda path: set_tile(write_tiled(path), 1, offset=0), DAMAGED, BAD_TILE
    ),
    "zero-length tiles": Case(
        lambda path: empty_tiles(write_tiled(path), range(3)), OK, LOWER_HALF
    ),
    "sparse tiles": Case(
        lambda path: empty_tiles(write_tiled(path), range(3), offset=0), OK, LOWER_HALF
    ),
    "zero-length tiles in an SVS": Case(
        lambda path: empty_tiles(write_aperio(path), range(3)), OK, "60 patches", "hollow.svs"
    ),
    "no tile at all": Case(
        lambda path: empty_tiles(write_tiled(path), range(6), offset=0), ZERO, "no tissue"
    ),
    "white": Case(
        lambda path: write_tiled(path, np.full((500, 600, 3), 255, np.uint8)), ZERO, "no tissue"
    ),
    # Bombs.
    "jpeg bomb in a tile": Case(
        lambda path: put_tile(write_aperio(path), 1, jpeg_of(65_000, 65_000)),
        DAMAGED,
        BAD_TILE,
        "bomb.svs",
    ),
    # Libtiff unpacks as much as a tile holds and leaves the rest.
    "deflate bomb in a tile": Case(
        lambda path: put_tile(write_tiled(path), 1, bomb_tile()), OK, ALL
    ),
    "bomb in the macro": Case(write_macro_bomb, OK, ALL, "macro.svs"),
    "png bomb": Case(
        text(png_of(100_000, 100_000)), FAILED, "too large for a plain image", "bomb.png"
    ),
    "png without its pixels": Case(
        text(png_of(12_000, 12_000)), FAILED, "not a whole image", "hollow.png"
    ),
    "jpeg bomb": Case(
        text(jpeg_of(65_000, 65_000)), FAILED, "too large for a plain image", "bomb.jpg"
    ),
    "jpeg 2000 of another size": Case(
        lambda path: jpeg_2000(path, tissue(512, 512)), DAMAGED, BAD_TILE, "j2k.svs"
    ),
    # Kinds of pixels.
    "16 bits": Case(lambda path: write_tiled(path, tissue().astype(np.uint16) * 257), OK, ALL),
    "12 bits in 16": Case(
        lambda path: write_tiled(path, tissue().astype(np.uint16) * 16), FAILED, "16 bits"
    ),
    "16 bits in strips": Case(sixteen_bit_colours, FAILED, NO_RGB),
    "16 bits of grey": Case(save_image("I;16"), FAILED, NO_RGB, "16.png"),
    "floating point": Case(
        lambda path: write_tiled(path, tissue().astype(np.float32) / 255), FAILED, NO_RGB
    ),
    "palette": Case(save_image("P"), FAILED, NO_RGB),
    "palette in tiles": Case(lambda path: write_palette(path), FAILED, NO_RGB),
    "palette png": Case(save_image("P"), FAILED, NO_RGB, "palette.png"),
    "cmyk": Case(save_image("CMYK"), FAILED, NO_RGB),
    "cmyk in tiles": Case(
        lambda path: write_tiled(path, write_cmyk_pixels(), photometric="separated"), FAILED, NO_RGB
    ),
    "one bit": Case(save_image("1"), FAILED, NO_RGB),
    "signed": Case(lambda path: write_tiled(path, (tissue() // 2).astype(np.int8)), FAILED, NO_RGB),
    # Without colour, tissue is what is darker than glass.
    "grey in tiles": Case(
        lambda path: write_tiled(path, tissue()[..., 1], photometric="minisblack"), OK, ALL
    ),
    "grey png": Case(save_image("L"), OK, ALL, "grey.png"),
    "grey glass": Case(
        lambda path: write_tiled(
            path, np.full((500, 600), 235, np.uint8), photometric="minisblack"
        ),
        ZERO,
        "no tissue",
    ),
    "rgba in tiles": Case(half_transparent, OK, "60 patches"),
    "rgba png": Case(save_image("RGBA"), OK, ALL, "rgba.png"),
    # Levels.
    "levels disordered": Case(
        lambda path: write_levels(path, [(600, 500), (150, 125), (300, 250)]), OK, ALL
    ),
    "levels missing": Case(lambda path: write_levels(path, [(600, 500), (75, 62)]), OK, ALL),
    "a level of another aspect": Case(
        lambda path: write_levels(path, [(600, 500), (300, 100), (150, 125)]),
        FAILED,
        "another shape than level 0",
    ),
    "levels beyond order": Case(
        lambda path: write_levels(path, [(600, 500), (300, 30), (150, 125)]),
        FAILED,
        "OpenSlide cannot open it",
    ),
    "a level larger than the first": Case(
        lambda path: write_levels(path, [(300, 250), (600, 500)]), OK, ALL
    ),
    "a bad tile in a small level": Case(lambda path: spoil_small_level(path), OK, ALL),
    # Headers that lie.
    "a million by a million": Case(
        lambda path: write_raw(path, [tags_of(10**6, 10**6, tiles=4)]), FAILED, "which no slide has"
    ),
    "few of many tiles": Case(
        lambda path: write_raw(path, [tags_of(10**5, 10**5, tiles=4)]), FAILED, "4 of 152,881 tiles"
    ),
    "one huge tile": Case(
        lambda path: write_raw(path, [tags_of(60_000, 60_000, tile=65_536)]),
        FAILED,
        "tiles of 65536 × 65536 px",
    ),
    "no tile size": Case(
        lambda path: write_raw(path, [tags_of(600, 500, tile=0, tiles=6)]),
        FAILED,
        "tiles of 0 × 0 px",
    ),
    "zero width": Case(lambda path: write_raw(path, [tags_of(0, 500)]), FAILED, "0 × 500 px"),
    "negative width": Case(
        lambda path: set_tag(write_tiled(path), WIDTH, kind=SLONG, value=-600),
        FAILED,
        "-600 × 500 px",
    ),
    "no size": Case(
        lambda path: write_raw(path, [{TILE_WIDTH: (LONG, (TILE,)), PHOTOMETRIC: (SHORT, (2,))}]),
        FAILED,
        "0 × 0 px",
    ),
    "no tags": Case(text(struct.pack("<2sHIHI", b"II", 42, 8, 0, 0)), FAILED, "has 0 tags"),
    "65,535 tags": Case(
        text(struct.pack("<2sHIH", b"II", 42, 8, 65_535) + bytes(800_000)), FAILED, "65,535 tags"
    ),
    "an image after itself": Case(
        lambda path: write_raw(path, [tags_of(256, 256)], {0: 0}), FAILED, "in a circle"
    ),
    "images in a circle": Case(
        lambda path: write_raw(path, [tags_of(256, 256)] * 3, {2: 1}), FAILED, "in a circle"
    ),
    "an image under itself": Case(hang_on_itself, FAILED, "in a circle"),
    "a million images": Case(
        lambda path: write_many_pages(path, 10**6), FAILED, "more than 1,024 images"
    ),
    "a million images under one": Case(
        lambda path: write_raw(path, [tags_of(256, 256) | {SUB_IFDS: (LONG, range(10**6))}]),
        FAILED,
        "claims 1,000,000 values",
    ),
    "huge tables": Case(two_tags_of_huge, FAILED, "which is impossible"),
    "a table of fractions": Case(
        lambda path: set_tag(write_tiled(path), TILE_OFFSETS, kind=RATIONAL, count=1),
        FAILED,
        "lists 0 tiles",
    ),
    "more lengths than tiles": Case(
        lambda path: set_tag(write_tiled(path), TILE_OFFSETS, count=5),
        FAILED,
        "lists 5 tiles but 6 lengths",
    ),
    "a table beyond the end": Case(
        lambda path: set_tag(write_tiled(path), TILE_COUNTS, value=2**31), FAILED, "truncated"
    ),
    "huge depth": Case(
        lambda path: set_tag(write_tiled(path), BITS, count=2**31), FAILED, "which is impossible"
    ),
    "a tile of 4 GB": Case(
        lambda path: set_tile(write_tiled(path), 1, count=2**32 - 1), FAILED, "which is impossible"
    ),
    "big tiff beyond 2⁶³": Case(lambda path: write_far_tiles(path), FAILED, "truncated"),
    # Scales.
    "scale absurd": Case(lambda path: write_tiled(path, mpp=352.8), FAILED, SCALE),
    "scale nan": Case(lambda path: write_aperio(path, "nan"), FAILED, SCALE, "nan.svs"),
    "scale negative": Case(lambda path: write_aperio(path, "-0.5"), FAILED, SCALE, "negative.svs"),
    "scale of zero": Case(lambda path: write_aperio(path, "0"), FAILED, SCALE, "nought.svs"),
    "scale of text": Case(
        lambda path: write_aperio(path, "forty times"), FAILED, SCALE, "words.svs"
    ),
    "scale infinite": Case(lambda path: write_aperio(path, "1e999"), FAILED, SCALE, "infinite.svs"),
    "scale missing": Case(lambda path: write_unscaled(path), FAILED, SCALE),
    # Names of good slides.
    "name in NFC": Case(good, OK, FEW, "caf\u00e9.tiff"),
    "name in NFD": Case(good, OK, FEW, "cafe\u0301.tiff"),
    "name with a newline": Case(good, OK, FEW, "two\nlines.tiff"),
    "name with quotes": Case(good, OK, FEW, 'it\'s "so" `it` $(is).tiff'),
    "name with a dash": Case(good, OK, FEW, "-rf.tiff"),
    "name with an escape": Case(good, OK, FEW, "\x1b[31mred\u202etxet.tiff"),
    "name of 250 bytes": Case(good, OK, FEW, "n" * 245 + ".tiff"),
    "name of 250 bytes in Greek": Case(good, OK, FEW, "\u03c9" * 122 + "x.tiff"),
    "name not in UTF-8": Case(good, OK, FEW, os.fsdecode(b"caf\xe9.tiff")),
    "name of spaces": Case(good, OK, FEW, "   .tiff"),
    "name of a table": Case(good, OK, FEW, "failures.csv.tiff"),
    "name twice": Case(good, OK, FEW, "twice.tiff"),
    "name twice, otherwise": Case(good, OK, FEW, "twice.svs"),
    "name in capitals": Case(good, OK, FEW, "TWICE.tif"),
}


def _png(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(
        path, dpi=(50_800, 50_800)
    )
    return path


def _jpeg(path: Path) -> Path:
    Image.fromarray(tissue()).save(path, dpi=(50_800, 50_800), quality=95)
    return path


def empty_tiles(path: Path, tiles: Sequence[int], offset: int | None = None) -> None:
    for tile in tiles:
        set_tile(path, tile, offset=offset, count=0)


def write_palette(path: Path) -> None:
    write_tiled(
        path, tissue()[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )


def write_cmyk_pixels() -> NDArray[np.uint8]:
    return np.concatenate([tissue(), tissue()[..., :1]], axis=-1)


def spoil_small_level(path: Path) -> None:
    write_levels(path, [(600, 500), (300, 250)])
    spoil_tiles(path, [1], page=1)


def write_far_tiles(path: Path) -> None:
    write_tiled(path, bigtiff=True)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].aspage().tags[TILE_OFFSETS].valueoffset
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(struct.pack("<Q", 2**63 + 5))


def write_unscaled(path: Path) -> None:
    tifffile.imwrite(
        path,
        tissue(),
        tile=(TILE, TILE),
        photometric="rgb",
        compression="deflate",
        metadata=None,
        resolution=None,
    )


def file_of(name: str, folder: Path) -> Path:
    """Where a case's file lies, or would."""
    return folder / (CASES[name].name or f"{name}.tiff")


def write_cases(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every case that this file system can hold; its name and file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        path = file_of(name, folder)
        with suppress(UnicodeError):
            case.make(path)
            yield name, path
