"""The one door to OpenSlide: every format that it opens."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.slides.base import (
    Box,
    Boxes,
    DeclaredScale,
    Level,
    UnsupportedKind,
    UserScale,
    check_size,
    composite_on_white,
    fingerprint_file,
    resolve_levels,
    resolve_mpp,
    show_reader,
)
from wsi_pipeline.slides.colour_profile import (
    Conversion,
    describe_profile,
    make_conversion,
)
from wsi_pipeline.slides.lost_tiles import LostTiles
from wsi_pipeline.slides.stated_scale import (
    describe_instead,
    read_description,
    read_magnification,
)
from wsi_pipeline.slides.tiff_pages import find_others, is_deep, list_pages
from wsi_pipeline.slides.tiff_structure import TiffPage

DEEP_LOOK_PX = 2048
"""Side of the part of a slide of 16 bits in which its brightest pixel is looked for."""
TWELVE_BITS = 16
"""The brightest value of 12 bits in 16, when these are reduced to 8."""
LATTICE_PX = 512
"""Side of the pieces in which levels of a broken downsample are read."""

CACHE_BYTES = 96 * 1024 * 1024
"""Decoded tiles that OpenSlide keeps for neighbours; its own 32 MB hold 130 tiles of 256 px."""

UNSUPPORTED = "not supported"
"""In the words of OpenSlide about a file that is whole, but of a kind that it does not read."""
OPENSLIDE_FAULTS = (openslide.OpenSlideError, OSError, ValueError)


def library_version() -> str:
    """Return the version of OpenSlide itself."""
    return str(openslide.__library_version__)


class OpenSlideReader:
    """A slide read by OpenSlide; safe to share between threads."""

    fallbacks = 0
    """Nothing stands behind OpenSlide that could read what it cannot."""

    __repr__ = show_reader

    def __init__(self, path: Path, slide_id: str, scale: UserScale | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle: openslide.OpenSlide | None = None
        handle = self._open()
        check_size(path, handle.dimensions)
        self._level_downsamples = handle.level_downsamples
        properties = handle.properties
        pages = list_pages(path)
        levels = _choose_levels(path, pages, properties, handle.level_dimensions)
        self.levels = tuple(
            level._replace(tile=_tile_size(properties, level.number)) for level in levels
        )
        mpp, mpp_source = resolve_mpp(path, _declared_scale(properties), scale)
        self._profile = _read_profile(handle)
        profile = describe_profile(self._profile)
        self._convert: Conversion | None = None
        self.info = SlideInfo(
            slide_id=slide_id,
            path=str(path),
            size_l0=handle.dimensions,
            mpp=mpp,
            mpp_source=mpp_source,
            level_downsamples=tuple(level.downsample for level in self.levels),
            bounds_l0=_bounds(properties, handle.dimensions),
            fingerprint=fingerprint_file(path, extra=properties.get("openslide.quickhash-1", "")),
            magnification=_float_or_none(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR),
            icc_name=profile and profile.name,
            icc_digest=profile and profile.digest,
        )
        if any(map(is_deep, pages)):
            self._refuse_few_bits()

    def _refuse_few_bits(self) -> None:
        """Raise SlideError where 16 bits hold 12 or fewer, which come out black."""
        level = self.levels[-1]
        width, height = (min(side, DEEP_LOOK_PX) for side in level.size)
        x, y = (level.size[0] - width) // 2, (level.size[1] - height) // 2
        if self.read(level, x, y, width, height).max() <= TWELVE_BITS:
            raise SlideError(
                f"{self._path}: its 16 bits hold 12 at most, so that it would be black; convert it"
                " to 8-bit RGB"
            )

    def use_srgb(self) -> None:
        """Give pixels in sRGB from now on, where the slide has a profile. Raises SlideError."""
        if self._profile:
            self._convert = make_conversion(self._path, self._profile)

    def to_wanted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return RGB (h, w, 3) of the file in the colours that are asked for."""
        return pixels if self._convert is None else self._convert(pixels)

    def is_whole(self, level: Level) -> bool:
        """Return whether OpenSlide reduces the level by a whole number, without blending pixels."""
        return float(self._level_downsamples[level.number]).is_integer()

    def read(
        self, level: Level, x: int, y: int, width: int, height: int, only: Boxes | None = None
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y) in the level's own pixels; white where absent.

        Raises SlideError where a tile is lost, too.
        """
        box = (x, y, width, height)
        parts = [box] if only is None else merge_boxes(only)
        self.lost_tiles.refuse(level, parts)
        read = self._try(level, box, lambda handle: self._read_with(handle, level, box, parts))
        return self.to_wanted(read)

    def read_rgba(self, level: Level, box: Box) -> NDArray[np.uint8]:
        """Return RGBA (height, width, 4) of a box of a level; alpha is 0 where pixels are absent.

        A lost tile is absent, too. Raises SlideError where pixels cannot be decoded.
        """
        downsample = self._level_downsamples[level.number]
        location = (round(box[0] * downsample), round(box[1] * downsample))
        return self._try(
            level,
            box,
            lambda handle: np.asarray(handle.read_region(location, level.number, box[2:])),
        )

    @cached_property
    def lost_tiles(self) -> LostTiles:
        """The tiles that the file has lost."""
        return LostTiles(self._path, self.info.vendor, self.levels)

    def _try(
        self, level: Level, box: Box, read: Callable[[openslide.OpenSlide], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Return what `read` makes of an open handle. Raises SlideError."""
        handle = self._open()
        try:
            return read(handle)
        except OPENSLIDE_FAULTS:
            # After one failed read a handle answers every read with that error (openslide#689), and
            # another thread's failure may have been the first: only a new handle shows whether
            # these pixels are at fault. The old one is not closed: another thread may be inside it.
            with self._lock:
                if self._handle is handle:
                    self._handle = None
        private = _open_handle(self._path)
        try:
            pixels = read(private)
        except OPENSLIDE_FAULTS as error:
            private.close()
            raise SlideError(
                f"{self._path}: level {level.number} at {box[0]},{box[1]}: cannot be decoded"
                f" ({error}); scan or copy it again"
            ) from error
        with self._lock:
            self._handle = self._handle or private
        return pixels

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def _read_with(
        self, handle: openslide.OpenSlide, level: Level, box: Box, parts: Sequence[Box]
    ) -> NDArray[np.uint8]:
        if not self.is_whole(level):
            return self._read_on_lattice(handle, level, box)
        downsample = round(self._level_downsamples[level.number])
        if list(parts) == [box]:
            return _read_region(handle, level, downsample, box)
        region = np.full((box[3], box[2], 3), 255, dtype=np.uint8)
        for x, y, width, height in parts:
            piece = _read_region(handle, level, downsample, (x, y, width, height))
            region[y - box[1] : y - box[1] + height, x - box[0] : x - box[0] + width] = piece
        return region

    def _read_on_lattice(
        self, handle: openslide.OpenSlide, level: Level, box: Box
    ) -> NDArray[np.uint8]:
        x, y, width, height = box
        # OpenSlide divides the level-0 location by a downsample such as 4.0021 and blends pixels by
        # what is left over. Reading whole squares of a fixed lattice makes that blend, of an eighth
        # of a pixel at most, the same in whatever piece a pixel is read.
        downsample, side = self._level_downsamples[level.number], LATTICE_PX
        x0, y0 = x // side * side, y // side * side
        rows, cols = range(0, y + height - y0, side), range(0, x + width - x0, side)
        region = np.empty((len(rows) * side, len(cols) * side, 3), np.uint8)
        for row in rows:
            for col in cols:
                square = _read_region(handle, level, downsample, (x0 + col, y0 + row, side, side))
                region[row : row + side, col : col + side] = square
        return region[y - y0 : y - y0 + height, x - x0 : x - x0 + width]

    def _open(self) -> openslide.OpenSlide:
        with self._lock:
            if self._handle is None:
                self._handle = _open_handle(self._path)
            return self._handle


