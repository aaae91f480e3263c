"""From annotated regions, or a label image, to the label of every patch.

The share of a patch that lies in a region is an exact area.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.annotation import Annotation, describe
from wsi_pipeline.labels.rules import HOLE, IGNORE, NEGATIVE, POSITIVE, UNKNOWN, LabelRules

MPP_TOLERANCE = 0.05
MANY_BOXES = 64
"""Boxes and outline are halved until no more boxes than this are left together."""

WHOLE = 1 - 1e-12


class PatchLabels(NamedTuple):
    """The labels of a slide's patches."""

    labels: NDArray[np.int8]
    """(n,) 0 negative, 1 positive, -1 unknown."""
    fraction: NDArray[np.float32]
    """(n,) share of the patch that has its label's class; unknown: the larger share."""
    description: dict[str, Any]
    """Counts of regions, ignored and repaired objects."""
    areas: tuple[BaseGeometry, BaseGeometry] | None = None
    """All negative and all positive area in level-0 pixels; None where labels are of pixels."""


def decide(
    shares: Sequence[NDArray[np.float64]], rules: LabelRules
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return labels and fractions from the (negative, positive) shares (n,) of every patch.

    The larger share that suffices wins.
    """
    both = np.stack(shares)  # (2, n)
    order = (NEGATIVE, POSITIVE) if rules.priority == "negative" else (POSITIVE, NEGATIVE)
    winner = np.where(both[order[0]] >= both[order[1]], order[0], order[1])
    fraction = np.take_along_axis(both, winner[None], axis=0)[0]
    # The share is a quotient of areas: half a patch must not fail by the last bit.
    labels = np.where(fraction >= rules.min_area - 1e-9, winner, UNKNOWN)
    return labels.astype(np.int8), fraction.astype(np.float32)


def assign_regions(
    read: Callable[[Path, bool], Annotation],
    is_from_bounds: bool,
    path: Path,
    slide: SlideInfo,
    grid: Grid,
    positions: NDArray[np.int32],
    rules: LabelRules,
) -> PatchLabels:
    """Label positions (n, 2) by the regions of a file; `read` takes its path and "is strict".

    Raises LabelError where they belong to another slide or a class is unknown.
    """
    annotation, placed = place_regions(read, is_from_bounds, path, slide, rules)
    meanings = [rules.meaning_of(path, each.class_name, each.groups) for each in annotation.regions]
    negative, positive, hole = _merge(zip(meanings, placed, strict=True), rules)
    boxes = positions_to_boxes_l0(positions, grid)
    positive_share = covered_shares(positive, boxes)
    if rules.outside == "negative":
        negative_share = np.clip(1 - positive_share - covered_shares(hole, boxes), 0, 1)
    else:
        negative_share = covered_shares(negative, boxes)
    labels, fraction = decide((negative_share, positive_share), rules)
    described = describe(annotation) | {"meanings": count_meanings(meanings, rules)}
    return PatchLabels(labels, fraction, described, (negative, positive))


def place_regions(
    read: Callable[[Path, bool], Annotation],
    is_from_bounds: bool,
    path: Path,
    slide: SlideInfo,
    rules: LabelRules,
) -> tuple[Annotation, list[BaseGeometry]]:
    """Return the regions of a file, and their shapes in level-0 pixels of the slide.

    Raises LabelError where they belong to another slide.
    """
    annotation = read(path, rules.is_strict)
    is_offset = is_from_bounds if rules.origin == "auto" else rules.origin == "bounds"
    left, top = slide.bounds_l0[:2] if is_offset else (0, 0)
    to_l0 = annotation.place(slide) if annotation.place else (1, 0, 0, 1, left, top)
    placed = [affine_transform(region.geometry, to_l0) for region in annotation.regions]
    _check_slide(path, annotation, placed, slide)
    return annotation, placed


def count_meanings(meanings: Iterable[str], rules: LabelRules) -> dict[str, int]:
    """Return how many regions mean what: always the positive class, others where they occur."""
    counts = Counter(meanings)
    words = {rules.class_names[POSITIVE]: rules.class_names[POSITIVE]}
    words |= {rules.class_names[NEGATIVE]: rules.class_names[NEGATIVE]}
    words |= {IGNORE: "ignored", HOLE: "cut out"}
    is_told = {name for name in words if counts[name]} | {rules.class_names[POSITIVE]}
    return {word: counts[name] for name, word in words.items() if name in is_told}


def _merge(
    regions: Iterable[tuple[str, BaseGeometry]], rules: LabelRules
) -> tuple[BaseGeometry, BaseGeometry, BaseGeometry]:
    """Return all negative, positive and hole area of (meaning, geometry), without overlap."""
    by_meaning: defaultdict[str, list[BaseGeometry]] = defaultdict(list)
    for meaning, geometry in regions:
        by_meaning[meaning].append(geometry)
    areas = {name: shapely.union_all(by_meaning[name]) for name in (*rules.class_names, HOLE)}
    hole = areas[HOLE]
    negative, positive = (shapely.difference(areas[name], hole) for name in rules.class_names)
    if rules.priority == "positive":
        negative = shapely.difference(negative, positive)
    else:
        positive = shapely.difference(positive, negative)
    return negative, positive, hole


def _check_slide(
    path: Path, annotation: Annotation, placed: Sequence[BaseGeometry], slide: SlideInfo
) -> None:
    """Raise LabelError for an annotation of another scale, or with regions beyond the slide."""
    if annotation.mpp is not None and abs(annotation.mpp - slide.mpp) > MPP_TOLERANCE * slide.mpp:
        raise LabelError(
            f"{path}: drawn on a slide of {annotation.mpp:g} µm/px, {slide.slide_id} has"
            f" {slide.mpp:g}; name its own annotation"
        )
    width, height = slide.size_l0
    bounds = np.array([geometry.bounds for geometry in placed])
    is_before, is_behind = bounds[:, 2:] <= 0, bounds[:, :2] >= [width, height]
    is_beyond = (is_before | is_behind).any(axis=1)
    if is_beyond.any():
        x0, y0, x1, y1 = bounds[is_beyond][0]
        raise LabelError(
            f"{path}: {int(is_beyond.sum())} of {len(bounds)} regions lie beyond the slide of"
            f" {width} × {height} px (one from {x0:.0f},{y0:.0f} to {x1:.0f},{y1:.0f}); this looks"
            " like another slide's annotation"
        )


def covered_shares(geometry: BaseGeometry, boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each box (n, 4: x, y, width, height) in the geometry, (n,) 0 to 1.

    Boxes are halved again and again, and with them the geometry. Halves that lie wholly inside or
    outside are decided at once, so that work is spent along the outline, and each of its corners is
    read a few times and not once per box.
    """
    shares = np.zeros(len(boxes), dtype=np.float64)
    everything = [(geometry, np.arange(len(boxes)))]
    pending: list[tuple[BaseGeometry, NDArray[np.intp]]] = everything if len(boxes) else []
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
    """Return the smallest rectangle around the boxes."""
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return shapely.box(*low.astype(np.float64), *high.astype(np.float64))


def _intersect(one: Any, other: Any) -> Any:
    """Return the common area; denormal numbers make GEOS divide by zero, without harm."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        return shapely.intersection(one, other)


def _measure(piece: BaseGeometry, boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    x, y, width, height = boxes.astype(np.float64).T
    squares = shapely.box(x, y, x + width, y + height)
    return np.asarray(shapely.area(_intersect(piece, squares)) / (width * height))


def _halve(
    boxes: NDArray[np.int64], members: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the members in two halves, along the axis on which they are spread wider."""
    corners = boxes[members, :2]
    axis = int(np.argmax(np.ptp(corners, axis=0)))
    middle = len(members) // 2
    order = members[np.argpartition(corners[:, axis], middle)]
    return order[:middle], order[middle:]
