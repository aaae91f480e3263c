"""<slide>.labels.png: labelled patches drawn over the slide's thumbnail, with counts per class and mm²."""

import io
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.outputs.canvas import frame_slide, grid_extent_mm
from wsi_pipeline.store.files import write_file

COLORS = ("#bbbbbb", "#2c7fb8", "#d95f0e")
"""Unknown, negative, positive: told apart with every kind of colour blindness."""
ALPHA = 0.5
LABELS_SUFFIX = ".labels.png"


def write_label_preview(table: PatchTable, path: Path) -> None:
    """Draw every patch of a store in the colour of its label."""
    picture = np.full((max(table.grid.rows, 1), max(table.grid.cols, 1)), np.nan)
    picture[table.cells[:, 0], table.cells[:, 1]] = table.labels + 1
    figure, axes = frame_slide(table, table.slide.slide_id)
    axes.imshow(
        np.ma.masked_invalid(picture),
        extent=grid_extent_mm(table),
        cmap=ListedColormap(COLORS),
        vmin=-0.5,
        vmax=2.5,
        alpha=ALPHA,
        interpolation="nearest",
        zorder=1,
    )
    names = ("unknown", *table.class_names)
    legend = [
        Patch(facecolor=color, label=_describe(table, name, index - 1))
        for index, (name, color) in enumerate(zip(names, COLORS, strict=True))
    ]
    axes.legend(handles=legend, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    write_file(path, _to_png(figure))


def _describe(table: PatchTable, name: str, label: int) -> str:
    count = int(np.count_nonzero(table.labels == label))
    return f"{name}: {count} patches, {count * table.grid.cell_area_mm2:.2f} mm²"


def _to_png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
