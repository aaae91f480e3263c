"""Patch tables on disk: the format of every store, and the checks on reading it.

When a group of a product is opened, its metadata are compared with the manifest, then the layout
that they declare with the one that we write, then content. In this order, because metadata are
small, and a table of the right layout is as long as its patches make it: nothing endless is read.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import AREAS, ROLES, ZARR_JSON
from wsi_pipeline.core.errors import DAMAGES, MAKE_AGAIN, StoreError, damage_error
from wsi_pipeline.core.geometry import MAX_BLOCK_BYTES, Grid
from wsi_pipeline.core.patch_table import PatchQuality, PatchTable
from wsi_pipeline.store.arrays import find_meaning
from wsi_pipeline.store.manifest import Manifest, check_files
from wsi_pipeline.store.zarr_io import (
    MAX_GROUP_JSON_BYTES,
    check_one_chunk,
    create_group,
    name_chunk,
    put_array,
    read_attributes,
    read_layout,
    read_rows,
)

FORMAT_VERSION = 2
FIRST_FORMAT = 1
"""Positions were one array, `cells`, the tissue had a bit a pixel, and no array said what it is.

It is read; relabelling and aggregating make today's format of it."""
PLACES = ("x_um", "y_um")
"""Arrays that other readers use; ours compute them anew."""
READ_FORMATS = (FIRST_FORMAT, FORMAT_VERSION)


def write_table(path: Path, kind: str, table: PatchTable, attributes: dict[str, Any]) -> None:
    """Write a group that holds a patch table; `attributes` are added to its own, never changed."""
    own: dict[str, Any] = {"kind": kind, "format_version": FORMAT_VERSION} | table.to_json()
    create_group(path, own | attributes | own)
    for name, values in table.to_arrays().items():
        put_array(path, name, values, find_meaning(name, table.class_names))


def check_kind(path: Path, kind: str) -> dict[str, Any]:
    """Return the attributes of a group of this kind and format. Raises StoreError for another."""
    attributes = read_attributes(path)
    if attributes.get("kind") != kind:
        found = str(attributes.get("kind", "something else"))[:80]
        raise StoreError(f"{path}: holds {found!r}, not {kind!r}; give another path")
    if (version := attributes.get("format_version")) not in READ_FORMATS:
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "update wsi, or " if is_newer else ""
        what = f"has format {str(version)[:20]}, this version of wsi reads up to {FORMAT_VERSION}"
        raise StoreError(f"{path}: {what}; {remedy}{MAKE_AGAIN}")
    return attributes


def read_table(path: Path, attributes: dict[str, Any]) -> PatchTable:
    """Return the table of a group after checking its layout, and content. Raises StoreError."""
    shapes = _check_arrays(path, attributes)
    with _damage_named(path):
        names = attributes["class_names"]
        if isinstance(names, list) and len(names) > 2:
            what = f"has {len(names)} classes ({', '.join(map(str, names))[:120]})"
            raise StoreError(f"{path}: {what}, and wsi handles two only; label it with two")
        arrays = {name: read_rows(path, name) for name in shapes if name not in PLACES}
        if is_first_format(attributes):
            arrays = _update_arrays(arrays)
        table = PatchTable.from_json(attributes, arrays)
    _check_table(path, table)
    return table


def is_first_format(attributes: Mapping[str, Any]) -> bool:
    """Return True where a group is of `FIRST_FORMAT`."""
    return attributes.get("format_version") == FIRST_FORMAT


