"""Codecs and depths of TIFF tiles, compared with other readers and the libraries' own writers."""

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from tests.builders import paint_noise, tissue
from tests.commands import run
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides import describe_reader, open_slide
from wsi_pipeline.slides.base import SlideReader

SIDE = 300
CODECS = {
    "webp": {"compression": "webp", "compressionargs": {"level": 80}},
    "lossless webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpegxl": {"compression": "jpegxl", "compressionargs": {"distance": 1.0}},
    "lossless jpegxl": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
}


def write(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    """A slide of 1 µm/px and a level of it, reduced twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 2, 3)
    mean = pixels.reshape(shape).mean(axis=(1, 3)).round().astype(pixels.dtype)
    settings: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "metadata": None} | how
    scale: dict[str, Any] = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, **settings, **scale)
        tiff.write(mean, subfiletype=1, **settings)
    return path


def read(slide: SlideReader, number: int = 0) -> np.ndarray:
    level = slide.levels[number]
    return slide.read(level, 0, 0, *level.size)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("number", [0, 1])
def test_pixels_are_those_of_tifffile(codec: str, number: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", tissue(SIDE, SIDE), **CODECS[codec])
    slide = open_slide(path)
    assert describe_reader(slide) == "imagecodecs"
    assert np.array_equal(read(slide, number), tifffile.imread(path, key=number))


@pytest.mark.parametrize("codec", ["lossless webp", "lossless jpegxl"])
def test_pixels_come_back_as_they_were(codec: str, tmp_path: Path) -> None:
    pixels = paint_noise(SIDE, SIDE)
    slide = open_slide(write(tmp_path / "a.tif", pixels, **CODECS[codec]))
    assert np.array_equal(slide.read(slide.levels[0], 90, 40, 150, 250), pixels[40:290, 90:240])


def test_a_region_beyond_the_level_is_white(tmp_path: Path) -> None:
    slide = open_slide(write(tmp_path / "a.tif", tissue(SIDE, SIDE), **CODECS["webp"]))
    region = slide.read(slide.levels[0], 250, 250, 100, 100)
    assert (region[50:] == 255).all()
    assert (region[:50, :50] != 255).any()


@pytest.mark.parametrize("codec", ["webp", "jpegxl"])
def test_a_tile_cut_short_is_unreadable_and_its_neighbours_are_not(
    codec: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", tissue(SIDE, SIDE), **CODECS[codec])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = tiff.pages.first.tags["TileByteCounts"]
        counts.overwrite([counts.value[0] // 2, *counts.value[1:]])
    slide = open_slide(path)
    with pytest.raises(SlideError, match="tile at 0,0 cannot be decoded"):
        slide.read(slide.levels[0], 0, 0, 100, 100)
    assert slide.read(slide.levels[0], 128, 128, 100, 100).shape == (100, 100, 3)


def test_a_tile_that_claims_another_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", tissue(SIDE, SIDE), **CODECS["webp"])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (322, 323):
            tiff.pages.first.tags[code].overwrite(112)
    slide = open_slide(path)
    with pytest.raises(SlideError, match="cannot be decoded"):
        read(slide)


@pytest.mark.parametrize("codec", ["webp", "jpegxl"])
def test_a_slide_is_cut(codec: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", tissue(SIDE, SIDE), **CODECS[codec])
    result = run("tile", tmp_path / "in", "-o", tmp_path / "out", "--mpp", 1, "--workers", 0)
    assert (result.exit_code, "1 slide: 1 ok" in result.stdout) == (0, True), result.output


@pytest.mark.parametrize("predictor", [False, True])
def test_zstandard_is_decoded_as_openslide_decodes_it(predictor: bool, tmp_path: Path) -> None:
    how = {"compression": "zstd", "predictor": predictor}
    path = write(tmp_path / "a.tif", tissue(SIDE, SIDE), **how)
    assert describe_reader(open_slide(path)) == "tiff (level 0, 1)"
    ours, theirs = (open_slide(path, reader=reader) for reader in ("tiff", "openslide"))
    assert np.array_equal(read(ours), read(theirs))
    assert np.array_equal(read(ours), tifffile.imread(path, key=0))


DEEP = np.random.default_rng(5).integers(0, 65_536, (SIDE, SIDE, 3), dtype=np.uint16)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd"])
def test_sixteen_bits_become_eight(compression: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", DEEP, compression=compression)
    expected = (DEEP.astype(np.uint32) + 128) // 257  # to the nearest, as libtiff does
    assert np.array_equal(read(open_slide(path)), expected)
    with openslide.OpenSlide(path) as slide:
        theirs = np.asarray(slide.read_region((0, 0), 0, (SIDE, SIDE)))[..., :3]
    assert np.array_equal(theirs, expected)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_fewer_bits_in_sixteen_are_refused(bits: int, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="16 bits hold 12 at most"):
        open_slide(write(tmp_path / "a.tif", DEEP >> (16 - bits)))


def test_sixteen_bits_of_grey_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0], tile=(128, 128), photometric="minisblack")
    with pytest.raises(SlideError, match="pixels of 16 bits are not 8-bit grey or RGB"):
        open_slide(tmp_path / "a.tif")
