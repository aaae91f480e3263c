import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import (
    Grid,
    PatchSpec,
    all_positions,
    block_slice,
    choose_block_size,
    count_blocks,
    downsample_between,
    lay_grid,
    macro_tile_codes,
    order_by_macro_tile,
    positions_to_boxes_l0,
)

specs = st.builds(
    PatchSpec, side_px=st.integers(1, 300), stride_px=st.integers(1, 300), mpp=st.just(0.25)
)
ratios = st.builds(Fraction, st.integers(1, 400), st.integers(1, 20)).filter(
    lambda ratio: ratio >= Fraction(1, 2)
)
bounds = st.tuples(
    st.integers(0, 500), st.integers(0, 500), st.integers(1, 5000), st.integers(1, 5000)
)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Grid, tuple[int, int, int, int]]:
    spec = draw(specs)
    downsample = draw(ratios.filter(lambda ratio: ratio * spec.stride_px >= 1))
    area = draw(bounds)
    return lay_grid(area, downsample, spec), area


def corner_of(row: int, col: int, grid: Grid) -> tuple[int, int]:
    """The top-left corner of a patch as (x, y) in level-0 pixels."""
    x, y = positions_to_boxes_l0(np.array([(row, col)], dtype=np.int32), grid)[0, :2].tolist()
    return x, y


@given(grids(), st.data())
def test_a_cell_and_its_corner_round_trip(
    grid_and_area: tuple[Grid, tuple[int, int, int, int]], data: st.DataObject
) -> None:
    grid, _ = grid_and_area
    row = data.draw(st.integers(0, max(grid.rows - 1, 0)))
    col = data.draw(st.integers(0, max(grid.cols - 1, 0)))
    (x, y), (x0, y0) = corner_of(row, col, grid), grid.origin_xy_l0
    step_l0 = grid.spec.stride_px * grid.downsample
    # The last position that begins at or before a pixel.
    found = (math.ceil((y - y0 + 1) / step_l0) - 1, math.ceil((x - x0 + 1) / step_l0) - 1)
    assert found == (row, col)


@given(grids())
def test_no_cell_lies_outside_the_slide(
    grid_and_area: tuple[Grid, tuple[int, int, int, int]],
) -> None:
    grid, (x, y, width, height) = grid_and_area
    if grid.rows * grid.cols == 0:
        return
    corners = np.array([[0, 0], [grid.rows - 1, grid.cols - 1]], dtype=np.int32)
    boxes = positions_to_boxes_l0(corners, grid)
    assert (boxes[:, 0] >= x).all()
    assert (boxes[:, 1] >= y).all()
    assert (boxes[:, 0] + boxes[:, 2] <= x + width).all()
    assert (boxes[:, 1] + boxes[:, 3] <= y + height).all()


@given(grids())
def test_one_more_column_would_lie_outside(
    grid_and_area: tuple[Grid, tuple[int, int, int, int]],
) -> None:
    grid, (_, _, width, _) = grid_and_area
    end_px = grid.cols * grid.spec.stride_px + grid.spec.side_px
    assert end_px * grid.downsample > math.floor(width / grid.downsample) * grid.downsample


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 12))
def test_ordering_keeps_every_cell_once(rows: int, cols: int, tile_positions: int) -> None:
    grid = Grid(PatchSpec(), rows, cols, Fraction(1))
    ordered = order_by_macro_tile(
        all_positions(grid), (Fraction(1, tile_positions), Fraction(1, tile_positions))
    )
    assert sorted(map(tuple, ordered.tolist())) == [
        (row, col) for row in range(rows) for col in range(cols)
    ]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9))
