"""Encodings of a store's pixels: as they are, compressed without loss, or as lossy JPEG."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON
from zarr.registry import register_codec

from wsi_pipeline.core.choices import CODECS
from wsi_pipeline.core.errors import ConfigError

ZSTD_LEVEL = 3
JPEG_CODEC = "wsi.jpeg_patches"
CHECKSUM_BYTES = 4
"""The crc32c at the end of every chunk."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_HEADER_BYTES = 18
"""Greatest length of a frame's header."""
MAX_OVERHEAD_BYTES = 4 * 1024 * 1024
"""Overhead of a codec that saves nothing: for JPEG, the tables of thousands of streams."""


@dataclass(frozen=True, slots=True)
class PixelCodec:
    """The encoding of a store's pixels."""

    name: str = "none"
    """none: as they are · zstd: lossless, 7 to 14 % smaller on H&E at several times the CPU ·
    jpeg: lossy, ten times smaller."""
    quality: int | None = None
    """JPEG quality, 1 to 100; None for the other codecs."""

    def __post_init__(self) -> None:
        if self.name not in CODECS:
            raise ConfigError(f"codec is {self.name!r}; it must be one of {', '.join(CODECS)}")
        if (self.name == "jpeg") != (self.quality is not None):
            raise ConfigError("a quality belongs to the codec jpeg, and jpeg needs one")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"JPEG quality is {self.quality}; it must lie between 1 and 100")

    @property
    def is_lossy(self) -> bool:
        """True where decoded pixels differ from the encoded ones."""
        return self.name == "jpeg"

    def to_json(self) -> dict[str, Any]:
        """Return the codec as stores and recipes record it."""
        return asdict(self) | {"is_lossy": self.is_lossy}

    def for_zarr(self) -> dict[str, Any]:
        """Return arguments of Zarr's `create_array`; every chunk ends in a crc32c."""
        compressors = [ZstdCodec(level=ZSTD_LEVEL)] if self.name == "zstd" else []
        serializer = {} if self.quality is None else {"serializer": JpegPatches(self.quality)}
        return {**serializer, "compressors": [*compressors, Crc32cCodec()]}

    @property
    def zarr_names(self) -> tuple[str, ...]:
        """Names of the codecs in an array's metadata, first to last."""
        names = {"none": ("bytes",), "zstd": ("bytes", "zstd"), "jpeg": (JPEG_CODEC,)}
        return (*names[self.name], "crc32c")

    def is_possible_size(self, found: int, plain: int) -> bool:
        """Return True where a chunk of `plain` bytes of pixels may take `found` bytes on disk."""
        if self.name == "none":
            return found == plain + CHECKSUM_BYTES
        return 0 < found <= plain + plain // 4 + MAX_OVERHEAD_BYTES


def read_zstd_size(header: bytes) -> int | None:
    """Return the size that a zstd frame's header declares, if any (RFC 8878, 3.1.1.1)."""
    if len(header) < 5 or header[:4] != ZSTD_MAGIC:
        return None
    descriptor = header[4]
    is_single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    length = (1 if is_single else 0, 2, 4, 8)[size_flag]
    field = header[start : start + length]
    if not length or len(field) < length:
        return None
    return int.from_bytes(field, "little") + (256 if length == 2 else 0)


def read_codec(attributes: dict[str, Any]) -> PixelCodec:
    """Return the codec that a store's attributes record; by default pixels as they are."""
    recorded = attributes.get("codec", {})
    quality = recorded.get("quality")
    if quality is not None and type(quality) is not int:
        raise ConfigError("its JPEG quality is not a whole number")
    return PixelCodec(str(recorded.get("name", "none")), quality)


@dataclass(frozen=True)
class JpegPatches(ArrayBytesCodec):
    """A chunk of patches (n, side, side, 3) as n JPEG streams, so that patches stay separate.

    The bytes are n lengths, 32 bits each, little-endian, then the streams. Colours are not
    subsampled.
    """

    quality: int
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Return the codec that `to_dict` wrote."""
        configuration: Any = data["configuration"]
        return cls(int(configuration["quality"]))

    def to_dict(self) -> dict[str, JSON]:
        """Return name and quality for the array's metadata."""
        return {"name": JPEG_CODEC, "configuration": {"quality": self.quality}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise NotImplementedError: the size is not known beforehand."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        content = encode_patches(chunk_array.as_numpy_array(), self.quality)
        return chunk_spec.prototype.buffer.from_bytes(content)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        patches = decode_patches(chunk_bytes.to_bytes(), chunk_spec.shape)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(patches)


def encode_patches(patches: NDArray[np.uint8], quality: int) -> bytes:
    """Encode patches (n, side, side, 3) as one chunk of JPEG streams."""
    colours: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "444"}
    streams = [
        imagecodecs.jpeg8_encode(np.ascontiguousarray(patch), level=quality, **colours)
        for patch in patches
    ]
    return np.array([len(stream) for stream in streams], dtype="<u4").tobytes() + b"".join(streams)


def decode_patches(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode a chunk of JPEG streams. Raises ValueError where the chunk contradicts itself."""
    lengths = np.frombuffer(content, dtype="<u4", count=shape[0])
    edges = np.concatenate([[4 * shape[0]], lengths]).cumsum()
    if edges[-1] != len(content):
        raise ValueError(f"streams end at byte {edges[-1]} of {len(content)}")
    patches = np.empty(shape, dtype=np.uint8)
    for index, (start, stop) in enumerate(pairwise(edges.tolist())):
        try:
            imagecodecs.jpeg8_decode(content[start:stop], outcolorspace="RGB", out=patches[index])
        except RuntimeError as error:
            raise ValueError(f"patch {index}: {error}") from error
    return patches


register_codec(JPEG_CODEC, JpegPatches)
