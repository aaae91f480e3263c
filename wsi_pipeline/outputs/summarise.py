"""The summary of a slide's map: counts, areas and their intervals, regions, and the hot spot."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.outcome import (
    NEAR,
    SlideState,
    SlideSummary,
    describe_interval,
    describe_unlike,
    find_unlike,
    state_of,
)
from wsi_pipeline.core.patch_table import PatchTable, SampleDesign
from wsi_pipeline.counting.cluster_sample import estimate_share, number_clusters
from wsi_pipeline.counting.interval import spread_share
from wsi_pipeline.outputs.heatmap import (
    CountError,
    Heatmap,
    find_positive,
    number_groups,
    round_area,
)
from wsi_pipeline.store.predictions import Predictions

HOT_SPOT_MM = 1.0
"""Side of the window of a hot spot."""
REGION_METRICS = (
    *("positive_regions", "mean_positive_region_mm2", "largest_positive_region_mm2"),
    *("hot_spot_positive_mm2", "hot_spot_x_l0", "hot_spot_y_l0"),
)


def summarise(predictions: Predictions, heatmap: Heatmap) -> SlideSummary:
    """Return the summary of one slide's map."""
    table = predictions.table
    known = heatmap.probability[~np.isnan(heatmap.probability)].astype(np.float64)
    unreadable = int(np.count_nonzero(np.isnan(predictions.logit[table.is_counted])))
    positive, above = heatmap.positive, find_positive(heatmap.probability, heatmap.threshold)
    positives, positions = int(np.count_nonzero(positive)), heatmap.probability.size
    facts = _describe_table(table)
    patches: int = facts["patches"]
    return SlideSummary(
        **facts,
        state=state_of(patches, unreadable),
        unreadable=unreadable,
        positives=positives,
        **(
            _estimate_positives(positives, len(known), heatmap.count_error)
            if table.sample is None
            else _estimate_slide(table, table.sample, heatmap)
        ),
        positive_fraction=positives / len(known) if len(known) else None,
        assessed_mm2=round_area(len(known) * table.grid.patch_area_mm2),
        positive_mm2=round_area(positives * table.grid.patch_area_mm2),
        unreadable_fraction=unreadable / patches if patches else None,
        unassessed_fraction=1 - len(known) / positions if positions else None,
        positives_left_out=int(np.count_nonzero(above)) - positives,
        near_threshold=int(np.count_nonzero(np.abs(known - heatmap.threshold) <= NEAR)),
        threshold=heatmap.threshold,
        threshold_source=heatmap.threshold_source,
        context_um=heatmap.context_um,
        prevalence=heatmap.prevalence,
        min_region_mm2=heatmap.min_region_mm2,
        positive_class=heatmap.positive_class,
        model_digest=predictions.model_digest,
        **_describe_distance(predictions),
        mean_probability=float(known.mean()) if len(known) else None,
        p95_probability=float(np.percentile(known, 95)) if len(known) else None,
        max_probability=float(known.max()) if len(known) else None,
        **_describe_regions(None if table.sample else positive, table.grid),
    )


def _describe_table(table: PatchTable) -> dict[str, Any]:
    """Return the fields that do not depend on a model."""
    slide, spec = table.slide, table.grid.spec
    return {
        "slide_id": slide.slide_id,
        "patient_id": table.patient_id,
        "columns": dict(table.columns),
        "patches": int(np.count_nonzero(table.is_counted)),
        "slide_patches": table.sample and table.sample.slide_patches,
        "mpp": spec.mpp,
        "patch_um": spec.field_um,
        "slide_mpp": slide.mpp,
        "slide_mpp_source": slide.mpp_source,
        "colour_profile": slide.colour_profile,
        "reader_note": slide.reader_note,
        "mask": table.mask_name,
    }


def _describe_distance(predictions: Predictions) -> dict[str, Any]:
    """Return the slide's distance from the model's training patches, and its limits."""
    distance, limits = predictions.distance, predictions.limits
    return {
        "colour_distance": distance.colour,
        "colour_limit": limits.colour,
        "feature_distance": distance.features,
        "feature_limit": limits.features,
        "unlike_training": find_unlike(distance, limits),
    }


def _estimate_positives(positives: int, assessed: int, error: CountError | None) -> dict[str, Any]:
    """Return the counted positives as the estimate, with an interval by the model's count error."""
    low = high = None
    if assessed and error is not None:
        ends = spread_share(positives / assessed, error.radius, error.center)
        low, high = (end * assessed for end in ends)
    return {
        "positives_estimate": float(positives) if assessed else None,
        "positives_low": low,
        "positives_high": high,
        "interval_source": "none" if low is None or error is None else error.source,
    }


def _estimate_slide(table: PatchTable, design: SampleDesign, heatmap: Heatmap) -> dict[str, Any]:
    """Return the number of positive patches of the whole slide, estimated from a sample."""
    positions = table.positions[table.is_counted]
    _, cluster = number_clusters(positions, design.side)
    place = tuple(positions.T)
    known = ~np.isnan(heatmap.probability[place])
    found = estimate_share(heatmap.positive[place], known, cluster, design.clusters)
    share = {"estimate": found.share, "low": found.low, "high": found.high}
    whole = design.slide_patches * known.mean()  # as many of the others cannot be read
    counts = {f"positives_{name}": end and float(end * whole) for name, end in share.items()}
    return counts | {"interval_source": "none" if found.low is None else "estimate"}


def _describe_regions(positive: NDArray[np.bool_] | None, grid: Grid) -> dict[str, Any]:
    """Return the metrics of regions and hot spot; all are None without `positive` (rows, cols)."""
    if positive is None:
        return dict.fromkeys(REGION_METRICS)
    sizes = np.bincount(number_groups(positive, corners=True).ravel())[1:]
    area_mm2 = grid.patch_area_mm2
    spot = find_hot_spot(positive, grid)
    return {
        "positive_regions": len(sizes),
        "mean_positive_region_mm2": round_area(sizes.mean() * area_mm2) if len(sizes) else None,
        "largest_positive_region_mm2": round_area(sizes.max(initial=0) * area_mm2),
        "hot_spot_positive_mm2": spot and round_area(spot.positives * area_mm2),
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


def describe_summary(summary: SlideSummary) -> str:
    """Return one line of a slide's summary."""
    if summary.state is SlideState.ZERO:
        return "no tissue, no patches"
    share = "" if summary.positive_fraction is None else f" ({summary.positive_fraction:.1%})"
    unreadable = f", {summary.unreadable} unreadable" if summary.unreadable else ""
    has_none = summary.positives_low is None and summary.slide_patches is None
    interval = "" if has_none else f", {describe_interval(summary)}"
    unlike, mask = describe_unlike(summary), summary.mask
    inside = "" if mask is None else f"; only inside {mask} was assessed"
    return (
        f"{summary.patches} patches, {summary.positives} {summary.positive_class}{share}{interval},"
        f" {summary.positive_mm2:.2f} of {summary.assessed_mm2:.2f} mm²{unreadable}"
        f"{inside}{unlike and f'; {unlike}'}"
    )
