"""report.html: one slide's map to zoom and pan, in one file that loads nothing else.

Also the slide's results as JSON for the browser, here and in `serve`.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import COLORMAPS, REPORT_HTML
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.outcome import describe_counting, describe_distance, describe_interval
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.outputs.colormaps import CENTRED, colour_table
from wsi_pipeline.outputs.heatmap import Heatmap
from wsi_pipeline.outputs.pages import (
    CONTENT_POLICY,
    STYLE,
    VIEW_SCRIPTS,
    open_template,
    read_web_file,
    script_safe,
)
from wsi_pipeline.outputs.regions import Region, list_polygons
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.tissue import describe_piece, describe_pieces
from wsi_pipeline.slides.images import encode_jpeg
from wsi_pipeline.store.files import write_file


def describe_slide(slide: SlideInfo) -> dict[str, Any]:
    """Return a slide's facts for a page: an allow-list, without the file's path."""
    return {
        "slide_id": slide.slide_id,
        "size_l0": list(slide.size_l0),
        "bounds_l0": list(slide.bounds_l0),
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "magnification": slide.magnification,
        "vendor": slide.vendor,
        "reader_note": slide.reader_note,
        "colour_profile": slide.colour_profile,
    }


def describe_grid(grid: Grid) -> dict[str, Any]:
    """Return the grid in level-0 pixels; `cells` are squares of one stride around centres."""
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
    """Return the thumbnail's rectangle: x, y, width, height in level-0 pixels."""
    height, width = (side * float(thumbnail.downsample) for side in thumbnail.pixels.shape[:2])
    return {"box_l0": [*thumbnail.origin_xy_l0, width, height]}


def describe_region(region: Region) -> dict[str, Any]:
    """One region; its outline as polygons of rings of x, y in level-0 pixels."""
    return {
        "number": region.number,
        "patches": region.patches,
        "area_mm2": region.area_mm2,
        "mean_probability": region.mean_probability,
        "max_probability": region.max_probability,
        "bounds_l0": list(region.bounds_l0),
        "peak_xy_l0": list(region.peak_xy_l0),
        "outline": list_polygons(region.outline),
    }


def order_regions(regions: Sequence[Region]) -> list[Region]:
    """Strongest first: by the probability that a region holds in all, its mean times its area."""
    return sorted(regions, key=lambda one: (-one.mean_probability * one.area_mm2, one.number))


def encode_map(heatmap: Heatmap) -> str:
    """Return the map's float32 values in row order, little-endian, base64."""
    return base64.b64encode(heatmap.probability.astype("<f4").tobytes()).decode()


def encode_colours(colormap: str = COLORMAPS[0]) -> str:
    """Return the 256 colours as base64 of RGB."""
    return base64.b64encode(colour_table(colormap).tobytes()).decode()


def describe_colours(first: str = COLORMAPS[0]) -> dict[str, Any]:
    """Return every colormap as base64 of RGB, and which have their middle at the threshold.

    The first is the one that a page shows unless told otherwise.
    """
    names = (first, *(name for name in COLORMAPS if name != first))
    tables = {name: encode_colours(name) for name in names}
    return {"colormaps": tables, "centred": sorted(CENTRED)}


def describe_result(result: SlideResult, regions: Sequence[Region]) -> dict[str, Any]:
    """Return everything that a page needs to show one result without the slide's pixels."""
    return {
        "slide": describe_slide(result.table.slide),
        "overview": describe_overview(result.table.thumbnail),
        "grid": describe_grid(result.table.grid),
        "summary": asdict(result.summary),
        "threshold": result.heatmap.threshold,
        "positive_class": result.heatmap.positive_class,
        "map": encode_map(result.heatmap),
        **describe_colours(result.plot_style.colormap),
        "regions": [describe_region(region) for region in order_regions(regions)],
        "pieces": [
            describe_piece(piece) for piece in describe_pieces(result.table, result.heatmap)
        ],
    }


MAX_REGIONS = 500
SCRIPTS = (*VIEW_SCRIPTS, "report.js")


def write_report(result: SlideResult, folder: Path) -> None:
    """Write thumbnail, map, regions and summary, with the script that shows them, as one page."""
    write_file(folder / REPORT_HTML, render_report(result).encode())


def render_report(result: SlideResult) -> str:
    """Return the page as HTML."""
    view = describe_result(result, order_regions(result.regions)[:MAX_REGIONS])
    image = base64.b64encode(encode_jpeg(result.table.thumbnail.pixels)).decode()
    view["overview"]["image"] = f"data:image/jpeg;base64,{image}"
    return open_template("report.html").render(
        slide=result.table.slide,
        summary=result.summary,
        interval=describe_interval(result.summary),
        counting=describe_counting(result.summary),
        distance=describe_distance(result.summary),
        policy=CONTENT_POLICY,
        style=read_web_file(STYLE),
        scripts=[read_web_file(name) for name in SCRIPTS],
        view=script_safe(json.dumps(view, allow_nan=False)),
    )
