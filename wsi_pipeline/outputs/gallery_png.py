"""gallery.png: the most and the least probable patches of a slide, and a random sample, as one sheet."""

import shutil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsi_pipeline.outputs.canvas import plain_text, save_canvas
from wsi_pipeline.outputs.result import Sample, SlideResult

FILE_NAME = "gallery.png"
DPI = 120
PATCH_INCH = 1.0
COLUMNS = 8


def write_gallery(result: SlideResult, folder: Path) -> None:
    """The sheet of the samples, as predicted; without them, the sheet that the slide's folder has, and none where it has none."""
    if result.samples is not None:
        save_canvas(_draw(result, result.samples), folder / FILE_NAME)
    elif result.previous is not None and (result.previous / FILE_NAME).is_file():
        shutil.copyfile(result.previous / FILE_NAME, folder / FILE_NAME)


def _draw(result: SlideResult, samples: tuple[Sample, ...]) -> Figure:
    height = (len(samples) * 1.45 + 0.5) * PATCH_INCH
    figure = Figure(figsize=(COLUMNS * 1.1 * PATCH_INCH + 0.4, height), dpi=DPI)
    field_um = result.table.grid.spec.field_um
    name = plain_text(result.summary.slide_id)
    figure.suptitle(
        f"{name}: probability of {plain_text(result.heatmap.positive_class)}; each patch is"
        f" {field_um:g} µm wide",
        fontsize=10,
    )
    for line, sample in enumerate(samples):
        top = 1 - (0.5 + line * 1.45) * PATCH_INCH / height
        figure.text(0.02, top, f"{sample.title} ({len(sample.positions)})", fontsize=9, va="top")
        for column, (pixels, probability) in enumerate(
            zip(sample.pixels, sample.probability, strict=True)
        ):
            _draw_patch(
                figure, pixels, float(probability), column, top - 0.22 * PATCH_INCH / height
            )
    return figure


def _draw_patch(
    figure: Figure, pixels: NDArray[np.uint8], probability: float, column: int, top: float
) -> None:
    width, height = figure.get_size_inches()
    left = (0.2 + column * 1.1 * PATCH_INCH) / width
    axes = figure.add_axes(
        (left, top - PATCH_INCH / height, PATCH_INCH / width, PATCH_INCH / height)
    )
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{probability:.3f}", fontsize=7, labelpad=1)
