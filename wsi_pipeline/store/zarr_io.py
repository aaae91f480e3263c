"""All access to Zarr: groups of arrays with a checksum in every chunk, checked before use.

A store may come from anyone. Before Zarr, a codec or memory is used, an array's `zarr.json` must
declare exactly the shape, type, chunks and codecs that we write, and its files must have the length
that follows from them: memory is then allocated only for data on disk, and only our codecs run.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from wsi_pipeline.core.choices import ZARR_JSON
from wsi_pipeline.core.errors import MAKE_AGAIN, StoreError, damage_error, machine_fault
from wsi_pipeline.core.json_io import read_json
from wsi_pipeline.store.arrays import Meaning
from wsi_pipeline.store.codecs import CHECKSUM_BYTES, JPEG_CODEC, PixelCodec
from wsi_pipeline.store.files import (
    flush_file,
    flush_folder,
    make_folder,
    start_checksum,
    write_all,
    write_file,
)
from wsi_pipeline.store.manifest import check_contained, size_of_own

AS_THEY_ARE = PixelCodec()
IMAGE_CHUNK = 1024
"""Side of an image's chunks in pixels."""
MAX_ARRAY_JSON_BYTES = 1024 * 1024
MAX_GROUP_JSON_BYTES = 64 * 1024 * 1024
"""A group's attributes name every imported file, in some dozen bytes each."""
ITEM_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int32": 4, "float32": 4, "float64": 8}
"""Bytes per value of the types that our arrays have."""
CONSOLIDATED = "consolidated_metadata"
"""Entry of a group's metadata with a copy of its arrays', for readers other than ours."""
MISSING = f"not a store of wsi, or parts of it are missing; {MAKE_AGAIN}"


