"""A damaged tile is what OpenSlide makes of it, or unreadable, with either reader."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.builders import tissue, write_model
from tests.commands import PLAIN, run
from tests.hostile_slides import put_tile
from tests.slides.test_lost_tiles import TISSUE, tile_slide, write_scan
from tests.slides.tile_mutations import (
    CODECS,
    COLUMNS,
    SIDE,
    Codec,
    draw_tiles,
    mutate,
    split_tables,
    write_tiles,
)
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.base import UserScale
from wsi_pipeline.slides.images import ImageReader, decode_sent, encode_jpeg, read_rgb
from wsi_pipeline.slides.openslide_reader import OpenSlideReader
from wsi_pipeline.slides.tiff_reader import TiffReader
from wsi_pipeline.slides.tiff_tiles import TileFault, TileFormat, decode_tile


def read_or_none(reader: TiffReader | OpenSlideReader, index: int) -> np.ndarray | None:
    row, col = divmod(index, COLUMNS)
    try:
        return reader.read(reader.levels[0], col * SIDE, row * SIDE, SIDE, SIDE)
    except SlideError:
        return None


def compare_readers(path: Path, tiles: int) -> Counter[str]:
    """Read every tile with both readers; what came of them, by kind. Fails where they differ."""
    ours, theirs = TiffReader(path, "s", decode_threads=1), OpenSlideReader(path, "s")
    ended: Counter[str] = Counter()
    for index in range(tiles):
        before = ours.fallbacks
        mine, other = read_or_none(ours, index), read_or_none(theirs, index)
        assert (mine is None) == (other is None), f"tile {index}"
        if mine is not None and other is not None:
            assert np.array_equal(mine, other), f"tile {index}"
        kind = "unreadable" if mine is None else "read"
        ended[f"{kind} by OpenSlide" if ours.fallbacks > before else kind] += 1
    return ended


def fuzz(codec: Codec, path: Path, seed: int, count: int) -> Counter[str]:
    """Compare the readers on whole tiles, which are probed, and on damaged ones."""
    tiles, tables = draw_tiles(codec)
    # The first tiles are the longest, for a few bytes more hurt no decoder: they are the probes.
    probes = [tile + bytes(20_000) for tile in tiles[:2]] if codec.compression != 1 else tiles[:2]
    damaged = [
        tile
        for tile in mutate(tiles, random.Random(seed), count)
        if codec.compression != JPEG_2000 or not has_other_size(tile, tiles[0])
    ]
    path = write_tiles(path, codec, [*probes, *damaged], tables)
    return compare_readers(path, len(probes) + len(damaged))


JPEG_2000 = 33005


def has_other_size(tile: bytes, whole: bytes) -> bool:
    """True where a codestream's image or components are of another size or depth: OpenSlide then
    shows what lies in memory behind them, which is never the same.
    """
    return tile[8:51] != whole[8:51]


@pytest.mark.parametrize("name", CODECS)
def test_damaged_tiles_are_openslides_or_unreadable(name: str, tmp_path: Path) -> None:
    ended = fuzz(CODECS[name], tmp_path / "s.tiff", seed=0, count=44)
    assert ended["read"] >= 2
    assert ended.total() > 40


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("name", CODECS)
def test_thousands_of_damaged_tiles_are_openslides_or_unreadable(
    name: str, seed: int, tmp_path: Path
) -> None:
    assert fuzz(CODECS[name], tmp_path / "s.tiff", seed, count=1100).total() > 1000


def swap_order(tables: bytes) -> bytes:
    """Give the second quantisation table the number of the first."""
    changed = bytearray(tables)
    places = [place for place in range(len(tables)) if tables[place : place + 2] == b"\xff\xdb"]
    changed[places[-1] + 4] ^= 1
    return bytes(changed)


def other_version(tables: bytes) -> bytes:
    """Add a segment of JFIF 2, of which libjpeg warns."""
    return tables[:2] + b"\xff\xe0\x00\x10JFIF\0\x02\x01\x00\x00\x01\x00\x01\x00\x00" + tables[2:]


TABLES: dict[str, Callable[[bytes], bytes]] = {
    "of another quality": lambda tables: split_tables(
        bytes(imagecodecs.jpeg8_encode(np.zeros((8, 8, 3), np.uint8), level=20))
    )[0],
    "in another order": swap_order,
    "without an end": lambda tables: tables[:-2],
    "cut": lambda tables: tables[: len(tables) // 2],
    "of nothing": lambda tables: tables[:2] + tables[-2:],
    "with a length of restarts": lambda tables: tables[:2] + b"\xff\xdd\0\4\0\3" + tables[2:],
    "with another JFIF": other_version,
    "with a flipped bit": lambda tables: tables[:200] + bytes([tables[200] ^ 4]) + tables[201:],
    "that are none": lambda tables: b"tables",
}


@pytest.mark.parametrize("change", TABLES)
@pytest.mark.parametrize("name", [name for name in CODECS if CODECS[name].shares_tables])
def test_other_shared_tables_give_openslides_pixels_or_none(
    change: str, name: str, tmp_path: Path
) -> None:
    codec = CODECS[name]
    tiles, tables = draw_tiles(codec)
    assert tables is not None
    path = write_tiles(tmp_path / "s.tiff", codec, tiles, TABLES[change](tables))
    compare_readers(path, len(tiles))


@pytest.mark.parametrize("name", CODECS)
def test_whole_tiles_are_read_here(name: str, tmp_path: Path) -> None:
    codec = CODECS[name]
    tiles, tables = draw_tiles(codec)
    path = write_tiles(tmp_path / "s.tiff", codec, tiles, tables)
    assert compare_readers(path, len(tiles)) == {"read": 4}
    assert TiffReader(path, "s").direct_levels == (0,)


def cut_tile(path: Path, tile: int) -> Path:
    """Keep two thirds of a tile's stream."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    content = path.read_bytes()[offset : offset + count * 2 // 3]
    return put_tile(path, tile, content)


