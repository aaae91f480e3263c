"""Areas that a page or a program sends as GeoJSON: limits, repair, and their place on the slide."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.annotation import keep_areas
from wsi_pipeline.labels.assignment import covered_shares

MAX_CORNERS = 100_000
"""Of one geometry that is sent, and of all regions of a slide."""
MAX_DRAWN_CORNERS = 2_000
"""Of a drawn area, which any user may send: the time that it takes grows with their square."""
MAX_CROSSINGS = 1_000
"""Of the lines of a drawn area with itself: an area with 10,000 takes a minute."""
CORNER_STEP_PX = 1 / 64
"""Corners of drawn areas are multiples of this, which a file in pixels of any origin keeps."""
MARGIN = 0.1
"""Share of a slide's sides by which a region may lie beyond them."""


def read_area(value: Any, slide: SlideInfo, most_corners: int = MAX_CORNERS) -> BaseGeometry:
    """Return the area of a GeoJSON geometry in level-0 pixels, made valid where it crosses itself.

    Raises LabelError for anything but polygons of finite corners on the slide.
    """
    kind = value.get("type") if isinstance(value, Mapping) else None
    coordinates = value.get("coordinates") if isinstance(value, Mapping) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise LabelError(f"a geometry of type {str(kind)[:40]!r}; draw a polygon")
    polygons = coordinates if kind == "MultiPolygon" else [coordinates]
    drawn = [_read_polygon(each) for each in _check_list(polygons, "a geometry")]
    if sum(map(shapely.get_num_coordinates, drawn)) > most_corners:
        raise LabelError(f"more than {most_corners:,} corners; draw with fewer")
    _check_crossings(drawn)
    area = keep_areas(shapely.union_all([shapely.make_valid(each) for each in drawn]))
    if area.is_empty or not area.area > 0:
        raise LabelError("encloses no area; draw a line around a region")
    _check_place(area, slide)
    return area


def read_drawn(value: Any, slide: SlideInfo) -> BaseGeometry:
    """Return the part on the slide of a drawn area, in level-0 pixels. Raises LabelError."""
    return _clip(read_area(value, slide, MAX_DRAWN_CORNERS), slide)


def _check_crossings(polygons: Sequence[BaseGeometry]) -> None:
    """Raise LabelError for too many crossings; more than `MAX_DRAWN_CORNERS` are not examined."""
    rings = [shapely.get_coordinates(ring) for each in polygons for ring in shapely.get_rings(each)]
    if sum(map(len, rings)) > MAX_DRAWN_CORNERS:
        return
    start = np.concatenate([ring[:-1] for ring in rings])
    step = np.concatenate([np.diff(ring, axis=0) for ring in rings])

    def side(places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the side of line i on which place j lies, by its sign (lines, places)."""
        offset = places[None] - start[:, None]
        signed: NDArray[np.float64] = step[:, None, 0] * offset[..., 1]
        signed -= step[:, None, 1] * offset[..., 0]
        return np.sign(signed)

    is_parted = side(start) * side(start + step) < 0
    if np.count_nonzero(is_parted & is_parted.T) > 2 * MAX_CROSSINGS:
        raise LabelError(f"crosses itself more than {MAX_CROSSINGS:,} times; draw it more simply")


def _check_list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value or len(value) > MAX_CORNERS:
        raise LabelError(f"{what} is not a list of 1 to {MAX_CORNERS:,} entries; draw it again")
    return value


def _read_polygon(value: Any) -> BaseGeometry:
    rings = [_read_ring(each) for each in _check_list(value, "a polygon")]
    return shapely.Polygon(rings[0], rings[1:])


def _read_ring(value: Any) -> Any:
    """Return the corners of a ring (n, 2)."""
    for corner in _check_list(value, "a ring"):
        is_pair = isinstance(corner, list | tuple) and len(corner) == 2
        if not is_pair or not all(type(each) in (int, float) for each in corner):
            raise LabelError("a corner is not a pair of numbers; draw it again")
    try:
        corners = np.array(value, dtype=np.float64)
    except OverflowError as error:
        raise LabelError("a corner lies beyond the slide; draw it again") from error
    if len(corners) < 3:
        raise LabelError(f"a ring of {len(corners)} corners; a region has 3 or more")
    if not np.isfinite(corners).all():
        raise LabelError("a corner is not finite; draw it again")
    return corners


def _check_place(area: BaseGeometry, slide: SlideInfo) -> None:
    width, height = slide.size_l0
    x0, y0, x1, y1 = area.bounds
    is_near = x0 >= -MARGIN * width and y0 >= -MARGIN * height
    if not (is_near and x1 <= (1 + MARGIN) * width and y1 <= (1 + MARGIN) * height):
        raise LabelError(f"lies beyond the slide of {width} × {height} px; draw it on the slide")


def _clip(area: BaseGeometry, slide: SlideInfo) -> BaseGeometry:
    """Return the part of an area that lies on the slide. Raises LabelError where there is none."""
    width, height = slide.size_l0
    part = shapely.intersection(area, shapely.box(0, 0, width, height))
    kept = keep_areas(shapely.set_precision(part, CORNER_STEP_PX))
    if kept.is_empty:
        raise LabelError(f"lies beyond the slide of {width} × {height} px; draw it on the slide")
    return kept


def holds_patch(area: BaseGeometry, grid: Grid, share: float) -> bool:
    """Return True where an area covers at least `share` (0 to 1) of any patch of a grid."""
    left, top, right, bottom = area.bounds
    step, side = (
        float(grid.downsample) * each for each in (grid.spec.stride_px, grid.spec.side_px)
    )
    x, y = grid.origin_xy_l0
    spans = ((y, top, bottom, grid.rows), (x, left, right, grid.cols))
    rows, cols = (
        np.arange(
            max(0, int((low - start - side) // step)), min(most, int((high - start) // step) + 2)
        )
        for start, low, high, most in spans
    )
    positions = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    shares = covered_shares(area, positions_to_boxes_l0(positions.astype(np.int32), grid))
    return bool((shares >= share).any())
