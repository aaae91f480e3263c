"""Patches gathered by torch from decoded tiles are the very pixels that a store holds."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import write_png
from tests.slides.test_tiff_reader import (
    JPEG_YCC,
    ODD_SIZE,
    VARIANTS,
    overwrite_tag,
    spoil_tile,
    write_tiles,
)
from wsi_pipeline.core.buffers import PixelBuffers
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions
from wsi_pipeline.core.patch_table import TiledBlock
from wsi_pipeline.models.gathering import cut_patches
from wsi_pipeline.slides import open_slide, tiff_reader
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.patches import Cut, SlidePatches, find_tiles
from wsi_pipeline.slides.tiff_reader import TiffReader
from wsi_pipeline.slides.tiff_tiles import decode_tile


def patches_of(
    reader: SlideReader,
    side: int = 50,
    stride: int = 50,
    downsample: Fraction = Fraction(1),
    origin: tuple[int, int] = (0, 0),
    share: float = 1.0,
    block_size: int = 10_000,
) -> SlidePatches:
    """A share of all patches that fit."""
    extents = [size - start for size, start in zip(ODD_SIZE[::-1], origin[::-1], strict=True)]
    rows, cols = (int((extent / downsample - side) // stride) + 1 for extent in extents)
    grid = Grid(PatchSpec(side, stride, 0.5), rows, cols, downsample, origin)
    positions = all_positions(grid)
    chosen = np.random.default_rng(1).random(len(positions)) < share
    return SlidePatches(reader, grid, positions[chosen | (share == 1)], block_size)


def read_tiles(source: SlidePatches, block: int = 0) -> TiledBlock | None:
    return source.read_tiles(block, PixelBuffers())


def assert_gathered(source: SlidePatches) -> None:
    """Every block can be gathered from tiles, and is what the cutter of stores gives."""
    for block in range(-(-len(source.positions) // source.block_size)):
        tiles = read_tiles(source, block)
        assert tiles is not None
        assert len(tiles) == len(cut_patches(tiles))
        assert np.array_equal(cut_patches(tiles), source.read_block(block).pixels)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Slides of 709 × 517 px by the side of their tiles; one tile of each is missing."""
    folder = tmp_path_factory.mktemp("slides")
    written = {tile: folder / f"{tile}.tiff" for tile in (16, 48, 128, 240, 512)}
    for tile, path in written.items():
        write_tiles(path, *ODD_SIZE, tile=tile, **JPEG_YCC)
        overwrite_tag(path, "TileByteCounts", {1: 0})
    return written


@settings(max_examples=40)
@given(
    tile=st.sampled_from([16, 48, 128, 240, 512]),
    side=st.integers(1, 260),
    stride=st.integers(8, 300),
    origin=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    share=st.sampled_from([0.1, 0.7, 1.0]),
    block_size=st.sampled_from([7, 64, 4096]),
    downsample=st.sampled_from([Fraction(1)] * 4 + [Fraction(3, 2), Fraction(4)]),
)
def test_gathered_patches_are_those_of_a_store(
    slides: dict[int, Path],
    tile: int,
    side: int,
    stride: int,
    origin: tuple[int, int],
    share: float,
    block_size: int,
    downsample: Fraction,
) -> None:
    side = min(side, int(317 / downsample))
    source = patches_of(
        TiffReader(slides[tile], "s"), side, stride, downsample, origin, share, block_size
    )
    if downsample != 1:
        assert read_tiles(source) is None  # pixels are averaged
    else:
        assert_gathered(source)


@pytest.mark.parametrize("name", VARIANTS)
def test_tiles_of_any_codec_are_lent(name: str, tmp_path: Path) -> None:
    variant: dict[str, Any] = VARIANTS[name]
    assert_gathered(
        patches_of(TiffReader(write_tiles(tmp_path / "s.tiff", *ODD_SIZE, **variant), "s"))
    )