def test_a_tile_that_was_cut_short_is_damage_for_infer(tmp_path: Path) -> None:
    path = cut_tile(write_scan(tmp_path / "s.svs"), TISSUE)
    model = write_model(tmp_path / "model.safetensors")
    options = ["--model", model, *PLAIN, "--outputs", "summary", "--workers", 0]
    done = run("infer", "--slides", path, "--results-dir", tmp_path / "out", *options)
    assert done.exit_code == 3
    assert "damaged" in done.output
    assert "36 unreadable" in done.output


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_tile_that_was_cut_short_is_damage_for_tile(reader: str, tmp_path: Path) -> None:
    path = cut_tile(write_scan(tmp_path / "s.svs"), TISSUE)
    exit_code, said = tile_slide(path, "--reader", reader)
    assert (exit_code, "100 patches, 36 unreadable" in said) == (3, True)


def test_a_warning_of_the_decoder_is_a_fault() -> None:
    (tile, *_), _ = draw_tiles(CODECS["JPEG, YCbCr 4:2:0"])
    form = TileFormat(SIDE, SIDE, 7, 6, 1, None)
    decode_tile(tile, form)
    with pytest.raises(TileFault, match="Premature end of JPEG file"):
        decode_tile(tile[:-2], form)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda"]
)
def test_a_jpeg_that_ends_in_its_header_is_a_fault(content: bytes) -> None:
    with pytest.raises(TileFault, match="ends in its header"):
        decode_tile(content, TileFormat(SIDE, SIDE, 7, 6, 1, None))


@pytest.mark.parametrize("frame", [b"\xff\xc0\x00\x02", b"\xff\xc2\x00\x06\x08\x00\x08\x00"])
def test_a_tile_that_ends_in_its_frame_is_a_fault_of_that_tile(frame: bytes) -> None:
    with pytest.raises(TileFault):
        decode_tile(b"\xff\xd8" + frame + b"\0", TileFormat(8, 8, 7, 6, 1, None))


def damage_jpeg(pixels: np.ndarray) -> bytes:
    """Return a JPEG of which a part is lost."""
    content = encode_jpeg(pixels)
    return content[: len(content) // 2] + content[len(content) // 2 + 50 :]


def test_a_damaged_image_is_refused_as_slide_as_patch_and_as_upload(tmp_path: Path) -> None:
    content, path = damage_jpeg(tissue(64, 64)), tmp_path / "one.jpg"
    path.write_bytes(content)
    assert np.asarray(Image.open(path)).shape == (64, 64, 3)  # Pillow says nothing
    for read in (lambda: ImageReader(path, "one", UserScale(0.5)), lambda: read_rgb(path)):
        with pytest.raises(SlideError, match="not a whole image"):
            read()
    with pytest.raises(SlideError, match="damaged"):
        decode_sent(content, 64 * 64)
