"""How slides, grids and patch tables are written down: the format of every store, and the checks on reading it back."""

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError, StoreError
from wsi_pipeline.geometry import Grid, PatchSpec
from wsi_pipeline.sources import PatchQuality, PatchTable, SlideInfo, Thumbnail
from wsi_pipeline.store.arrays import create_group, open_array, put_array, read_attributes, read_rows

FORMAT_VERSION = 1
MAX_MARKED_CELLS = 256 * 1024 * 1024


def slide_to_json(slide: SlideInfo) -> dict[str, Any]:
    """A slide as JSON values."""
    return asdict(slide) | {"level_downsamples": [str(ratio) for ratio in slide.level_downsamples]}


def slide_from_json(value: dict[str, Any]) -> SlideInfo:
    """The slide that `slide_to_json` wrote."""
    return SlideInfo(
        **value
        | {
            "size_l0": tuple(value["size_l0"]),
            "bounds_l0": tuple(value["bounds_l0"]),
            "level_downsamples": tuple(Fraction(ratio) for ratio in value["level_downsamples"]),
        }
    )


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """A grid as JSON values; the downsample as an exact ratio."""
    return asdict(grid) | {"downsample": str(grid.downsample)}


def grid_from_json(value: dict[str, Any]) -> Grid:
    """The grid that `grid_to_json` wrote."""
    return Grid(
        spec=PatchSpec(**value["spec"]),
        rows=int(value["rows"]),
        cols=int(value["cols"]),
        downsample=Fraction(value["downsample"]),
        origin_xy_l0=(int(value["origin_xy_l0"][0]), int(value["origin_xy_l0"][1])),
    )


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
    put_array(path, "cells", table.cells)
    _put_labels(path, table.labels, table.label_fraction)
    put_array(path, "tissue_fraction", table.tissue_fraction)
    put_array(path, "thumbnail", table.thumbnail.pixels)
    if table.tissue is not None:
        put_array(path, "tissue", np.packbits(table.tissue, axis=1))  # a bit a pixel: a mask is a tenth of what it lies over
    if table.quality is not None:
        for name, values in table.quality._asdict().items():
            put_array(path, name, values)


LABEL_ARRAYS = ("labels", "label_fraction")


def write_labels(path: Path, attributes: dict[str, Any], labels: NDArray[np.int8], fraction: NDArray[np.float32]) -> None:
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
        raise StoreError(f"{path}: holds {attributes.get('kind', 'something else')!r}, not {kind!r}; give another path")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path}: has format {attributes.get('format_version')}, this version of wsi reads {FORMAT_VERSION}; make it again"
        )
    return attributes


def read_table(path: Path, attributes: dict[str, Any]) -> PatchTable:
    """The patch table of a group. Raises StoreError where it contradicts itself."""
    try:
        thumbnail = attributes["thumbnail"]
        table = PatchTable(
            slide=slide_from_json(attributes["slide"]),
            grid=grid_from_json(attributes["grid"]),
            cells=read_rows(path, "cells"),
            labels=read_rows(path, "labels"),
            label_fraction=read_rows(path, "label_fraction"),
            tissue_fraction=read_rows(path, "tissue_fraction"),
            thumbnail=Thumbnail(
                pixels=read_rows(path, "thumbnail"),
                downsample=Fraction(thumbnail["downsample"]),
                origin_xy_l0=(int(thumbnail["origin_xy_l0"][0]), int(thumbnail["origin_xy_l0"][1])),
            ),
            block_size=int(attributes["block_size"]),
            patient_id=str(attributes["patient_id"]),
            class_names=_read_class_names(path, attributes["class_names"]),
            quality=PatchQuality(*(read_rows(path, name) for name in PatchQuality._fields)) if attributes.get("has_quality") else None,
            tissue=_read_tissue(path) if attributes.get("has_tissue") else None,
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, ConfigError) as error:
        raise StoreError(f"{path}: its attributes are damaged ({error}); make it again with --force") from error
    _check_table(path, table)
    return table


def _read_tissue(path: Path) -> NDArray[np.bool_]:
    width = open_array(path, "thumbnail").shape[1]
    return np.unpackbits(read_rows(path, "tissue"), axis=1, count=width).astype(np.bool_)


def _read_class_names(path: Path, names: list[str]) -> tuple[str, str]:
    if len(names) > 2:
        listed = ", ".join(map(str, names))
        raise StoreError(f"{path}: has {len(names)} classes ({listed}), and wsi handles two only; label it anew with two")
    return str(names[0]), str(names[1])


def _check_table(path: Path, table: PatchTable) -> None:
    cells, grid = table.cells, table.grid
    faults = {
        "cells are not (n, 2) int32": cells.ndim != 2 or cells.shape[1:] != (2,) or cells.dtype != np.int32,
        "labels do not match the cells": table.labels.shape != cells.shape[:1] or table.labels.dtype != np.int8,
        "label fractions do not match the cells": table.label_fraction.shape != cells.shape[:1],
        "tissue fractions do not match the cells": table.tissue_fraction.shape != cells.shape[:1],
        "the tissue mask does not match the thumbnail": table.tissue is not None and table.tissue.shape != table.thumbnail.pixels.shape[:2],
        "measures of quality do not match the cells": table.quality is not None
        and any(values.shape != cells.shape[:1] for values in table.quality),
        "the block size is not positive": table.block_size < 1,
    }
    for fault, is_so in faults.items():
        if is_so:
            raise StoreError(f"{path}: damaged: {fault}; make it again with --force")
    if len(cells) and (cells.min() < 0 or (cells >= [grid.rows, grid.cols]).any()):
        raise StoreError(f"{path}: damaged: a cell lies outside the grid; make it again with --force")
    if _count_distinct(cells, grid) != len(cells):
        raise StoreError(f"{path}: damaged: a cell occurs twice; make it again with --force")


def _count_distinct(cells: NDArray[np.int32], grid: Grid) -> int:
    """Number of different cells, without sorting: a store of millions of patches opens at once."""
    if grid.rows * grid.cols > MAX_MARKED_CELLS:
        return len(np.unique(cells.astype(np.int64) @ [max(grid.cols, 1), 1]))
    is_there = np.zeros(grid.rows * grid.cols, dtype=np.bool_)
    is_there[cells[:, 0].astype(np.int64) * grid.cols + cells[:, 1]] = True
    return int(np.count_nonzero(is_there))
