"""How slides, grids and patch tables are written down: the format of every store, and the checks on reading it back.

When a group of a product is opened, its metadata are compared with the manifest, then what they
declare with what we write, then content. In this order, because metadata are small, and a table
that has the right layout is as long as its patches make it: nothing endless is read.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.geometry import MAX_BLOCK_BYTES, MAX_MPP, MIN_MPP, Grid, PatchSpec
from wsi_pipeline.core.slide import PatchQuality, PatchTable, SlideInfo, Thumbnail
from wsi_pipeline.store.layout import (
    MAX_GROUP_JSON_BYTES,
    ZARR_JSON,
    check_one_chunk,
    name_one_chunk,
    read_layout,
)
from wsi_pipeline.store.manifest import Manifest, check_files
from wsi_pipeline.store.zarr_io import create_group, put_array, read_attributes, read_rows

FORMAT_VERSION = 1
RATIO = re.compile(r"[0-9]{1,12}(/0*[1-9][0-9]{0,11})?")
"""An exact downsample. Fraction itself would also take `1e999999999`, and compute it."""
MAX_EXTENT_L0 = 2**31 - 1
MAX_LEVELS = 64
DAMAGES = (KeyError, TypeError, ValueError, IndexError, ArithmeticError, ConfigError)
"""What reading attributes raises where they are not as they were written."""


def slide_to_json(slide: SlideInfo) -> dict[str, Any]:
    """A slide as JSON values."""
    return asdict(slide) | {"level_downsamples": [str(ratio) for ratio in slide.level_downsamples]}


def slide_from_json(value: dict[str, Any]) -> SlideInfo:
    """The slide that `slide_to_json` wrote. Raises ValueError, TypeError or KeyError where it is no slide."""
    slide = SlideInfo(
        **value
        | {
            "size_l0": _read_whole(value["size_l0"], 2),
            "bounds_l0": _read_whole(value["bounds_l0"], 4),
            "level_downsamples": tuple(
                read_ratio(ratio) for ratio in value["level_downsamples"][:MAX_LEVELS]
            ),
        }
    )
    texts = (slide.slide_id, slide.path, slide.mpp_source, slide.fingerprint, slide.vendor or "")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name of the slide is no text")
    if slide.slide_id in ("", ".", "..") or set(slide.slide_id) & set("/\\\0"):
        raise ValueError(f"{slide.slide_id[:40]!r} is no name of a slide")
    if "\0" in slide.path:
        raise ValueError("the slide's path is none")
    if slide.magnification is not None and type(slide.magnification) not in (int, float):
        raise TypeError("the slide's magnification is no number")
    if not MIN_MPP <= slide.mpp <= 10 * MAX_MPP:  # NaN lies nowhere
        raise ValueError(f"the slide has {slide.mpp} µm/px")
    return slide


def _read_whole(value: Any, count: int) -> tuple[Any, ...]:
    """Sizes and places in level-0 pixels."""
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(entry) is int for entry in value)
    ):
        raise ValueError(f"{str(value)[:40]} are not {count} whole numbers")
    if max(map(abs, value)) > MAX_EXTENT_L0:
        raise ValueError(f"{str(value)[:40]} are beyond any slide")
    return tuple(value)


def read_ratio(text: Any) -> Fraction:
    """An exact ratio above 0, such as `4` or `1001/250`. Raises ValueError."""
    if not isinstance(text, str) or not RATIO.fullmatch(text) or (ratio := Fraction(text)) <= 0:
        raise ValueError(f"{str(text)[:40]!r} is no downsample")
    return ratio


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """A grid as JSON values; the downsample as an exact ratio."""
    return asdict(grid) | {"downsample": str(grid.downsample)}


def grid_from_json(value: dict[str, Any]) -> Grid:
    """The grid that `grid_to_json` wrote. Raises ConfigError, ValueError, TypeError or KeyError where it is no grid."""
    rows, cols = _read_whole([value["rows"], value["cols"]], 2)
    x, y = _read_whole(value["origin_xy_l0"], 2)
    return Grid(PatchSpec(**value["spec"]), rows, cols, read_ratio(value["downsample"]), (x, y))


def write_table(path: Path, kind: str, table: PatchTable, attributes: dict[str, Any]) -> None:
    """Make a group that holds a patch table; `attributes` are added to its own."""
    create_group(
        path,
        {
            "kind": kind,
            "format_version": FORMAT_VERSION,
            "slide": slide_to_json(table.slide),
            "grid": grid_to_json(table.grid),
            "block_size": table.block_size,
            "patient_id": table.patient_id,
            "class_names": list(table.class_names),
            "thumbnail": {
                "downsample": str(table.thumbnail.downsample),
                "origin_xy_l0": list(table.thumbnail.origin_xy_l0),
            },
            "has_quality": table.quality is not None,
            "has_tissue": table.tissue is not None,
        }
        | attributes,
    )
    put_array(path, "cells", table.positions)
    _put_labels(path, table.labels, table.label_fraction)
    put_array(path, "tissue_fraction", table.tissue_fraction)
    put_array(path, "thumbnail", table.thumbnail.pixels)
    if table.tissue is not None:
        put_array(
            path, "tissue", np.packbits(table.tissue, axis=1)
        )  # a bit a pixel: a mask is a tenth of what it lies over
    if table.quality is not None:
        for name, values in table.quality._asdict().items():
            put_array(path, name, values)


LABEL_ARRAYS = ("labels", "label_fraction")


def write_labels(
    path: Path, attributes: dict[str, Any], labels: NDArray[np.int8], fraction: NDArray[np.float32]
) -> None:
    """Give a group, whose other arrays lie there already, its attributes and labels."""
    create_group(path, attributes)
    _put_labels(path, labels, fraction)


def _put_labels(path: Path, labels: NDArray[np.int8], fraction: NDArray[np.float32]) -> None:
    put_array(path, "labels", labels)
    put_array(path, "label_fraction", fraction)


def check_kind(path: Path, kind: str) -> dict[str, Any]:
    """The attributes of a group of this kind and format. Raises StoreError where it is another."""
    attributes = read_attributes(path)
    if attributes.get("kind") != kind:
        found = str(attributes.get("kind", "something else"))[:80]
        raise StoreError(f"{path}: holds {found!r}, not {kind!r}; give another path")
    if (found_version := attributes.get("format_version")) != FORMAT_VERSION:
        is_newer = isinstance(found_version, int) and found_version > FORMAT_VERSION
        raise StoreError(
            f"{path}: has format {str(found_version)[:20]}, this version of wsi reads"
            f" {FORMAT_VERSION}; {'update wsi, or ' if is_newer else ''}make it again"
        )
    return attributes


def read_table(path: Path, attributes: dict[str, Any]) -> PatchTable:
    """The patch table of a group. Raises StoreError where it contradicts itself, before memory is taken for it."""
    try:
        slide, grid = slide_from_json(attributes["slide"]), grid_from_json(attributes["grid"])
        thumbnail = attributes["thumbnail"]
        arrays = _read_arrays(path, attributes, grid)
        quality = (
            PatchQuality(*(arrays[name] for name in PatchQuality._fields))
            if attributes.get("has_quality")
            else None
        )
        table = PatchTable(
            slide=slide,
            grid=grid,
            positions=arrays["cells"],
            labels=arrays["labels"],
            label_fraction=arrays["label_fraction"],
            tissue_fraction=arrays["tissue_fraction"],
            thumbnail=Thumbnail(
                arrays["thumbnail"],
                read_ratio(thumbnail["downsample"]),
                _read_whole(thumbnail["origin_xy_l0"], 2),
            ),
            block_size=_read_whole([attributes["block_size"]], 1)[0],
            patient_id=str(attributes["patient_id"]),
            class_names=_read_class_names(path, attributes["class_names"]),
            quality=quality,
            tissue=_unpack_tissue(arrays) if attributes.get("has_tissue") else None,
        )
    except DAMAGES as error:
        raise StoreError(
            f"{path}: its attributes are damaged ({error}); make it again with --force"
        ) from error
    _check_table(path, table)
    return table


def list_table_arrays(attributes: Mapping[str, Any]) -> list[str]:
    """Names of the arrays of a group's table."""
    names = ["cells", *LABEL_ARRAYS, "tissue_fraction", "thumbnail"]
    names += ["tissue"] if attributes.get("has_tissue") else []
    return names + (list(PatchQuality._fields) if attributes.get("has_quality") else [])


