"""overlay.png: the probability map laid over the slide."""

from pathlib import Path

from wsi_pipeline.outputs.canvas import (
    draw_color_bar,
    draw_probability,
    grid_extent_mm,
    open_canvas,
    outline_positive,
    save_canvas,
    show_thumbnail,
)
from wsi_pipeline.outputs.result import SlideResult

FILE_NAME = "overlay.png"


def write_overlay(result: SlideResult, folder: Path) -> None:
    """The slide's thumbnail with the map half transparent on it, positive areas outlined."""
    figure, axes = open_canvas(result)
    show_thumbnail(axes, result.table)
    extent = grid_extent_mm(result.table)
    image = draw_probability(
        axes, result.heatmap, extent, result.plot_style.colormap, result.plot_style.alpha
    )
    outline_positive(axes, result, color="#c00000")
    draw_color_bar(figure, axes, image, result.heatmap)
    save_canvas(figure, folder / FILE_NAME)