@contextmanager
def zarr_errors_named(path: Path) -> Iterator[None]:
    """Turn Zarr's exceptions into a StoreError that names the store, or into a machine fault."""
    try:
        yield
    except FileNotFoundError as error:  # zarr's not-found errors are subclasses
        raise StoreError(f"{path}: {MISSING}") from error
    except OSError as error:
        raise machine_fault(path, error) or StoreError(
            f"{path}: cannot be read or written ({error}); check the disk and its permissions"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:  # checksums, JSON, shapes
        raise damage_error(path, error) from error


def create_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Create an empty Zarr v3 group."""
    with zarr_errors_named(path):
        zarr.create_group(path, zarr_format=3, attributes=dict(attributes))


def add_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Add attributes to those of a group, in place of older ones of the same names."""
    group = _read_node(path, "group", MAX_GROUP_JSON_BYTES)
    _write_group(path, group | {"attributes": {**group.get("attributes", {}), **attributes}})


def _write_group(path: Path, group: Mapping[str, Any]) -> None:
    write_file(path / ZARR_JSON, json.dumps(group, indent=2, allow_nan=False).encode())


def create_array(
    path: Path,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    codec: PixelCodec = AS_THEY_ARE,
    dimension_names: tuple[str, ...] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Create an array of 0, or NaN, with a crc32c per chunk, encoded by `codec`.

    The group's own metadata are neither read nor changed.
    """
    with zarr_errors_named(path):
        zarr.create_array(
            path / name,
            zarr_format=3,
            shape=shape,
            chunks=tuple(max(1, extent) for extent in chunks),
            dtype=dtype,
            fill_value=float("nan") if dtype.startswith("float") else 0,
            **codec.for_zarr(),
            dimension_names=dimension_names,
            attributes=dict(attributes or {}),
            overwrite=True,  # a killed run may have begun it
        )


def put_array(path: Path, name: str, values: NDArray[Any], meaning: Meaning) -> None:
    """Create an array of one chunk and fill it."""
    create_array(
        path,
        name,
        values.shape,
        values.shape,
        values.dtype.name,
        dimension_names=meaning.dimension_names,
        attributes=meaning.attributes,
    )
    write_rows(path, name, slice(0, len(values)), values)


def consolidate(path: Path) -> None:
    """Copy the metadata of a group's arrays into the group's own, once all arrays are there.

    Other readers then open the group by one file and list no folder. As Zarr-Python 3 does it
    (inline, not yet part of the specification). Our own readers never look at the copy. A group
    with an array in our own codec gets none: a reader without it could not open the others either.
    """
    arrays = {
        file.parent.name: _read_node(file.parent, "array", MAX_ARRAY_JSON_BYTES)
        for file in sorted(path.glob(f"*/{ZARR_JSON}"))
    }
    if any(codec["name"] == JPEG_CODEC for array in arrays.values() for codec in array["codecs"]):
        return
    group = _read_node(path, "group", MAX_GROUP_JSON_BYTES)
    copy = {"kind": "inline", "must_understand": False, "metadata": arrays}
    _write_group(path, group | {CONSOLIDATED: copy})


def put_image(
    path: Path, name: str, values: NDArray[Any], dimension_names: tuple[str, ...]
) -> None:
    """Create an image array for viewers: named dimensions, square chunks, a checksum in each."""
    chunks = tuple(min(extent, IMAGE_CHUNK) for extent in values.shape)
    dtype = values.dtype.name
    create_array(path, name, values.shape, chunks, dtype, dimension_names=dimension_names)
    with zarr_errors_named(path):
        _open_to_fill(path, name)[...] = values


def _open_to_fill(path: Path, name: str) -> Any:
    # Without write_empty_chunks Zarr compares every chunk with the fill value first (270 instead of
    # 2,400 MB/s), and leaves chunks of nothing but the fill value out, as if they were not written.
    return open_array(path, name, mode="r+").with_config({"write_empty_chunks": True})


def write_rows(path: Path, name: str, rows: slice, values: NDArray[Any]) -> str | None:
    """Write whole chunks along axis 0; callers keep to chunk boundaries and share no chunk.

    Return the checksum of the file where all is one chunk that is stored as it is, else None.
    """
    if not len(values):
        return None
    with zarr_errors_named(path):
        array = _open_to_fill(path, name)
        block, offset = divmod(rows.start, array.chunks[0])
        if offset == 0 and len(values) <= array.chunks[0] and _has_plain_chunks(array):
            return _write_plain_chunk(chunk_file(path, name, block, array.ndim), values, array)
        array[rows] = values
    return None


def _has_plain_chunks(array: Any) -> bool:
    """Return True where a chunk's file is the bytes of its rows and their crc32c."""
    codecs = [type(codec) for codec in array.metadata.codecs]
    return (
        codecs == [BytesCodec, Crc32cCodec]
        and array.chunks[1:] == array.shape[1:]
        and array.dtype.newbyteorder("<") == array.dtype
    )


def _write_plain_chunk(file: Path, values: NDArray[Any], array: Any) -> str:
    """Write the same bytes as Zarr, without its copy of them: a chunk of patches is 31 MB.

    Return the checksum of the file.
    """
    values = np.ascontiguousarray(values, dtype=array.dtype)
    rest = (array.chunks[0] - len(values), *array.shape[1:])
    missing = np.full(rest, array.fill_value, dtype=array.dtype)
    pieces = [part.reshape(-1).view(np.uint8) for part in (values, missing) if part.size]
    crc32c, checksum = 0, start_checksum()
    make_folder(file.parent)
    with file.open("wb", buffering=0) as stream:
        for piece in pieces:
            crc32c = google_crc32c.extend(crc32c, piece)
            checksum.update(piece.data)
            write_all(stream, piece.data)
        end = crc32c.to_bytes(CHECKSUM_BYTES, "little")
        checksum.update(end)
        write_all(stream, memoryview(end))
    return checksum.hexdigest()


def read_rows(path: Path, name: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Return rows of an array, or all of it, after verifying checksums."""
    with zarr_errors_named(path):
        return np.asarray(open_array(path, name)[rows])


def open_array(path: Path, name: str, mode: str = "r") -> Any:
    """Open the Zarr array itself."""
    with zarr_errors_named(path):
        return zarr.open_array(path / name, mode=mode, zarr_format=3)


def flush_chunk(path: Path, name: str, block: int, dimensions: int) -> Path:
    """Flush chunk `block` of an array and every folder above it; return its file."""
    chunk = chunk_file(path, name, block, dimensions)
    flush_file(chunk)
    for folder in chunk.parents:
        flush_folder(folder)
        if folder == path:
            break
    return chunk


def name_chunk(name: str, block: int, dimensions: int) -> str:
    """Return the file of chunk `block` along axis 0, relative to the array's group."""
    return "/".join([name, "c", str(block), *["0"] * (dimensions - 1)])


def chunk_file(path: Path, name: str, block: int, dimensions: int) -> Path:
    """Return the file of chunk `block` along axis 0."""
    return path / name_chunk(name, block, dimensions)


def map_chunk(path: Path, name: str, block: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Map chunk `block` of an uncompressed uint8 array into memory; its checksum is not read."""
    chunk = chunk_file(path, name, block, len(shape))
    with zarr_errors_named(path):
        if chunk.stat().st_size != math.prod(shape) + CHECKSUM_BYTES:
            raise ValueError(f"{chunk.name} is of another size than its array's chunks")
        return np.memmap(chunk, dtype=np.uint8, mode="r", shape=shape)


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Layout of an array on disk."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    codecs: tuple[str, ...] = AS_THEY_ARE.zarr_names

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a whole chunk's values."""
        return math.prod(self.chunks) * ITEM_BYTES[self.dtype]


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a group. Raises StoreError."""
    attributes = _read_node(path, "group", MAX_GROUP_JSON_BYTES).get("attributes", {})
    if not isinstance(attributes, dict):
        raise damage_error(path, "its attributes are not a table")
    return attributes


def read_layout(path: Path, name: str) -> ArrayLayout:
    """Return the layout in an array's metadata. Raises StoreError for one that we do not write."""
    value = _read_node(path / name, "array", MAX_ARRAY_JSON_BYTES)
    try:
        grid, keys = value["chunk_grid"], value["chunk_key_encoding"]
        layout = ArrayLayout(
            dtype=str(value["data_type"]),
            shape=_read_extents(value["shape"]),
            chunks=_read_extents(grid["configuration"]["chunk_shape"]),
            codecs=tuple(str(codec["name"]) for codec in value["codecs"]),
        )
        is_ours = (
            layout.dtype in ITEM_BYTES
            and len(layout.shape) == len(layout.chunks)
            and (grid["name"], keys["name"]) == ("regular", "default")
            and keys.get("configuration", {}).get("separator", "/") == "/"
            and not value.get("storage_transformers")
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"the metadata of its array {name!r} are invalid ({error})"
        raise damage_error(path, fault) from error
    if not is_ours:
        raise damage_error(path, f"its array {name!r} does not have a layout that wsi writes")
    return layout


def _read_node(path: Path, kind: str, max_bytes: int) -> dict[str, Any]:
    try:
        value = read_json(path / ZARR_JSON, max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path}: {MISSING}") from error
    except (OSError, ValueError) as error:
        raise damage_error(path, error) from error
    found = value if isinstance(value, dict) else {}
    if (found.get("node_type"), found.get("zarr_format")) != (kind, 3):
        raise damage_error(path, f"not a Zarr {kind} of format 3")
    return found


def _read_extents(value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(extent) is int and extent >= 0 for extent in value):
        return tuple(value)
    raise ValueError("extents must be whole numbers from 0 on")


def check_layout(path: Path, name: str, wanted: ArrayLayout) -> None:
    """Raise StoreError where an array has another layout than `wanted`; no value is read."""
    found = read_layout(path, name)
    for what in ("dtype", "shape", "chunks", "codecs"):
        if getattr(found, what) != getattr(wanted, what):
            one, other = (_describe(getattr(layout, what)) for layout in (found, wanted))
            fault = f"its array {name!r} has the {what} {one} instead of {other}"
            raise damage_error(path, fault)


def _describe(value: Any) -> str:
    return " × ".join(map(str, value))[:120] if isinstance(value, tuple) else str(value)[:40]


def check_one_chunk(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise StoreError where a one-chunk array has another layout, or a file of another length."""
    wanted = ArrayLayout(dtype, shape, tuple(max(1, extent) for extent in shape))
    check_layout(path, name, wanted)
    if math.prod(shape) == 0:
        return
    chunk = name_chunk(name, 0, len(shape))
    check_contained(path, [chunk])
    if size_of_own(path / chunk) != wanted.chunk_bytes + CHECKSUM_BYTES:
        raise damage_error(path, f"the file of its array {name!r} is not as long as its values")