def _update_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a table of the first format as those of today."""
    cells, pixels = arrays["cells"], arrays["thumbnail"]
    changed = {"row": cells[:, 0], "col": cells[:, 1]}
    if "tissue" in arrays:
        bits = np.unpackbits(arrays["tissue"], axis=1, count=pixels.shape[1])
        changed["tissue"] = bits.astype(np.bool_)
    return {**arrays, **changed}


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGES as error:
        raise damage_error(path, f"its attributes are invalid ({error})") from error


def _check_arrays(path: Path, attributes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the table's arrays, none longer than its file. Raises StoreError."""
    is_first = is_first_format(attributes)
    with _damage_named(path):
        grid = Grid.from_json(attributes["grid"])
        patches, *_ = read_layout(path, "cells" if is_first else "row").shape
        height, width, _ = read_layout(path, "thumbnail").shape
        if patches > grid.rows * grid.cols:
            raise ValueError(f"{patches} patches on a grid of {grid.rows} × {grid.cols} positions")
    layouts: dict[str, tuple[str, tuple[int, ...]]] = {
        "labels": ("int8", (patches,)),
        "label_fraction": ("float32", (patches,)),
        "tissue_fraction": ("float32", (patches,)),
        "thumbnail": ("uint8", (height, width, 3)),
    }
    if is_first:
        layouts["cells"] = ("int32", (patches, 2))
    else:
        layouts |= dict.fromkeys(("row", "col"), ("int32", (patches,)))
        layouts |= dict.fromkeys(PLACES, ("float64", (patches,)))
    if attributes.get("has_tissue"):
        bits = ("uint8", (height, -(-width // 8)))
        layouts["tissue"] = bits if is_first else ("bool", (height, width))
    if attributes.get("has_areas"):
        layouts["areas"] = ("uint8", (height, width))
    if attributes.get("has_tissue_id"):
        layouts["tissue_id"] = ("int32", (patches,))
    if attributes.get("has_role"):
        layouts["role"] = ("uint8", (patches,))
    if attributes.get("has_quality"):
        layouts |= dict.fromkeys(PatchQuality._fields, ("float32", (patches,)))
        layouts["flags"] = ("uint8", (patches,))
    for name, (dtype, shape) in layouts.items():
        check_one_chunk(path, name, dtype, shape)
    return {name: shape for name, (_, shape) in layouts.items()}


def _check_table(path: Path, table: PatchTable) -> None:
    """Raise StoreError for values that cannot be; shapes and types were checked before."""
    positions, grid, size = table.positions, table.grid, table.block_size
    quality = [] if table.quality is None else table.quality[:2]
    faults = {
        "the block size is not positive": size < 1,
        "its blocks are too large for memory": (
            size > 1 and size * 3 * grid.spec.side_px**2 > MAX_BLOCK_BYTES
        ),
        "a label is not one of its classes": bool(((table.labels < -1) | (table.labels > 1)).any()),
        "a label fraction lies outside 0 to 1": _has_outsiders(table.label_fraction, 1),
        "a tissue fraction lies outside 0 to 1": _has_outsiders(table.tissue_fraction, 1),
        "a measure of quality is out of its range": any(
            map(_has_outsiders, quality, (1, math.inf))
        ),
        "an area of the thumbnail is none of those known": (
            table.areas is not None and int(table.areas.max(initial=0)) >= len(AREAS)
        ),
        "a piece of tissue has a negative number": (
            table.tissue_id is not None and bool((table.tissue_id < 0).any())
        ),
        "a role of a patch is none of those known": (
            table.role is not None and int(table.role.max(initial=0)) >= len(ROLES)
        ),
        "a position lies outside the grid": bool(
            ((positions < 0) | (positions >= [grid.rows, grid.cols])).any()
        ),
    }
    for fault, is_so in faults.items():
        if is_so:
            raise damage_error(path, fault)
    if _count_distinct(positions, grid) != len(positions):
        raise damage_error(path, "a position occurs twice")


def _has_outsiders(values: NDArray[np.float32], most: float) -> bool:
    """Return True where a value lies outside 0 to `most`, or is infinite; NaN: not measured."""
    known = values[~np.isnan(values)]
    return bool((~np.isfinite(known) | (known < 0) | (known > most)).any())


def _count_distinct(positions: NDArray[np.int32], grid: Grid) -> int:
    """Return the number of different positions, without sorting millions of them."""
    is_there = np.zeros(grid.rows * grid.cols, dtype=np.bool_)
    is_there[positions[:, 0].astype(np.int64) * grid.cols + positions[:, 1]] = True
    return int(np.count_nonzero(is_there))


def check_tables(product: Path, manifest: Manifest, kind: str, folder: str = "") -> dict[str, Any]:
    """Return the attributes of a group of a product, whose tables it checks. Raises StoreError."""
    prefix = f"{folder}/" if folder else ""
    inside = [name for name in manifest.files if name.startswith(prefix)]
    metadata = [name for name in inside if name.endswith(ZARR_JSON)]
    for name in metadata:
        if manifest.files[name][0] > MAX_GROUP_JSON_BYTES:
            raise damage_error(product, f"{name} has more than {MAX_GROUP_JSON_BYTES} bytes")
    check_files(product, manifest, metadata)
    attributes = check_kind(product / folder, kind)
    shapes = _check_arrays(product / folder, attributes)
    chunks = [name_chunk(name, 0, len(shape)) for name, shape in shapes.items() if math.prod(shape)]
    check_files(product, manifest, [f"{prefix}{chunk}" for chunk in chunks])
    return attributes
