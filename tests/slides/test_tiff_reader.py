"""Tiles decoded directly are, pixel for pixel, what OpenSlide gives; what cannot be is left to
OpenSlide, and counted.
"""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import folder_bytes, paint_noise, write_png, write_slide
from tests.commands import HERE, tile
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions
from wsi_pipeline.slides import describe_reader, open_slide, tiff_reader
from wsi_pipeline.slides.base import Level
from wsi_pipeline.slides.openslide_reader import OpenSlideReader, merge_boxes
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.tiff_reader import TiffReader, TileCache
from wsi_pipeline.slides.tiff_tiles import TileFault, TileFormat, decode_tile, find_layouts
from wsi_pipeline.slides.tissue import TissueParameters
from wsi_pipeline.stages.tile_config import TileConfig
from wsi_pipeline.store.patches import PatchStore

APERIO = (
    "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) JPEG/RGB Q=87|AppMag = 20|MPP"
    " = 0.5"
)


def smooth_noise(width: int, height: int) -> np.ndarray:
    """Colours with edges and gradients, such as JPEG has work with."""
    coarse = paint_noise(-(-width // 8), -(-height // 8), seed=3)
    return np.clip(
        np.kron(coarse, np.ones((8, 8, 1)))[:height, :width] * 0.8
        + paint_noise(width, height) * 0.2,
        0,
        255,
    ).astype(np.uint8)


def write_tiles(
    path: Path,
    width: int,
    height: int,
    tile: int,
    aperio: bool = False,
    bigtiff: bool = False,
    **options: Any,
) -> Path:
    description = APERIO.format(w=width, h=height, t=tile) if aperio else None
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        writer.write(
            smooth_noise(width, height),
            tile=(tile, tile),
            description=description,
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
            metadata=None,
            software=False,
            **options,
        )
    return path


JPEG_YCC: dict[str, Any] = {
    "compression": "jpeg",
    "compressionargs": {"level": 87},
    "photometric": "ycbcr",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "420": {**JPEG_YCC, "subsampling": (2, 2), "tile": 256},
    "422": {**JPEG_YCC, "subsampling": (2, 1), "tile": 256},
    "444": {**JPEG_YCC, "subsampling": (1, 1), "tile": 256},
    "420 in tiles of 240": {**JPEG_YCC, "subsampling": (2, 2), "tile": 240},
    "422 in tiles of 240, Aperio": {**JPEG_YCC, "subsampling": (2, 1), "tile": 240, "aperio": True},
    "RGB in JPEG": {"compression": "jpeg", "photometric": "rgb", "tile": 256},
    "RGB in JPEG, Aperio": {
        "compression": "jpeg",
        "photometric": "rgb",
        "tile": 240,
        "aperio": True,
    },
    "BigTIFF": {**JPEG_YCC, "subsampling": (2, 2), "tile": 256, "bigtiff": True},
    "deflate": {"compression": "deflate", "photometric": "rgb", "tile": 256},
    "deflate of differences": {
        "compression": "deflate",
        "predictor": 2,
        "photometric": "rgb",
        "tile": 128,
    },
    "LZW": {"compression": "lzw", "photometric": "rgb", "tile": 256},
    "LZW of differences": {"compression": "lzw", "predictor": 2, "photometric": "rgb", "tile": 256},
    "uncompressed": {"photometric": "rgb", "tile": 256},
}
ODD_SIZE = (709, 517)
BOXES = (
    (0, 0, 709, 517),
    (13, 201, 255, 257),
    (400, 300, 309, 217),
    (700, 510, 30, 30),
    (-20, -30, 100, 100),
)


def assert_equal_to_openslide(path: Path) -> TiffReader:
    ours, theirs = TiffReader(path, "s"), OpenSlideReader(path, "s")
    assert ours.info == theirs.info
    for level in ours.levels:
        for box in BOXES:
            assert np.array_equal(ours.read(level, *box), theirs.read(level, *box))
    return ours


@pytest.mark.parametrize("name", VARIANTS)
def test_pixels_are_openslides(name: str, tmp_path: Path) -> None:
    reader = assert_equal_to_openslide(
        write_tiles(tmp_path / "s.tiff", *ODD_SIZE, **VARIANTS[name])
    )
    assert (reader.direct_levels, reader.fallbacks) == ((0,), 0)


@pytest.mark.parametrize("reversible", [True, False])
def test_jpeg_2000_in_rgb_is_decoded_here(reversible: bool, tmp_path: Path) -> None:
    path = write_jpeg_2000(tmp_path / "s.svs", 33005, reversible)
    assert assert_equal_to_openslide(path).direct_levels == (0,)


def test_jpeg_2000_in_ycbcr_is_left_to_openslide(tmp_path: Path) -> None:
    assert (
        assert_equal_to_openslide(write_jpeg_2000(tmp_path / "s.svs", 33003, True)).direct_levels
        == ()
    )


def write_jpeg_2000(path: Path, compression: int, reversible: bool) -> Path:
    pixels = smooth_noise(512, 256)
    tiles = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(pixels[:, x : x + 256]),
            level=30,
            codecformat="j2k",
            reversible=reversible,
            mct=False,
        )
        for x in (0, 256)
    ]
    description = APERIO.format(w=512, h=256, t=256)
    with tifffile.TiffWriter(path) as writer:
        options: dict[str, Any] = {
            "compression": compression,
            "photometric": "rgb",
            "tile": (256, 256),
        }
        stream: Any = iter(tiles)
        writer.write(
            stream,
            shape=(256, 512, 3),
            dtype="uint8",
            description=description,
            metadata=None,
            software=False,
            **options,
        )
    return path


