"""Layout of untrusted arrays, checked by their `zarr.json` before Zarr, a codec or memory is used.

A store may come from anyone. Its arrays must have exactly the shape, type, chunks and codecs that
we write, and their files the length that follows from them: memory is then allocated only for data
that is on disk, and only our own codecs are called.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import ZARR_JSON
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.json_io import read_json
from wsi_pipeline.store.manifest import check_contained, size_of_own

MAX_ARRAY_JSON_BYTES = 1024 * 1024
MAX_GROUP_JSON_BYTES = 64 * 1024 * 1024
"""A group's attributes name every imported file, in some dozen bytes each."""
CHECKSUM_BYTES = 4
"""The crc32c at the end of every chunk."""
PLAIN = ("bytes", "crc32c")
ITEM_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int32": 4, "float32": 4}
"""Bytes per value of the types that our arrays have."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Layout of an array on disk."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    codecs: tuple[str, ...] = PLAIN

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a whole chunk's values."""
        return math.prod(self.chunks) * ITEM_BYTES[self.dtype]

    @classmethod
    def of_one_chunk(cls, dtype: str, shape: tuple[int, ...]) -> "ArrayLayout":
        """Return the layout of an array that is written at once."""
        return cls(dtype, shape, tuple(max(1, extent) for extent in shape))


def read_group(path: Path) -> dict[str, Any]:
    """Return the attributes of a group. Raises StoreError."""
    value = _read_node(path, "group", MAX_GROUP_JSON_BYTES)
    attributes = value.get("attributes", {})
    if not isinstance(attributes, dict):
        raise StoreError(
            f"{path}: damaged: its attributes are not a table; make it again with --force"
        )
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
        raise StoreError(
            f"{path}: damaged: the metadata of its array {name!r} are invalid ({error}); make it"
            " again"
        ) from error
    if not is_ours:
        raise StoreError(
            f"{path}: its array {name!r} does not have a layout that wsi writes; make it again"
        )
    return layout


def check_layout(path: Path, name: str, wanted: ArrayLayout) -> None:
    """Raise StoreError where an array has another layout than `wanted`; no value is read."""
    found = read_layout(path, name)
    for what in ("dtype", "shape", "chunks", "codecs"):
        if getattr(found, what) != getattr(wanted, what):
            one, other = (_describe(getattr(layout, what)) for layout in (found, wanted))
            raise StoreError(
                f"{path}: damaged: its array {name!r} has the {what} {one} instead of {other}; make"
                " it again"
            )


def check_one_chunk(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise StoreError where a one-chunk array has another layout, or a file of another length."""
    wanted = ArrayLayout.of_one_chunk(dtype, shape)
    check_layout(path, name, wanted)
    if math.prod(shape) == 0:
        return
    chunk = name_one_chunk(name, shape)
    check_contained(path, [chunk])
    if size_of_own(path / chunk) != wanted.chunk_bytes + CHECKSUM_BYTES:
        raise StoreError(
            f"{path}: damaged: the file of its array {name!r} is not as long as its values; make it"
            " again"
        )


def name_one_chunk(name: str, shape: tuple[int, ...]) -> str:
    """Return the file of an array that is written at once."""
    return "/".join([name, "c", *["0"] * len(shape)])


def _read_node(path: Path, kind: str, max_bytes: int) -> dict[str, Any]:
    try:
        value = read_json(path / ZARR_JSON, max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{path}: not a store of wsi, or parts of it are missing; make it again"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged ({error}); make it again with --force") from error
    if (
        not isinstance(value, dict)
        or value.get("node_type") != kind
        or value.get("zarr_format") != 3
    ):
        raise StoreError(f"{path}: damaged: not a Zarr {kind} of format 3; make it again")
    return value


def _read_extents(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        type(extent) is int and extent >= 0 for extent in value
    ):
        raise ValueError("extents must be whole numbers from 0 on")
    return tuple(value)


def _describe(value: Any) -> str:
    return " × ".join(map(str, value))[:120] if isinstance(value, tuple) else str(value)[:40]
