"""Zeiss CZI files made by hand, uncompressed or in JPEG XR, as the format's description has them.

OpenSlide reads the first and refuses the second.
"""

import struct
from pathlib import Path

import imagecodecs
import numpy as np

UNCOMPRESSED, JPEG_XR = 0, 4
BGR24 = 3
SUBBLOCK = b"ZISRAWSUBBLOCK"
METADATA = """<?xml version="1.0"?><ImageDocument><Metadata><Information><Image>
<SizeX>{width}</SizeX><SizeY>{height}</SizeY><SizeC>1</SizeC><SizeM>{tiles}</SizeM>
<PixelType>Bgr24</PixelType><Dimensions><Channels><Channel Id="Channel:0"><PixelType>Bgr24
</PixelType></Channel></Channels></Dimensions></Image></Information><Scaling><Items>
<Distance Id="X"><Value>{metre}</Value></Distance><Distance Id="Y"><Value>{metre}</Value></Distance>
</Items></Scaling></Metadata></ImageDocument>"""


def write_czi(
    path: Path,
    pixels: np.ndarray,
    mpp: float = 0.5,
    *,
    compression: int = JPEG_XR,
    tile: int = 128,
    left_out: int | None = None,
) -> Path:
    """Write RGB (h, w, 3) and a level of every second pixel; one tile of level 0 may be left out.

    `mpp` 0 states no scale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytearray(_segment(b"ZISRAWFILE", bytes(512)))
    entries: list[bytes] = []
    for down, level in ((1, pixels), (2, pixels[::2, ::2])):
        for y in range(0, level.shape[0], tile):
            for x in range(0, level.shape[1], tile):
                part = np.ascontiguousarray(level[y : y + tile, x : x + tile])
                place = (x * down, y * down, part.shape[1], part.shape[0])
                number = len(entries)
                entry = _describe(len(content), place, down, number, compression)
                is_left_out = number == left_out
                entries.append(b"" if is_left_out else entry)
                content += b"" if is_left_out else _subblock(entry, part, compression)
    kept = list(filter(None, entries))
    places = {}
    head = struct.pack("<i", len(kept)).ljust(128, b"\0")
    text = METADATA.format(
        width=pixels.shape[1], height=pixels.shape[0], tiles=len(kept), metre=mpp * 1e-6
    ).encode()
    for name, body in {
        b"ZISRAWDIRECTORY": head + b"".join(kept),
        b"ZISRAWMETADATA": struct.pack("<ii", len(text), 0).ljust(256, b"\0") + text,
        b"ZISRAWATTDIR": bytes(256),
    }.items():
        places[name] = len(content)
        content += _segment(name, body)
    start = struct.pack("<4i", 1, 0, 0, 0) + bytes(range(16)) * 2 + struct.pack("<i", 0)
    content[32 : 32 + len(start)] = start
    at = struct.pack("<qqiq", *list(places.values())[:2], 0, places[b"ZISRAWATTDIR"])
    content[32 + len(start) : 32 + len(start) + len(at)] = at
    path.write_bytes(content)
    return path


def _segment(name: bytes, body: bytes) -> bytes:
    allocated = -(-len(body) // 32) * 32
    head = name.ljust(16, b"\0") + struct.pack("<qq", allocated, len(body))
    return head + body.ljust(allocated, b"\0")


def _subblock(entry: bytes, part: np.ndarray, compression: int) -> bytes:
    if compression == JPEG_XR:
        data = imagecodecs.jpegxr_encode(part, level=1.0)  # without loss
    else:
        data = part[..., ::-1].tobytes()
    head = struct.pack("<iiq", 0, 0, len(data)) + entry
    return _segment(SUBBLOCK, head.ljust(256, b"\0") + data)


def _describe(
    position: int, place: tuple[int, int, int, int], down: int, number: int, compression: int
) -> bytes:
    """Return the entry of a tile: (x, y) in level-0 pixels, (width, height) in its own."""
    x, y, width, height = place
    dimensions = [(b"X", x, width * down, width), (b"Y", y, height * down, height), (b"C", 0, 1, 1)]
    dimensions += [(b"M", number, 1, 1)] if down == 1 else []
    head = b"DV" + struct.pack("<iqii", BGR24, position, 0, compression)
    entry = head + bytes([2 * (down > 1)]) + bytes(5) + struct.pack("<i", len(dimensions))
    for name, start, size, stored in dimensions:
        entry += name.ljust(4, b"\0") + struct.pack("<iifi", start, size, float(start), stored)
    return entry
