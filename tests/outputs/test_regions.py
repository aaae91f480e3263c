"""Regions: groups of positive cells and their outlines."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.outputs.heatmap import Heatmap
from wsi_pipeline.outputs.regions import Region, find_regions, grid_lines, outline_groups

NAN = float("nan")


def heatmap_of(
    rows: list[list[float]], *, downsample: Fraction = Fraction(1), origin: tuple[int, int] = (0, 0)
) -> Heatmap:
    """Cells of 10 px at 10 µm/px: 0.01 mm² each."""
    probability = np.array(rows, dtype=np.float32)
    grid = Grid(PatchSpec(10, 10, 10.0), len(rows), len(rows[0]), downsample, origin)
    return Heatmap(grid, probability, 0.5, "tumour")


def test_figures_of_a_region_by_hand() -> None:
    (region,) = find_regions(heatmap_of([[0.1, 0.5, 0.9], [NAN, 0.7, 0.2]], origin=(100, 200)), 0.5)
    assert (region.number, region.patches) == (1, 3)
    assert region.area_mm2 == pytest.approx(0.03)
    assert region.mean_probability == pytest.approx(0.7)
    assert region.max_probability == pytest.approx(0.9)
    assert region.bounds_l0 == pytest.approx((110, 200, 130, 220))
    assert region.peak_xy_l0 == pytest.approx((125, 205))
    assert region.outline.equals(
        shapely.Polygon([(110, 200), (130, 200), (130, 210), (120, 210), (120, 220), (110, 220)])
    )


def test_the_peak_is_placed_in_pixels_of_the_slide_and_not_of_the_patch() -> None:
    (region,) = find_regions(
        heatmap_of([[0.1, 0.9]], downsample=Fraction(3), origin=(100, 200)), 0.5
    )
    assert region.peak_xy_l0 == (145, 215)  # 15 and 5 patch pixels from the origin


def test_the_largest_region_comes_first_and_equals_in_raster_order() -> None:
    regions = find_regions(heatmap_of([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]]), 0.5)
    assert [(region.number, region.bounds_l0[:2]) for region in regions] == [
        (1, (0, 20)),
        (2, (0, 0)),
        (3, (20, 0)),
        (4, (40, 20)),
    ]


def test_cells_that_touch_at_a_corner_are_one_region_of_two_parts() -> None:
    (region,) = find_regions(heatmap_of([[1, 0], [0, 1]]), 0.5)
    assert region.outline.geom_type == "MultiPolygon"
    assert region.patches == 2


def test_a_gap_inside_is_a_hole() -> None:
    (region,) = find_regions(heatmap_of([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), 0.5)
    (hole,) = region.outline.interiors
    assert shapely.Polygon(hole).bounds == (10, 10, 20, 20)
    assert region.outline.area == 800


def test_gaps_that_meet_at_a_corner_are_two_holes() -> None:
    (region,) = find_regions(
        heatmap_of([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]), 0.5
    )
    assert len(region.outline.interiors) == 2
    assert region.outline.is_valid


def test_small_regions_are_left_out_and_one_of_exactly_the_size_is_kept() -> None:
    regions = find_regions(heatmap_of([[1, 1, 0, 1]]), 0.5, min_area_mm2=0.02)
    assert [region.patches for region in regions] == [2]


def test_regions_and_map_leave_out_the_same_groups_whatever_the_rounding() -> None:
    heatmap = heatmap_of([[1, 1, 1, 0, 1, 1]])
    area = 3 * heatmap.grid.patch_area_mm2 * (1 + 1e-12)  # what a user's decimals may come to
    regions = find_regions(heatmap, 0.5, min_area_mm2=area)
    assert (
        sum(region.patches for region in regions)
        == replace(heatmap, min_region_mm2=area).positive.sum()
        == 3
    )


@pytest.mark.parametrize(
    "probability",
    [np.array([[0.1, 0.2]]), np.array([[NAN, NAN]]), np.zeros((0, 0)), np.zeros((2, 0))],
)
def test_nothing_positive_is_no_region(probability: NDArray[np.float64]) -> None:
    grid = Grid(PatchSpec(), probability.shape[0], probability.shape[1], Fraction(1))
    assert find_regions(Heatmap(grid, probability.astype(np.float32), 0.5, "t"), 0.5) == ()


def test_no_groups_have_no_outlines() -> None:
    assert (
        len(outline_groups(np.zeros((2, 3), dtype=np.int64), Grid(PatchSpec(), 2, 3, Fraction(1))))
        == 0
    )


def test_lines_of_overlapping_patches_lie_half_way() -> None:
    x, _ = grid_lines(Grid(PatchSpec(50, 20, 1.0), 1, 2, Fraction(2), (7, 0)))
    assert x.tolist() == [7 + 30, 7 + 70, 7 + 110]  # centres 50 and 90 from the origin, 40 apart


MASKS = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
RATIOS = st.sampled_from([Fraction(1), Fraction(7, 3), Fraction(4003, 1000)])


@given(MASKS, RATIOS)
def test_outlines_are_valid_and_cover_exactly_the_positive_cells(
    mask: NDArray[np.bool_], ratio: Fraction
) -> None:
    grid = Grid(PatchSpec(10, 10, 1.0), mask.shape[0], mask.shape[1], ratio, (3, 5))
    regions = find_regions(Heatmap(grid, mask.astype(np.float32), 0.5, "t"), 0.5)
    x, y = grid_lines(grid)
    row, col = np.nonzero(mask)
    expected = shapely.union_all(shapely.box(x[col], y[row], x[col + 1], y[row + 1]))
    outlines = [region.outline for region in regions]
    assert all(outline.is_valid for outline in outlines)
    assert shapely.equals(shapely.union_all(outlines), expected)
    assert sum(outline.area for outline in outlines) == pytest.approx(expected.area)
    assert sum(region.patches for region in regions) == mask.sum()
    assert all(has_corners_only(region) for region in regions)


def has_corners_only(region: Region) -> bool:
    """No vertex lies within a straight line."""
    for ring in shapely.get_rings(shapely.get_parts(region.outline)):
        steps = np.sign(np.diff(shapely.get_coordinates(ring), axis=0))
        if (steps == np.roll(steps, 1, axis=0)).all(axis=1).any():
            return False
    return True