def overwrite_tag(path: Path, tag: str, values: dict[int, int]) -> Path:
    """Give some tiles of the first page other offsets or byte counts."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        entry = tiff.pages[0].aspage().tags[tag]
        entry.overwrite([values.get(index, old) for index, old in enumerate(entry.value)])
    return path


@pytest.mark.parametrize("aperio", [False, True])
def test_missing_tiles_are_white(aperio: bool, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=256, aperio=aperio, **JPEG_YCC)
    reader = assert_equal_to_openslide(overwrite_tag(path, "TileByteCounts", {0: 0, 4: 0}))
    assert reader.direct_levels == (0,)
    assert (reader.read(reader.levels[0], 0, 0, 256, 256) == 255).all()


def test_a_stripped_page_is_no_level_and_a_stripped_file_is_an_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tiff") as writer:
        writer.write(
            smooth_noise(512, 512),
            tile=(256, 256),
            photometric="rgb",
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
        )
        writer.write(smooth_noise(256, 256), rowsperstrip=16, photometric="rgb", subfiletype=1)
    assert [level.size for level in assert_equal_to_openslide(tmp_path / "s.tiff").levels] == [
        (512, 512)
    ]
    tifffile.imwrite(
        tmp_path / "flat.tiff", smooth_noise(300, 200), rowsperstrip=16, photometric="rgb"
    )
    assert describe_reader(open_slide(tmp_path / "flat.tiff", slide_mpp=0.5)) == "image"


def test_levels_reduced_by_a_fraction_are_left_to_openslide(tmp_path: Path) -> None:
    # 2057 / 514 is 4.002: OpenSlide blends such a level's pixels. 2057 / 1028 is another fraction.
    reader = assert_equal_to_openslide(write_slide(tmp_path / "s.tiff", paint_noise(2057, 1801)))
    assert reader.direct_levels == (0,)
    assert describe_reader(reader) == "tiff (level 0) and openslide (level 1, 2)"


def test_levels_reduced_by_whole_numbers_are_decoded_here(tmp_path: Path) -> None:
    assert assert_equal_to_openslide(
        write_slide(tmp_path / "s.tiff", paint_noise(2048, 1024))
    ).direct_levels == (0, 1, 2)


@pytest.mark.parametrize(
    ("side", "stride"), [(50, 50), (50, 30), (50, 70), (17, 17), (300, 300), (300, 100)]
)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_patches_cut_from_tiles_are_pieces_of_the_slide(
    side: int, stride: int, share: float, tmp_path: Path
) -> None:
    path = write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=240, **JPEG_YCC)
    grid = Grid(
        PatchSpec(side, stride, 0.5),
        (517 - side) // stride + 1,
        (709 - side) // stride + 1,
        Fraction(1),
    )
    positions = all_positions(grid)
    positions = positions[np.random.default_rng(1).random(len(positions)) < share]
    whole = OpenSlideReader(path, "s").read(Level(0, ODD_SIZE, Fraction(1)), 0, 0, *ODD_SIZE)
    block = SlidePatches(TiffReader(path, "s"), grid, positions, 10_000).read_block(0)
    for (row, col), patch in zip(positions.tolist(), block.pixels, strict=True):
        assert np.array_equal(
            patch, whole[row * stride : row * stride + side, col * stride : col * stride + side]
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_decode_threads_gives_the_same_pixels(threads: int, tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=128, **JPEG_YCC)
    reader = TiffReader(path, "s", decode_threads=threads)
    assert np.array_equal(
        reader.read(reader.levels[0], 0, 0, *ODD_SIZE),
        OpenSlideReader(path, "s").read(reader.levels[0], 0, 0, *ODD_SIZE),
    )


def spoil_tile(path: Path, tile: int) -> Path:
    """Overwrite the beginning of a tile, so that no decoder can make anything of it."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[tile]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x00" * 64)
    return path


