"""patches.csv: a row per patch with exactly WSInfer's columns, for programs that read those."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from wsi_pipeline.core.csv_io import format_csv
from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.outputs.arrow import make_column
from wsi_pipeline.outputs.result import SlideResult

FILE_NAME = "patches.csv"


def write_patches_csv(result: SlideResult, folder: Path) -> None:
    """Write boxes in level-0 pixels and a probability for each class; empty where unreadable."""
    boxes = positions_to_boxes_l0(result.positions, result.table.grid)
    names = ("minx", "miny", "width", "height")
    columns = {name: make_column(side) for name, side in zip(names, boxes.T, strict=True)}
    positive, is_missing = result.probability, np.isnan(result.probability)
    for name, values in zip(result.class_names, (np.float32(1) - positive, positive), strict=True):
        columns[f"prob_{name}"] = make_column(values, is_missing)
    with (folder / FILE_NAME).open("wb") as stream:
        stream.write(format_csv([*columns], []).encode())
        options = pyarrow.csv.WriteOptions(include_header=False, batch_size=65_536)
        pyarrow.csv.write_csv(pa.Table.from_pydict(columns), stream, options)
