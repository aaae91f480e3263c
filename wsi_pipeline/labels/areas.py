"""Which share of every patch lies in drawn regions, by exact area."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

MANY_BOXES = 64
"""Boxes and outline are halved until no more boxes than this are left together."""

WHOLE = 1 - 1e-12


def covered_shares(geometry: BaseGeometry, boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each box (n, 4: x, y, width, height) that lies in the geometry, (n,) 0 to 1.

    Boxes are halved again and again, and with them the geometry. Halves that lie wholly inside or outside are settled at once, so that
    work goes where the outline runs, and each corner of it is looked at a few times and not once per box.
    """
    shares = np.zeros(len(boxes), dtype=np.float64)
    pending: list[tuple[BaseGeometry, NDArray[np.intp]]] = [(geometry, np.arange(len(boxes)))] if len(boxes) else []
    while pending:
        piece, members = pending.pop()
        around = _frame(boxes[members])
        piece = _intersect(piece, around)
        if piece.is_empty:
            continue
        if shapely.area(piece) >= WHOLE * shapely.area(around):
            shares[members] = 1.0
        elif len(members) <= MANY_BOXES:
            shares[members] = _measure(piece, boxes[members])
        else:
            pending += [(piece, half) for half in _halve(boxes, members)]
    return np.clip(shares, 0, 1)


def _frame(boxes: NDArray[np.int64]) -> BaseGeometry:
    """The smallest rectangle around the boxes."""
    x, y, width, height = boxes.T
    return shapely.box(float(x.min()), float(y.min()), float((x + width).max()), float((y + height).max()))


def _intersect(one: Any, other: Any) -> Any:
    """Their common area. Corners that differ by denormal numbers make GEOS divide by zero on its way to a right answer."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        return shapely.intersection(one, other)


def _measure(piece: BaseGeometry, boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    x, y, width, height = boxes.astype(np.float64).T
    squares = shapely.box(x, y, x + width, y + height)
    shares: NDArray[np.float64] = shapely.area(_intersect(piece, squares)) / (width * height)
    return shares


def _halve(boxes: NDArray[np.int64], members: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The members in two halves, along the axis on which they are spread wider."""
    corners = boxes[members, :2]
    axis = int(np.argmax(np.ptp(corners, axis=0)))
    middle = len(members) // 2
    order = members[np.argpartition(corners[:, axis], middle)]
    return order[:middle], order[middle:]
