"""heatmap.png: the probability map alone, on a fixed 0–1 scale."""

from pathlib import Path

from wsi_pipeline.outputs.canvas import (
    NOT_ASSESSED,
    draw_color_bar,
    draw_probability,
    grid_extent_mm,
    open_canvas,
    outline_positive,
    save_canvas,
)
from wsi_pipeline.outputs.result import SlideResult

FILE_NAME = "heatmap.png"


def write_heatmap(result: SlideResult, folder: Path) -> None:
    """One colour per patch, grey where nothing was assessed, positive areas outlined, threshold on the colour bar."""
    figure, axes = open_canvas(result)
    axes.set_facecolor(NOT_ASSESSED)
    extent = grid_extent_mm(result.table)
    image = draw_probability(axes, result.heatmap, extent, result.plot_style.colormap, alpha=1.0)
    outline_positive(axes, result, color="black")
    draw_color_bar(figure, axes, image, result.heatmap)
    save_canvas(figure, folder / FILE_NAME)
