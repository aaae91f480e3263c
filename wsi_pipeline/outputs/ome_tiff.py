"""heatmap.ome.tiff: the map as a pyramidal OME-TIFF, in µm of the slide."""

from pathlib import Path
from typing import Any

import tifffile

from wsi_pipeline.core.recipe import TOOL
from wsi_pipeline.outputs.pyramid import build_pyramid, find_place, image_of, reduce_image
from wsi_pipeline.outputs.result import SlideResult

FILE_NAME = "heatmap.ome.tiff"
TILE = 256


def write_ome_tiff(result: SlideResult, folder: Path) -> None:
    """Write one float32 pixel per patch, NaN where not assessed, with reductions as SubIFDs.

    The plane's position is the centre of the first pixel.
    """
    levels = build_pyramid(image_of(result), reduce_image)
    place = find_place(result.table.grid, result.table.slide.mpp)
    (x, y), name = place.center_um, f"prob_{result.heatmap.positive_class}"
    metadata = {
        "axes": "YX",
        "Name": name,
        "UUID": result.name_uuid(FILE_NAME),
        "Channel": {"Name": name},
        "PhysicalSizeX": place.pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": place.pixel_um,
        "PhysicalSizeYUnit": "µm",
        "Plane": {"PositionX": x, "PositionXUnit": "µm", "PositionY": y, "PositionYUnit": "µm"},
    }
    common: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "zlib",
        "photometric": "minisblack",
        "software": TOOL,
    }
    with tifffile.TiffWriter(folder / FILE_NAME, ome=True) as tiff:
        for number, level in enumerate(levels):
            per_cm = 1e4 / (place.pixel_um * 2**number)
            common |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            if number == 0:
                tiff.write(level, metadata=metadata, subifds=len(levels) - 1, **common)
            else:
                tiff.write(level, metadata=None, subfiletype=1, **common)
