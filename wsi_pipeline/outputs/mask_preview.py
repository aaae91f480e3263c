"""<slide>.mask.png: the slide in small, its patches in colour and all else pale, so that a mask can be judged at a glance."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import cells_to_boxes_l0
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.slides.image_io import to_png
from wsi_pipeline.store.files import write_file

MASK_SUFFIX = ".mask.png"
MAX_SIDE_PX = 1200
PALE = 0.45
"""Share of its own colour that is left of what is no patch."""
OUTLINE = (0, 120, 60)
FLAGGED = (230, 60, 0)
"""Patches that carry a flag are framed in this."""


def write_mask_preview(table: PatchTable, path: Path) -> None:
    """Draw which patches of a slide were taken, as an RGB picture of at most 1,200 px a side."""
    step = max(1, -(-max(table.thumbnail.pixels.shape[:2]) // MAX_SIDE_PX))
    picture = table.thumbnail.pixels[::step, ::step].astype(np.float32)
    scale = float(table.thumbnail.downsample) * step
    flagged = np.zeros(table.patches, dtype=np.bool_) if table.quality is None else table.quality.flags > 0
    taken = _cover(table, ~flagged, scale, picture.shape[:2])
    suspect = _cover(table, flagged, scale, picture.shape[:2])
    drawn = np.where((taken | suspect)[..., None], picture, 255 - (255 - picture) * PALE)
    drawn[_edge(taken | suspect)] = OUTLINE
    drawn[suspect] = 0.5 * drawn[suspect] + 0.5 * np.array(FLAGGED)
    write_file(path, to_png(drawn.astype(np.uint8)))


def _cover(table: PatchTable, members: NDArray[np.bool_], scale: float, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels of the preview that lie under patches."""
    boxes = cells_to_boxes_l0(table.cells[members], table.grid)
    x, y = table.thumbnail.origin_xy_l0
    low = np.floor((boxes[:, :2] - [x, y]) / scale).astype(np.int64)
    high = np.maximum(np.ceil((boxes[:, :2] + boxes[:, 2:] - [x, y]) / scale).astype(np.int64), low + 1)
    low, high = (np.clip(place, 0, [shape[1], shape[0]]) for place in (low, high))
    steps = np.zeros((shape[0] + 1, shape[1] + 1), dtype=np.int32)
    for rows, cols, step in ((low, low, 1), (high, high, 1), (low, high, -1), (high, low, -1)):
        np.add.at(steps, (rows[:, 1], cols[:, 0]), step)
    covered: NDArray[np.bool_] = steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    return covered


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost pixels of a mask."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner
