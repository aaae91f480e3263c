"""patches.parquet: a row per patch with everything known of it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.outputs.result import SlideResult

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
    unreadable), positive, readable, tissue fraction. The slide's summary, with threshold and scale,
    is JSON under the metadata key `wsi`.
    """
    boxes = positions_to_boxes_l0(result.positions, result.table.grid)
    columns = {
        name: pa.array(boxes[:, index].astype(np.int32))
        for index, name in enumerate(("x", "y", "width", "height"))
    }
    columns |= {"row": pa.array(result.positions[:, 0]), "col": pa.array(result.positions[:, 1])}
    for index, name in enumerate(("x_um", "y_um", "width_um", "height_um")):
        columns[name] = pa.array(boxes[:, index] * result.table.slide.mpp)
    is_missing = np.isnan(result.probability)
    columns["probability"] = pa.array(result.probability, mask=is_missing)
    columns["positive"] = pa.array(
        result.positive[result.positions[:, 0], result.positions[:, 1]], mask=is_missing
    )
    columns["readable"] = pa.array(~is_missing)
    tissue = result.table.tissue_fraction[result.order]
    columns["tissue_fraction"] = pa.array(tissue, mask=np.isnan(tissue))
    metadata = {METADATA_KEY: json.dumps(asdict(result.summary), allow_nan=False)}
    return pa.Table.from_pydict(columns).replace_schema_metadata(metadata)
