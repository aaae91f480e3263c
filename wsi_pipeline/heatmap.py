"""Aggregation: from the probabilities of patches to a slide's map and its figures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from wsi_pipeline.geometry import Grid
from wsi_pipeline.outcome import SlideState, SlideSummary, state_of
from wsi_pipeline.store.predictions import Predictions


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Probabilities where they belong on the slide."""

    grid: Grid
    probability: NDArray[np.float32]
    """(rows, cols), 0 to 1; NaN = not assessed: no tissue, or unreadable."""
    threshold: float
    positive_class: str

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(rows, cols) cells at or above the threshold; NaN never is."""
        return find_positive(self.probability, self.threshold)


def find_positive(probability: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Whether each value reaches the threshold; NaN never does."""
    # In float32 like the probabilities: 0.3 as float64 is not reached by a stored 0.3.
    positive: NDArray[np.bool_] = probability >= np.float32(threshold)
    return positive


def draw_heatmap(predictions: Predictions, threshold: float | None = None) -> Heatmap:
    """The map of a slide's predictions, at the model's threshold unless another is given."""
    table = predictions.table
    probability = np.full((table.grid.rows, table.grid.cols), np.nan, dtype=np.float32)
    probability[table.cells[:, 0], table.cells[:, 1]] = predictions.probability
    return Heatmap(
        grid=table.grid,
        probability=probability,
        threshold=predictions.threshold if threshold is None else threshold,
        positive_class=predictions.positive_class,
    )


def summarise(predictions: Predictions, heatmap: Heatmap) -> SlideSummary:
    """The figures of one slide."""
    table = predictions.table
    known = predictions.probability[~np.isnan(predictions.probability)].astype(np.float64)
    unreadable = table.patches - len(known)
    positives = int(np.count_nonzero(heatmap.positive))
    cell_mm2 = table.grid.cell_area_mm2
    return SlideSummary(
        slide_id=table.slide.slide_id,
        state=state_of(table.patches, unreadable),
        patches=table.patches,
        unreadable=unreadable,
        positives=positives,
        positive_fraction=positives / len(known) if len(known) else None,
        assessed_mm2=len(known) * cell_mm2,
        positive_mm2=positives * cell_mm2,
        mean_probability=float(known.mean()) if len(known) else None,
        p95_probability=float(np.percentile(known, 95)) if len(known) else None,
        largest_positive_region_mm2=count_largest_region(heatmap.positive) * cell_mm2,
        threshold=heatmap.threshold,
        positive_class=heatmap.positive_class,
        mpp=table.grid.spec.mpp,
        slide_mpp=table.slide.mpp,
        slide_mpp_source=table.slide.mpp_source,
        model_digest=predictions.model_digest,
    )


def count_largest_region(positive: NDArray[np.bool_]) -> int:
    """Cells in the largest group of positive cells that touch, diagonals included; 0 where none is positive."""
    sizes = np.bincount(number_groups(positive, corners=True).ravel())[1:]
    return int(sizes.max()) if len(sizes) else 0


def number_groups(mask: NDArray[np.bool_], corners: bool) -> NDArray[np.int64]:
    """Groups of True cells that touch along an edge, or also at a corner, numbered from 1 in raster order; 0 elsewhere."""
    groups: NDArray[np.int64] = label(mask, connectivity=2 if corners else 1).astype(np.int64)
    return groups


def describe_summary(summary: SlideSummary) -> str:
    """One line of a slide's figures."""
    if summary.state is SlideState.ZERO:
        return "no tissue, no patches"
    share = "" if summary.positive_fraction is None else f" ({summary.positive_fraction:.1%})"
    unreadable = f", {summary.unreadable} unreadable" if summary.unreadable else ""
    return (
        f"{summary.patches} patches, {summary.positives} {summary.positive_class}{share}, "
        f"{summary.positive_mm2:.2f} of {summary.assessed_mm2:.2f} mm²{unreadable}"
    )
