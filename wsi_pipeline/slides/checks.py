"""Checks of a slide file before a reader opens it: kind of file, and header of a TIFF."""

import os
import stat
from pathlib import Path

import numpy as np

from wsi_pipeline.core.errors import SlideError, machine_fault
from wsi_pipeline.slides.base import check_size
from wsi_pipeline.slides.tiff_pages import describe_other
from wsi_pipeline.slides.tiff_structure import (
    IMPOSSIBLE,
    MAX_TILES,
    PLANES,
    SAMPLES,
    TIFF_MAGIC,
    BrokenTiff,
    TiffPage,
    read_structure,
)

MAX_TILE_PX = 8192
"""Side of a tile: 8,192² px take 268 MB when decoded; scanners write 240 to 2,048."""
MAX_TILE_BYTES = 256 * 1024 * 1024
EXPORT_AGAIN = "copy or export it again"

DICOM_PREAMBLE, DICOM_MAGIC = 128, b"DICM"
MIRAX_SUFFIX = ".mrxs"


def check_slide_file(path: Path) -> None:
    """Raise SlideError where the file cannot be a whole slide.

    It is absent, not regular, empty, or a TIFF that is cut short or has a false header. Takes
    milliseconds and no more memory than a TIFF's table of tiles, whatever the file states.
    """
    _check_regular(path)
    if _read_bytes(path, 4) not in TIFF_MAGIC:
        _check_neighbours(path)
        return
    try:
        structure = read_structure(path)
        for page in structure.pages:
            _check_within(page, structure.file_size)
        # Labels and macro images, in strips, are never decoded.
        tiled = [page for page in structure.pages if page.is_tiled]
        for page in tiled or structure.pages[:1]:
            check_size(path, page.size)
            if page.is_tiled:
                _check_tiles(page)
        # Of the others, OpenSlideReader knows which are levels.
        in_row = [page for page in tiled if not page.is_sub]
        for page in (in_row or structure.pages)[:1]:
            _check_kind(page)
    except BrokenTiff as error:
        raise SlideError(f"{path}: {error}") from error
    except OSError as error:
        raise SlideError(
            f"{path}: cannot be read ({error.strerror}); check the drive, or copy it again"
        ) from error


def _check_regular(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SlideError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise machine_fault(path, error) or SlideError(
            f"{path}: cannot be examined ({error.strerror}); check permissions and links"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise SlideError(f"{path}: not a regular file; name the slide file itself")
    if status.st_size == 0:
        raise SlideError(f"{path}: the file is empty; copy it again")


def _check_neighbours(path: Path) -> None:
    """Refuse pipes beside this file, or in its folder: a reader would wait for them without end."""
    if _read_bytes(path, 4, DICOM_PREAMBLE) == DICOM_MAGIC:
        folder = path.parent
    elif path.suffix.lower() == MIRAX_SUFFIX and path.with_suffix("").is_dir():
        folder = path.with_suffix("")
    else:
        return
    with os.scandir(folder) as entries:
        others = [entry for entry in entries if not (entry.is_file() or entry.is_dir())]
    if odd := sorted(entry.name for entry in others if Path(entry).exists()):
        raise SlideError(
            f"{path}: {folder.name}/{odd[0]}, which belongs to its files, is not a regular file;"
            " move it away"
        )


def _read_bytes(path: Path, count: int, offset: int = 0) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(count)
    except OSError as error:
        raise machine_fault(path, error) or SlideError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error


def _check_within(page: TiffPage, file_size: int) -> None:
    """Require that every tile and strip of an image lies within the file."""
    if not len(page.counts):
        return
    offsets, counts = page.offsets[page.counts != 0], page.counts[page.counts != 0]
    if (counts < 0).any() or ((counts > MAX_TILE_BYTES).any() and page.is_tiled):
        raise BrokenTiff(f"a tile claims {int(counts.max()):,} bytes, {IMPOSSIBLE}")
    if (offsets < 0).any():
        raise BrokenTiff(f"truncated: a tile claims to lie beyond byte 2⁶³; {EXPORT_AGAIN}")
    beyond = offsets > file_size - counts
    if beyond.any():
        last = int(np.argmax(np.where(beyond, offsets, 0)))
        end = f"byte {int(offsets[last]) + int(counts[last])} of a file of {file_size}"
        raise BrokenTiff(f"truncated: image data end at {end}; copy it again")


def _check_kind(page: TiffPage) -> None:
    """Require 8-bit grey or colours."""
    if (what := describe_other(page)) is not None:
        raise BrokenTiff(f"pixels {what} are not 8-bit grey or RGB; convert it to 8-bit RGB")


def _check_tiles(page: TiffPage) -> None:
    """Require a tile of possible size for every part of the image."""
    (width, height), (tile_width, tile_height) = page.size, page.tile
    if not 1 <= min(page.tile) <= max(page.tile) <= MAX_TILE_PX:
        raise BrokenTiff(
            f"tiles of {tile_width} × {tile_height} px are impossible (1 to {MAX_TILE_PX}); export"
            " it again"
        )
    planes = page.number(SAMPLES, 1) if page.number(PLANES, 1) == 2 else 1
    needed = -(-width // tile_width) * -(-height // tile_height) * planes
    if needed > MAX_TILES or len(page.offsets) < needed:
        raise BrokenTiff(
            f"states {width} × {height} px but lists {len(page.offsets):,} of {needed:,} tiles;"
            f" {EXPORT_AGAIN}"
        )
    if not len(page.counts):
        raise BrokenTiff("does not state the lengths of its tiles; export it again")
