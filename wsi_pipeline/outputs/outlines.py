"""The borders of cells as polygons: vectorised, exact and valid, for a million cells as for one."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

TOP, RIGHT, BOTTOM, LEFT = range(4)
STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
"""Where a border of each side leads, (row, col): clockwise around its cell, which lies to the right."""
STARTS = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
"""The corner of its cell from which a border starts."""


def trace_outlines(parts: NDArray[Any], x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]) -> NDArray[Any]:
    """One valid polygon, with holes, for each part of a grid: shapely (n,), polygon k of the cells with number k + 1.

    `parts` (rows, cols) numbers groups of cells that touch along an edge from 1 on, 0 elsewhere; no two groups share an edge.
    `x_edges` (cols + 1,) and `y_edges` (rows + 1,) are the grid's lines, in the frame of the result. Corners only: no vertex lies
    within a straight line. shapely's own unions take minutes on a noisy map of this size, and this takes a second or two.
    """
    count = int(parts.max(initial=0))
    if count == 0:
        return np.empty(0, dtype=object)
    borders = _find_borders(np.pad(parts, 1))
    corners, rings = _walk(_follow(borders), borders)
    owner = borders.part[corners[rings[:-1]]]
    row, col = (borders.cell[corners] + STEPS[borders.side[corners]] + STARTS[borders.side[corners]]).T
    points = np.stack([x_edges[col - 1], y_edges[row - 1]], axis=1)  # the padding begins one cell earlier
    return _to_polygons(points, rings, owner, count)


class _Borders:
    """Every border between a part and something else, as n directed unit edges."""

    def __init__(self, parts: NDArray[Any], index: NDArray[np.int32]) -> None:
        self.parts = parts
        self.index = index  # (4, rows, cols): number of the border, -1 where there is none
        place = np.argwhere(index >= 0)
        self.side = place[:, 0]
        self.cell = place[:, 1:]
        self.part = parts[self.cell[:, 0], self.cell[:, 1]]


def _find_borders(parts: NDArray[Any]) -> _Borders:
    """The borders of a padded grid."""
    is_border = np.zeros((4, *parts.shape), dtype=np.bool_)
    is_border[TOP, 1:] = parts[1:] != parts[:-1]
    is_border[BOTTOM, :-1] = parts[1:] != parts[:-1]
    is_border[LEFT, :, 1:] = parts[:, 1:] != parts[:, :-1]
    is_border[RIGHT, :, :-1] = parts[:, 1:] != parts[:, :-1]
    is_border &= parts > 0
    index = np.full(is_border.shape, -1, dtype=np.int32)
    index[is_border] = np.arange(np.count_nonzero(is_border), dtype=np.int32)
    return _Borders(parts, index)


def _follow(borders: _Borders) -> NDArray[np.int32]:
    """The border that follows each one (n,), so that every ring is simple.

    Where two cells meet at a corner only, the ring turns right (stays with its cell) if they are of different parts, and left if they
    are of the same one: there a closed way through the part separates the two gaps, which become different rings.
    """
    ahead = borders.cell + STEPS[borders.side]
    diagonal = ahead + STEPS[borders.side - 1]  # to the left of the cell ahead
    turning_right = borders.index[(borders.side + 1) % 4, borders.cell[:, 0], borders.cell[:, 1]]
    straight = borders.index[borders.side, ahead[:, 0], ahead[:, 1]]
    straight[borders.parts[ahead[:, 0], ahead[:, 1]] != borders.part] = -1
    turning_left = borders.index[borders.side - 1, diagonal[:, 0], diagonal[:, 1]]
    is_same = borders.parts[diagonal[:, 0], diagonal[:, 1]] == borders.part
    following = np.where(turning_right >= 0, turning_right, np.where(straight >= 0, straight, turning_left))
    return np.where(is_same & (turning_left >= 0), turning_left, following).astype(np.int32)


def _walk(following: NDArray[np.int32], borders: _Borders) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The borders at whose end a ring turns, ring by ring, and where each ring starts among them, ending with their number."""
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


def _to_polygons(points: NDArray[np.float64], rings: NDArray[np.int64], owner: NDArray[Any], count: int) -> NDArray[Any]:
    """Rings (starts in `points`) to the polygon of their owner; a part's first ring, of its topmost borders, is its shell."""
    numbers = np.repeat(np.arange(len(owner)), np.diff(rings))
    lines = shapely.linearrings(points, indices=numbers)
    order = np.argsort(owner, kind="stable")
    polygons: NDArray[Any] = shapely.polygons(lines[order], indices=owner[order] - 1)
    assert len(polygons) == count
    return polygons
