"""TIFF slides of codecs that OpenSlide lacks, WebP and JPEG XL, decoded by imagecodecs.

Levels are found as OpenSlide finds those of a TIFF without a vendor: the first tiled image, and the
tiled images behind it that are marked as reduced.
"""

from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.slides.base import (
    Boxes,
    Level,
    UserScale,
    fingerprint_file,
    resolve_levels,
    resolve_mpp,
    show_reader,
    tiles_touched,
)
from wsi_pipeline.slides.colour_profile import Conversion, describe_profile, make_conversion
from wsi_pipeline.slides.stated_scale import scale_of
from wsi_pipeline.slides.tiff_pages import REDUCED
from wsi_pipeline.slides.tiff_reader import TILES
from wsi_pipeline.slides.tiff_structure import (
    COMPRESSION,
    SUBFILE,
    BrokenTiff,
    TiffPage,
    read_facts,
    read_structure,
    starts_tiff,
)
from wsi_pipeline.slides.tiff_tiles import DECODER_FAULTS, LevelLayout, is_plain_rgb, lay_out

WEBP, JPEG_XL, JPEG_XL_DNG = 50001, 50002, 52546
"""Compression schemes, by TIFF's numbers."""
CODECS = frozenset({WEBP, JPEG_XL, JPEG_XL_DNG})


def recognises(path: Path) -> bool:
    """Return whether the file is a TIFF whose first tiled image has a codec that is read here."""
    if not starts_tiff(path):
        return False
    try:
        pages = _list_levels(path)
    except (BrokenTiff, OSError):
        return False
    return bool(pages) and pages[0].number(COMPRESSION, 1) in CODECS


def _list_levels(path: Path) -> list[TiffPage]:
    tiled = [page for page in read_structure(path).pages if page.is_tiled and not page.is_sub]
    return tiled[:1] + [page for page in tiled[1:] if page.number(SUBFILE, 0) & REDUCED]


class CodecReader:
    """A slide whose tiles imagecodecs alone decodes; safe to share between threads."""

    fallbacks = 0
    """Nothing else could read what cannot be decoded here."""

    __repr__ = show_reader

    def __init__(self, path: Path, slide_id: str, scale: UserScale | None = None) -> None:
        self._path = path
        self._key = object()
        self._convert: Conversion | None = None
        pages = _list_levels(path)
        size = path.stat().st_size
        found = [lay_out(page, size) for page in pages if _is_read_here(page)]
        layouts = [layout for layout in found if layout is not None]
        if not found or found[0] is None:
            raise SlideError(f"{path}: its tiles are no 8-bit RGB; convert it to 8-bit RGB")
        levels = resolve_levels([layout.size for layout in layouts])
        self._layouts = {level.number: layouts[level.number] for level in levels}
        self.levels = tuple(level._replace(tile=layouts[level.number].form[:2]) for level in levels)
        facts = read_facts(path, pages[0])
        self._profile = facts.profile
        profile = describe_profile(facts.profile)
        mpp, mpp_source = resolve_mpp(path, scale_of(facts), scale)
        width, height = layouts[0].size
        self.info = SlideInfo(
            slide_id=slide_id,
            path=str(path),
            size_l0=(width, height),
            mpp=mpp,
            mpp_source=mpp_source,
            level_downsamples=tuple(level.downsample for level in self.levels),
            bounds_l0=(0, 0, width, height),
            fingerprint=fingerprint_file(path),
            icc_name=profile and profile.name,
            icc_digest=profile and profile.digest,
        )

    def use_srgb(self) -> None:
        """Give pixels in sRGB from now on, where the slide has a profile. Raises SlideError."""
        if self._profile:
            self._convert = make_conversion(self._path, self._profile)

    def read(
        self, level: Level, x: int, y: int, width: int, height: int, only: Boxes | None = None
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y) in the level's own pixels; white where absent.

        Pixels under no box of `only` may be white. Raises SlideError.
        """
        layout = self._layouts[level.number]
        region = np.full((height, width, 3), 255, np.uint8)
        rows, cols = layout.tiles_under(x, y, width, height)
        side = (layout.form.width, layout.form.height)
        shape = (-(-layout.size[1] // side[1]), layout.across)
        wanted = np.ones(shape, np.bool_) if only is None else tiles_touched(only, side, shape)
        for row in rows:
            for col in cols:
                if wanted[row, col]:
                    self._place(level, row * layout.across + col, region, (x, y))
        return region

    def close(self) -> None:
        """Forget the decoded tiles; the file is open during a read only."""
        TILES.forget(self._key)

    def _place(
        self, level: Level, index: int, region: NDArray[np.uint8], corner: tuple[int, int]
    ) -> None:
        """Copy the part of a tile that lies in a region at (x, y), within the level."""
        layout, (x, y) = self._layouts[level.number], corner
        left, top = layout.corner(index)
        x0, y0 = max(x, left), max(y, top)
        x1 = min(x + region.shape[1], left + layout.form.width, layout.size[0])
        y1 = min(y + region.shape[0], top + layout.form.height, layout.size[1])
        part = self._tile(level, index)[y0 - top : y1 - top, x0 - left : x1 - left]
        region[y0 - y : y1 - y, x0 - x : x1 - x] = part

    def _tile(self, level: Level, index: int) -> NDArray[np.uint8]:
        key = (self._key, level.number, index)
        if (kept := TILES.get(key)) is not None:
            return kept
        layout = self._layouts[level.number]
        tile = np.full((layout.form.height, layout.form.width, 3), 255, np.uint8)
        if layout.counts[index]:
            self._decode(layout, index, tile)
        tile = tile if self._convert is None else self._convert(tile)
        TILES.put(key, tile)
        return tile

    def _decode(self, layout: LevelLayout, index: int, tile: NDArray[np.uint8]) -> None:
        """Fill a tile with its pixels; its size is fixed before anything is decoded."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(int(layout.offsets[index]))
                content = stream.read(int(layout.counts[index]))
            if layout.form.compression == WEBP:
                imagecodecs.webp_decode(content, hasalpha=False, out=tile)
            else:
                imagecodecs.jpegxl_decode(content, out=tile)
        except DECODER_FAULTS as error:
            x, y = layout.corner(index)
            raise SlideError(
                f"{self._path}: the tile at {x},{y} cannot be decoded ({error}); scan or copy it"
                " again"
            ) from error


def _is_read_here(page: TiffPage) -> bool:
    return page.number(COMPRESSION, 1) in CODECS and is_plain_rgb(page)
