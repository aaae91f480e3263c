"""Checks of a slide file before a reader is let at it: kind of file, and whether a TIFF's data lie within the file."""

import logging
import stat
from pathlib import Path

import tifffile

from wsi_pipeline.errors import SlideError, machine_fault

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# tifffile reports damage through logging; what matters of it becomes a SlideError here, so nothing may reach stderr by itself.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def check_slide_file(path: Path) -> None:
    """Raise SlideError where the file cannot be a whole slide: absent, not regular, empty, or a TIFF cut short."""
    _check_regular(path)
    if _read_magic(path) in TIFF_MAGIC:
        _check_tiff_is_whole(path)


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


def _read_magic(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(4)
    except OSError as error:
        raise machine_fault(path, error) or SlideError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _check_tiff_is_whole(path: Path) -> None:
    try:
        with tifffile.TiffFile(path) as tiff:
            end_of_data = max((_end_of_page(page) for page in tiff.pages), default=0)
            size = tiff.filehandle.size
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
        raise SlideError(f"{path}: its TIFF structure is broken ({error}); copy it again or export it anew") from error
    if end_of_data > size:
        raise SlideError(f"{path}: truncated: image data end at byte {end_of_data} of a file of {size}; copy it again")


def _end_of_page(page: tifffile.TiffPage | tifffile.TiffFrame) -> int:
    pairs = zip(page.dataoffsets, page.databytecounts, strict=False)
    return max((offset + count for offset, count in pairs if count), default=0)