def test_tiles_are_decoded_straight_into_the_buffer(
    slides: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = patches_of(TiffReader(slides[240], "s"))
    read_tiles(source)  # the probes before
    tiff_reader.TILES.forget(source._reader._key)  # type: ignore[attr-defined]
    given: list[np.ndarray] = []

    def note(content: bytes, form: Any, into: Any = None) -> np.ndarray:
        given.append(into)
        return decode_tile(content, form, into)

    monkeypatch.setattr(tiff_reader, "decode_tile", note)
    tiles = read_tiles(source)
    assert tiles is not None
    assert len(given) == len(tiles.tiles) - 1  # one is missing
    assert all(np.shares_memory(into, tiles.tiles) for into in given)


def test_a_tile_is_lent_once_however_many_patches_lie_on_it(slides: dict[int, Path]) -> None:
    tiles = read_tiles(patches_of(TiffReader(slides[240], "s")))
    assert tiles is not None
    assert tiles.tiles.shape == (3 * 3, 240, 240, 3)  # 700 × 500 px of patches


def test_where_patches_lie_on_their_tiles_by_hand() -> None:
    """Patches of 4 px, every 4; tiles of 6 × 5 px, 3 in a row; the patches begin at (1, 2)."""
    cut = Cut(np.array([[0, 0], [0, 1], [1, 0]], np.int32), 1, 2, 4, 4)
    found = find_tiles(cut, (6, 5), 3)
    assert found.numbers.tolist() == [0, 1, 3, 4]
    assert found.corners.tolist() == [[2, 1], [2, 5], [1, 1]]
    assert found.under.tolist() == [
        [[0, 0], [2, 2]],  # x 1 to 4, y 2 to 5: tiles 0 and 3
        [[0, 1], [2, 3]],  # x 5 to 8
        [[2, 2], [2, 2]],  # y 6 to 9
    ]


def test_a_tile_is_kept_for_others_where_more_patches_can_lie_on_it() -> None:
    """Patches of 4 px from (0, 0) on, four of them; on tile 0 lie all four that can."""
    positions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    assert find_tiles(Cut(positions, 0, 0, 4, 4), (6, 5), 3).is_shared.tolist() == [
        *(False, True),
        *(True, True),
    ]
    assert find_tiles(Cut(positions[:3], 0, 0, 4, 4), (6, 5), 3).is_shared.all()


def test_tiles_that_neighbouring_blocks_need_are_decoded_once(
    slides: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = patches_of(TiffReader(slides[128], "s"), block_size=30)
    read_tiles(source)
    tiff_reader.TILES.forget(source._reader._key)  # type: ignore[attr-defined]
    decoded: list[bytes] = []

    def note(content: bytes, *given: Any) -> np.ndarray:
        decoded.append(content)
        return decode_tile(content, *given)

    monkeypatch.setattr(tiff_reader, "decode_tile", note)
    assert_gathered(source)
    assert len(decoded) == len(set(decoded)) == 6 * 4 - 1  # of 6 × 5 the patches touch 4 rows


def test_tiles_that_follow_one_another_in_the_file_are_read_at_once(
    slides: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches touch 4 rows of 6 tiles; tile 1 is missing, and a read ends with the sixteenth."""
    source = patches_of(TiffReader(slides[128], "s"))
    read_tiles(source)
    counts: list[int] = []
    read = TiffReader._read_bytes

    def note(reader: TiffReader, offset: int, count: int) -> bytes:
        counts.append(count)
        return read(reader, offset, count)

    monkeypatch.setattr(TiffReader, "_read_bytes", note)
    read_tiles(source)
    assert len([count for count in counts if count]) == 3  # tile 0, 2 to 15, 16 to 23


def test_a_tile_that_cannot_be_decoded_leaves_the_block_to_the_cutter(tmp_path: Path) -> None:
    path = spoil_tile(write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=240, **JPEG_YCC), 1)
    source = patches_of(TiffReader(path, "s"))
    assert read_tiles(source) is None
    assert not source.read_block(0).readable.all()


def test_patches_beyond_the_level_are_left_to_the_cutter(slides: dict[int, Path]) -> None:
    grid = Grid(PatchSpec(50, 50, 0.5), 11, 15, Fraction(1))
    source = SlidePatches(TiffReader(slides[240], "s"), grid, all_positions(grid), 1000)
    assert read_tiles(source) is None


def test_a_reader_without_tiles_leaves_all_to_the_cutter(tmp_path: Path) -> None:
    path = write_png(tmp_path / "s.png", np.zeros((*ODD_SIZE[::-1], 3), np.uint8), mpp=0.5)
    assert read_tiles(patches_of(open_slide(path))) is None


def test_patches_far_apart_are_left_to_the_cutter(
    slides: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_reader, "MOST_LENT_BYTES", 9 * 240 * 240 * 3 - 1)
    assert read_tiles(patches_of(TiffReader(slides[240], "s"))) is None


def test_no_patches_are_left_to_the_cutter(slides: dict[int, Path]) -> None:
    source = patches_of(TiffReader(slides[240], "s"), share=0.0)
    assert read_tiles(source) is None
    assert len(source.read_block(0).pixels) == 0
