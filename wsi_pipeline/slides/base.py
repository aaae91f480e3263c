"""The interface of slide readers, and facts about a slide that all readers share."""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import MAX_DENOMINATOR, MAX_MPP, MIN_MPP
from wsi_pipeline.core.slide import SlideInfo

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels of a level or view."""
Boxes = NDArray[np.int64]
"""Many of them, (n, 4)."""


class UnsupportedKind(SlideError):
    """A file that a reader knows, but of a kind that it cannot read; another one may."""


class Level(NamedTuple):
    """One level of a slide's pyramid."""

    number: int
    """As the file counts its levels."""
    size: tuple[int, int]
    """(width, height) in this level's own pixels."""
    downsample: Fraction
    """Level-0 pixels per pixel of this level."""
    tile: tuple[int, int] | None = None
    """(width, height) of the tiles in which the level is stored, where that is known."""


class SlideReader(Protocol):
    """An open slide."""

    info: SlideInfo

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first."""
        ...

    @property
    def fallbacks(self) -> int:
        """Reads of this thread that another reader had to do because of a fault."""
        ...

    def read(
        self, level: Level, x: int, y: int, width: int, height: int, only: Boxes | None = None
    ) -> NDArray[np.uint8]:
        """Return RGB (height, width, 3) at (x, y) in the level's own pixels; white where absent.

        Pixels outside all boxes of `only` need not be read. Raises SlideError.
        """
        ...

    def use_srgb(self) -> None:
        """Give pixels in sRGB from now on, by the slide's colour profile where it has one.

        Raises SlideError where the profile cannot be used.
        """
        ...

    def close(self) -> None: ...


def show_reader(reader: SlideReader) -> str:
    """Return an open slide as Python prints it."""
    (width, height), mpp = reader.info.size_l0, reader.info.mpp
    name = f"{type(reader).__name__}({reader.info.path}"
    return f"{name}: {width} × {height} px at {mpp:g} µm/px, {len(reader.levels)} levels)"


class DeclaredScale(NamedTuple):
    """The scale that a file states, as text."""

    source: str
    mpp_x: str | None
    mpp_y: str | None
    instead: str = ""
    """The words of the file in its place, as the end of a sentence."""


class UserScale(NamedTuple):
    """The scale that the user gives for a slide."""

    mpp: float
    """µm per level-0 pixel."""
    source: str = "user"
    """The place where it was given."""


MAX_ANISOTROPY = 0.05
"""Scales in x and y may differ by this much before the slide is refused."""


def resolve_mpp(path: Path, declared: DeclaredScale, scale: UserScale | None) -> tuple[float, str]:
    """Return the slide's µm per pixel and its source; the user's scale overrules the file's.

    Raises SlideError where no scale is given, or an impossible one.
    """
    if scale is not None:
        return _check_mpp(path, float(scale.mpp), scale.source), scale.source
    if declared.mpp_x is None or declared.mpp_y is None:
        raise SlideError(
            f"{path}: the file states no µm per pixel{declared.instead}; give it with --slide-mpp"
        )
    mpp_x, mpp_y = (
        _check_mpp(path, _parse_mpp(path, text), declared.source)
        for text in (declared.mpp_x, declared.mpp_y)
    )
    if abs(mpp_x - mpp_y) > MAX_ANISOTROPY * min(mpp_x, mpp_y):
        raise SlideError(
            f"{path}: {mpp_x:g} µm/px in x but {mpp_y:g} in y; give the true scale with --slide-mpp"
        )
    return (mpp_x if mpp_x == mpp_y else (mpp_x + mpp_y) / 2), declared.source


def _parse_mpp(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SlideError(
            f"{path}: µm per pixel is {text!r}, which is not a number; give it with --slide-mpp"
        ) from error


def _check_mpp(path: Path, mpp: float, source: str) -> float:
    if not (math.isfinite(mpp) and MIN_MPP <= mpp <= MAX_MPP):
        raise SlideError(
            f"{path}: {mpp:g} µm per pixel (from: {source}) is impossible for a slide, which has"
            f" {MIN_MPP:g} to {MAX_MPP:g}; give the true scale with --slide-mpp"
        )
    return mpp


MAX_SIDE_PX = 2_000_000
MAX_SLIDE_PX = 250_000_000_000
"""Pixels of a slide: six times the largest that scanners write. More would fill the memory."""


def check_size(path: Path, size: tuple[int, int]) -> None:
    """Raise SlideError where a slide of `size` (width, height) cannot be."""
    if not (1 <= min(size) <= max(size) <= MAX_SIDE_PX and math.prod(size) <= MAX_SLIDE_PX):
        raise SlideError(
            f"{path}: states a size of {size[0]} × {size[1]} px, which no slide has; copy or export"
            " it again"
        )


MAX_ASPECT_ERROR = 0.02
"""Levels whose width and height disagree more about the downsample show another image."""


def resolve_levels(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Return the usable levels, finest first, each with an exact downsample."""
    levels = [Level(0, sizes[0], Fraction(1))]
    for index, size in enumerate(sizes[1:], start=1):
        downsample = _resolve_downsample(sizes[0], size)
        if downsample is not None:
            levels.append(Level(index, size, downsample))
    return tuple(sorted(levels, key=lambda level: level.downsample))


