"""All access to Zarr: groups of whole-chunk arrays with a checksum in every chunk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from wsi_pipeline.core.errors import StoreError, machine_fault
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.files import flush_file, flush_folder, make_folder, write_all
from wsi_pipeline.store.layout import CHECKSUM_BYTES, read_group

AS_THEY_ARE = PixelCodec()


@contextmanager
def zarr_errors_named(path: Path) -> Iterator[None]:
    """Turn Zarr's exceptions into a StoreError that names the store, or into a machine fault."""
    try:
        yield
    except FileNotFoundError as error:  # zarr's not-found errors are subclasses
        raise StoreError(
            f"{path}: not a store of wsi, or parts of it are missing; make it again"
        ) from error
    except OSError as error:
        if fault := machine_fault(path, error):
            raise fault from error
        raise StoreError(
            f"{path}: cannot be read or written ({error}); check the disk and its permissions"
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:  # checksums, broken JSON, wrong shapes
        raise StoreError(f"{path}: damaged ({error}); make it again with --force") from error


def create_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Create an empty Zarr v3 group."""
    with zarr_errors_named(path):
        zarr.create_group(path, zarr_format=3, attributes=dict(attributes))


def create_array(
    path: Path,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    fill_value: float = 0,
    codec: PixelCodec = AS_THEY_ARE,
) -> None:
    """Create an array of `shape` with a crc32c per chunk, encoded by `codec`."""
    with zarr_errors_named(path):
        zarr.open_group(path, mode="r+").create_array(
            name,
            shape=shape,
            chunks=tuple(max(1, extent) for extent in chunks),
            dtype=dtype,
            fill_value=fill_value,
            **codec.for_zarr(),
            overwrite=True,  # a killed run may have begun it
        )


def put_array(path: Path, name: str, values: NDArray[Any]) -> None:
    """Create an array of one chunk and fill it."""
    fill_value = float("nan") if values.dtype.kind == "f" else 0
    create_array(path, name, values.shape, values.shape, values.dtype.name, fill_value)
    write_rows(path, name, slice(0, len(values)), values)


IMAGE_CHUNK = 1024
"""Side of an image's chunks in pixels."""


def put_image(
    path: Path, name: str, values: NDArray[Any], dimension_names: tuple[str, ...]
) -> None:
    """Create an image array for viewers: named dimensions, square chunks, a checksum in each."""
    with zarr_errors_named(path):
        array = zarr.open_group(path, mode="r+").create_array(
            name,
            shape=values.shape,
            chunks=tuple(min(extent, IMAGE_CHUNK) for extent in values.shape),
            dtype=values.dtype.name,
            fill_value=float("nan") if values.dtype.kind == "f" else 0,
            **AS_THEY_ARE.for_zarr(),
            dimension_names=dimension_names,
        )
        array.with_config({"write_empty_chunks": True})[...] = values


def write_rows(path: Path, name: str, rows: slice, values: NDArray[Any]) -> None:
    """Write whole chunks along axis 0; callers keep to chunk boundaries and share no chunk."""
    if not len(values):
        return
    with zarr_errors_named(path):
        array = open_array(path, name, mode="r+")
        if (
            rows.start % array.chunks[0] == 0
            and len(values) <= array.chunks[0]
            and _has_plain_chunks(array)
        ):
            _write_plain_chunk(
                chunk_file(path, name, rows.start // array.chunks[0], array.ndim), values, array
            )
            return
        # Without write_empty_chunks Zarr compares every chunk with the fill value first (270
        # instead of 2,400 MB/s), and leaves chunks of nothing but the fill value out, so that they
        # would look as if they had not been written.
        array.with_config({"write_empty_chunks": True})[rows] = values


def _has_plain_chunks(array: Any) -> bool:
    """Return True where a chunk's file is the bytes of its rows and their crc32c."""
    codecs = [type(codec) for codec in array.metadata.codecs]
    return (
        codecs == [BytesCodec, Crc32cCodec]
        and array.chunks[1:] == array.shape[1:]
        and array.dtype.newbyteorder("<") == array.dtype
    )


def _write_plain_chunk(file: Path, values: NDArray[Any], array: Any) -> None:
    """Write the same bytes as Zarr, without its copy of them: a chunk of patches is 31 MB."""
    values = np.ascontiguousarray(values, dtype=array.dtype)
    missing = np.full(
        (array.chunks[0] - len(values), *array.shape[1:]), array.fill_value, dtype=array.dtype
    )
    pieces = [part.reshape(-1).view(np.uint8) for part in (values, missing) if part.size]
    checksum = 0
    make_folder(file.parent)
    with file.open("wb", buffering=0) as stream:
        for piece in pieces:
            checksum = google_crc32c.extend(checksum, piece)
            write_all(stream, piece.data)
        write_all(stream, memoryview(checksum.to_bytes(CHECKSUM_BYTES, "little")))


def read_rows(path: Path, name: str, rows: slice | None = None) -> NDArray[Any]:
    """Return rows of an array, or all of it, after verifying checksums."""
    with zarr_errors_named(path):
        return np.asarray(open_array(path, name)[slice(None) if rows is None else rows])


def open_array(path: Path, name: str, mode: str = "r") -> Any:
    """Open the Zarr array itself."""
    with zarr_errors_named(path):
        return zarr.open_array(path / name, mode=mode, zarr_format=3)


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a group."""
    return read_group(path)


def flush_chunk(path: Path, name: str, block: int, dimensions: int) -> Path:
    """Flush chunk `block` of an array and every folder above it; return its file."""
    chunk = chunk_file(path, name, block, dimensions)
    flush_file(chunk)
    for folder in chunk.parents:
        flush_folder(folder)
        if folder == path:
            break
    return chunk


def chunk_file(path: Path, name: str, block: int, dimensions: int) -> Path:
    """Return the file of chunk `block` along axis 0."""
    return path.joinpath(name, "c", str(block), *["0"] * (dimensions - 1))


def map_chunk(path: Path, name: str, block: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Map chunk `block` of an uncompressed uint8 array into memory; its checksum is not read."""
    chunk = chunk_file(path, name, block, len(shape))
    with zarr_errors_named(path):
        if chunk.stat().st_size != int(np.prod(shape)) + CHECKSUM_BYTES:
            raise ValueError(f"{chunk.name} is of another size than its array's chunks")
        return np.memmap(chunk, dtype=np.uint8, mode="r", shape=shape)