def test_macro_tiles_come_one_after_another(rows: int, cols: int, tile_positions: int) -> None:
    per_patch = (Fraction(1, tile_positions), Fraction(1, tile_positions))
    ordered = order_by_macro_tile(
        all_positions(Grid(PatchSpec(), rows, cols, Fraction(1))), per_patch
    )
    tiles = list(map(tuple, (ordered // tile_positions).tolist()))
    changes = sum(one != other for one, other in itertools.pairwise(tiles))
    assert changes == len(set(tiles)) - 1


@given(st.integers(0, 20_000), st.integers(1, 5000))
def test_blocks_cover_every_patch_once(patches: int, block_size: int) -> None:
    taken = [
        index
        for block in range(count_blocks(patches, block_size))
        for index in range(patches)[block_slice(block, block_size, patches)]
    ]
    assert taken == list(range(patches))


def test_boxes_by_hand() -> None:
    # 1 µm/px from 0.499 µm/px: 1000/499 level-0 pixels per patch pixel; the second column begins at
    # 50 · 1000/499 = 100.2.
    grid = lay_grid((0, 0, 2220, 2967), downsample_between(0.499, 1.0), PatchSpec(50, 50, 1.0))
    assert (grid.rows, grid.cols, grid.downsample) == (29, 22, Fraction(1000, 499))
    boxes = positions_to_boxes_l0(np.array([[0, 0], [2, 1]], dtype=np.int32), grid)
    assert boxes.tolist() == [[0, 0, 100, 100], [100, 200, 100, 100]]


def test_boxes_of_neighbours_meet_although_their_sides_differ() -> None:
    # 7/3 level-0 pixels per patch pixel: lines at 10, 20 and 30 patch pixels lie at 23.3, 46.7 and
    # 70.
    grid = Grid(PatchSpec(10, 10, 0.25), 3, 3, Fraction(7, 3))
    boxes = positions_to_boxes_l0(np.array([[2, 1], [1, 2]], dtype=np.int32), grid)
    assert boxes.tolist() == [[23, 46, 23, 24], [46, 23, 24, 23]]


def test_a_partial_cell_is_no_cell() -> None:
    assert lay_grid((0, 0, 149, 99), Fraction(1), PatchSpec()).cols == 2
    assert lay_grid((0, 0, 149, 99), Fraction(1), PatchSpec()).rows == 1


def test_a_slide_smaller_than_a_patch_has_no_cells() -> None:
    grid = lay_grid((0, 0, 49, 500), Fraction(1), PatchSpec())
    assert len(all_positions(grid)) == 0


def test_the_grid_begins_at_the_scanned_area() -> None:
    grid = lay_grid((1000, 2000, 400, 400), Fraction(2), PatchSpec())
    assert corner_of(1, 3, grid) == (1300, 2100)


def test_overlapping_cells() -> None:
    grid = lay_grid((0, 0, 100, 50), Fraction(1), PatchSpec(50, 25))
    assert grid.cols == 3
    assert corner_of(0, 2, grid) == (50, 0)


def test_cell_area_is_the_field_in_mm2() -> None:
    assert Grid(PatchSpec(50, 50, 4.0), 1, 1, Fraction(1)).patch_area_mm2 == pytest.approx(0.04)
    assert Grid(PatchSpec(50, 25, 4.0), 1, 1, Fraction(1)).patch_area_mm2 == pytest.approx(0.01)


def test_decimal_scales_give_exact_ratios() -> None:
    assert downsample_between(0.25, 4.0) == 16
    assert downsample_between(0.2528, 0.5) == Fraction(625, 316)


def test_a_ratio_has_a_denominator_of_at_most_10000() -> None:
    assert downsample_between(1.0001, 1.0002) == Fraction(
        10_001, 10_000
    )  # 10002/10001 to a hundred-millionth


@pytest.mark.parametrize(("patches", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_are_counted_with_the_last_and_shorter_one(patches: int, blocks: int) -> None:
    assert count_blocks(patches, 4) == blocks


@pytest.mark.parametrize(
    ("patches", "size"),
    [
        (0, 1),
        (7, 7),
        (1024, 1024),
        (4096, 1024),  # four blocks of 1,024
        (4097, 2048),  # three, the last of one patch: five of 1,024 would be one too many
        (10_000, 3072),
        (16_383, 4096),
        (3_000_000, 4096),
    ],
)
def test_block_size(patches: int, size: int) -> None:
    assert choose_block_size(patches, 50) == size


@given(st.integers(1, 3_000_000))
def test_a_slide_has_at_most_four_blocks_or_one_per_4096_patches(patches: int) -> None:
    assert count_blocks(patches, choose_block_size(patches, 50)) <= max(4, -(-patches // 4096))


def test_macro_tiles_follow_a_z() -> None:
    # Macro-tiles of 2 × 2 cells; 4 × 4 cells are four of them: top left, top right, bottom left,
    # bottom right.
    ordered = order_by_macro_tile(
        all_positions(Grid(PatchSpec(), 4, 4, Fraction(1))), (Fraction(1, 2), Fraction(1, 2))
    )
    assert ordered[::4].tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]


def test_cells_of_a_macro_tile_are_put_into_raster_order() -> None:
    shuffled = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=np.int32)
    assert order_by_macro_tile(shuffled, (Fraction(1, 2), Fraction(1, 2))).tolist() == [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
    ]


def test_macro_tiles_need_not_be_whole_numbers_of_cells() -> None:
    # Cells of 50 px over macro-tiles of 120 px: cells 0, 1 and 2 begin before 120, 3 and 4 before
    # 240.
    codes = macro_tile_codes(
        np.array([[0, col] for col in range(6)], dtype=np.int32),
        (Fraction(50, 120), Fraction(50, 120)),
    )
    assert codes.tolist() == [0, 0, 0, 1, 1, 4]


def test_far_macro_tiles_have_codes_of_their_own() -> None:
    positions = np.array([[0, 2**30], [2**30, 0], [2**30, 2**30]], dtype=np.int32)
    assert macro_tile_codes(positions, (Fraction(1), Fraction(1))).tolist() == [
        2**60,
        2**61,
        2**60 + 2**61,
    ]


def test_a_block_of_large_patches_is_small() -> None:
    assert choose_block_size(100_000, 512) == 85  # 64 MiB of 786,432 bytes each
    assert choose_block_size(100_000, 128) == 1365  # of 49,152 bytes each: 1365.3


@pytest.mark.parametrize(
    "wrong",
    [
        {"side_px": 0},
        {"stride_px": 0},
        {"mpp": 0.0},
        {"mpp": float("nan")},
        {"mpp": -1.0},
        {"mpp": 1e9},
    ],
)
def test_impossible_patches_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PatchSpec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"side_px": 8193}, "patch size is 8193 px; it must lie between 1 and 8192"),
        ({"stride_px": 8193}, "stride is 8193 px; it must lie between 1 and 8192"),
        ({"side_px": 50.5}, "patch size is 50.5; it must be a whole number"),
        ({"stride_px": 12.5}, "stride is 12.5; it must be a whole number"),
        ({"mpp": 0.049}, "mpp is 0.049 µm/px; it must lie between 0.05 and 100$"),
        ({"mpp": 100.1}, "mpp is 100.1 µm/px; it must lie between 0.05 and 100$"),
    ],
)
def test_patches_just_beyond_a_limit_are_refused_with_the_limit(
    wrong: dict[str, float], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        PatchSpec(**wrong)  # type: ignore[arg-type]


def test_patches_at_the_limits_are_accepted() -> None:
    assert PatchSpec(1, 1, 0.05).field_um == 0.05
    assert PatchSpec(8192, 8192, 100.0).field_um == 819_200


def test_patches_are_50_px_at_40x_unless_said_otherwise() -> None:
    assert PatchSpec() == PatchSpec(side_px=50, stride_px=50, mpp=0.25)


def test_the_field_is_the_side_and_not_the_stride() -> None:
    assert PatchSpec(50, 25, 0.5).field_um == 25


def test_a_grid_begins_at_the_corner_of_the_slide_unless_said_otherwise() -> None:
    assert Grid(PatchSpec(), 1, 1, Fraction(1)).origin_xy_l0 == (0, 0)


def test_a_grid_has_at_most_268435456_cells() -> None:
    assert Grid(PatchSpec(), 1, 268_435_456, Fraction(1)).cols == 268_435_456
    with pytest.raises(ConfigError, match="has more than 268,435,456"):
        Grid(PatchSpec(), 1, 268_435_457, Fraction(1))


@pytest.mark.parametrize(("rows", "cols"), [(-1, 1), (1, -1)])
def test_a_grid_of_less_than_nothing_is_refused(rows: int, cols: int) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        Grid(PatchSpec(), rows, cols, Fraction(1))


def test_a_stride_below_one_slide_pixel_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride"):
        Grid(PatchSpec(4, 1), 2, 2, Fraction(1, 2))
