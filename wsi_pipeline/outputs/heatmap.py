"""Aggregation: from the probabilities of patches to a slide's map and its summary."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.outcome import SlideState, SlideSummary, state_of
from wsi_pipeline.store.predictions import Predictions

HOT_SPOT_MM = 1.0
"""Side of the window of a hot spot."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """Threshold, smoothing and smallest region that turn probabilities into a map."""

    threshold: float | None = None
    """Probability from which on a patch counts as positive; None: the model's own."""
    smooth_um: float = 0.0
    """Standard deviation in µm of a Gaussian over the assessed patches; 0: no smoothing."""
    min_region_mm2: float = 0.0
    """Groups of positive patches that are smaller than this do not count as positive."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; it must lie between 0 and 1")
        for name, value in (("smooth", self.smooth_um), ("min_region_mm2", self.min_region_mm2)):
            if not (np.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; it must be 0 or more")


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Probabilities where they belong on the slide."""

    grid: Grid
    probability: NDArray[np.float32]
    """(rows, cols), 0 to 1; NaN = not assessed: no tissue, or unreadable."""
    threshold: float
    positive_class: str
    negative_class: str = "negative"
    threshold_source: str = "model"
    """Source of the threshold: "model" or "user"."""
    smooth_um: float = 0.0
    min_region_mm2: float = 0.0

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(rows, cols) True at or above the threshold, in groups that are large enough."""
        positive = find_positive(self.probability, self.threshold)
        if not self.min_region_mm2:
            return positive
        return drop_small_groups(positive, self.min_region_mm2 / self.grid.patch_area_mm2)


def find_positive(probability: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Return whether each value reaches the threshold; NaN never does."""
    # In float32 like the probabilities: 0.3 as float64 is not reached by a stored 0.3.
    positive: NDArray[np.bool_] = probability >= np.float32(threshold)
    return positive


def build_heatmap(
    predictions: Predictions,
    threshold: float | None = None,
    *,
    smooth_um: float = 0.0,
    min_region_mm2: float = 0.0,
) -> Heatmap:
    """Return the map of a slide's predictions, at the model's threshold unless another is given."""
    table = predictions.table
    probability = np.full((table.grid.rows, table.grid.cols), np.nan, dtype=np.float32)
    probability[table.positions[:, 0], table.positions[:, 1]] = predictions.probability
    stride_um = table.grid.spec.stride_px * table.grid.spec.mpp
    return Heatmap(
        grid=table.grid,
        probability=smooth_map(probability, smooth_um / stride_um),
        threshold=predictions.threshold if threshold is None else threshold,
        positive_class=predictions.positive_class,
        negative_class=predictions.negative_class,
        threshold_source="model" if threshold is None else "user",
        smooth_um=smooth_um,
        min_region_mm2=min_region_mm2,
    )


def smooth_map(probability: NDArray[np.float32], sigma_patches: float) -> NDArray[np.float32]:
    """Return the Gaussian mean of the assessed values around each one; the others stay NaN."""
    if sigma_patches == 0:
        return probability
    known = ~np.isnan(probability)
    values = np.where(known, probability, 0).astype(np.float64)
    total = gaussian_filter(values, sigma_patches, mode="constant")
    weight = gaussian_filter(known.astype(np.float64), sigma_patches, mode="constant")
    smooth = np.divide(total, weight, out=np.full(probability.shape, np.nan), where=known)
    smoothed: NDArray[np.float32] = np.clip(smooth, 0, 1).astype(np.float32)
    return smoothed


def drop_small_groups(positive: NDArray[np.bool_], min_patches: float) -> NDArray[np.bool_]:
    """Return the mask without touching groups (corners included) of fewer than `min_patches`."""
    groups = number_groups(positive, corners=True)
    is_kept = is_large(np.bincount(groups.ravel()), min_patches)
    is_kept[:1] = False
    kept: NDArray[np.bool_] = is_kept[groups]
    return kept


def is_large(patches: NDArray[Any], min_patches: float) -> NDArray[np.bool_]:
    """Return True for groups of so many patches that they count as regions."""
    # An area of exactly n patches must not fail by rounding.
    large: NDArray[np.bool_] = patches >= min_patches - 1e-9
    return large