def test_a_spoilt_tile_costs_the_same_patches_with_either_reader(tmp_path: Path) -> None:
    path = spoil_tile(write_tiles(tmp_path / "s.tiff", 768, 512, tile=256, **JPEG_YCC), 1)
    grid = Grid(PatchSpec(50, 50, 0.5), 10, 15, Fraction(1))
    ours, theirs = (
        SlidePatches(reader, grid, all_positions(grid), 150).read_block(0)
        for reader in (TiffReader(path, "s"), OpenSlideReader(path, "s"))
    )
    assert np.array_equal(ours.readable, theirs.readable)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert not ours.readable.all()
    assert (ours.fallbacks > 0, theirs.fallbacks) == (True, 0)


def test_a_fault_of_our_own_decoder_costs_no_patch_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiles(tmp_path / "s.tiff", 768, 512, tile=256, **JPEG_YCC)
    reader = TiffReader(path, "s")
    assert reader.direct_levels == (0,)

    def fail(content: bytes, form: TileFormat, into: np.ndarray | None = None) -> np.ndarray:
        raise TileFault("no memory")

    monkeypatch.setattr(tiff_reader, "decode_tile", fail)
    grid = Grid(PatchSpec(50, 50, 0.5), 10, 15, Fraction(1))
    block = SlidePatches(reader, grid, all_positions(grid), 150).read_block(0)
    assert block.readable.all()
    assert block.fallbacks == 1
    assert np.array_equal(
        block.pixels,
        SlidePatches(OpenSlideReader(path, "s"), grid, all_positions(grid), 150)
        .read_block(0)
        .pixels,
    )


def test_a_decoder_that_disagrees_with_openslide_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tiff_reader,
        "decode_tile",
        lambda content, form, into=None: decode_tile(content, form) ^ np.uint8(1),
    )
    path = write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=256, **JPEG_YCC)
    assert assert_equal_to_openslide(path).direct_levels == ()


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("TileOffsets", {0: 2**31}),
        ("TileByteCounts", {0: 2**31}),
        ("TileWidth", {0: 65_536}),
        ("TileLength", {0: 16}),
        ("SamplesPerPixel", {0: 4}),
    ],
)
def test_a_page_that_lies_about_itself_has_no_layout(
    tag: str, values: dict[int, int], tmp_path: Path
) -> None:
    path = write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=256, **JPEG_YCC)
    level = Level(0, ODD_SIZE, Fraction(1))
    assert list(find_layouts(path, [level])) == [0]
    with tifffile.TiffFile(path, mode="r+") as tiff:
        entry = tiff.pages[0].aspage().tags[tag]
        old = entry.value if isinstance(entry.value, tuple) else (entry.value,)
        new = [values.get(index, value) for index, value in enumerate(old)]
        entry.overwrite(new if isinstance(entry.value, tuple) else new[0], dtype="I")
    assert find_layouts(path, [level]) == {}


def test_a_file_that_is_no_tiff_has_no_layout(tmp_path: Path) -> None:
    (tmp_path / "s.tiff").write_bytes(b"II*\0" + b"\xff" * 100)
    assert find_layouts(tmp_path / "s.tiff", [Level(0, (1, 1), Fraction(1))]) == {}


def test_a_tile_that_claims_to_be_larger_is_a_fault() -> None:
    big = imagecodecs.jpeg8_encode(smooth_noise(512, 512))
    with pytest.raises(TileFault):
        decode_tile(bytes(big), TileFormat(256, 256, 7, 6, 1, None))
    wide = imagecodecs.jpeg2k_encode(smooth_noise(512, 512), codecformat="j2k")
    with pytest.raises(TileFault, match="another size"):
        decode_tile(bytes(wide), TileFormat(256, 256, 33005, 2, 1, None))


