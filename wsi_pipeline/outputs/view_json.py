"""A slide's results as the browser takes them: where the map lies on the slide, its colours, its regions."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wsi_pipeline.core.choices import COLORMAPS
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.outputs.canvas import colour_table
from wsi_pipeline.outputs.heatmap import Heatmap
from wsi_pipeline.outputs.regions import Region
from wsi_pipeline.outputs.result import SlideResult


def describe_slide(slide: SlideInfo) -> dict[str, Any]:
    """What a page says of a slide: an allow-list, without the file's path."""
    return {
        "slide_id": slide.slide_id,
        "size_l0": list(slide.size_l0),
        "bounds_l0": list(slide.bounds_l0),
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "magnification": slide.magnification,
        "vendor": slide.vendor,
    }


def describe_grid(grid: Grid) -> dict[str, Any]:
    """Where patches and cells lie, in level-0 pixels: a cell is the square of one stride about its patch's centre."""
    inset = (grid.spec.side_px - grid.spec.stride_px) / 2 * float(grid.downsample)
    return {
        "rows": grid.rows,
        "cols": grid.cols,
        "origin_xy_l0": list(grid.origin_xy_l0),
        "cells_xy_l0": [origin + inset for origin in grid.origin_xy_l0],
        "pitch_l0": grid.spec.stride_px * float(grid.downsample),
        "side_l0": grid.spec.side_px * float(grid.downsample),
        "side_px": grid.spec.side_px,
        "mpp": grid.spec.mpp,
        "cell_area_mm2": grid.patch_area_mm2,
    }


def describe_overview(thumbnail: Thumbnail) -> dict[str, Any]:
    """Where the thumbnail lies: x, y, width, height in level-0 pixels."""
    height, width = thumbnail.pixels.shape[:2]
    x, y = thumbnail.origin_xy_l0
    return {
        "box_l0": [x, y, width * float(thumbnail.downsample), height * float(thumbnail.downsample)]
    }


def describe_region(region: Region) -> dict[str, Any]:
    """One region; its outline as polygons of rings of x, y in level-0 pixels."""
    shape = region.outline.__geo_interface__
    polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    return {
        "number": region.number,
        "patches": region.patches,
        "area_mm2": region.area_mm2,
        "mean_probability": region.mean_probability,
        "max_probability": region.max_probability,
        "bounds_l0": list(region.bounds_l0),
        "peak_xy_l0": list(region.peak_xy_l0),
        "outline": [[[list(point) for point in ring] for ring in polygon] for polygon in polygons],
    }


def order_regions(regions: Sequence[Region]) -> list[Region]:
    """Strongest first: by the probability that a region holds in all, its mean times its area."""
    return sorted(
        regions, key=lambda region: (-region.mean_probability * region.area_mm2, region.number)
    )


def encode_map(heatmap: Heatmap) -> str:
    """The map's float32 values in row order, little-endian, base64."""
    return base64.b64encode(
        np.ascontiguousarray(heatmap.probability, dtype="<f4").tobytes()
    ).decode()


def encode_colours(colormap: str = COLORMAPS[0]) -> str:
    """The 256 colours as base64 of RGB."""
    return base64.b64encode(colour_table(colormap).tobytes()).decode()


def describe_result(result: SlideResult, regions: Sequence[Region]) -> dict[str, Any]:
    """Everything that a page needs to draw one result by itself, without the slide's pixels."""
    return {
        "slide": describe_slide(result.table.slide),
        "overview": describe_overview(result.table.thumbnail),
        "grid": describe_grid(result.table.grid),
        "summary": asdict(result.summary),
        "threshold": result.heatmap.threshold,
        "positive_class": result.heatmap.positive_class,
        "map": encode_map(result.heatmap),
        "colours": encode_colours(result.plot_style.colormap),
        "regions": [describe_region(region) for region in order_regions(regions)],
    }
