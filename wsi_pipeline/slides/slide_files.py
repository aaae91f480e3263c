"""Every file that belongs to one slide, with its size and time of change.

Most formats are one file. MIRAX, DICOM, OME-Zarr and VSI keep pixels in files beside the one by
which the slide is named.
"""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from wsi_pipeline.slides.checks import MIRAX_SUFFIX
from wsi_pipeline.slides.dicom_series import may_be_dicom, read_header
from wsi_pipeline.slides.tiff_structure import starts_tiff
from wsi_pipeline.slides.zarr_folder import find_image_file, list_files

ALONE = frozenset({".bmp", ".czi", ".isyntax", ".jpeg", ".jpg", ".png", ".svslide"})
"""Formats of one file, besides TIFF and the formats built on it."""
VSI_SUFFIX = ".vsi"

Stamp = tuple[int, int]
"""Size in bytes, and time of the last change in ns."""


class SlideFiles(NamedTuple):
    """The files of one slide."""

    folder: Path
    stamps: dict[str, Stamp]
    """Name below the folder → size and time of change; the slide's own file is first."""
    is_whole: bool
    """True where no file is missing and all are regular files: a copy of them is a slide, too."""

    @property
    def own(self) -> str:
        """Name of the slide's own file, the one that users name."""
        return next(iter(self.stamps))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.stamps.values())


def find_files(path: Path) -> SlideFiles:
    """Return the files of the slide whose own file is `path`. Raises OSError."""
    if find_image_file(path.parent) == path:
        folder = path.parent.parent
        return _stamp(folder, path, _list_below(path.parent), is_known=True)
    is_tiff = starts_tiff(path)
    others: Iterable[Path] = ()
    if path.suffix.lower() == MIRAX_SUFFIX and path.with_suffix("").is_dir():
        others = _list_below(path.with_suffix(""))
    elif path.suffix.lower() == VSI_SUFFIX:
        others = _list_below(path.with_name(f"_{path.stem}_"))
    elif not is_tiff and may_be_dicom(path) and (own := read_header(path)) is not None:
        others = [
            each
            for each in filter(may_be_dicom, path.parent.iterdir())
            if (header := read_header(each)) is not None and header.series == own.series
        ]
    elif not is_tiff and path.suffix.lower() not in ALONE:
        beside = path.parent.iterdir()
        others = [each for each in beside if each.name.startswith(path.stem) and each.is_file()]
        return _stamp(path.parent, path, others, is_known=False)
    return _stamp(path.parent, path, others, is_known=True)


def _list_below(folder: Path) -> list[Path]:
    return [folder / name for name, _ in list_files(folder)]


def _stamp(folder: Path, path: Path, others: Iterable[Path], is_known: bool) -> SlideFiles:
    """Return `path` and the other files with their stamps; `is_known`: no file is missing."""
    found = {each: each.stat() for each in dict.fromkeys([path, *sorted(others)])}
    stamps = {
        each.relative_to(folder).as_posix(): (status.st_size, status.st_mtime_ns)
        for each, status in found.items()
    }
    is_regular = all(stat.S_ISREG(status.st_mode) for status in found.values())
    return SlideFiles(folder, stamps, is_known and is_regular)