def summarise(predictions: Predictions, heatmap: Heatmap) -> SlideSummary:
    """Return the summary of one slide's map, smoothed or not."""
    table = predictions.table
    known = heatmap.probability[~np.isnan(heatmap.probability)].astype(np.float64)
    unreadable = int(np.count_nonzero(np.isnan(predictions.probability)))
    positive, above = heatmap.positive, find_positive(heatmap.probability, heatmap.threshold)
    positives, positions = int(np.count_nonzero(positive)), heatmap.probability.size
    return SlideSummary(
        slide_id=table.slide.slide_id,
        state=state_of(table.patches, unreadable),
        patches=table.patches,
        unreadable=unreadable,
        positives=positives,
        positive_fraction=positives / len(known) if len(known) else None,
        assessed_mm2=len(known) * table.grid.patch_area_mm2,
        positive_mm2=positives * table.grid.patch_area_mm2,
        unreadable_fraction=unreadable / table.patches if table.patches else None,
        unassessed_fraction=1 - len(known) / positions if positions else None,
        positives_left_out=int(np.count_nonzero(above)) - positives,
        threshold=heatmap.threshold,
        threshold_source=heatmap.threshold_source,
        smooth_um=heatmap.smooth_um,
        min_region_mm2=heatmap.min_region_mm2,
        positive_class=heatmap.positive_class,
        mpp=table.grid.spec.mpp,
        slide_mpp=table.slide.mpp,
        slide_mpp_source=table.slide.mpp_source,
        model_digest=predictions.model_digest,
        mean_probability=float(known.mean()) if len(known) else None,
        p95_probability=float(np.percentile(known, 95)) if len(known) else None,
        max_probability=float(known.max()) if len(known) else None,
        **_describe_regions(positive, table.grid),
    )


def _describe_regions(positive: NDArray[np.bool_], grid: Grid) -> dict[str, Any]:
    sizes, area_mm2 = (
        np.bincount(number_groups(positive, corners=True).ravel())[1:],
        grid.patch_area_mm2,
    )
    spot = find_hot_spot(positive, grid)
    return {
        "positive_regions": len(sizes),
        "mean_positive_region_mm2": float(sizes.mean() * area_mm2) if len(sizes) else None,
        "largest_positive_region_mm2": float(sizes.max(initial=0) * area_mm2),
        "hot_spot_positive_mm2": spot and spot.positives * area_mm2,
        "hot_spot_x_l0": spot and spot.x_l0,
        "hot_spot_y_l0": spot and spot.y_l0,
    }


@dataclass(frozen=True, slots=True)
class HotSpot:
    """The window of 1 mm² with the most positive patches."""

    positives: int
    x_l0: float
    """Its centre, in level-0 pixels."""
    y_l0: float


def find_hot_spot(positive: NDArray[np.bool_], grid: Grid) -> HotSpot | None:
    """Return the densest square of 1 mm², in whole patches; None where nothing is positive.

    Of equal squares, the first in raster order.
    """
    if not positive.any():
        return None
    side = max(1, round(HOT_SPOT_MM * 1000 / (grid.spec.stride_px * grid.spec.mpp)))
    rows, cols = (min(side, extent) for extent in positive.shape)
    integral = np.pad(positive.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    tall = integral[rows:] - integral[:-rows]
    counts = tall[:, cols:] - tall[:, :-cols]
    row, col = (int(index) for index in np.unravel_index(int(counts.argmax()), counts.shape))
    x0, y0 = grid.origin_xy_l0
    step = grid.spec.stride_px * float(grid.downsample)
    inset = (grid.spec.side_px - grid.spec.stride_px) / 2 * float(grid.downsample)
    x, y = x0 + inset + (col + cols / 2) * step, y0 + inset + (row + rows / 2) * step
    return HotSpot(int(counts[row, col]), x, y)


def number_groups(mask: NDArray[np.bool_], corners: bool) -> NDArray[Any]:
    """Return groups that touch at edges, or also at corners, numbered from 1 in raster order."""
    groups: NDArray[Any] = label(mask, connectivity=2 if corners else 1)
    return groups


def describe_summary(summary: SlideSummary) -> str:
    """Return one line of a slide's summary."""
    if summary.state is SlideState.ZERO:
        return "no tissue, no patches"
    share = "" if summary.positive_fraction is None else f" ({summary.positive_fraction:.1%})"
    unreadable = f", {summary.unreadable} unreadable" if summary.unreadable else ""
    return (
        f"{summary.patches} patches, {summary.positives} {summary.positive_class}{share}, "
        f"{summary.positive_mm2:.2f} of {summary.assessed_mm2:.2f} mm²{unreadable}"
    )
