"""The one door to fastslide: slides that no other reader opens.

It reads Philips iSyntax, Olympus VSI, CZI in JPEG XR, OME-Zarr and QPTIFF. It gives a tile that was
cut short without an error, and waits for ever at some damaged files: damage cannot be seen by this
reader, and each read has a deadline.
"""

import hashlib
import importlib.metadata
import importlib.util
import logging
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.slides.base import (
    Box,
    Boxes,
    DeclaredScale,
    Level,
    UserScale,
    check_size,
    composite_on_white,
    fingerprint_file,
    resolve_levels,
    resolve_mpp,
    show_reader,
)
from wsi_pipeline.slides.colour_profile import Conversion, describe_profile, make_conversion
from wsi_pipeline.slides.openslide_reader import merge_boxes
from wsi_pipeline.slides.zarr_folder import SUFFIX, ZARR_2, find_image_file, list_files

LIBRARY = "fastslide"
SUFFIXES = frozenset({".czi", ".i2syntax", ".isyntax", ".qptiff", ".vsi"})
"""Of files that it is asked for; OME-Zarr is told by its folder."""
VSI = ".vsi"
"""The pixels of such a file are in a folder beside it."""
READ_S = 60.0
"""Seconds that one call may take; a read of a block takes less than one."""
CACHE_BYTES = 96 * 1024 * 1024
PROBE_PX = 256
FAULTS = (RuntimeError, ValueError, OSError, TypeError, IndexError, MemoryError)
"""Errors that its functions raise."""
T = TypeVar("T")
logger = logging.getLogger(__name__)


def recognises(path: Path) -> bool:
    """Return whether the file is of a kind that is left to fastslide, be it installed or not."""
    return path.suffix.lower() in SUFFIXES or find_image_file(path.parent) == path


