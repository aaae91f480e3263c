"""Plots in millimetres of slide: axes, colour scale and scale bar, the same for every map.

Also maps as pixels: the colours of every image, one pixel per patch.
"""

from pathlib import Path
from typing import IO, Any

import numpy as np
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray

from wsi_pipeline.core.choices import COLORMAPS
from wsi_pipeline.core.outcome import describe_interval, describe_unlike
from wsi_pipeline.core.slide import PatchTable, Thumbnail
from wsi_pipeline.outputs.heatmap import Heatmap, find_positive
from wsi_pipeline.outputs.result import SlideResult

NOT_ASSESSED = "#e6e6e6"
LONG_SIDE_INCH = 9.0
DPI = 120
MAX_CORNERS = 200_000
SCALE_BARS_MM = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

Extent = tuple[float, float, float, float]
"""left, right, bottom, top in mm; y grows downwards as on the slide."""


def grid_extent_mm(table: PatchTable) -> Extent:
    """Return the rectangle that the grid covers on the slide."""
    grid, mpp = table.grid, table.slide.mpp
    x, y = (origin * mpp / 1000 for origin in grid.origin_xy_l0)
    pitch_mm = grid.spec.stride_px * float(grid.downsample) * mpp / 1000
    return x, x + max(grid.cols, 1) * pitch_mm, y + max(grid.rows, 1) * pitch_mm, y


def thumbnail_extent_mm(thumbnail: Thumbnail, slide_mpp: float) -> Extent:
    """Return the rectangle that the thumbnail covers on the slide."""
    pixel_mm = float(thumbnail.downsample) * slide_mpp / 1000
    x, y = (origin * slide_mpp / 1000 for origin in thumbnail.origin_xy_l0)
    height, width = thumbnail.pixels.shape[:2]
    return x, x + width * pixel_mm, y + height * pixel_mm, y


def open_canvas(result: SlideResult) -> tuple[Figure, Axes]:
    """Return an empty plot of the slide's shape, titled with name and counts."""
    summary, share = result.summary, ""
    if summary.positive_fraction is not None:
        share = f", {summary.positives} positive ({summary.positive_fraction:.1%})"
        share += f"\n{describe_interval(summary)}"
    if unlike := describe_unlike(summary):
        share += f"\n{unlike}"
    assessed = summary.patches - summary.unreadable
    name = plain_text(summary.slide_id)
    return frame_slide(result.table, f"{name}\n{assessed} patches assessed{share}")


def show_thumbnail(axes: Axes, table: PatchTable) -> None:
    """Draw the slide below everything else."""
    extent = thumbnail_extent_mm(table.thumbnail, table.slide.mpp)
    axes.imshow(table.thumbnail.pixels, extent=extent, interpolation="antialiased", zorder=0)


def frame_slide(table: PatchTable, title: str) -> tuple[Figure, Axes]:
    """Return an empty plot of the slide's shape."""
    left, right, bottom, top = thumbnail_extent_mm(table.thumbnail, table.slide.mpp)
    width, height = right - left, bottom - top
    scale = LONG_SIDE_INCH / max(width, height)
    size = (max(width * scale, 3.5) + 1.6, max(height * scale, 2.0) + 0.9)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.add_artist(_scale_bar(axes, width))
    return figure, axes


def plain_text(text: str) -> str:
    """Return a text in which no dollar sign begins a formula."""
    return text.replace("$", r"\$")


def _scale_bar(axes: Axes, width_mm: float) -> AnchoredSizeBar:
    length = max((bar for bar in SCALE_BARS_MM if bar <= width_mm / 4), default=SCALE_BARS_MM[0])
    text = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    look: dict[str, Any] = {"size_vertical": width_mm / 300, "sep": 3, "borderpad": 0.6}
    return AnchoredSizeBar(axes.transData, length, text, "lower left", frameon=True, **look)


def draw_map(
    axes: Axes, table: PatchTable, values: NDArray[Any], alpha: float, **colors: Any
) -> AxesImage:
    """Draw a value per position of the grid (rows, cols) in its place; NaN stays transparent.

    `colors` are `cmap`, `vmin` and `vmax` of matplotlib.
    """
    shown = np.ma.masked_invalid(values) if values.size else np.ma.masked_all((1, 1))
    look: dict[str, Any] = {"alpha": alpha, "interpolation": "nearest", "zorder": 1}
    return axes.imshow(shown, extent=grid_extent_mm(table), **look, **colors)


def draw_color_bar(figure: Figure, axes: Axes, image: AxesImage, heatmap: Heatmap) -> None:
    """Draw the colour bar, with the threshold marked."""
    label, threshold = f"probability of {heatmap.positive_class}", heatmap.threshold
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label=label).ax
    bar.axhline(threshold, color="black", linewidth=2.5)
    bar.axhline(threshold, color="white", linewidth=1)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    look: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7, "rotation": 90}
    bar.annotate(f"threshold {threshold:.2f}", (0, threshold), (-4, 0), **place, **look)


def outline_positive(axes: Axes, result: SlideResult, color: str) -> None:
    """Draw the borders of the positive regions; none where they would hide the map."""
    polygons = shapely.get_parts([region.outline for region in result.regions])
    if not 0 < shapely.get_num_coordinates(polygons).sum() <= MAX_CORNERS:
        return
    scale_mm = result.table.slide.mpp / 1000
    lines = [shapely.get_coordinates(ring) * scale_mm for ring in shapely.get_rings(polygons)]
    outlines = LineCollection(lines, colors=color, linewidths=0.8, zorder=3)
    axes.add_collection(outlines, autolim=False)


def save_canvas(figure: Figure, target: Path | IO[bytes]) -> None:
    """Write a PNG whose bytes depend only on the image."""
    figure.savefig(target, format="png", metadata={"Software": None})


def colour_table(name: str = COLORMAPS[0]) -> NDArray[np.uint8]:
    """RGB (256, 3) of a colormap: colour number k stands for probabilities from k/256 on."""
    return np.asarray(colormaps[name](np.arange(256), bytes=True), dtype=np.uint8)[:, :3]


def paint_map(
    probability: NDArray[np.float32], threshold: float | None = None
) -> NDArray[np.uint8]:
    """Return RGBA (rows, cols, 4): opaque where assessed, transparent elsewhere.

    With a threshold, values below it are transparent too.
    """
    is_shown = find_positive(probability, 0.0 if threshold is None else threshold)
    number = np.minimum(np.nan_to_num(probability) * 256, 255).astype(np.uint8)
    alpha = np.where(is_shown, 255, 0).astype(np.uint8)
    return np.concatenate([colour_table()[number], alpha[..., None]], axis=-1)