def merge_boxes(boxes: Boxes) -> list[Box]:
    """Return few rectangles that cover the same pixels as boxes (n, 4: x, y, width, height).

    Neighbours in a row are joined, then equal rows. OpenSlide's time is proportional to pixels, so
    that no pixel beside the boxes may be read.
    """
    runs: list[Box] = []
    for x, y, width, height in sorted(map(tuple, boxes.tolist()), key=lambda box: (box[1], box[0])):
        left, top, reach, tall = runs[-1] if runs else (0, 0, 0, 0)
        if runs and (top, tall) == (y, height) and x <= left + reach:
            runs[-1] = (left, top, max(reach, x + width - left), tall)
        else:
            runs.append((x, y, width, height))
    joined: dict[tuple[int, int], Box] = {}
    done: list[Box] = []
    for left, top, reach, tall in runs:
        above = joined.pop((left, reach), None)
        if above is not None and top <= above[1] + above[3]:
            joined[left, reach] = (left, above[1], reach, top + tall - above[1])
            continue
        done += [above] if above is not None else []
        joined[left, reach] = (left, top, reach, tall)
    return done + list(joined.values())


def _read_region(
    handle: openslide.OpenSlide, level: Level, downsample: float, box: Box
) -> NDArray[np.uint8]:
    x, y, width, height = box
    location = (round(x * downsample), round(y * downsample))
    image = handle.read_region(location, level.number, (width, height))
    if image.getchannel("A").getextrema()[0] == 255:
        # Pillow packs the three colours nine times as fast as NumPy copies three bytes out of four.
        return np.frombuffer(image.tobytes("raw", "RGB"), dtype=np.uint8).reshape(height, width, 3)
    return composite_on_white(np.asarray(image))


