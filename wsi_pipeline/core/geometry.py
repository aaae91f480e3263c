"""Patches, grids and frames: the place of every patch on a slide, by integer arithmetic alone.

Frames, from the outside in. *Level-0 pixels* (`_l0`) are those of the scan. *Patch pixels* (`_px`)
are those of the virtual image that the slide would be at `PatchSpec.mpp`: one of them covers
`Grid.downsample` level-0 pixels, a ratio of integers, so that no corner ever depends on
floating-point rounding. A *position* (row, col) is the place of one patch on the grid.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import COLOURS, RAW
from wsi_pipeline.core.errors import ConfigError

MIN_MPP = 0.05
MAX_MPP = 10.0
"""No scanner makes a slide outside MIN_MPP to MAX_MPP µm per pixel: such a scale is a mistake."""

MAX_DENOMINATOR = 10_000
"""Downsamples are rounded to a ratio with at most this denominator.

The error is less than 0.003 px over 250,000 px.
"""

UM_PER_INCH = 25_400
MAX_EXTENT_L0 = 2**31 - 1
RATIO = re.compile(r"[0-9]{1,12}(/0*[1-9][0-9]{0,11})?")
"""An exact downsample. Fraction itself would also take `1e999999999`, and compute it."""


def read_integers(value: Any, count: int) -> tuple[Any, ...]:
    """Return `count` sizes or places in level-0 pixels from a JSON array. Raises ValueError."""
    is_list = isinstance(value, list) and len(value) == count
    if not is_list or not all(type(entry) is int for entry in value):
        raise ValueError(f"{str(value)[:40]} are not {count} whole numbers")
    if max(map(abs, value)) > MAX_EXTENT_L0:
        raise ValueError(f"{str(value)[:40]} are beyond any slide")
    return tuple(value)


def read_ratio(text: Any) -> Fraction:
    """Return an exact ratio above 0, written as `4` or `1001/250`. Raises ValueError."""
    if not isinstance(text, str) or not RATIO.fullmatch(text) or (ratio := Fraction(text)) <= 0:
        raise ValueError(f"{str(text)[:40]!r} is not a downsample")
    return ratio


RAW_COLOURS = ("icc", RAW)


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """The size, pitch and scale of patches; a model and the pixels it sees must share it."""

    side_px: int = 50
    stride_px: int = 50
    """Distance between neighbouring patches; `side_px` where they touch without overlap."""
    mpp: float = 0.25
    """µm per patch pixel; 0.25 is what scanners call 40x."""
    icc: str = RAW
    """Colours of the pixels: raw, or srgb by the slide's own profile."""

    def __post_init__(self) -> None:
        if self.icc not in COLOURS:
            raise ConfigError(f"icc is {self.icc!r}; it must be one of {', '.join(COLOURS)}")
        for name, value in (("patch size", self.side_px), ("stride", self.stride_px)):
            if not isinstance(value, int):
                raise ConfigError(f"{name} is {value}; it must be a whole number of pixels")
            if not 1 <= value <= 8192:
                raise ConfigError(f"{name} is {value} px; it must lie between 1 and 8192")
        if not MIN_MPP <= self.mpp <= 10 * MAX_MPP:  # false for NaN too
            limits = f"{MIN_MPP} and {10 * MAX_MPP:g}"
            raise ConfigError(f"mpp is {self.mpp} µm/px; it must lie between {limits}")

    @property
    def field_um(self) -> float:
        """Side of one patch in µm of tissue."""
        return self.side_px * self.mpp

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values; raw colours are not mentioned."""
        return {name: value for name, value in asdict(self).items() if (name, value) != RAW_COLOURS}


MAX_POSITIONS = 256 * 1024 * 1024
"""Positions of a grid: a scan of 800,000 × 800,000 px in patches of 50 px.

Maps with more positions would not fit into memory.
"""


@dataclass(frozen=True, slots=True)
class Grid:
    """The positions of one slide: `rows` × `cols` patches of `spec`, from `origin_xy_l0` on."""

    spec: PatchSpec
    rows: int
    cols: int
    downsample: Fraction
    """Level-0 pixels per patch pixel."""
    origin_xy_l0: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        size = f"{self.rows} × {self.cols} positions"
        if self.rows < 0 or self.cols < 0:
            raise ConfigError(f"a grid of {size} cannot be laid")
        if self.rows * self.cols > MAX_POSITIONS:
            raise ConfigError(
                f"a grid of {size} has more than {MAX_POSITIONS:,}; raise --mpp or --stride"
            )
        if self.spec.stride_px * self.downsample < 1:
            stride = self.spec.stride_px
            raise ConfigError(f"stride {stride} px is less than one pixel of the slide; raise it")

    @property
    def patch_area_mm2(self) -> float:
        """Area of one position in mm²: the stride's square, or the patch's where it leaves gaps."""
        side_um = min(self.spec.side_px, self.spec.stride_px) * self.spec.mpp
        return (side_um / 1000) ** 2

    def to_json(self) -> dict[str, Any]:
        """Return the grid as JSON values; the downsample as an exact ratio."""
        return asdict(self) | {"downsample": str(self.downsample)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the grid that `to_json` wrote. Raises one of `DAMAGES` for anything else."""
        rows, cols = read_integers([value["rows"], value["cols"]], 2)
        x, y = read_integers(value["origin_xy_l0"], 2)
        return cls(PatchSpec(**value["spec"]), rows, cols, read_ratio(value["downsample"]), (x, y))


