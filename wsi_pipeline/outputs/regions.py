"""Regions: positive cells that touch, as polygons that a viewer shows at once where a million squares would stop it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon

from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.heatmap import Heatmap, find_positive, is_large, number_groups
from wsi_pipeline.outputs.outlines import trace_outlines


@dataclass(frozen=True, slots=True)
class Region:
    """Positive cells that touch, corners included."""

    number: int
    """1 … n by falling area; regions of equal area in raster order of their first cell."""
    patches: int
    area_mm2: float
    mean_probability: float
    max_probability: float
    bounds_l0: tuple[float, float, float, float]
    """x0, y0, x1, y1 in level-0 pixels."""
    peak_xy_l0: tuple[float, float]
    """Centre of its most probable patch (the first in raster order) in level-0 pixels."""
    outline: Polygon | MultiPolygon
    """In level-0 pixels, with holes, valid; cells that touch at a corner only are parts of a MultiPolygon."""


def find_regions(heatmap: Heatmap, threshold: float, min_area_mm2: float = 0.0) -> tuple[Region, ...]:
    """The groups of touching cells at or above the threshold, those smaller than `min_area_mm2` left out, largest first.

    Cells touch along an edge or at a corner (8-connectivity), as in the summary's figures. A cell stands for the square of one stride
    about its patch's centre; where patches neither overlap nor leave gaps, that is the patch itself.
    """
    groups = number_groups(find_positive(heatmap.probability, threshold), corners=True)
    patches = np.bincount(groups.ravel())[1:]
    order = np.argsort(-patches, kind="stable")  # groups are numbered in raster order already
    order = order[is_large(patches[order], min_area_mm2 / heatmap.grid.cell_area_mm2)]
    if len(order) == 0:
        return ()
    row, col = np.nonzero(groups)
    group, probability = groups[row, col], heatmap.probability[row, col].astype(np.float64)
    mean = np.bincount(group, weights=probability)[1:] / patches
    peak = _find_peaks(group, probability)
    outlines = outline_groups(groups, heatmap.grid)
    bounds = shapely.bounds(outlines)
    centers = find_centers(np.stack([row[peak], col[peak]], axis=1), heatmap.grid)
    return tuple(
        Region(
            number=number,
            patches=int(patches[index]),
            area_mm2=float(patches[index] * heatmap.grid.cell_area_mm2),
            mean_probability=float(mean[index]),
            max_probability=float(probability[peak[index]]),
            bounds_l0=tuple(bounds[index].tolist()),
            peak_xy_l0=tuple(centers[index].tolist()),
            outline=outlines[index],
        )
        for number, index in enumerate(order.tolist(), start=1)
    )


def _find_peaks(group: NDArray[Any], probability: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the most probable cell of each group, the first of equals."""
    order = np.lexsort((np.arange(len(group)), -probability, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=0))
    peaks: NDArray[np.intp] = order[starts]
    return peaks


def outline_groups(groups: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """The outline of each group 1 … n of cells in level-0 pixels: shapely (n,), a MultiPolygon where parts meet at corners only."""
    parts = number_groups(groups > 0, corners=False)
    x, y = grid_lines(grid)
    polygons = trace_outlines(parts, x, y)
    first = np.unique(parts, return_index=True)[1][-len(polygons) :] if len(polygons) else np.empty(0, dtype=np.int64)
    owner = groups.ravel()[first]
    order = np.argsort(owner, kind="stable")
    outlines: NDArray[Any] = shapely.multipolygons(polygons[order], indices=owner[order] - 1)
    is_single = shapely.get_num_geometries(outlines) == 1
    outlines[is_single] = shapely.get_geometry(outlines[is_single], 0)
    return outlines


def grid_lines(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lines between cells in level-0 pixels, x (cols + 1,) and y (rows + 1,), rounded down like the corners of patches."""
    spec = grid.spec
    inset_px = Fraction(spec.side_px - spec.stride_px, 2)
    x0, y0 = grid.origin_xy_l0

    def lines(origin: int, count: int) -> NDArray[np.float64]:
        return np.array([origin + (inset_px + k * spec.stride_px) * grid.downsample // 1 for k in range(count + 1)], dtype=np.float64)

    return lines(x0, grid.cols), lines(y0, grid.rows)


def find_centers(cells: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Centres of patches (n, 2) as x, y in level-0 pixels, unrounded."""
    center_px = cells[:, ::-1] * grid.spec.stride_px + grid.spec.side_px / 2
    centers: NDArray[np.float64] = center_px * float(grid.downsample) + np.array(grid.origin_xy_l0, dtype=np.float64)
    return centers