def list_table_files(path: Path, attributes: Mapping[str, Any]) -> list[str]:
    """The files that hold the table's values. Raises StoreError where an array has not the layout that we write."""
    try:
        shapes = _check_arrays(path, attributes, grid_from_json(attributes["grid"]))
    except DAMAGES as error:
        raise StoreError(
            f"{path}: its attributes are damaged ({error}); make it again with --force"
        ) from error
    return [name_one_chunk(name, shape) for name, shape in shapes.items() if math.prod(shape)]


def _read_arrays(path: Path, attributes: Mapping[str, Any], grid: Grid) -> dict[str, NDArray[Any]]:
    """Every array of the table, read after all of them were found to have the layout that we write."""
    return {name: read_rows(path, name) for name in _check_arrays(path, attributes, grid)}


def _check_arrays(
    path: Path, attributes: Mapping[str, Any], grid: Grid
) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the table, none of which is longer than its file."""
    patches = _count_rows(path, "cells", 2)
    if patches > grid.rows * grid.cols:
        raise ValueError(f"{patches} patches on a grid of {grid.rows} × {grid.cols} cells")
    height, width = _thumbnail_size(path)
    layouts: dict[str, tuple[str, tuple[int, ...]]] = {
        "cells": ("int32", (patches, 2)),
        "labels": ("int8", (patches,)),
        "thumbnail": ("uint8", (height, width, 3)),
        "tissue": ("uint8", (height, -(-width // 8))),
        "flags": ("uint8", (patches,)),
    }
    found = {
        name: layouts.get(name, ("float32", (patches,))) for name in list_table_arrays(attributes)
    }
    for name, (dtype, shape) in found.items():
        check_one_chunk(path, name, dtype, shape)
    return {name: shape for name, (_, shape) in found.items()}


def _count_rows(path: Path, name: str, dimensions: int) -> int:
    shape = read_layout(path, name).shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} have the shape {str(shape)[:40]}")
    return shape[0]


def _thumbnail_size(path: Path) -> tuple[int, int]:
    shape = read_layout(path, "thumbnail").shape
    if len(shape) != 3:
        raise ValueError(f"the thumbnail has the shape {str(shape)[:40]}")
    return shape[0], shape[1]


def _unpack_tissue(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    return np.unpackbits(arrays["tissue"], axis=1, count=arrays["thumbnail"].shape[1]).astype(
        np.bool_
    )


def _read_class_names(path: Path, names: Any) -> tuple[str, str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("the names of its classes are no list of texts")
    if len(names) > 2:
        listed = ", ".join(names)[:120]
        raise StoreError(
            f"{path}: has {len(names)} classes ({listed}), and wsi handles two only; label it anew"
            " with two"
        )
    return names[0], names[1]


def _check_table(path: Path, table: PatchTable) -> None:
    """Raise StoreError where values cannot be; shapes and types are right by now."""
    positions, grid = table.positions, table.grid
    block_bytes = table.block_size * 3 * grid.spec.side_px**2
    faults = {
        "the block size is not positive": table.block_size < 1,
        "its blocks are too large for memory": (
            table.block_size > 1 and block_bytes > MAX_BLOCK_BYTES
        ),
        "a label is none of its classes": (
            bool(len(positions)) and not -1 <= table.labels.min() <= table.labels.max() <= 1
        ),
        "a label fraction lies outside 0 to 1": _has_outsiders(table.label_fraction, 1),
        "a tissue fraction lies outside 0 to 1": _has_outsiders(table.tissue_fraction, 1),
        "a measure of quality is none": (
            table.quality is not None
            and (
                _has_outsiders(table.quality.pen_fraction, 1)
                or _has_outsiders(table.quality.sharpness, math.inf)
            )
        ),
        "a cell lies outside the grid": (
            bool(len(positions))
            and bool(positions.min() < 0 or (positions >= [grid.rows, grid.cols]).any())
        ),
    }
    for fault, is_so in faults.items():
        if is_so:
            raise StoreError(f"{path}: damaged: {fault}; make it again with --force")
    if _count_distinct(positions, grid) != len(positions):
        raise StoreError(f"{path}: damaged: a cell occurs twice; make it again with --force")


def _has_outsiders(values: NDArray[np.float32], most: float) -> bool:
    """Whether a value lies outside 0 to `most`, or is infinite; NaN says that nobody looked."""
    known = values[~np.isnan(values)]
    return bool((~np.isfinite(known) | (known < 0) | (known > most)).any())


def _count_distinct(positions: NDArray[np.int32], grid: Grid) -> int:
    """Number of different cells, without sorting: a store of millions of patches opens at once."""
    is_there = np.zeros(grid.rows * grid.cols, dtype=np.bool_)
    is_there[positions[:, 0].astype(np.int64) * grid.cols + positions[:, 1]] = True
    return int(np.count_nonzero(is_there))


def check_tables(product: Path, manifest: Manifest, kind: str, folder: str = "") -> dict[str, Any]:
    """The attributes of the group in `folder` of a product, whose tables are as they were written. Raises StoreError."""
    prefix = f"{folder}/" if folder else ""
    metadata = [
        name for name in manifest.files if name.startswith(prefix) and name.endswith(ZARR_JSON)
    ]
    for name in metadata:
        if manifest.files[name][0] > MAX_GROUP_JSON_BYTES:
            raise StoreError(
                f"{product}: damaged: {name} has more than {MAX_GROUP_JSON_BYTES} bytes; make it"
                " again with --force"
            )
    check_files(product, manifest, metadata)
    attributes = check_kind(product / folder, kind)
    check_files(
        product,
        manifest,
        [f"{prefix}{name}" for name in list_table_files(product / folder, attributes)],
    )
    return attributes
