from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.builders import break_tile, paint_coordinates, paint_noise, write_png, write_slide
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions, order_by_macro_tile
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.patches import SlidePatches


def cut(
    path: Path, grid: Grid, positions: np.ndarray | None = None, block_size: int = 1000
) -> SlidePatches:
    return SlidePatches(
        open_slide(path), grid, all_positions(grid) if positions is None else positions, block_size
    )


def test_each_patch_is_its_piece_of_the_slide(tmp_path: Path) -> None:
    pixels = paint_noise(600, 400)
    grid = Grid(PatchSpec(50, 50, 0.5), 8, 12, Fraction(1))
    patches = cut(write_slide(tmp_path / "s.tiff", pixels), grid).read_block(0)
    for index, (row, col) in enumerate(all_positions(grid).tolist()):
        assert np.array_equal(
            patches.pixels[index], pixels[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50]
        )
    assert patches.readable.all()


@pytest.mark.parametrize("stride", [30, 50, 70])
def test_overlaps_and_gaps(stride: int, tmp_path: Path) -> None:
    pixels = paint_noise(400, 300)
    grid = Grid(PatchSpec(50, stride, 0.5), 3, 4, Fraction(1))
    patches = cut(write_png(tmp_path / "s.png", pixels, mpp=0.5), grid).read_block(0)
    for index, (row, col) in enumerate(all_positions(grid).tolist()):
        assert np.array_equal(
            patches.pixels[index],
            pixels[row * stride : row * stride + 50, col * stride : col * stride + 50],
        )


def test_coordinates_read_back_at_downsample_4(tmp_path: Path) -> None:
    # Red is x mod 251; the mean over x … x+3 of a ramp that does not wrap is x + 1.5, rounded up to
    # x + 2.
    grid = Grid(PatchSpec(50, 50, 2.0), 1, 1, Fraction(4))
    patches = cut(
        write_png(tmp_path / "s.png", paint_coordinates(240, 240), mpp=0.5), grid
    ).read_block(0)
    assert patches.pixels[0, 0, :, 0].tolist() == [4 * x + 2 for x in range(50)]
    assert patches.pixels[0, :, 0, 1].tolist() == [4 * y + 2 for y in range(50)]


def test_blocks_and_order_do_not_change_pixels(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tiff", paint_noise(1500, 1300))
    grid = Grid(PatchSpec(50, 50, 1.2), 10, 12, Fraction(12, 5))
    whole = cut(path, grid).read_block(0).pixels
    positions = order_by_macro_tile(all_positions(grid), (Fraction(1, 3), Fraction(1, 3)))
    split = cut(path, grid, positions, block_size=7)
    got = np.concatenate(
        [split.read_block(block).pixels for block in range(-(-len(positions) // 7))]
    )
    assert np.array_equal(got, whole[positions[:, 0] * 12 + positions[:, 1]])


def test_a_bad_tile_costs_only_the_patches_over_it(tmp_path: Path) -> None:
    pixels = paint_noise(600, 600)
    path = write_slide(tmp_path / "s.tiff", pixels)
    break_tile(path, page=0, tile=0)  # the tile from (0, 0) to (256, 256)
    grid = Grid(PatchSpec(50, 50, 0.5), 12, 12, Fraction(1))
    block = cut(path, grid).read_block(0)
    positions = all_positions(grid)
    under_it = (positions[:, 0] * 50 < 256) & (positions[:, 1] * 50 < 256)
    assert np.array_equal(block.readable, ~under_it)
    assert (block.pixels[~block.readable] == 255).all()
    row, col = 11, 11
    assert np.array_equal(block.pixels[row * 12 + col], pixels[550:600, 550:600])


def test_cells_in_any_order_give_their_own_pixels(tmp_path: Path) -> None:
    pixels = paint_noise(1200, 1200)
    grid = Grid(PatchSpec(50, 50, 0.5), 24, 24, Fraction(1))
    positions = np.array([[23, 23], [0, 0], [23, 0], [0, 23], [1, 1]], dtype=np.int32)
    block = cut(write_slide(tmp_path / "s.tiff", pixels), grid, positions).read_block(0)
    for index, (row, col) in enumerate(positions.tolist()):
        assert np.array_equal(
            block.pixels[index], pixels[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50]
        )


def test_scattered_cells_read_the_same_as_all(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tiff", paint_noise(1500, 1300))
    grid = Grid(PatchSpec(40, 30, 0.9), 20, 25, Fraction(9, 5))
    whole = cut(path, grid).read_block(0).pixels
    positions = all_positions(grid)[np.random.default_rng(0).random(500) < 0.1]
    assert np.array_equal(
        cut(path, grid, positions).read_block(0).pixels,
        whole[positions[:, 0] * 25 + positions[:, 1]],
    )


def test_a_slide_of_coordinates_reads_back_at_a_scale_between(tmp_path: Path) -> None:
    # Over a ramp the mean under pixel k of step 3/2 is 1.5 k + 0.25, the mean of 0.5 … of the whole
    # and half pixels under it.
    grid = Grid(PatchSpec(50, 50, 0.75), 1, 1, Fraction(3, 2))
    patches = cut(
        write_png(tmp_path / "s.png", paint_coordinates(100, 100), mpp=0.5), grid
    ).read_block(0)
    assert np.abs(patches.pixels[0, 0, :, 0] - (1.5 * np.arange(50) + 0.25)).max() <= 0.5


def test_an_empty_block(tmp_path: Path) -> None:
    grid = Grid(PatchSpec(50, 50, 0.5), 2, 2, Fraction(1))
    source = cut(
        write_png(tmp_path / "s.png", paint_noise(100, 100), mpp=0.5),
        grid,
        np.empty((0, 2), np.int32),
    )
    assert source.read_block(0).pixels.shape == (0, 50, 50, 3)


def test_patches_come_in_any_order_that_is_asked_for(tmp_path: Path) -> None:
    """Also from a reader that copies runs of neighbours: a gallery asks for cells by their
    probability.
    """
    pixels = paint_noise(600, 600)
    grid = Grid(PatchSpec(50, 50, 0.5), 12, 12, Fraction(1))
    positions = np.random.default_rng(1).permutation(all_positions(grid))[:40]
    read = cut(write_slide(tmp_path / "s.tiff", pixels), grid, positions).read_block(0).pixels
    for (row, col), patch in zip(positions.tolist(), read, strict=True):
        assert np.array_equal(patch, pixels[row * 50 : row * 50 + 50, col * 50 : col * 50 + 50])
