"""Regions: touching positive patches as polygons, which viewers open quickly.

Their outlines are the borders of patches: vectorised, exact and valid, also for a million patches.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.outputs.heatmap import (
    Heatmap,
    find_positive,
    is_large,
    number_groups,
    round_area,
)

Polygons = list[list[list[list[float]]]]
"""Polygons of rings of x, y in level-0 pixels; the first ring is the outer."""
TOP, RIGHT, BOTTOM, LEFT = range(4)
STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
"""Direction (row, col) of a border of each side: clockwise, with its patch to the right."""
STARTS = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
"""The corner of its patch at which a border starts."""


@dataclass(frozen=True, slots=True)
class Region:
    """Positive patches that touch, corners included."""

    number: int
    """1 … n by falling area; regions of equal area in raster order of their first patch."""
    patches: int
    area_mm2: float
    mean_probability: float
    max_probability: float
    bounds_l0: tuple[float, float, float, float]
    """x0, y0, x1, y1 in level-0 pixels."""
    peak_xy_l0: tuple[float, float]
    """Centre of its most probable patch (the first in raster order) in level-0 pixels."""
    outline: Polygon | MultiPolygon
    """In level-0 pixels, with holes, valid; parts that meet at corners make a MultiPolygon."""


def find_regions(
    heatmap: Heatmap, threshold: float, min_area_mm2: float = 0.0
) -> tuple[Region, ...]:
    """Return the groups of touching patches at or above the threshold, largest first.

    Groups smaller than `min_area_mm2` are left out. Patches touch along an edge or at a corner
    (8-connectivity), as in the summary. A patch counts as the square of one stride about its
    centre; where patches neither overlap nor leave gaps, that is the patch itself.
    """
    groups = number_groups(find_positive(heatmap.probability, threshold), corners=True)
    patches = np.bincount(groups.ravel())[1:]
    order = np.argsort(-patches, kind="stable")  # groups are numbered in raster order already
    order = order[is_large(patches[order], min_area_mm2 / heatmap.grid.patch_area_mm2)]
    if len(order) == 0:
        return ()
    row, col = np.nonzero(groups)
    group, probability = groups[row, col], heatmap.probability[row, col].astype(np.float64)
    mean = np.bincount(group, weights=probability)[1:] / patches
    peak = _find_peaks(group, probability)
    outlines = outline_groups(groups, heatmap.grid)
    bounds = shapely.bounds(outlines)
    grid = heatmap.grid
    corner_px = np.stack([col[peak], row[peak]], axis=1) * grid.spec.stride_px
    center_px = corner_px + grid.spec.side_px / 2
    centers = center_px * float(grid.downsample) + grid.origin_xy_l0
    return tuple(
        Region(
            number=number,
            patches=int(patches[index]),
            area_mm2=round_area(patches[index] * heatmap.grid.patch_area_mm2),
            mean_probability=float(mean[index]),
            max_probability=float(probability[peak[index]]),
            bounds_l0=tuple(bounds[index].tolist()),
            peak_xy_l0=tuple(centers[index].tolist()),
            outline=outlines[index],
        )
        for number, index in enumerate(order.tolist(), start=1)
    )


def _find_peaks(group: NDArray[Any], probability: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the index of the most probable patch of each group, the first of equals."""
    order = np.lexsort((np.arange(len(group)), -probability, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=0))
    peaks: NDArray[np.intp] = order[starts]
    return peaks


