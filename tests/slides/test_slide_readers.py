"""Every reader keeps the same contract; the plain-image reader is the one that the others are held
against.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.builders import (
    PINK,
    WHITE,
    break_tile,
    paint_coordinates,
    paint_noise,
    tissue,
    write_png,
    write_slide,
)
from tests.slides.czi_files import write_czi
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides import READERS, open_slide
from wsi_pipeline.slides.base import UserScale
from wsi_pipeline.slides.images import ImageReader
from wsi_pipeline.slides.openslide_reader import OpenSlideReader


def write_for(kind: str, folder: Path, pixels: np.ndarray) -> Path:
    if kind in ("openslide", "tiff"):
        return write_slide(folder / "slide.tiff", pixels, mpp=0.5)
    if kind == "fastslide":
        pytest.importorskip("fastslide", reason="no fastslide here; its extra is formats")
        return write_czi(folder / "slide.czi", pixels, mpp=0.5)
    if kind == "imagecodecs":
        return write_webp(folder / "slide.tiff", pixels)
    return write_png(folder / "slide.png", pixels, mpp=0.5)


def write_webp(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        pixels,
        tile=(128, 128),
        photometric="rgb",
        compression="webp",
        compressionargs={"lossless": True},
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


@pytest.mark.parametrize("kind", READERS)
def test_pixels_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    pixels = paint_noise(700, 600)
    reader = open_slide(write_for(kind, tmp_path, pixels), reader=kind)
    assert np.array_equal(
        reader.read(reader.levels[0], 130, 240, 300, 200), pixels[240:440, 130:430]
    )


@pytest.mark.parametrize("kind", READERS)
def test_size_and_scale_are_known(kind: str, tmp_path: Path) -> None:
    info = open_slide(write_for(kind, tmp_path, paint_noise(700, 600)), reader=kind).info
    assert info.size_l0 == (700, 600)
    assert info.mpp == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("kind", READERS)
def test_outside_the_slide_is_white(kind: str, tmp_path: Path) -> None:
    reader = open_slide(write_for(kind, tmp_path, paint_coordinates(300, 280)), reader=kind)
    region = reader.read(reader.levels[0], 290, 270, 20, 20)
    assert (region[10:] == WHITE).all()
    assert (region[:, 10:] == WHITE).all()
    assert region[0, 0].tolist() == [290 % 251, 270 % 251, 60]


@pytest.mark.parametrize("kind", READERS)
def test_what_boxes_touch_is_read_and_the_rest_may_be_white(kind: str, tmp_path: Path) -> None:
    pixels = paint_noise(900, 800)
    reader = open_slide(write_for(kind, tmp_path, pixels), reader=kind)
    boxes = np.array([[30, 40, 50, 50], [600, 500, 50, 50], [250, 250, 20, 20]])
    region = reader.read(reader.levels[0], 10, 20, 700, 600, boxes)
    for x, y, width, height in boxes.tolist():
        assert np.array_equal(
            region[y - 20 : y - 20 + height, x - 10 : x - 10 + width],
            pixels[y : y + height, x : x + width],
        )


@pytest.mark.parametrize("kind", READERS)
def test_a_closed_reader_harms_nobody(kind: str, tmp_path: Path) -> None:
    reader = open_slide(write_for(kind, tmp_path, paint_noise(300, 280)), reader=kind)
    reader.close()
    reader.close()


@pytest.mark.parametrize("kind", READERS)
def test_the_users_scale_wins(kind: str, tmp_path: Path) -> None:
    info = open_slide(
        write_for(kind, tmp_path, paint_noise(300, 280)), slide_mpp=2.0, reader=kind
    ).info
    assert (info.mpp, info.mpp_source) == (2.0, "user")


def test_openslide_reads_our_pyramids(tmp_path: Path) -> None:
    reader = open_slide(
        write_slide(tmp_path / "s.tiff", paint_noise(2100, 1500)), reader="openslide"
    )
    assert isinstance(reader, OpenSlideReader)
    assert [level.size for level in reader.levels] == [(2100, 1500), (1050, 750), (525, 375)]


def test_a_bad_tile_is_an_error_and_its_neighbours_still_read(tmp_path: Path) -> None:
    pixels = paint_noise(512, 512)
    path = write_slide(tmp_path / "s.tiff", pixels)
    break_tile(path, page=0, tile=3)
    reader = open_slide(path)
    with pytest.raises(SlideError, match="cannot be decoded"):
        reader.read(reader.levels[0], 300, 300, 50, 50)
    assert np.array_equal(reader.read(reader.levels[0], 0, 0, 256, 256), pixels[:256, :256])


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    reader = open_slide(write_png(tmp_path / "g.png", np.full((20, 30), 77, dtype=np.uint8), mpp=1))
    assert reader.read(reader.levels[0], 0, 0, 2, 1).tolist() == [[[77, 77, 77], [77, 77, 77]]]


def test_transparent_pixels_of_an_image_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((10, 10, 4), dtype=np.uint8)
    reader = open_slide(write_png(tmp_path / "t.png", rgba, mpp=1))
    assert (reader.read(reader.levels[0], 0, 0, 10, 10) == 255).all()


def test_an_image_without_a_scale_needs_one(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="--slide-mpp"):
        open_slide(write_png(tmp_path / "n.png", paint_noise(20, 20)))


@pytest.mark.parametrize("mode", ["P", "I;16", "F", "CMYK"])
def test_other_kinds_of_pixels_are_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    Image.new(mode, (60, 60)).save(path)
    with pytest.raises(SlideError, match="convert it to 8-bit RGB"):
        ImageReader(path, "odd", UserScale(1.0))


def test_a_truncated_image_is_refused_by_name(tmp_path: Path) -> None:
    path = write_png(tmp_path / "cut.png", paint_noise(200, 200), mpp=1)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SlideError, match=r"cut\.png: not a whole image"):
        open_slide(path)


def test_a_truncated_tiff_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "cut.tiff", paint_noise(1024, 1024))
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        end = tiff.pages[0].dataoffsets[-1]
    content = path.read_bytes()
    path.write_bytes(content[:end])
    with pytest.raises(SlideError, match=r"cut\.tiff"):
        open_slide(path)


def test_a_text_file_is_no_slide(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a slide")
    with pytest.raises(SlideError, match=r"notes\.txt: not a slide"):
        open_slide(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.svs"
    path.touch()
    with pytest.raises(SlideError, match="empty"):
        open_slide(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "missing.svs")


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.svs")
    with pytest.raises(SlideError, match="not a regular file"):
        open_slide(tmp_path / "pipe.svs")


def test_a_fifo_in_the_folder_of_a_dicom_slide_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "s.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    os.mkfifo(tmp_path / "other.dcm")
    with pytest.raises(
        SlideError,
        match=r"other\.dcm, which belongs to its files, is not a regular file; move it away",
    ):
        open_slide(tmp_path / "s.dcm")


def test_a_fifo_among_the_files_of_a_mirax_slide_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "s.mrxs").write_bytes(b"foo")
    (tmp_path / "s").mkdir()
    os.mkfifo(tmp_path / "s" / "Slidedat.ini")
    with pytest.raises(
        SlideError, match=r"s/Slidedat\.ini, which belongs to its files, is not a regular file"
    ):
        open_slide(tmp_path / "s.mrxs")


def test_a_folder_is_no_slide(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="not a regular file"):
        open_slide(tmp_path)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.svs").symlink_to(tmp_path / "loop.svs")
    with pytest.raises(SlideError):
        open_slide(tmp_path / "loop.svs")


def test_the_same_slide_opens_from_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pixels = paint_noise(1024, 1024)
    path = write_slide(tmp_path / "s.tiff", pixels)
    break_tile(path, page=0, tile=0)
    reader = open_slide(path)

    def read(index: int) -> bool:
        x, y = 256 * (index % 4), 256 * (index // 4 % 4)
        try:
            return np.array_equal(
                reader.read(reader.levels[0], x, y, 256, 256), pixels[y : y + 256, x : x + 256]
            )
        except SlideError:
            return (x, y) == (0, 0)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(64)))


def test_a_level_of_a_broken_downsample_reads_the_same_however_it_is_split(tmp_path: Path) -> None:
    reader = open_slide(write_slide(tmp_path / "s.tiff", paint_noise(2057, 1801)))
    level = reader.levels[2]
    assert level.size == (514, 450)  # 2057 / 514 is 4.002: OpenSlide blends by what is left over
    whole = reader.read(level, 0, 0, 514, 450)
    for x, y, width, height in (
        (0, 0, 10, 10),
        (37, 211, 100, 57),
        (500, 440, 14, 10),
        (255, 1, 3, 449),
    ):
        assert np.array_equal(
            reader.read(level, x, y, width, height), whole[y : y + height, x : x + width]
        )


def write_strips(path: Path) -> Path:
    """A flat TIFF of eight strips of JPEG."""
    options: dict[str, Any] = {"compression": "jpeg", "rowsperstrip": 64, "metadata": None}
    tifffile.imwrite(path, tissue(600, 500), photometric="rgb", **options)
    return path


def write_jpeg(path: Path) -> Path:
    Image.fromarray(tissue(600, 500)).save(path, quality=90)
    return path


@pytest.mark.parametrize(("write", "name"), [(write_strips, "s.tiff"), (write_jpeg, "s.jpg")])
def test_a_plain_image_of_jpeg_is_read_where_it_is_whole(
    write: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    reader = open_slide(write(tmp_path / name), slide_mpp=0.5)
    assert abs(reader.read(reader.levels[0], 0, 0, 600, 500).astype(int) - PINK).max() < 60


def test_a_strip_that_was_cut_short_is_a_fault(tmp_path: Path) -> None:
    path = write_strips(tmp_path / "s.tiff")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[0].aspage().tags["StripByteCounts"]
        tag.overwrite([*tag.value[:-1], tag.value[-1] // 2])
    with pytest.raises(SlideError, match=r"not a whole image \(Premature end of JPEG file"):
        open_slide(path, slide_mpp=0.5)


def test_damaged_data_of_a_plain_jpeg_are_a_fault(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "s.jpg")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff\xd9" * 100  # the end of an image, in its middle
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"not a whole image"):
        open_slide(path, slide_mpp=0.5)


def test_grey_and_unusual_jpegs_are_read(tmp_path: Path) -> None:
    grey = tmp_path / "grey.jpg"
    Image.fromarray(tissue(600, 500)).convert("L").save(grey)
    odd = tmp_path / "odd.jpg"
    Image.fromarray(tissue(600, 500)).save(odd, progressive=True, subsampling=2)
    for path in (grey, odd):
        assert open_slide(path, slide_mpp=0.5).info.size_l0 == (600, 500)