def _resolve_downsample(size_l0: tuple[int, int], size: tuple[int, int]) -> Fraction | None:
    if min(size) < 1:
        return None
    ratio_x, ratio_y = size_l0[0] / size[0], size_l0[1] / size[1]
    whole = round((ratio_x * ratio_y) ** 0.5)
    if whole >= 1 and all(
        extent_l0 // whole <= extent <= -(-extent_l0 // whole)
        for extent_l0, extent in zip(size_l0, size, strict=True)
    ):
        return Fraction(whole)
    # A very small level is off by a pixel of rounding; only more means another image.
    allowed = MAX_ASPECT_ERROR + 1 / min(size)
    if abs(ratio_x - ratio_y) > allowed * min(ratio_x, ratio_y):
        return None
    return Fraction((ratio_x + ratio_y) / 2).limit_denominator(MAX_DENOMINATOR)


def choose_level(levels: Sequence[Level], downsample: Fraction) -> Level:
    """Return the coarsest level that is not coarser than `downsample`; the finest where all are."""
    finer = [level for level in levels if level.downsample <= downsample]
    return finer[-1] if finer else levels[0]


FINGERPRINT_WINDOWS = 18
FINGERPRINT_WINDOW_BYTES = 128 * 1024


def fingerprint_file(path: Path, extra: str = "") -> str:
    """Return a SHA-256 over a file's size, 18 windows of 128 KiB spread over it, and `extra`.

    This reads 2 MiB, whatever the size.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}:{extra}:".encode())
    last_start, last = max(0, size - FINGERPRINT_WINDOW_BYTES), FINGERPRINT_WINDOWS - 1
    with path.open("rb") as stream:
        for start in sorted({last_start * k // last for k in range(FINGERPRINT_WINDOWS)}):
            stream.seek(start)
            digest.update(stream.read(FINGERPRINT_WINDOW_BYTES))
    return digest.hexdigest()


def composite_on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGBA (h, w, 4) on white as RGB (h, w, 3): absent pixels are background."""
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    if int(alpha.min(initial=255)) == 255:
        return np.ascontiguousarray(rgb)
    weighted = rgb.astype(np.uint16) * alpha + np.uint16(255) * (255 - alpha)
    return ((weighted + 127) // 255).astype(np.uint8)


def tiles_touched(boxes: Boxes, tile: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the tiles, bool of `shape` (rows, cols), that any of the boxes (n, 4) touches.

    Tiles are (width, height) pixels, the first at (0, 0).
    """
    rows, cols = shape
    left, top = np.clip(boxes[:, 0] // tile[0], 0, cols), np.clip(boxes[:, 1] // tile[1], 0, rows)
    right = np.clip((boxes[:, 0] + boxes[:, 2] - 1) // tile[0] + 1, 0, cols)
    bottom = np.clip((boxes[:, 1] + boxes[:, 3] - 1) // tile[1] + 1, 0, rows)
    # Corners as steps of a sum over rows and columns: where the sum is positive, boxes lie.
    steps = np.zeros((rows + 1, cols + 1), dtype=np.int32)
    for corner in ((top, left), (bottom, right)):
        np.add.at(steps, corner, 1)
    for corner in ((top, right), (bottom, left)):
        np.add.at(steps, corner, -1)
    touched: NDArray[np.bool_] = steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    return touched


def is_within(inner: Box, outer: Box) -> bool:
    """Return whether a box lies within another."""
    return all(
        outer[axis] <= inner[axis]
        and inner[axis] + inner[axis + 2] <= outer[axis] + outer[axis + 2]
        for axis in (0, 1)
    )