@pytest.mark.parametrize("encode", [imagecodecs.lzw_encode, imagecodecs.zlib_encode])
def test_a_tile_that_ends_early_is_a_fault(encode: Any) -> None:
    packed = encode(paint_noise(16, 16).tobytes())
    with pytest.raises(TileFault):
        decode_tile(
            bytes(packed[: len(packed) // 2]),
            TileFormat(16, 16, 5 if encode is imagecodecs.lzw_encode else 8, 2, 1, None),
        )


def test_a_tile_that_unpacks_to_more_than_it_may_is_a_fault() -> None:
    with pytest.raises(TileFault):
        decode_tile(
            bytes(imagecodecs.zlib_encode(bytes(1_000_000))), TileFormat(16, 16, 8, 2, 1, None)
        )


def test_a_file_that_is_cut_short_while_it_is_read_is_a_fault(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "s.tiff", *ODD_SIZE, tile=256, **JPEG_YCC)
    reader = TiffReader(path, "s")
    assert reader.direct_levels == (0,)
    path.write_bytes(path.read_bytes()[:1000])
    with suppress(SlideError):  # unless OpenSlide still has the tile in memory
        reader.read(reader.levels[0], 300, 300, 100, 100)
    assert reader.fallbacks == 1


def test_a_reader_may_be_asked_for_by_name(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tiff", paint_noise(300, 300))
    assert isinstance(open_slide(path), TiffReader)
    assert isinstance(open_slide(path, reader="openslide"), OpenSlideReader)
    with pytest.raises(ConfigError, match="reader is 'bioformats'"):
        open_slide(path, reader="bioformats")


def test_the_direct_reader_by_name_refuses_what_it_cannot_decode(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="leave the choice to --reader auto"):
        open_slide(write_png(tmp_path / "s.png", paint_noise(30, 30), mpp=1), reader="tiff")
    with pytest.raises(SlideError, match="leave the choice to --reader auto"):
        open_slide(write_jpeg_2000(tmp_path / "s.svs", 33003, True), reader="tiff")


def test_a_store_does_not_tell_which_reader_read_its_slide(tmp_path: Path) -> None:
    slide = spoil_tile(write_tiles(tmp_path / "s.tiff", 768, 512, tile=256, **JPEG_YCC), 1)
    content = []
    for reader in ("tiff", "openslide"):
        config = TileConfig(
            spec=PatchSpec(mpp=0.5), tissue=TissueParameters(min_tissue=0.0), reader=reader
        )
        account = tile([slide], tmp_path / reader, config, workers=HERE)
        assert ("regions read by OpenSlide after a fault" in account.outcomes[0].message) == (
            reader == "tiff"
        )
        content.append(folder_bytes(tmp_path / reader / "s.patches.zarr"))
    assert content[0] == content[1]
    assert PatchStore(tmp_path / "tiff" / "s.patches.zarr").manifest.counts["unreadable"] > 0


def test_the_cache_keeps_within_its_bound_and_lets_go_of_the_oldest() -> None:
    cache = TileCache(max_bytes=250)
    for number in range(3):
        cache.put((number, 0), np.zeros(100, np.uint8))
    assert cache.get((0, 0)) is None
    assert cache.get((1, 0)) is not None
    cache.put((3, 0), np.zeros(100, np.uint8))
    assert cache.get((2, 0)) is None  # 1 was used since
    cache.forget(1)
    assert cache.get((1, 0)) is None


def test_boxes_that_touch_are_read_together() -> None:
    # Two rows of three, the second without its last; and one box far away.
    boxes = [
        [0, 0, 50, 50],
        [50, 0, 50, 50],
        [100, 0, 50, 50],
        [0, 50, 50, 50],
        [50, 50, 50, 50],
        [400, 50, 50, 50],
    ]
    assert sorted(merge_boxes(np.array(boxes))) == [
        (0, 0, 150, 50),
        (0, 50, 100, 50),
        (400, 50, 50, 50),
    ]
    assert merge_boxes(
        np.array([[0, 0, 50, 50], [50, 0, 50, 50], [0, 50, 50, 50], [50, 50, 50, 50]])
    ) == [(0, 0, 100, 100)]


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40, unique=True
    ),
    st.integers(20, 70),
)
def test_merged_boxes_cover_what_the_boxes_cover(
    positions: list[tuple[int, int]], stride: int
) -> None:
    boxes = np.array(
        [[col * stride, row * stride, 50, 50] for row, col in positions], dtype=np.int64
    )
    wanted, covered = np.zeros((900, 900), np.bool_), np.zeros((900, 900), np.bool_)
    for picture, rectangles in ((wanted, boxes.tolist()), (covered, merge_boxes(boxes))):
        for x, y, width, height in rectangles:
            picture[y : y + height, x : x + width] = True
    assert np.array_equal(wanted, covered)


@pytest.mark.timeout(20)
def test_a_slide_that_is_closed_while_its_thread_uses_the_cache_waits_for_nobody() -> None:
    """As a garbage collection may do it at any moment."""
    cache = TileCache(100)
    cache.put(("one", 0, 0), np.zeros(10, np.uint8))
    with cache._lock:
        cache.forget("one")
    cache.forget("one")
    assert cache.get(("one", 0, 0)) is None
