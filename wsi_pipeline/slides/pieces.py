"""Pieces of tissue: the sections, cores and spots on one glass, told apart on the tissue mask.

Method: the mask is reduced to cells of `JOIN_UM`, a cell being tissue if any of it is, and cells
that touch, at corners too, are one piece. So gaps up to one cell are closed, and those of more than
two cells, as between the spots of a microarray, are not. Pieces that are too small are specks: they
are the rest together.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.core.patch_table import PatchTable

JOIN_UM = 100.0
"""Side of a cell: most cracks in a section are narrower, spots of a microarray further apart."""
SMALLEST_MM2 = 0.1
"""Smaller pieces are specks, but for the largest of a slide: half of a spot of 0.6 mm is more."""
SMALLEST_SHARE = 0.01
"""Pieces of less than this share of the slide's largest are specks, too."""
REST = 0
"""The number of what belongs to no piece."""
SPECK = -1


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a slide."""

    numbers: NDArray[np.int32]
    """(height, width) of the thumbnail: 1 … n, from left to right in rows from top to bottom; -1
    where tissue is of the rest, 0 where there is none."""
    of_patches: NDArray[np.int32]
    """(patches,) number of the piece that each patch lies on, 0 for the rest."""

    @property
    def count(self) -> int:
        """Number of pieces."""
        return int(self.numbers.max(initial=0))


def find_pieces(table: PatchTable) -> Pieces | None:
    """Return the pieces of a slide's tissue; None where its patches were chosen by no mask."""
    if table.tissue is None:
        return None
    pixel_um = float(table.thumbnail.downsample) * table.slide.mpp
    numbers = number_pieces(table.tissue, pixel_um)
    return Pieces(numbers, _number_patches(numbers, table))


def number_tissue(table: PatchTable) -> PatchTable:
    """Return the table with the piece of each patch, where there is a mask."""
    pieces = find_pieces(table)
    return table if pieces is None else replace(table, tissue_id=pieces.of_patches)


def number_pieces(tissue: NDArray[np.bool_], pixel_um: float) -> NDArray[np.int32]:
    """Return the number of the piece of each pixel of a mask (h, w), as `Pieces.numbers`."""
    from skimage.measure import label

    cell_px = max(1, round(JOIN_UM / pixel_um))
    cells = _reduce(tissue, cell_px)
    groups = np.asarray(label(cells, connectivity=2), dtype=np.int32)
    found = _enlarge(groups, cell_px, tissue.shape)
    found[~tissue] = 0
    areas = np.bincount(found.ravel(), minlength=int(groups.max(initial=0)) + 1)[1:]
    areas_mm2 = areas * (pixel_um / 1000) ** 2
    largest = areas_mm2.max(initial=0)
    least = max(SMALLEST_SHARE * largest, min(SMALLEST_MM2, largest))
    kept = np.flatnonzero(areas_mm2 >= least) + 1
    names = np.full(len(areas) + 1, SPECK, dtype=np.int32)
    names[0] = 0
    for number, group in enumerate(_sort_as_read(groups, kept), start=1):
        names[group] = number
    return names[found]


def _reduce(mask: NDArray[np.bool_], cell_px: int) -> NDArray[np.bool_]:
    """Return which cells hold any of the mask."""
    rows, cols = (range(0, extent, cell_px) for extent in mask.shape)
    tall = np.logical_or.reduceat(mask, rows, axis=0)
    return np.asarray(np.logical_or.reduceat(tall, cols, axis=1))


def _enlarge(cells: NDArray[np.int32], cell_px: int, shape: tuple[int, ...]) -> NDArray[np.int32]:
    return cells.repeat(cell_px, axis=0).repeat(cell_px, axis=1)[: shape[0], : shape[1]]


def _sort_as_read(groups: NDArray[np.int32], kept: NDArray[np.intp]) -> list[int]:
    """Return groups from left to right in rows from top to bottom, as a microarray is read.

    A row holds the groups whose middle is no lower than the lower edge of its topmost.
    """
    row, col = np.nonzero(groups)
    owner, size = groups[row, col], int(groups.max(initial=0)) + 1
    top, left = np.full(size, len(groups)), np.full(size, groups.shape[1])
    bottom = np.zeros(size, dtype=np.intp)
    np.minimum.at(top, owner, row)
    np.maximum.at(bottom, owner, row)
    np.minimum.at(left, owner, col)
    waiting, ordered = sorted(kept.tolist(), key=lambda group: (top[group], left[group])), []
    while waiting:
        edge = bottom[waiting[0]]
        here = [group for group in waiting if (top[group] + bottom[group]) / 2 <= edge]
        ordered += sorted(here, key=lambda group: (left[group], top[group]))
        waiting = [group for group in waiting if group not in here]
    return ordered


def _number_patches(numbers: NDArray[np.int32], table: PatchTable) -> NDArray[np.int32]:
    """Return the piece under the middle of each patch, else the most frequent within it."""
    if not numbers.size:
        return np.zeros(table.patches, dtype=np.int32)
    scale, origin = float(table.thumbnail.downsample), table.thumbnail.origin_xy_l0
    boxes = positions_to_boxes_l0(table.positions, table.grid).astype(np.float64)
    low = (boxes[:, :2] - origin) / scale
    high = low + boxes[:, 2:] / scale
    most = np.array(numbers.shape[::-1]) - 1
    x, y = np.clip(((low + high) / 2).astype(np.int64), 0, most).T
    found = numbers[y, x]
    starts = np.clip(low.astype(np.int64), 0, most)
    ends = np.clip(np.ceil(high).astype(np.int64), starts + 1, most + 1)
    for patch in np.flatnonzero(found == 0).tolist():
        (x0, y0), (x1, y1) = starts[patch].tolist(), ends[patch].tolist()
        within = numbers[y0:y1, x0:x1]
        known = within[within > 0]
        found[patch] = np.bincount(known).argmax() if len(known) else REST
    return np.asarray(np.maximum(found, REST), dtype=np.int32)
