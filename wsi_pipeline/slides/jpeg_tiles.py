"""JPEG tiles of TIFFs, decoded so that every complaint of libjpeg is a fault.

libjpeg goes on after corrupt data: a tile that was cut short comes out grey, with a warning, which
imagecodecs drops and OpenSlide takes for an error. simplejpeg raises on warnings.

Before it decodes, the stream is put together as OpenSlide understands it: quantisation and Huffman
tables that all tiles share come first, and the TIFF's own tag says what the components are, not
the markers of the stream.
"""

from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray

START, END = b"\xff\xd8", b"\xff\xd9"
"""Markers around every JPEG."""
COMPONENTS_ARE = b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00"
"""Adobe's segment, whose last byte says what the components are."""
IS_RGB, IS_YCBCR = b"\x00", b"\x01"

QUANTISATION, HUFFMAN, RESTART = 0xDB, 0xC4, 0xDD
SCAN_MARKER = b"\xff\xda"
FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive."""
JFIF, ADOBE, COMMENT = 0xE0, 0xEE, 0xFE
APPLICATIONS = range(0xE0, 0xF0)
COMPLAINTS = ("Corrupt JPEG data", "Premature end")
"""Beginnings of libjpeg's warnings of damaged data."""
LEAST = 8
"""Reduction at which an image is decoded to hear what libjpeg says of it."""
FRAME_COMPONENTS_AT = 9
"""Byte of a frame's segment that counts its components."""


def decode_jpeg(
    content: bytes,
    tables: bytes | None,
    is_ycbcr: bool,
    size: tuple[int, int],
    into: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return a tile of `size` (width, height), RGB (height, width, 3); `into` is such an array.

    Raises ValueError where libjpeg warns of anything, and where the stream is not three components
    of that size.
    """
    width, height = size
    pixels = np.empty((height, width, 3), dtype=np.uint8) if into is None else into
    stream = _begin(tables, is_ycbcr) + _strip_applications(content)
    decoded = simplejpeg.decode_jpeg(stream, strict=True, buffer=pixels)
    if decoded.shape != pixels.shape:
        raise ValueError(f"a JPEG of {decoded.shape[1]} × {decoded.shape[0]} px")
    return pixels


def find_complaint(content: bytes, tables: bytes | None = None) -> str | None:
    """Return what libjpeg says of damaged data in a JPEG of any kind; None: nothing.

    Nothing is known of kinds that cannot be read as grey. Tables that it shares may be given.
    """
    stream = content
    try:
        if tables is not None:
            stream = _begin(tables, True) + content[len(START) :]
        simplejpeg.decode_jpeg(stream, "GRAY", min_factor=LEAST, strict=True)
    except ValueError as error:
        return str(error) if str(error).startswith(COMPLAINTS) else None
    return None


def can_share(tables: bytes | None) -> bool:
    """Return whether the tables that the tiles share are nothing but tables."""
    try:
        _begin(tables, True)
    except ValueError:
        return False
    return True


@lru_cache(64)
def _begin(tables: bytes | None, is_ycbcr: bool) -> bytes:
    """Return the start of every tile's stream: what its components are, and the shared tables.

    OpenSlide forgets all other segments of shared tables before it reads a tile.
    """
    start = START + COMPONENTS_ARE + (IS_YCBCR if is_ycbcr else IS_RGB)
    if tables is None:
        return start
    kept, place = [start], len(START)
    while tables[place : place + 2] != END:
        marker, stop = _segment(tables, place)
        if marker in (QUANTISATION, HUFFMAN):
            kept.append(tables[place:stop])
        elif marker in APPLICATIONS or marker == COMMENT:
            _check_application(marker, tables[place + 4 : stop])
        else:
            raise ValueError(f"shared tables with a marker {marker:#x}")
        place = stop
    return b"".join(kept)


def _strip_applications(content: bytes) -> bytes:
    """Return a stream without its start and applications' segments.

    libjpeg would believe those of JFIF and Adobe about the components. Raises ValueError.
    """
    try:
        # As a rule the tiles of a slide begin alike: what comes before their scan is read once.
        place, kept = _read_known(content[: content.find(SCAN_MARKER) + len(SCAN_MARKER)])
    except ValueError:  # that is not their scan
        place, kept = _read_header(content)
    _segment(content, place)
    return kept + content[place:]


def _read_header(content: bytes) -> tuple[int, bytes]:
    """Return the place of the scan, and the segments before it without the applications'.

    Raises ValueError.
    """
    kept: list[bytes] = []
    place = len(START)
    while content[place : place + len(SCAN_MARKER)] != SCAN_MARKER:
        marker, stop = _segment(content, place)
        if marker in APPLICATIONS or marker == COMMENT:
            _check_application(marker, content[place + 4 : stop])
        elif marker in FRAMES and content[place:stop][FRAME_COMPONENTS_AT:][:1] != b"\3":
            raise ValueError("a JPEG of other components than three")
        elif marker not in (QUANTISATION, HUFFMAN, RESTART, *FRAMES):
            raise ValueError(f"a JPEG with a marker {marker:#x}")
        else:
            kept.append(content[place:stop])
        place = stop
    return place, b"".join(kept)


_read_known = lru_cache(64)(_read_header)


def _segment(content: bytes, place: int) -> tuple[int, int]:
    """Return the marker of the segment at `place`, and the place after it. Raises ValueError."""
    head = content[place : place + 4]
    stop = place + 2 + int.from_bytes(head[2:])
    if not content.startswith(START) or head[:1] != b"\xff" or not place + 4 <= stop < len(content):
        raise ValueError("no JPEG, or one that ends in its header")
    return head[1], stop


def _check_application(marker: int, content: bytes) -> None:
    """Raise ValueError for what libjpeg warns of: another JFIF than 1, other components."""
    if marker == JFIF and content[:5] == b"JFIF\0" and content[5:6] != b"\x01":
        raise ValueError("a JPEG of an unknown revision of JFIF")
    if marker == ADOBE and content[:5] == b"Adobe" and content[11:12] not in (IS_RGB, IS_YCBCR):
        raise ValueError("a JPEG of unknown components")
