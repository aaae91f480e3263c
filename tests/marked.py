"""Slides that carry a mark in every place where a scanner writes something of a patient, and a
search for it in whatever came out.
"""

import base64
import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow.parquet
import tifffile
from numpy.typing import NDArray
from PIL import Image

MARK = b"QZMARK"
"""In every text and every associated image of a marked slide."""
BLUE = (0, 0, 255)
"""In every associated image too: no tissue and no colour table has it, and JPEG does not take it
away.
"""
DATA_URI = re.compile(rb"base64,([A-Za-z0-9+/=]{40,})")


def write_marked_slide(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """An SVS at 0.5 µm/px with thumbnail, label and macro; every property, tag and associated image
    is marked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    said = "|".join(
        f"{name} = QZMARK{name}"
        for name in (
            "User",
            "Barcode",
            "Filename",
            "Patient",
            "Title",
            "ScanScope ID",
            "ImageID",
            "Rack",
        )
    )
    start = (
        f"Aperio Image Library v12.0.15\r\n{width}x{height} [0,0 {width}x{height}] (256x256)"
        " RAW/RGB Q=70"
    )
    description = f"{start}|AppMag = 20|MPP = 0.5|Date = QZMARKdate|Time = QZMARKtime|{said}"
    texts = {
        269: "DocumentName",
        271: "Make",
        272: "Model",
        285: "PageName",
        315: "Artist",
        316: "HostComputer",
        33432: "Copyright",
        65000: "Own",
    }
    tags: list[Any] = [(code, "s", 0, f"QZMARK{name}", True) for code, name in texts.items()]
    tags.append((700, "B", 14, b"QZMARKxmpbytes", True))
    with tifffile.TiffWriter(path) as writer:
        common: dict[str, Any] = {
            "photometric": "rgb",
            "metadata": None,
            "extratags": tags,
            "software": "QZMARKsoftware",
            "datetime": "2001:02:03 04:05:06",
        }
        writer.write(pixels, tile=(256, 256), description=description, **common)
        writer.write(_picture(64, 80), description=f"{start} -> thumbnail QZMARK", **common)
        writer.write(
            _picture(96, 96), description="Aperio QZMARK\r\nlabel 96x96", subfiletype=1, **common
        )
        writer.write(
            _picture(80, 120), description="Aperio QZMARK\r\nmacro 120x80", subfiletype=9, **common
        )
    return path


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Rows of blue, and rows whose bytes spell the mark."""
    picture = np.full((height, width, 3), BLUE, dtype=np.uint8)
    spelled = (MARK * (width * 3 // len(MARK) + 1))[: width * 3]
    picture[::4] = np.frombuffer(spelled, dtype=np.uint8).reshape(width, 3)
    return picture


def find_marks(folder: Path, *, mark: bytes = MARK, spared: tuple[Path, ...] = ()) -> list[str]:
    """Files below a folder (links are not followed) in whose name or content, packed or not, the
    mark stands.
    """
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        if any(path.is_relative_to(place) for place in spared):
            continue
        if mark in str(path.relative_to(folder)).encode():
            found.append(f"name {path}")
        if (
            path.is_file()
            and not path.is_symlink()
            and is_marked(path.read_bytes(), path.name, mark)
        ):
            found.append(str(path))
    return found


def is_marked(content: bytes, name: str = "", mark: bytes = MARK) -> bool:
    """Whether the mark stands in some bytes, or in what they unpack to."""
    return any(mark in piece for piece in unpack(content, name))


def unpack(content: bytes, name: str) -> Iterator[bytes]:
    """Some bytes, and everything that they hold packed in ways that we write; pictures as pixels
    and as what is written beside them.
    """
    yield content
    yield content.decode("utf-16-le", "ignore").encode(errors="ignore")
    if content[:2] == b"\x1f\x8b":
        yield from unpack(gzip.decompress(content), "")
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.namelist():
                yield entry.encode()
                yield from unpack(archive.read(entry), entry)
    elif content[:4] == b"PAR1":
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        yield json.dumps(table.to_pydict(), default=str).encode()
        yield str(table.schema.metadata).encode()
    elif content[:4] == b"\x28\xb5\x2f\xfd":
        yield bytes(imagecodecs.zstd_decode(content[:-4]))
    elif name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive.getmembers():
                stream = archive.extractfile(member)
                yield member.name.encode()
                yield from unpack(stream.read() if stream else b"", member.name)
    elif content[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"II*\0", b"II+\0"):
        yield from _unpack_picture(content)
    for packed in DATA_URI.findall(content):
        yield from unpack(base64.b64decode(packed + b"==="[: -len(packed) % 4]), "")


def _unpack_picture(content: bytes) -> Iterator[bytes]:
    if content[:2] == b"II":
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            for page in tiff.pages:
                yield np.ascontiguousarray(page.asarray()).tobytes()
                yield str(getattr(page, "tags", "")).encode()
        return
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))
        yield pixels.tobytes()
        yield str(image.info).encode()
        strong = pixels.astype(np.int16)
        if (
            (strong[..., 2] - strong[..., 0] > 150) & (strong[..., 2] - strong[..., 1] > 150)
        ).any():
            yield MARK  # the blue of an associated image
