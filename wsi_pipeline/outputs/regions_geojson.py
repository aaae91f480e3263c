"""regions.geojson and regions.geojson.gz: positive regions as annotations for QuPath."""

import gzip
from pathlib import Path
from typing import Any

import shapely

from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.outputs.regions import Region
from wsi_pipeline.outputs.result import POSITIVE_COLOR, SlideResult

FILE_NAME = "regions.geojson"
GZIP_NAME = "regions.geojson.gz"


def write_regions_geojson(result: SlideResult, folder: Path) -> None:
    """Write one annotation per region in QuPath's pixels, from the corner of the scanned area.

    The plain and the gzipped file hold the same text.
    """
    lines = ",\n".join(_describe(result, region) for region in result.regions)
    start, end = '{"type": "FeatureCollection", "features": [\n', "\n" if lines else ""
    text = f"{start}{lines}{end}]}}\n".encode()
    (folder / FILE_NAME).write_bytes(text)
    # Not gzip.compress: its header depends on the version of Python.
    with (
        (folder / GZIP_NAME).open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream,
    ):
        stream.write(text)


def _describe(result: SlideResult, region: Region) -> str:
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "name": f"Region {region.number}",
        "classification": {"name": result.heatmap.positive_class, "color": list(POSITIVE_COLOR)},
        "isLocked": True,
        "measurements": {
            "area_mm2": region.area_mm2,
            "patches": region.patches,
            "mean_probability": region.mean_probability,
            "max_probability": region.max_probability,
        },
    }
    left, top = result.table.slide.bounds_l0[:2]
    outline = shapely.transform(region.outline, lambda points: points - (left, top))
    # Named by its first corner, not by its number: a region keeps its name where other regions
    # appear or vanish.
    x, y = shapely.get_coordinates(region.outline)[0].tolist()
    start = format_json({"type": "Feature", "id": result.name_uuid("region", x, y, region.patches)})
    return (
        f'{start[:-1]}, "geometry": {shapely.to_geojson(outline)}, "properties":'
        f" {format_json(properties)}}}"
    )
