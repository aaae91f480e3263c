"""Patches, grids and frames: where a cell lies on a slide, by integer arithmetic alone.

Frames, from the outside in. *Level-0 pixels* (`_l0`) are those of the scan. *Patch pixels* (`_px`)
are those of the virtual image that the slide would be at `PatchSpec.mpp`: one of them covers
`Grid.downsample` level-0 pixels, a ratio of integers, so that no corner ever depends on
floating-point rounding. A *cell* (row, col) is one patch of that image.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError

MIN_MPP = 0.05
MAX_MPP = 10.0
"""A slide whose scale lies outside MIN_MPP to MAX_MPP µm per pixel was mislabelled: no scanner makes one."""

MAX_DENOMINATOR = 10_000
"""Downsamples are rounded to a ratio with at most this denominator: off by less than 0.003 px over 250,000 px."""


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """The size, pitch and scale of patches; a model and the pixels it sees must share it."""

    side_px: int = 50
    stride_px: int = 50
    """Distance between neighbouring patches; equal to `side_px` where they neither overlap nor leave gaps."""
    mpp: float = 0.25
    """µm per patch pixel; 0.25 is what scanners call 40x."""

    def __post_init__(self) -> None:
        if not (isinstance(self.side_px, int) and isinstance(self.stride_px, int)):
            raise ConfigError(
                f"patch size {self.side_px} and stride {self.stride_px} must be whole numbers of"
                " pixels"
            )
        if not 1 <= self.side_px <= 8192:
            raise ConfigError(f"patch size is {self.side_px} px; it must lie between 1 and 8192")
        if not 1 <= self.stride_px <= 8192:
            raise ConfigError(f"stride is {self.stride_px} px; it must lie between 1 and 8192")
        if not (math.isfinite(self.mpp) and MIN_MPP <= self.mpp <= 10 * MAX_MPP):
            raise ConfigError(
                f"mpp is {self.mpp} µm/px; it must lie between {MIN_MPP} and {10 * MAX_MPP:g}"
            )

    @property
    def field_um(self) -> float:
        """Side of one patch in µm of tissue."""
        return self.side_px * self.mpp


MAX_POSITIONS = 256 * 1024 * 1024
"""Cells of a grid: a scan of 800,000 × 800,000 px in patches of 50 px. Maps of more would not fit into memory."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of one slide: `rows` × `cols` patches of `spec`, the first at `origin_xy_l0`."""

    spec: PatchSpec
    rows: int
    cols: int
    downsample: Fraction
    """Level-0 pixels per patch pixel."""
    origin_xy_l0: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0:
            raise ConfigError(f"a grid of {self.rows} × {self.cols} cells cannot be")
        if self.rows * self.cols > MAX_POSITIONS:
            raise ConfigError(
                f"a grid of {self.rows} × {self.cols} cells has more than {MAX_POSITIONS:,}; raise"
                " --mpp or --stride"
            )
        if self.spec.stride_px * self.downsample < 1:
            raise ConfigError(
                f"stride {self.spec.stride_px} px is less than one pixel of the slide; raise it"
            )

    @property
    def patch_area_mm2(self) -> float:
        """Tissue area that one cell stands for, in mm²: its pitch squared, or its own area where cells leave gaps."""
        side_um = min(self.spec.side_px, self.spec.stride_px) * self.spec.mpp
        return (side_um / 1000) ** 2


def downsample_between(slide_mpp: float, patch_mpp: float) -> Fraction:
    """Level-0 pixels per patch pixel as a ratio of integers, from two decimal scales in µm/px."""
    ratio = Fraction(repr(float(patch_mpp))) / Fraction(repr(float(slide_mpp)))
    return ratio.limit_denominator(MAX_DENOMINATOR)


def lay_grid(bounds_l0: tuple[int, int, int, int], downsample: Fraction, spec: PatchSpec) -> Grid:
    """The cells that fit wholly into `bounds_l0` (x, y, width, height); a partial cell at an edge is no cell."""
    x, y, width_l0, height_l0 = bounds_l0
    cols = _count_patches(math.floor(width_l0 / downsample), spec)
    rows = _count_patches(math.floor(height_l0 / downsample), spec)
    return Grid(spec=spec, rows=rows, cols=cols, downsample=downsample, origin_xy_l0=(x, y))


def _count_patches(extent_px: int, spec: PatchSpec) -> int:
    return 0 if extent_px < spec.side_px else (extent_px - spec.side_px) // spec.stride_px + 1