class FastSlideReader:
    """A slide read by fastslide; safe to share between threads."""

    fallbacks = 0
    """Nothing stands behind it."""

    __repr__ = show_reader

    def __init__(self, path: Path, slide_id: str, scale: UserScale | None = None) -> None:
        self._path = path
        self._convert: Conversion | None = None
        self._hangs = False
        library = _import(path)
        place = path.parent if path.parent.suffix.lower() == SUFFIX else path
        open_file = library.FastSlide.from_file_path
        self._handle = handle = self._call(lambda: open_file(str(place), cache=CACHE_BYTES))
        size: tuple[int, int] = tuple(handle.dimensions)
        check_size(path, size)
        self.levels = resolve_levels([*map(tuple, handle.level_dimensions)])
        mpp, mpp_source = resolve_mpp(path, _declared_scale(handle), scale)
        self._profile: bytes | None = handle.icc_profile
        profile = describe_profile(self._profile)
        self.info = SlideInfo(
            slide_id=slide_id,
            path=str(path),
            size_l0=size,
            mpp=mpp,
            mpp_source=mpp_source,
            level_downsamples=tuple(level.downsample for level in self.levels),
            bounds_l0=_bounds(handle, size),
            fingerprint=fingerprint_file(path, extra=_describe_files(path)),
            magnification=float(handle.properties.get("objective_magnification") or 0) or None,
            vendor=str(handle.format),
            icc_name=profile and profile.name,
            icc_digest=profile and profile.digest,
            blind_reader=f"{LIBRARY} {importlib.metadata.version(LIBRARY)}",
        )
        self._probe()

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
        region = np.full((height, width, 3), 255, np.uint8)
        boxes = [(x, y, width, height)] if only is None else merge_boxes(only)
        for left, top, reach, tall in boxes:
            x0, y0 = max(x, left, 0), max(y, top, 0)
            x1 = min(x + width, left + reach, level.size[0])
            y1 = min(y + height, top + tall, level.size[1])
            if x0 < x1 and y0 < y1:
                part = self._read_inside(level, (x0, y0, x1 - x0, y1 - y0))
                region[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return region if self._convert is None else self._convert(region)

    def read_rgba(self, level: Level, box: Box) -> NDArray[np.uint8]:
        """Return RGBA (height, width, 4) of a box of a level; absent pixels are white, not clear.

        Raises SlideError.
        """
        return np.dstack([self.read(level, *box), np.full((box[3], box[2]), 255, np.uint8)])

    def close(self) -> None:
        """Forget the decoded tiles; a read that hangs may still hold the file."""
        if not self._hangs:
            self._handle.clear_cache()

    def _probe(self) -> None:
        """Raise SlideError where pixels are not 8-bit RGB, or differ by the piece they are read in.

        One place of each level is looked at.
        """
        for level in self.levels:
            width, height = (min(PROBE_PX, side) for side in level.size)
            x, y = (level.size[0] - width) // 2, (level.size[1] - height) // 2
            whole = self._read_inside(level, (x, y, width, height))
            half = width // 2
            pieces = [(x, half), (x + half, width - half)] if half else [(x, width)]
            parts = [self._read_inside(level, (left, y, wide, height)) for left, wide in pieces]
            if not np.array_equal(np.hstack(parts), whole):
                raise SlideError(
                    f"{self._path}: level {level.number} has other pixels in parts than in one"
                    " piece; convert it to a pyramidal TIFF"
                )

    def _read_inside(self, level: Level, box: Box) -> NDArray[np.uint8]:
        """Return RGB of a box that lies within a level. Raises SlideError."""
        x, y, width, height = box

        def read() -> NDArray[Any]:
            image = self._handle.read_region((x, y), level.number, (width, height))
            pixels: NDArray[Any] = np.array(image.to_interleaved().numpy())
            return pixels

        pixels = self._call(read, f"level {level.number} at {x},{y}: ")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            channels = pixels.shape[2] if pixels.ndim == 3 else 1
            raise SlideError(
                f"{self._path}: pixels of {channels} × {pixels.dtype} are not 8-bit RGB; only"
                " brightfield slides can be read"
            )
        if pixels.shape[:2] != (height, width):
            raise SlideError(
                f"{self._path}: level {level.number} at {x},{y}: gave"
                f" {pixels.shape[1]} × {pixels.shape[0]} of {width} × {height} px; copy or export"
                " it again"
            )
        return pixels if pixels.shape[2] == 3 else composite_on_white(pixels)

    def _call(self, function: Callable[[], T], where: str = "") -> T:
        """Return what a function of fastslide gives within the deadline. Raises SlideError."""
        if self._hangs:
            raise SlideError(f"{self._path}: {where}an earlier read hangs; copy or export it again")
        try:
            return _call_in_time(function, READ_S)
        except TimeoutError as error:
            self._hangs = True
            raise SlideError(
                f"{self._path}: {where}fastslide gave nothing within {READ_S:g} s; copy or export"
                " it again"
            ) from error
        except FAULTS as error:
            reason = str(error).partition("\n")[0]
            raise SlideError(
                f"{self._path}: {where}fastslide cannot read it ({reason}); copy or export it again"
            ) from error


def warn_of_unseen_damage(notes: Iterable[str | None]) -> None:
    """Say how many slides of a run were read without a look for damage, by their notes."""
    for note, number in sorted(Counter(filter(None, notes)).items()):
        slides = "slide was" if number == 1 else "slides were"
        logger.warning("%d %s read by %s", number, slides, note)


def _call_in_time(function: Callable[[], T], seconds: float) -> T:
    """Return what a function gives. Raises TimeoutError where it goes on longer."""
    answers: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(function())
        except BaseException as error:  # noqa: BLE001 – raised again in the thread that asked
            faults.append(error)

    thread = threading.Thread(target=run, name=LIBRARY, daemon=True)
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    if not answers:
        raise TimeoutError
    return answers[0]


def _import(path: Path) -> Any:
    """Return the library. Raises SlideError where it is not there, or not for this kind."""
    if path.name == ZARR_2[0]:
        raise SlideError(
            f"{path.parent}: OME-Zarr of Zarr 2 (0.4 and before) cannot be read; convert it to"
            " OME-Zarr 0.5"
        )
    if importlib.util.find_spec(LIBRARY) is None:
        raise SlideError(
            f"{path}: only fastslide reads this kind, and it is not installed; pip install"
            " 'wsi-pipeline[formats]' (Python 3.11 on Linux), or convert it"
        )
    import fastslide

    return fastslide


def _declared_scale(handle: Any) -> DeclaredScale:
    """Return the scale of a slide; 0 is none."""
    x, y = (f"{mpp:g}" if mpp else None for mpp in handle.mpp)
    return DeclaredScale("property", x, y)


def _bounds(handle: Any, size: tuple[int, int]) -> Box:
    (x, y), (width, height) = handle.bounds
    is_inside = 0 <= x < x + width <= size[0] and 0 <= y < y + height <= size[1]
    return (x, y, width, height) if is_inside else (0, 0, *size)


def _describe_files(path: Path) -> str:
    """Return a digest of names and sizes of the files that hold the pixels of a slide's file.

    "" where it holds them itself. Raises SlideError where one is not a regular file.
    """
    is_zarr = find_image_file(path.parent) == path
    folder = path.parent if is_zarr else path.with_name(f"_{path.stem}_")
    if not is_zarr and path.suffix.lower() != VSI:
        return ""
    digest = hashlib.sha256()
    for name, status in list_files(folder):
        if not stat.S_ISREG(status.st_mode):
            raise SlideError(f"{path}: {folder.name}/{name} is not a regular file; move it away")
        digest.update(f"{name}\0{status.st_size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()
