from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.builders import PINK, break_tile, paint, paint_noise, write_slide
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.scaling import MAX_SIDE_PX, read_thumbnail


def test_it_shows_the_whole_slide_at_the_scale(tmp_path: Path) -> None:
    pixels = paint(1600, 800)
    pixels[:, :800] = 255
    thumbnail, unreadable = read_thumbnail(
        open_slide(write_slide(tmp_path / "s.tiff", pixels, mpp=0.5)), mpp=8.0
    )
    assert thumbnail.pixels.shape == (50, 100, 3)
    assert thumbnail.downsample == Fraction(16)
    assert (thumbnail.pixels[:, :50] == 255).all()
    assert (thumbnail.pixels[:, 50:] == PINK).all()
    assert not unreadable.any()


def test_a_slide_coarser_than_the_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    thumbnail, _ = read_thumbnail(
        open_slide(write_slide(tmp_path / "s.tiff", paint(300, 200), mpp=10.0)), mpp=8.0
    )
    assert thumbnail.downsample == 1


def test_a_large_slide_gets_a_coarser_thumbnail(tmp_path: Path) -> None:
    thumbnail, _ = read_thumbnail(
        open_slide(write_slide(tmp_path / "s.tiff", paint(9000, 300), mpp=8.0)), mpp=8.0
    )
    assert max(thumbnail.pixels.shape) <= MAX_SIDE_PX


def test_what_cannot_be_read_is_marked(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tiff", paint_noise(500, 500), mpp=8.0)
    break_tile(path, page=0, tile=0)
    _, unreadable = read_thumbnail(open_slide(path), mpp=8.0)
    assert unreadable[:256, :256].all()
    assert not unreadable[272:].any()
    assert not unreadable[:, 272:].any()


def test_a_slide_without_a_readable_pixel_is_an_error(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tiff", paint_noise(200, 200), mpp=8.0)
    break_tile(path, page=0, tile=0)
    with pytest.raises(SlideError, match="cannot be decoded"):
        read_thumbnail(open_slide(path), mpp=8.0)


def test_pieces_join_without_a_seam(tmp_path: Path) -> None:
    x = np.linspace(0, 250, 3000).astype(np.uint8)
    pixels = np.broadcast_to(x[None, :, None], (1500, 3000, 3)).copy()
    thumbnail, _ = read_thumbnail(
        open_slide(write_slide(tmp_path / "s.tiff", pixels, mpp=1.0)), mpp=1.0
    )
    assert np.array_equal(thumbnail.pixels, pixels)
