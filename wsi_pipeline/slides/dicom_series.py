"""DICOM series: which files are one slide, from their headers, without a DICOM library.

A slide in DICOM is a series of files, one for each level, label and overview (DICOM PS3.3, VL Whole
Slide Microscopy). OpenSlide opens the whole series by any of them. Headers are in explicit VR,
little endian, as the standard demands of these files; of others nothing is known.
"""

import struct
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 256 * 1024
"""Of a file; what is needed stands in front of its largest tables."""
PREAMBLE, MAGIC = 128, b"DICM"
SUFFIXES = frozenset({"", ".dcm", ".dicom"})
"""Of DICOM files; parts of a UID are digits."""
LOOKED_AT = 4
"""Files of a folder that are looked at, to know whether it holds a series."""
IMAGE_TYPE, SERIES, COLUMNS = (0x0008, 0x0008), (0x0020, 0x000E), (0x0048, 0x0006)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT")
UNDEFINED = 0xFFFFFFFF
MAX_NESTING = 16


class DicomFile(NamedTuple):
    """A DICOM file's place in its series, by its header."""

    series: str
    """The series' unique identifier."""
    is_level: bool
    """It is a level of the slide, and no label, overview or thumbnail."""
    columns: int
    """Width of its whole image in pixels."""


def may_be_dicom(path: Path) -> bool:
    """Return whether a file has the name of a DICOM file."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or suffix[1:].isdigit()


def read_header(path: Path) -> DicomFile | None:
    """Return what a DICOM file says of its series; None where it is none, or cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as stream:
            content = stream.read(HEAD_BYTES)
    except OSError:
        return None
    if content[PREAMBLE : PREAMBLE + 4] != MAGIC:
        return None
    values = _read_values(content)
    if (series := _text(values.get(SERIES, b""))) == "":
        return None
    columns = values.get(COLUMNS, b"")
    is_level = "VOLUME" in _text(values.get(IMAGE_TYPE, b"")).split("\\")
    return DicomFile(series, is_level, int.from_bytes(columns, "little"))


def _text(value: bytes) -> str:
    return value.decode("ascii", errors="replace").strip("\0 ")


def _read_values(content: bytes) -> dict[tuple[int, int], bytes]:
    """Return the values of a header's outer elements, as far as they can be followed."""
    values: dict[tuple[int, int], bytes] = {}
    place, latest = PREAMBLE + len(MAGIC), (0, 0)
    try:
        while latest <= COLUMNS:
            tag, start, stop = _next(content, place, 0)
            values[tag] = content[start:stop]
            latest = max(latest, tag)
            place = stop
    except (struct.error, ValueError):
        pass  # the end of what was read, or no DICOM
    return values


def _next(content: bytes, place: int, nesting: int) -> tuple[tuple[int, int], int, int]:
    """Return an element's tag and where its value begins and ends.

    Raises ValueError or struct.error where it goes beyond the content or is none.
    """
    group, number, kind, short = struct.unpack_from("<HH2sH", content, place)
    tag, start, length = (group, number), place + 8, short
    if tag in (ITEM, ITEM_END, SEQUENCE_END):
        length = int.from_bytes(kind + struct.pack("<H", short), "little")
    elif kind in LONG_KINDS:
        (length,) = struct.unpack_from("<I", content, place + 8)
        start = place + 12
    elif not kind.isalpha():
        raise ValueError("no explicit VR")
    if length != UNDEFINED:
        return tag, start, start + length
    if nesting > MAX_NESTING:
        raise ValueError("nests too deep")
    end = ITEM_END if tag == ITEM else SEQUENCE_END
    inner, stop = tag, start
    while inner != end:
        inner, _, stop = _next(content, stop, nesting + 1)
    return tag, start, stop


def holds_series(folder: Path) -> bool:
    """Return whether a folder directly holds DICOM files, by the first of them."""
    try:
        visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return False
    return any(read_header(path) for path in list(filter(may_be_dicom, visible))[:LOOKED_AT])


def merge_series(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the files, one of each series, by path, and under which path each is named.

    Of a series the widest level is taken, and named as its folder where it is the only one there.
    """
    headers = {
        path: header for path in filter(may_be_dicom, paths) if (header := read_header(path))
    }
    series: defaultdict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path, header in headers.items():
        series[path.parent, header.series].append(path)
    folders = [folder for folder, _ in series]
    chosen: dict[Path, Path] = {}
    left_out: set[Path] = set()
    for (folder, _), files in series.items():
        best = max(files, key=lambda path: (headers[path].is_level, headers[path].columns))
        is_only = len(files) > 1 and folders.count(folder) == 1
        own = folder.absolute()
        chosen[best] = own.with_name(f"{own.name}.dcm") if is_only and own.name else best
        left_out |= {*files} - {best}
    return {path: chosen.get(path, path) for path in paths if path not in left_out}
