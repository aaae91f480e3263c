"""heatmap.png, overlay.png, spread.png, gallery.png: maps of a slide, and samples of its patches.

The spread is that of an ensemble's logits. The gallery shows the most and the least probable
patches of a slide, and a random sample.
"""

import shutil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsi_pipeline.outputs.canvas import (
    NOT_ASSESSED,
    draw_color_bar,
    draw_map,
    open_canvas,
    outline_positive,
    plain_text,
    save_canvas,
    show_thumbnail,
)
from wsi_pipeline.outputs.heatmap import place_on_grid
from wsi_pipeline.outputs.result import Sample, SlideResult

HEATMAP_PNG = "heatmap.png"
OVERLAY_PNG = "overlay.png"
SPREAD_PNG = "spread.png"
GALLERY_PNG = "gallery.png"
SPREAD_LABEL = "spread of the models' logits (standard deviation)"
DPI = 120
PATCH_INCH = 1.0
COLUMNS = 8


def write_heatmap(result: SlideResult, folder: Path) -> None:
    """Write the map on a fixed 0–1 scale: grey where not assessed, positive areas outlined."""
    figure, axes = open_canvas(result)
    axes.set_facecolor(NOT_ASSESSED)
    _add_map(figure, axes, result, alpha=1.0, outline="black")
    save_canvas(figure, folder / HEATMAP_PNG)


def write_overlay(result: SlideResult, folder: Path) -> None:
    """Write the slide's thumbnail under the half transparent map, positive areas outlined."""
    figure, axes = open_canvas(result)
    show_thumbnail(axes, result.table)
    _add_map(figure, axes, result, alpha=result.plot_style.alpha, outline="#c00000")
    save_canvas(figure, folder / OVERLAY_PNG)


def _add_map(figure: Figure, axes: Axes, result: SlideResult, alpha: float, outline: str) -> None:
    cmap, values = result.plot_style.colormap, result.heatmap.probability
    image = draw_map(axes, result.table, values, alpha, cmap=cmap, vmin=0, vmax=1)
    outline_positive(axes, result, color=outline)
    draw_color_bar(figure, axes, image, result.heatmap)


def write_spread(result: SlideResult, folder: Path) -> None:
    """Write the map of how far an ensemble's models differ, up to the slide's largest difference.

    Writes nothing for one model.
    """
    if result.spread is None:
        return
    figure, axes = open_canvas(result)
    axes.set_facecolor(NOT_ASSESSED)
    values = place_on_grid(result.table, result.spread)
    largest = float(np.nanmax(values, initial=0)) or 1.0
    cmap = result.plot_style.colormap
    image = draw_map(axes, result.table, values, 1.0, cmap=cmap, vmin=0, vmax=largest)
    outline_positive(axes, result, color="black")
    figure.colorbar(image, ax=axes, shrink=0.8, label=SPREAD_LABEL)
    save_canvas(figure, folder / SPREAD_PNG)


def write_gallery(result: SlideResult, folder: Path) -> None:
    """Write the sheet of the samples; without samples, copy the slide's earlier sheet, if any."""
    if result.samples is not None:
        save_canvas(_build_sheet(result, result.samples), folder / GALLERY_PNG)
    elif result.previous is not None and (result.previous / GALLERY_PNG).is_file():
        shutil.copyfile(result.previous / GALLERY_PNG, folder / GALLERY_PNG)


def _build_sheet(result: SlideResult, samples: tuple[Sample, ...]) -> Figure:
    height = (len(samples) * 1.45 + 0.5) * PATCH_INCH
    figure = Figure(figsize=(COLUMNS * 1.1 * PATCH_INCH + 0.4, height), dpi=DPI)
    title = f"{result.summary.slide_id}: probability of {result.heatmap.positive_class}"
    width = f"each patch is {result.table.grid.spec.field_um:g} µm wide"
    figure.suptitle(f"{plain_text(title)}; {width}", fontsize=10)
    for line, sample in enumerate(samples):
        top = 1 - (0.5 + line * 1.45) * PATCH_INCH / height
        figure.text(0.02, top, f"{sample.title} ({len(sample.positions)})", fontsize=9, va="top")
        patches = zip(sample.pixels, sample.probability, strict=True)
        for column, (pixels, probability) in enumerate(patches):
            _add_patch(figure, pixels, float(probability), column, top - 0.22 * PATCH_INCH / height)
    return figure


def _add_patch(
    figure: Figure, pixels: NDArray[np.uint8], probability: float, column: int, top: float
) -> None:
    width, height = figure.get_size_inches()
    left, side = (0.2 + column * 1.1 * PATCH_INCH) / width, PATCH_INCH / height
    axes = figure.add_axes((left, top - side, PATCH_INCH / width, side))
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{probability:.3f}", fontsize=7, labelpad=1)
