"""<slide>.preview.html: which patches a slide gives, and why the others are left out.

One page that loads nothing else. What is decided per patch is decided again in the browser, as
`wsi tile` decides it: by numbers of 32 bits. Settings of the mask are a few steps.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.core.choices import PREVIEW_SUFFIX
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.outputs.pages import (
    CONTENT_POLICY,
    open_template,
    read_web_file,
    script_safe,
)
from wsi_pipeline.slides.images import encode_jpeg
from wsi_pipeline.store.files import write_file

MAX_SIDE_PX = 1600
SCRIPT = "tiling_page.js"


@dataclass(frozen=True, slots=True)
class MaskStep:
    """Shares of every patch by one setting of the tissue mask."""

    name: str
    settings: Mapping[str, Any]
    """Fields of the options that differ from those given."""
    tissue: NDArray[np.float32]
    """(n,) share of tissue."""
    faults: Mapping[str, NDArray[np.float32]]
    """(n,) share of each fault that is looked for on the thumbnail, by its flag."""


@dataclass(frozen=True, slots=True)
class TilingMeasures:
    """Everything by which the patches of a slide are chosen."""

    slide: SlideInfo
    grid: Grid
    thumbnail: Thumbnail
    positions: NDArray[np.int32]
    """(n, 2) row, col of every position with any tissue by any step."""
    sharpness: NDArray[np.float32]
    """(n,) NaN: it could not be read."""
    steps: Sequence[MaskStep]
    """As given, then others."""


@dataclass(frozen=True, slots=True)
class TilingCommand:
    """The command line of a page: fixed words, and options that the page changes."""

    words: Sequence[str]
    """Quoted for a shell."""
    given: Mapping[str, Any]
    """Values of the options that the page changes, by field."""
    defaults: Mapping[str, Any]


def write_tiling_page(measures: TilingMeasures, command: TilingCommand, out: Path) -> Path:
    """Write the page of one slide into a folder and return its path."""
    path = out / f"{measures.slide.slide_id}{PREVIEW_SUFFIX}"
    content = open_template("tiling.html").render(
        slide=measures.slide,
        policy=CONTENT_POLICY,
        script=read_web_file(SCRIPT),
        view=script_safe(json.dumps(_describe(measures, command), allow_nan=False)),
    )
    write_file(path, content.encode())
    return path


def _describe(measures: TilingMeasures, command: TilingCommand) -> dict[str, Any]:
    """Return what the page's script needs."""
    grid, thumbnail = measures.grid, measures.thumbnail
    image, scale = _shrink(thumbnail)
    inset = (grid.spec.side_px - grid.spec.stride_px) / 2 * float(grid.downsample)
    corner = [
        (origin + inset - other) / scale
        for origin, other in zip(grid.origin_xy_l0, thumbnail.origin_xy_l0, strict=True)
    ]
    return {
        "image": f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(image)).decode()}",
        "corner_px": corner,
        "pitch_px": grid.spec.stride_px * float(grid.downsample) / scale,
        "grid_positions": grid.rows * grid.cols,
        "patch_mm2": grid.patch_area_mm2,
        "positions": _encode(measures.positions.astype("<i4")),
        "sharpness": _encode(measures.sharpness.astype("<f4")),
        "steps": [
            {
                "name": step.name,
                "settings": dict(step.settings),
                "tissue": _encode(step.tissue.astype("<f4")),
                "faults": {name: _encode(each.astype("<f4")) for name, each in step.faults.items()},
            }
            for step in measures.steps
        ],
        "words": list(command.words),
        "given": dict(command.given),
        "defaults": dict(command.defaults),
    }


def _shrink(thumbnail: Thumbnail) -> tuple[NDArray[np.uint8], float]:
    """Return the thumbnail at most `MAX_SIDE_PX` long, and level-0 pixels per pixel of it."""
    height, width = thumbnail.pixels.shape[:2]
    factor = max(1.0, max(height, width) / MAX_SIDE_PX)
    size = max(round(width / factor), 1), max(round(height / factor), 1)
    image = Image.fromarray(thumbnail.pixels).resize(size, reducing_gap=2.0)
    return np.asarray(image), float(thumbnail.downsample) * width / size[0]


def _encode(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
