"""patches.parquet: a row per patch with everything known of it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.outputs.arrow import make_column
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.slides.pieces import find_pieces

FILE_NAME = "patches.parquet"
METADATA_KEY = "wsi"


def write_patches_parquet(result: SlideResult, folder: Path) -> None:
    """Write the patches in raster order, compressed with zstd."""
    # Arrow's own files report a failure without its reason.
    with (folder / FILE_NAME).open("wb") as stream:
        pyarrow.parquet.write_table(tabulate_patches(result), stream, compression="zstd")


def tabulate_patches(result: SlideResult) -> pa.Table:
    """Return the table of patches, in raster order.

    Columns: x, y, width, height in level-0 pixels and in µm, row, col, probability (null:
    unreadable), positive, readable, tissue fraction, the piece of tissue where there is a mask (0:
    the rest), and the spread of an ensemble's logits. The slide's summary, with threshold and
    scale, is JSON under the metadata key `wsi`.
    """
    boxes = positions_to_boxes_l0(result.positions, result.table.grid)
    row, col = result.positions.T
    sides = dict(zip(("x", "y", "width", "height"), boxes.T, strict=True))
    columns = {name: make_column(side.astype(np.int32)) for name, side in sides.items()}
    columns |= {"row": make_column(row), "col": make_column(col)}
    mpp = result.table.slide.mpp
    columns |= {f"{name}_um": make_column(side * mpp) for name, side in sides.items()}
    is_missing = np.isnan(result.probability)
    columns["probability"] = make_column(result.probability, is_missing)
    columns["positive"] = make_column(result.positive[row, col], is_missing)
    columns["readable"] = make_column(~is_missing)
    tissue = result.table.tissue_fraction[result.order]
    columns["tissue_fraction"] = make_column(tissue, np.isnan(tissue))
    pieces = find_pieces(result.table)
    if pieces is not None:
        columns["tissue_id"] = make_column(pieces.of_patches[result.order])
    if result.spread is not None:
        columns["spread"] = make_column(result.spread[result.order], is_missing)
    metadata = {METADATA_KEY: json.dumps(asdict(result.summary), allow_nan=False)}
    return pa.Table.from_pydict(columns).replace_schema_metadata(metadata)
