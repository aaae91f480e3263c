"""Pen marks, folds, bubbles and blur: measured, flagged, and left to the user to act upon.

What lies on the thumbnail the detector of tissue finds; beside a detector that finds no ink, ink is
what has colours that are saturated as no stain is at that scale. Sharpness
is the variance of the Laplacian of brightness (0–255) at a fixed scale, so that a threshold means
the same for every patch size and scanner; it is looked at in a window of at least 64 µm, because a
patch of 12.5 µm may be smooth and in focus.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import QUALITY_FLAGS
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.geometry import Grid, downsample_between, positions_to_boxes_l0
from wsi_pipeline.core.patch_table import PatchQuality
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.scaling import ScaledView
from wsi_pipeline.slides.tissue import STRIP_PX, look_up, saturation_table, tissue_fraction

INKS = (
    (0.20, 0.47, 0.35),  # green
    (0.47, 0.69, 0.45),  # cyan and blue; haematoxylin is paler and nearer to violet
    (0.98, 1.02, 0.85),  # red; eosin and blood are paler
)
"""Ranges of hue, 0–1 and beyond 1 round again, each with the saturation from which on it is ink."""

MIN_INK_VALUE = 0.15
"""Darker pixels have no hue worth the name."""

MIN_INK_UM2 = 40_000.0
"""Smaller specks are pigment or dust."""

SHARPNESS_MPP = 1.0
"""µm per pixel at which sharpness is measured; coarser slides at their own scale."""

MIN_WINDOW_UM = 64.0
PIECE_PX = 1024


@dataclass(frozen=True, slots=True)
class QualityParameters:
    """Limits for flags, and the flags whose patches are left out."""

    max_pen: float = 0.1
    """Flag a patch if more than this fraction of it is pen ink, 0 to 1."""
    max_fold: float = 0.1
    """The same of folded tissue."""
    max_bubble: float = 0.5
    """The same of air bubbles."""
    min_sharpness: float | None = None
    """Flag a patch as blurred below this variance of the Laplacian; None: not measured."""
    drop: tuple[str, ...] = ()
    """Names of flags whose patches are left out."""

    def __post_init__(self) -> None:
        for name, share in self.most.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"max_{name} is {share}; it must lie between 0 and 1")
        if self.min_sharpness is not None and not 0 < self.min_sharpness < math.inf:
            raise ConfigError(f"min_sharpness is {self.min_sharpness}; it must be above 0")
        if unknown := set(self.drop) - set(QUALITY_FLAGS):
            flags = ", ".join(QUALITY_FLAGS)
            raise ConfigError(f"there is no flag {min(unknown)!r}; flags are {flags}")
        if "blur" in self.drop and self.min_sharpness is None:
            raise ConfigError(
                "blurred patches can only be left out where sharpness is measured; give"
                " --min-sharpness"
            )

    @property
    def most(self) -> dict[str, float]:
        """Shares of a patch, by the fault that is seen on the thumbnail."""
        return {"pen": self.max_pen, "fold": self.max_fold, "bubble": self.max_bubble}

    @property
    def of_local(self) -> dict[str, float]:
        """Return the limits of flags that only the detector `local` looks for."""
        return {"max_fold": self.max_fold, "max_bubble": self.max_bubble}

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as they are recorded in stores and recipes."""
        return asdict(self) | {"drop": sorted(self.drop), "sharpness_mpp": SHARPNESS_MPP}