def downsample_between(slide_mpp: float, patch_mpp: float) -> Fraction:
    """Return the level-0 pixels per patch pixel as a ratio of integers, from scales in µm/px."""
    ratio = Fraction(repr(float(patch_mpp))) / Fraction(repr(float(slide_mpp)))
    return ratio.limit_denominator(MAX_DENOMINATOR)


def lay_grid(bounds_l0: tuple[int, int, int, int], downsample: Fraction, spec: PatchSpec) -> Grid:
    """Return the grid of the patches that fit wholly into `bounds_l0` (x, y, width, height)."""
    x, y, width_l0, height_l0 = bounds_l0
    rows, cols = (
        max((math.floor(extent_l0 / downsample) - spec.side_px) // spec.stride_px + 1, 0)
        for extent_l0 in (height_l0, width_l0)
    )
    return Grid(spec, rows, cols, downsample, (x, y))


def positions_to_boxes_l0(positions: NDArray[np.int32], grid: Grid) -> NDArray[np.int64]:
    """Return the boxes of positions (n, 2) as int64 (n, 4): x, y, width, height, rounded down."""
    start_px = positions.astype(np.int64)[:, ::-1] * grid.spec.stride_px  # (n, 2) as x, y
    numerator, denominator = grid.downsample.as_integer_ratio()
    start_l0 = start_px * numerator // denominator
    stop_l0 = (start_px + grid.spec.side_px) * numerator // denominator
    return np.concatenate([start_l0 + grid.origin_xy_l0, stop_l0 - start_l0], axis=1)


def all_positions(grid: Grid) -> NDArray[np.int32]:
    """Return every position of the grid in raster order, int32 (rows · cols, 2)."""
    row_col = np.indices((grid.rows, grid.cols), dtype=np.int32)
    return np.ascontiguousarray(row_col.reshape(2, -1).T)


def number_positions(positions: NDArray[np.int32], grid: Grid) -> NDArray[np.int64]:
    """Return the numbers (n,) of positions (n, 2) on the grid, from 0 in raster order."""
    row, col = positions.T.astype(np.int64)
    return np.asarray(row * grid.cols + col)


def macro_tile_codes(
    positions: NDArray[np.int32], per_patch: tuple[Fraction, Fraction]
) -> NDArray[np.uint64]:
    """Return the macro-tile of every position, (n,), numbered along a Z-shaped curve.

    Macro-tiles with near numbers lie near one another. `per_patch` is the number of macro-tiles per
    step to the next row, and to the next column; a patch belongs to the one that holds its corner.
    """
    row, col = (
        positions[:, axis].astype(np.int64) * step.numerator // step.denominator
        for axis, step in enumerate(per_patch)
    )
    return _spread_bits(row) << np.uint64(1) | _spread_bits(col)


def _spread_bits(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the lower 32 bits of each value with a zero before every bit."""
    spread = values.astype(np.uint64)
    for shift in (16, 8, 4, 2, 1):  # masks 0x0000FFFF0000FFFF, …, 0x5555555555555555
        mask = np.uint64((2**64 - 1) // (2**shift + 1))
        spread = (spread | spread << np.uint64(shift)) & mask
    return spread


def order_by_macro_tile(
    positions: NDArray[np.int32], per_patch: tuple[Fraction, Fraction]
) -> NDArray[np.int32]:
    """Return the positions by `macro_tile_codes`, in raster order within each macro-tile.

    Patches of one block, and of one block and the next, then share JPEG tiles.
    """
    order = np.lexsort((positions[:, 1], positions[:, 0], macro_tile_codes(positions, per_patch)))
    return np.ascontiguousarray(positions[order])


BLOCK_PATCHES = 4096
"""Most patches of a block: a slide of a million patches is 245 files and as many tasks."""
SMALL_BLOCK_PATCHES = 1024
"""Smaller blocks are a multiple of this many patches, which batches of a model divide."""
SHARED_BLOCKS = 4
"""Blocks that a small slide is cut into, if it has enough patches, so that workers can share it."""
MAX_BLOCK_BYTES = 64 * 1024 * 1024
"""Pixels of a block of large patches: a process holds a few blocks at a time."""


def choose_block_size(patches: int, side_px: int) -> int:
    """Return the patches per block for a slide of that many patches of that size.

    A block is one task and one chunk on disk, in stores and in predictions alike, so that a worker
    reads pixels once for both. Blocks of 4,096 keep the number of files low where a slide is large;
    a smaller slide is cut into four, which more workers can share, and whose last chunk pads a
    store by less. The size depends on nothing else, so that every run agrees.
    """
    steps = -(-patches // (SHARED_BLOCKS * SMALL_BLOCK_PATCHES))
    wanted = min(BLOCK_PATCHES, steps * SMALL_BLOCK_PATCHES, patches)
    return max(1, min(wanted, MAX_BLOCK_BYTES // (3 * side_px * side_px)))


def count_blocks(patches: int, block_size: int) -> int:
    """Return the number of blocks; the last one may be shorter."""
    return -(-patches // block_size)


def block_slice(block: int, block_size: int, patches: int) -> slice:
    """Return the patches of block number `block`, counted from 0."""
    return slice(block * block_size, min((block + 1) * block_size, patches))
