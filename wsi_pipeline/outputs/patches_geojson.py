"""patches.geojson: one tile per patch for QuPath; on request only, for the file can be huge."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsi_pipeline.core.geometry import positions_to_boxes_l0
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.outputs.result import NEGATIVE_COLOR, POSITIVE_COLOR, SlideResult

FILE_NAME = "patches.geojson"
PATCHES_AT_ONCE = 10_000
UNREADABLE = ("unreadable", (128, 128, 128))


def write_patches_geojson(result: SlideResult, folder: Path) -> None:
    """Write a Feature per patch in QuPath's pixels, from the corner of the scanned area."""
    with (folder / FILE_NAME).open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for start in range(0, len(result.positions), PATCHES_AT_ONCE):
            rows = slice(start, start + PATCHES_AT_ONCE)
            stream.write(separator + ",\n".join(_describe(result, rows)))
            separator = ",\n"
        stream.write("\n]}\n")


def _describe(result: SlideResult, rows: slice) -> Iterator[str]:
    positions = result.positions[rows]
    left, top = result.table.slide.bounds_l0[:2]
    boxes = positions_to_boxes_l0(positions, result.table.grid) - (left, top, 0, 0)
    positive = result.positive[positions[:, 0], positions[:, 1]].tolist()
    classes = list(map(_classify, result.class_names, (NEGATIVE_COLOR, POSITIVE_COLOR)))
    keys = [format_json(f"prob_{name}") for name in result.class_names]
    for (row, col), (x, y, width, height), is_positive, probability in zip(
        positions.tolist(), boxes.tolist(), positive, result.probability[rows], strict=True
    ):
        right, bottom = x + width, y + height
        classification, values = _classify(*UNREADABLE), ""
        if not np.isnan(probability):
            classification = classes[is_positive]
            values = f"{keys[0]}: {np.float32(1) - probability!s}, {keys[1]}: {probability!s}"
        yield (
            f'{{"type": "Feature", "id": "{result.name_uuid("patch", row, col)}", "geometry":'
            f' {{"type": "Polygon", "coordinates": [[[{x}, {y}], [{right}, {y}], [{right},'
            f' {bottom}], [{x}, {bottom}], [{x}, {y}]]]}}, "properties": {{"objectType": "tile",'
            f' "classification": {classification}, "measurements": {{{values}}}}}}}'
        )


def _classify(name: str, color: tuple[int, int, int]) -> str:
    return format_json({"name": name, "color": list(color)})
