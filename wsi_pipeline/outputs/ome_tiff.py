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
    x, y = place.center_um
    metadata = {
        "axes": "YX",
        "Name": f"prob_{result.heatmap.positive_class}",
        "UUID": result.name_uuid(FILE_NAME),
        "Channel": {"Name": f"prob_{result.heatmap.positive_class}"},
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
            is_base = number == 0
            extra: dict[str, Any] = {"metadata": metadata if is_base else None}
            extra |= {"subifds": len(levels) - 1} if is_base else {"subfiletype": 1}
            tiff.write(
                level, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **common, **extra
            )
