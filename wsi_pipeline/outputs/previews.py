"""<slide>.mask.png: the slide's thumbnail with its patches in colour and all else pale.

What was taken for ink, border, fill, or is uncertain, has a colour; tissue has an outline.

<slide>.labels.png: labelled patches over the slide's thumbnail, with counts per class and mm².
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import AREAS
from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs.canvas import (
    Key,
    compose,
    cover,
    find_scale_bar,
    show_thumbnail,
)
from wsi_pipeline.outputs.map_image import frame_slide, place_on_image
from wsi_pipeline.slides.base import tiles_touched
from wsi_pipeline.slides.images import pack_png
from wsi_pipeline.store.files import write_file

MAX_SIDE_PX = 1200
PALE = 0.45
"""Share of its own colour that remains outside patches."""
OUTLINE = (0, 120, 60)
FLAGGED = (230, 60, 0)
"""Patches that carry a flag are framed in this."""
AREA_COLORS = {
    "pen": (150, 70, 220),
    "border": (110, 110, 110),
    "fill": (110, 110, 110),
    "uncertain": (245, 190, 0),
}
HATCH_PX = 12
TISSUE_OUTLINE = (0, 150, 210)
COLORS = ((187, 187, 187), (44, 127, 184), (217, 95, 14))
"""Unknown, negative, positive: distinct with every kind of colour blindness."""
OPACITY = 128
"""Of labels over the slide, of 255."""


def write_mask_preview(table: PatchTable, path: Path) -> None:
    """Write an RGB image of at most 1,200 px a side that shows the patches of a slide."""
    from scipy.ndimage import binary_erosion

    step = max(1, -(-max(table.thumbnail.pixels.shape[:2]) // MAX_SIDE_PX))
    image = table.thumbnail.pixels[::step, ::step].astype(np.float32)
    scale = float(table.thumbnail.downsample) * step
    flagged = np.zeros(table.patches, dtype=np.bool_)
    if table.quality is not None:
        flagged = table.quality.flags > 0
    taken = _cover(table, ~flagged, scale, image.shape[:2])
    suspect = _cover(table, flagged, scale, image.shape[:2])
    covered = taken | suspect
    drawn = np.where(covered[..., None], image, 255 - (255 - image) * PALE)
    if table.areas is not None:
        _color_areas(drawn, table.areas[::step, ::step], covered)
    drawn[covered & ~binary_erosion(covered, border_value=1)] = OUTLINE
    drawn[suspect] = 0.5 * drawn[suspect] + 0.5 * np.array(FLAGGED)
    write_file(path, pack_png(drawn.astype(np.uint8)))


def _color_areas(
    drawn: NDArray[np.float32], areas: NDArray[np.uint8], covered: NDArray[np.bool_]
) -> None:
    """Draw what the picture's pixels were taken for, where no patch lies."""
    from scipy.ndimage import binary_erosion

    y, x = np.ogrid[: areas.shape[0], : areas.shape[1]]
    for name, color in AREA_COLORS.items():
        where = (areas == AREAS.index(name)) & ~covered
        if name == "fill":  # hatched: it has no colour of its own
            where &= (x + y) % HATCH_PX == 0
        drawn[where] = 0.5 * drawn[where] + 0.5 * np.array(color)
    tissue = areas == AREAS.index("tissue")
    drawn[tissue & ~binary_erosion(tissue, border_value=1)] = TISSUE_OUTLINE


def _cover(
    table: PatchTable, members: NDArray[np.bool_], scale: float, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Return pixels of the preview that lie under patches."""
    boxes = positions_to_boxes_l0(table.positions[members], table.grid)
    corner = boxes[:, :2] - table.thumbnail.origin_xy_l0
    low = np.floor(corner / scale).astype(np.int64)
    high = np.maximum(np.ceil((corner + boxes[:, 2:]) / scale).astype(np.int64), low + 1)
    return tiles_touched(np.concatenate([low, high - low], axis=1), (1, 1), (shape[0], shape[1]))


def write_label_preview(table: PatchTable, path: Path) -> None:
    """Write an image of every patch of a store in the colour of its label."""
    numbers = np.zeros((table.grid.rows, table.grid.cols), dtype=np.uint8)
    numbers[table.positions[:, 0], table.positions[:, 1]] = table.labels + 2
    frame = frame_slide(table)
    picture, placed = show_thumbnail(table, frame), place_on_image(numbers, table.grid, frame)
    cover(picture, placed, np.array(COLORS, dtype=np.uint8), OPACITY)
    classes = zip(range(-1, 2), ("unknown", *table.class_names), COLORS, strict=True)
    keys = [Key(color, _describe(table, label, name)) for label, name, color in classes]
    scale = find_scale_bar(frame, table.slide.mpp)
    drawn = compose([table.slide.slide_id], picture, scale, keys=keys)
    write_file(path, pack_png(np.asarray(drawn)))


def _describe(table: PatchTable, label: int, name: str) -> str:
    count = int(np.count_nonzero(table.labels == label))
    return f"{name}: {count} patches, {count * table.grid.patch_area_mm2:.2f} mm²"