def outline_groups(groups: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Return the outline of each group 1 … n of patches in level-0 pixels: shapely (n,).

    An outline is a MultiPolygon where parts meet only at corners.
    """
    return outline_numbers(groups, *grid_lines(grid))


def outline_numbers(
    groups: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[Any]:
    """Return the outline of each number 1 … n of a raster: shapely (n,), all of them present.

    x (cols + 1,) and y (rows + 1,) are its lines. A number may be of several parts.
    """
    parts = number_groups(groups, corners=False)
    polygons = trace_outlines(parts, x, y)
    numbers, first = np.unique(parts, return_index=True)
    owner = groups.ravel()[first[numbers > 0]]
    order = np.argsort(owner, kind="stable")
    outlines: NDArray[Any] = shapely.multipolygons(polygons[order], indices=owner[order] - 1)
    is_single = shapely.get_num_geometries(outlines) == 1
    outlines[is_single] = shapely.get_geometry(outlines[is_single], 0)
    return outlines


def list_polygons(area: BaseGeometry) -> Polygons:
    """Return the polygons of an area for JSON."""
    pieces = shapely.get_parts(shapely.get_parts(area))
    polygons = [each for each in pieces if each.geom_type == "Polygon" and not each.is_empty]
    return [
        [shapely.get_coordinates(ring).tolist() for ring in (each.exterior, *each.interiors)]
        for each in polygons
    ]


def grid_lines(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lines between patches in level-0 pixels, x (cols + 1,) and y (rows + 1,).

    They are rounded down like the corners of patches.
    """
    spec = grid.spec
    inset_px = Fraction(spec.side_px - spec.stride_px, 2)
    x0, y0 = grid.origin_xy_l0

    def lines(origin: int, count: int) -> NDArray[np.float64]:
        insets_px = (inset_px + k * spec.stride_px for k in range(count + 1))
        return np.array([origin + px * grid.downsample // 1 for px in insets_px], dtype=np.float64)

    return lines(x0, grid.cols), lines(y0, grid.rows)


def trace_outlines(
    parts: NDArray[Any], x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]
) -> NDArray[Any]:
    """Return one valid polygon, with holes, for each part of a grid: shapely (n,).

    Polygon k surrounds the patches with number k + 1. `parts` (rows, cols) numbers groups that
    touch along an edge from 1, 0 elsewhere; no two groups share an edge. `x_edges` (cols + 1,) and
    `y_edges` (rows + 1,) are the grid's lines, in the frame of the result. Vertices are corners
    only. shapely's own unions take minutes on a noisy map of this size, this a second or two.
    """
    count = int(parts.max(initial=0))
    if count == 0:
        return np.empty(0, dtype=object)
    borders = _find_borders(np.pad(parts, 1))
    corners, rings = _walk(_follow(borders), borders)
    owner, side = borders.part[corners[rings[:-1]]], borders.side[corners]
    row, col = (borders.position[corners] + STEPS[side] + STARTS[side]).T
    # The padding begins one patch earlier.
    points = np.stack([x_edges[col - 1], y_edges[row - 1]], axis=1)
    return _to_polygons(points, rings, owner, count)


class _Borders:
    """Every border between a part and something else, as n directed unit edges."""

    def __init__(self, parts: NDArray[Any], index: NDArray[np.int32]) -> None:
        self.parts = parts
        self.index = index  # (4, rows, cols): number of the border, -1 where there is none
        found = np.argwhere(index >= 0)
        self.side = found[:, 0]
        self.position = found[:, 1:]
        self.part = parts[self.position[:, 0], self.position[:, 1]]


def _find_borders(parts: NDArray[Any]) -> _Borders:
    """Return the borders of a padded grid."""
    is_border = np.zeros((4, *parts.shape), dtype=np.bool_)
    is_border[TOP, 1:] = is_border[BOTTOM, :-1] = parts[1:] != parts[:-1]
    is_border[LEFT, :, 1:] = is_border[RIGHT, :, :-1] = parts[:, 1:] != parts[:, :-1]
    is_border &= parts > 0
    index = np.full(is_border.shape, -1, dtype=np.int32)
    index[is_border] = np.arange(np.count_nonzero(is_border), dtype=np.int32)
    return _Borders(parts, index)


def _follow(borders: _Borders) -> NDArray[np.int32]:
    """Return the border that follows each one (n,), so that every ring is simple.

    Where two patches meet only at a corner, the ring turns right (stays with its patch) if they are
    of different parts, and left if they are of the same one: there a closed way through the part
    separates the two gaps, which become different rings.
    """
    index, parts, side = borders.index, borders.parts, borders.side
    ahead = tuple((borders.position + STEPS[side]).T)
    diagonal = tuple((borders.position + STEPS[side] + STEPS[side - 1]).T)  # to the left of ahead
    right = index[(side + 1) % 4, *borders.position.T]
    straight, left = index[side, *ahead], index[side - 1, *diagonal]
    straight[parts[ahead] != borders.part] = -1
    is_same = parts[diagonal] == borders.part
    following = np.where(right >= 0, right, np.where(straight >= 0, straight, left))
    followed: NDArray[np.int32] = np.where(is_same & (left >= 0), left, following)
    return followed


def _walk(
    following: NDArray[np.int32], borders: _Borders
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the borders at whose end a ring turns, ring by ring, and the start of each ring.

    The starts end with the number of such borders.
    """
    following_list = following.tolist()
    is_turn = (borders.side[following] != borders.side).tolist()
    is_seen = bytearray(len(following))
    corners: list[int] = []
    rings = [0]
    for start in range(len(following)):
        if is_seen[start]:
            continue
        border = start
        while not is_seen[border]:
            is_seen[border] = 1
            if is_turn[border]:
                corners.append(border)
            border = following_list[border]
        rings.append(len(corners))
    return np.array(corners, dtype=np.int64), np.array(rings, dtype=np.int64)


def _to_polygons(
    points: NDArray[np.float64], rings: NDArray[np.int64], owner: NDArray[Any], count: int
) -> NDArray[Any]:
    """Turn rings (starts in `points`) into the polygons of their owners.

    A part's first ring, of its topmost borders, is its shell.
    """
    numbers = np.repeat(np.arange(len(owner)), np.diff(rings))
    lines = shapely.linearrings(points, indices=numbers)
    order = np.argsort(owner, kind="stable")
    polygons: NDArray[Any] = shapely.polygons(lines[order], indices=owner[order] - 1)
    assert len(polygons) == count
    return polygons