def detect_vendor(path: Path) -> str | None:
    """Return OpenSlide's name for the file's format; None where it does not claim the file."""
    return openslide.OpenSlide.detect_format(path)


def recognises(path: Path) -> bool:
    """Return whether OpenSlide claims the file."""
    return detect_vendor(path) is not None


def _open_handle(path: Path) -> openslide.OpenSlide:
    try:
        handle = openslide.OpenSlide(path)
        handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        return handle
    except OPENSLIDE_FAULTS as error:
        kind = UnsupportedKind if UNSUPPORTED in str(error) else SlideError
        raise kind(
            f"{path}: OpenSlide cannot open it ({error}); copy it again or convert it to a"
            " pyramidal TIFF"
        ) from error


def _read_profile(handle: openslide.OpenSlide) -> bytes | None:
    """Return the bytes of the slide's colour profile, None where it has none."""
    # openslide-python's own property gives an opened profile, and raises for a broken one.
    try:
        content: bytes | None = openslide.lowlevel.read_icc_profile(handle._osr)
    except OPENSLIDE_FAULTS:
        return None
    return content or None


def _declared_scale(properties: Mapping[str, str]) -> DeclaredScale:
    from_tags = properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff"
    text = properties.get("tiff.ImageDescription", "")
    resolution = tuple(properties.get(f"tiff.{axis}Resolution", "") for axis in "XY")
    if from_tags and (stated := read_description(text, (resolution[0], resolution[1]))):
        return stated
    is_unitless = properties.get("tiff.ResolutionUnit") == "none"
    return DeclaredScale(
        source="TIFF tag" if from_tags else "property",
        mpp_x=properties.get(openslide.PROPERTY_NAME_MPP_X),
        mpp_y=properties.get(openslide.PROPERTY_NAME_MPP_Y),
        instead=describe_instead(
            _float_or_none(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
            or read_magnification(text),
            properties.get("aperio.MPP"),
            resolution[0] if is_unitless else "",
        ),
    )


def _choose_levels(
    path: Path,
    pages: Sequence[TiffPage],
    properties: Mapping[str, str],
    sizes: Sequence[tuple[int, int]],
) -> list[Level]:
    """Return the levels that are smaller pictures of level 0, finest first.

    Masks and scores, whose pixels are no 8-bit grey or colours, are passed over. Raises SlideError
    where a level shows something else.
    """
    others = find_others(path, pages, properties.get(openslide.PROPERTY_NAME_VENDOR), sizes)
    levels = resolve_levels(sizes)
    _refuse_other_shapes(path, sizes, {level.number for level in levels} | others)
    return [level for level in levels if level.number not in others]


def _refuse_other_shapes(
    path: Path, sizes: Sequence[tuple[int, int]], known: AbstractSet[int]
) -> None:
    """Raise SlideError where a level cannot be a smaller level 0."""
    for number in sorted(set(range(len(sizes))) - known):
        (width, height), (width_l0, height_l0) = sizes[number], sizes[0]
        raise SlideError(
            f"{path}: level {number} has {width} × {height} px, another shape than level 0"
            f" ({width_l0} × {height_l0}), so it shows something else; export or convert the slide"
            " again"
        )


def _tile_size(properties: Mapping[str, str], level: int) -> tuple[int, int] | None:
    name = f"openslide.level[{level}].tile-"
    sides = properties.get(name + "width", ""), properties.get(name + "height", "")
    if not all(side.isdigit() and int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _bounds(properties: Mapping[str, str], size_l0: tuple[int, int]) -> tuple[int, int, int, int]:
    names = (f"openslide.bounds-{name}" for name in ("x", "y", "width", "height"))
    try:
        x, y, width, height = (int(properties[name]) for name in names)
    except (KeyError, ValueError):
        return (0, 0, *size_l0)
    is_inside_x = 0 <= x < x + width <= size_l0[0]
    is_inside_y = 0 <= y < y + height <= size_l0[1]
    return (x, y, width, height) if is_inside_x and is_inside_y else (0, 0, *size_l0)


def _float_or_none(text: str | None) -> float | None:
    try:
        value = math.nan if text is None else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