def find_pen(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Return the ink on a thumbnail (h, w, 3) at `mpp` µm/px, bool (h, w)."""
    from skimage.color import rgb2hsv
    from skimage.morphology import remove_small_objects

    mask = look_up(rgb, saturation_table() >= min(least for _, _, least in INKS))
    for top in range(0, len(rgb), STRIP_PX):  # HSV takes eight times the memory of RGB
        strip = mask[top : top + STRIP_PX]
        if strip.any():  # of these pixels alone: few are as saturated as ink
            hsv = rgb2hsv(rgb[top : top + STRIP_PX][strip])
            strip[strip] = _is_ink(*np.moveaxis(hsv, -1, 0))
    return np.asarray(remove_small_objects(mask, max_size=int(MIN_INK_UM2 / mpp**2)))


def _is_ink(
    hue: NDArray[np.float64], saturation: NDArray[np.float64], value: NDArray[np.float64]
) -> NDArray[np.bool_]:
    is_ink = np.zeros(hue.shape, dtype=np.bool_)
    for low, high, least in INKS:
        is_hue = ((hue >= low) & (hue < high)) | (hue < high - 1)
        is_ink |= is_hue & (saturation >= least) & (value >= MIN_INK_VALUE)
    return is_ink


def measure_sharpness(
    reader: SlideReader, grid: Grid, positions: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return the variance of the Laplacian around every patch, (n,); NaN: it could not be read.

    Pieces of the slide without a patch are not read, and one piece is in memory at a time.
    """
    from skimage.color import rgb2gray
    from skimage.filters import laplace

    slide = reader.info
    mpp = max(SHARPNESS_MPP, slide.mpp)
    downsample = downsample_between(slide.mpp, mpp)
    x, y, *extent_l0 = slide.bounds_l0
    view = ScaledView(reader, choose_level(reader.levels, downsample), downsample, (x, y))
    boxes = (positions_to_boxes_l0(positions, grid) - [x, y, 0, 0]) / float(downsample)
    size = [max(1, math.floor(extent / downsample)) for extent in extent_l0]
    windows = _windows(boxes, size, MIN_WINDOW_UM / mpp)
    sharpness = np.full(len(boxes), np.nan, dtype=np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:] / 2) // PIECE_PX
    pieces, owner = np.unique(centres, axis=0, return_inverse=True)
    for piece in range(len(pieces)):
        members = np.flatnonzero(owner.ravel() == piece)
        # A pixel more at each side, so that no value depends on which patches are in the piece.
        x0, y0 = np.maximum(windows[members, :2].min(axis=0) - 1, 0).tolist()
        x1, y1 = np.minimum(windows[members, 2:].max(axis=0) + 1, size).tolist()
        with suppress(SlideError):
            edges = laplace(rgb2gray(view.read(x0, y0, x1 - x0, y1 - y0)) * 255)
            sharpness[members] = _variances(edges, windows[members] - [x0, y0, x0, y0])
    return sharpness


def _windows(boxes: NDArray[np.float64], size: list[int], least_px: float) -> NDArray[np.int64]:
    """Return the boxes as (n, 4) x0, y0, x1, y1, at least `least_px` wide, within the image."""
    centre, extent = boxes[:, :2] + boxes[:, 2:] / 2, np.maximum(boxes[:, 2:], least_px)
    low = np.clip(np.floor(centre - extent / 2), 0, np.array(size) - 1)
    high = np.minimum(np.maximum(np.ceil(centre + extent / 2), low + 1), size)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def _variances(values: NDArray[np.float64], windows: NDArray[np.int64]) -> NDArray[np.float64]:
    x0, y0, x1, y1 = windows.T
    count = (x1 - x0) * (y1 - y0)

    def mean(of: NDArray[np.float64]) -> NDArray[np.float64]:
        integral = np.pad(of.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        total = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
        return np.asarray(total / count)

    return np.maximum(mean(values**2) - mean(values) ** 2, 0)


def complete_faults(
    faults: Mapping[str, NDArray[np.bool_]], thumbnail: Thumbnail, mpp: float
) -> Mapping[str, NDArray[np.bool_]]:
    """Return the masks (h, w) of faults, with ink where the detector of tissue finds none."""
    return faults if "pen" in faults else {**faults, "pen": find_pen(thumbnail.pixels, mpp)}


def flag_patches(
    reader: SlideReader,
    grid: Grid,
    positions: NDArray[np.int32],
    thumbnail: Thumbnail,
    faults: Mapping[str, NDArray[np.bool_]],
    parameters: QualityParameters,
) -> tuple[NDArray[np.int32], PatchQuality]:
    """Return the positions that are kept, and the quality of their patches.

    `faults` are masks (h, w) of the thumbnail by the names of flags.
    """
    faults = complete_faults(faults, thumbnail, reader.info.mpp * float(thumbnail.downsample))
    flags, pen = np.zeros(len(positions), dtype=np.uint8), np.zeros(len(positions), np.float32)
    for name, mask in faults.items():
        share = tissue_fraction(mask, thumbnail, grid)[positions[:, 0], positions[:, 1]]
        flags[share > parameters.most[name]] |= np.uint8(QUALITY_FLAGS[name])
        pen = share if name == "pen" else pen
    sharpness = np.full(len(positions), np.nan, dtype=np.float32)
    if parameters.min_sharpness is not None and len(positions):
        sharpness = measure_sharpness(reader, grid, positions)
        flags[sharpness < parameters.min_sharpness] |= np.uint8(QUALITY_FLAGS["blur"])
    dropped = np.uint8(sum(QUALITY_FLAGS[name] for name in parameters.drop))
    kept = flags & dropped == 0
    return positions[kept], PatchQuality(pen[kept], sharpness[kept], flags[kept])
