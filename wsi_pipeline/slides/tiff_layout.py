"""Where the tiles of a TIFF's levels lie, for those levels that can be decoded here exactly as OpenSlide does.

Whatever a file says is held against its own size before it is believed: a hostile one costs no more than a look.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.slides.base import Level
from wsi_pipeline.slides.tile_codecs import TileFormat, can_decode

VENDORS = ("aperio", "generic-tiff")
"""Formats of OpenSlide whose levels are whole pages of the TIFF, tile beside tile, without overlap, shift or padding."""

MAX_TILE_PX = 4096
MAX_TILE_BYTES = 64 * 1024 * 1024
MAX_TILES = 16_000_000
MAX_PAGES = 1024

BROKEN_TIFF = (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, RuntimeError)


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
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in _first_pages(tiff) if page.is_tiled]
            size = tiff.filehandle.size
            found = {level.number: _layout_of(level, pages, size) for level in levels}
    except BROKEN_TIFF:
        return {}
    return {number: layout for number, layout in found.items() if layout is not None}


def _first_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    if len(tiff.pages) > MAX_PAGES:
        raise ValueError("too many pages")
    return [page.aspage() for page in tiff.pages]


def _layout_of(level: Level, pages: Sequence[tifffile.TiffPage], file_size: int) -> LevelLayout | None:
    """The layout of the one tiled page that has the level's size; None where there are several, or it cannot be decoded."""
    matching = [page for page in pages if (page.imagewidth, page.imagelength) == level.size]
    if len(matching) != 1 or not _is_plain_rgb(matching[0]):
        return None
    page = matching[0]
    form = TileFormat(
        width=page.tilewidth,
        height=page.tilelength,
        compression=int(page.compression),
        photometric=int(page.photometric),
        predictor=int(page.predictor),
        jpeg_tables=page.jpegtables,
    )
    across, down = -(-level.size[0] // form.width), -(-level.size[1] // form.height)
    if not can_decode(form) or across * down > MAX_TILES or len(page.dataoffsets) != across * down:
        return None
    layout = LevelLayout(form, level.size, across, np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64))
    return layout if _is_within(layout, file_size) else None


def _is_plain_rgb(page: tifffile.TiffPage) -> bool:
    """Whether pixels are three bytes side by side, upright, in tiles of a reasonable size."""
    orientation = page.tags.get("Orientation")
    return (
        page.samplesperpixel == 3
        and page.bitspersample == 8
        and int(page.sampleformat) == 1
        and int(page.planarconfig) == 1
        and int(page.fillorder) == 1
        and page.imagedepth == page.tiledepth == 1
        and (orientation is None or int(orientation.value) == 1)
        and 1 <= page.tilewidth <= MAX_TILE_PX
        and 1 <= page.tilelength <= MAX_TILE_PX
    )


def _is_within(layout: LevelLayout, file_size: int) -> bool:
    """Whether every tile that is there lies within the file and is no larger than any tile could be."""
    offsets, counts = layout.offsets[layout.counts != 0], layout.counts[layout.counts != 0]
    if len(layout.offsets) != len(layout.counts) or (counts < 0).any() or (counts > MAX_TILE_BYTES).any():
        return False
    return not ((offsets < 0) | (offsets > file_size - counts)).any()