def position_to_xy_l0(row: int, col: int, grid: Grid) -> tuple[int, int]:
    """Top-left corner of a cell, as (x, y) in level-0 pixels, rounded down."""
    step_l0 = grid.spec.stride_px * grid.downsample
    x0, y0 = grid.origin_xy_l0
    return x0 + math.floor(col * step_l0), y0 + math.floor(row * step_l0)


def xy_l0_to_position(x: int, y: int, grid: Grid) -> tuple[int, int]:
    """The last cell (row, col) that begins at or before a level-0 pixel; it may lie outside the grid."""
    step_l0 = grid.spec.stride_px * grid.downsample
    x0, y0 = grid.origin_xy_l0
    return math.ceil((y - y0 + 1) / step_l0) - 1, math.ceil((x - x0 + 1) / step_l0) - 1


def positions_to_boxes_l0(positions: NDArray[np.int32], grid: Grid) -> NDArray[np.int64]:
    """Level-0 boxes of cells (n, 2): int64 (n, 4) of x, y, width, height; edges rounded down as in `position_to_xy_l0`."""
    row_col = positions.astype(np.int64)
    start_px = row_col[:, ::-1] * grid.spec.stride_px  # (n, 2) as x, y
    numerator, denominator = grid.downsample.numerator, grid.downsample.denominator
    start_l0 = start_px * numerator // denominator
    stop_l0 = (start_px + grid.spec.side_px) * numerator // denominator
    origin = np.array(grid.origin_xy_l0, dtype=np.int64)
    return np.concatenate([start_l0 + origin, stop_l0 - start_l0], axis=1)


def all_positions(grid: Grid) -> NDArray[np.int32]:
    """Every cell of the grid in raster order, int32 (rows · cols, 2)."""
    row_col = np.indices((grid.rows, grid.cols), dtype=np.int32)
    return np.ascontiguousarray(row_col.reshape(2, -1).T)


def macro_tile_codes(
    positions: NDArray[np.int32], per_patch: tuple[Fraction, Fraction]
) -> NDArray[np.uint64]:
    """The macro-tile of every cell, (n,), numbered along a Z-shaped curve: macro-tiles of near numbers lie near one another.

    `per_patch` is how many macro-tiles one step to the next row, or column, is; a cell belongs to
    the one in which its corner lies.
    """
    row, col = (
        np.asarray(positions[:, axis], dtype=np.int64) * step.numerator // step.denominator
        for axis, step in enumerate(per_patch)
    )
    return _spread_bits(row) << np.uint64(1) | _spread_bits(col)


def _spread_bits(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The lower 32 bits of each value, a zero before every one of them."""
    spread = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        spread = (spread | spread << np.uint64(shift)) & np.uint64(mask)
    return spread


def order_by_macro_tile(
    positions: NDArray[np.int32], per_patch: tuple[Fraction, Fraction]
) -> NDArray[np.int32]:
    """The same cells, macro-tile by macro-tile as `macro_tile_codes` numbers them, in raster order within each.

    Patches of one block, and of one block and the next, then lie close together and share JPEG
    tiles.
    """
    order = np.lexsort((positions[:, 1], positions[:, 0], macro_tile_codes(positions, per_patch)))
    return np.ascontiguousarray(positions[order])


BLOCK_PATCHES = 4096
SMALL_BLOCK_PATCHES = 1024
"""Patches per block; the smaller one where a slide has fewer than four large blocks, so that workers can share it.

A slide with fewer patches than that is one block of them all: a chunk on disk is never longer than
its slide.
"""


MAX_BLOCK_BYTES = 64 * 1024 * 1024
"""Pixels of a block of large patches: a process holds a few blocks at a time."""


def choose_block_size(patches: int, side_px: int) -> int:
    """Patches per block for a slide of that many patches of that size; depends on nothing else, so every run agrees."""
    wanted = BLOCK_PATCHES if patches >= 4 * BLOCK_PATCHES else min(patches, SMALL_BLOCK_PATCHES)
    return max(1, min(wanted, MAX_BLOCK_BYTES // (3 * side_px * side_px)))


def choose_store_block_size(patches: int, side_px: int) -> int:
    """Patches per block of a store on disk: as many as memory allows up to 4,096, so that stores are few files."""
    return max(1, min(patches, BLOCK_PATCHES, MAX_BLOCK_BYTES // (3 * side_px * side_px)))


def count_blocks(patches: int, block_size: int) -> int:
    """Number of blocks, the last one perhaps shorter."""
    return -(-patches // block_size)


def block_slice(block: int, block_size: int, patches: int) -> slice:
    """The patches of block number `block`, counted from 0."""
    return slice(block * block_size, min((block + 1) * block_size, patches))
