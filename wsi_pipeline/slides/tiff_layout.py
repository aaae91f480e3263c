"""Where the tiles of a TIFF's levels lie, for those levels that can be decoded here exactly as OpenSlide does.

Whatever a file says is held against its own size before it is believed: a hostile one costs no more
than a look.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.slides.base import Level
from wsi_pipeline.slides.tiff_structure import (
    BITS,
    COMPRESSION,
    FILL_ORDER,
    IMAGE_DEPTH,
    ORIENTATION,
    PHOTOMETRIC,
    PLANES,
    PREDICTOR,
    SAMPLE_FORMAT,
    SAMPLES,
    TILE_DEPTH,
    BrokenTiff,
    TiffPage,
    read_structure,
)
from wsi_pipeline.slides.tile_codecs import TileFormat, can_decode

VENDORS = ("aperio", "generic-tiff")
"""Formats of OpenSlide whose levels are whole pages of the TIFF, tile beside tile, without overlap, shift or padding."""

MAX_TILE_PX = 4096
MAX_TILE_BYTES = 64 * 1024 * 1024


class LevelLayout(NamedTuple):
    """Where the tiles of one level lie."""

    form: TileFormat
    size: tuple[int, int]
    """(width, height) of the level."""
    across: int
    """Tiles in a row."""
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    """Bytes of each tile; 0 where the tile is missing."""

    def corner(self, index: int) -> tuple[int, int]:
        """(x, y) of a tile on its level."""
        row, col = divmod(index, self.across)
        return col * self.form.width, row * self.form.height

    def tiles_under(self, x: int, y: int, width: int, height: int) -> tuple[range, range]:
        """Rows and columns of the tiles that a region of the level touches, within the level."""
        x_stop, y_stop = min(x + width, self.size[0]), min(y + height, self.size[1])
        rows = range(max(y, 0) // self.form.height, -(-y_stop // self.form.height))
        cols = range(max(x, 0) // self.form.width, -(-x_stop // self.form.width))
        return rows, cols


def find_layouts(path: Path, levels: Sequence[Level]) -> dict[int, LevelLayout]:
    """Level number → layout, for the levels that can be read directly; empty where none can, or the file is no TIFF."""
    try:
        structure = read_structure(path)
    except (BrokenTiff, OSError):
        return {}
    pages = [page for page in structure.pages if page.is_tiled and not page.is_sub]
    found = {level.number: _layout_of(level, pages, structure.file_size) for level in levels}
    return {number: layout for number, layout in found.items() if layout is not None}


def _layout_of(level: Level, pages: Sequence[TiffPage], file_size: int) -> LevelLayout | None:
    """The layout of the one tiled page that has the level's size; None where there are several, or it cannot be decoded."""
    matching = [page for page in pages if page.size == level.size]
    if len(matching) != 1 or not _is_plain_rgb(matching[0]):
        return None
    page = matching[0]
    form = TileFormat(
        width=page.tile[0],
        height=page.tile[1],
        compression=page.number(COMPRESSION, 1),
        photometric=page.number(PHOTOMETRIC, -1),
        predictor=page.number(PREDICTOR, 1),
        jpeg_tables=page.jpeg_tables,
    )
    across, down = -(-level.size[0] // form.width), -(-level.size[1] // form.height)
    if not can_decode(form) or len(page.offsets) != across * down:
        return None
    layout = LevelLayout(form, level.size, across, page.offsets, page.counts)
    return layout if _is_within(layout, file_size) else None


def _is_plain_rgb(page: TiffPage) -> bool:
    """Whether pixels are three bytes side by side, upright, in tiles of a reasonable size."""
    return (
        page.numbers.get(SAMPLES) == (3,)
        and set(page.numbers.get(BITS, (1,))) == {8}
        and set(page.numbers.get(SAMPLE_FORMAT, (1,))) == {1}
        and all(
            page.number(tag, 1) == 1
            for tag in (PLANES, FILL_ORDER, ORIENTATION, IMAGE_DEPTH, TILE_DEPTH)
        )
        and all(1 <= side <= MAX_TILE_PX for side in page.tile)
    )


def _is_within(layout: LevelLayout, file_size: int) -> bool:
    """Whether every tile that is there lies within the file and is no larger than any tile could be."""
    offsets, counts = layout.offsets[layout.counts != 0], layout.counts[layout.counts != 0]
    if (
        len(layout.offsets) != len(layout.counts)
        or (counts < 0).any()
        or (counts > MAX_TILE_BYTES).any()
    ):
        return False
    return not ((offsets < 0) | (offsets > file_size - counts)).any()
