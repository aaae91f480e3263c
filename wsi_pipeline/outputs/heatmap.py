"""Aggregation: from the logits of patches to a slide's map and its summary."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.calibration import (
    COUNT,
    DETECT,
    MAX_CONTEXT_UM,
    USER,
    Calibration,
    ModelTerms,
    log_odds,
)
from wsi_pipeline.core.errors import DAMAGES, ConfigError, ModelError, damage_error
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
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.counting.context import average_context
from wsi_pipeline.counting.interval import conformal_radius, predict_error, spread_share
from wsi_pipeline.counting.site import SiteCalibration
from wsi_pipeline.store.commit import VIEW
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.predictions import Predictions

HOT_SPOT_MM = 1.0
"""Side of the window of a hot spot."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """Threshold, context, prevalence and smallest region that turn logits into a map."""

    threshold: float | str = COUNT
    """Probability from which on a patch is positive, or the model's: count or detect."""
    context_um: float | None = None
    """Standard deviation in µm of the Gaussian over the neighbours' logits; None: the model's."""
    min_region_mm2: float = 0.0
    """Groups of positive patches that are smaller than this do not count as positive."""
    prevalence: float | None = None
    """Share of positive patches expected in the cohort; None: as in the model's validation."""
    site: SiteCalibration | None = None
    """Takes the place of the calibration of the model that it was fitted for."""

    def __post_init__(self) -> None:
        at, share = self.threshold, self.prevalence
        if isinstance(at, str) and at not in (COUNT, DETECT):
            raise ConfigError(f"threshold is {at!r}; give {COUNT}, {DETECT} or a number")
        if not isinstance(at, str) and not 0 <= at <= 1:
            raise ConfigError(f"threshold is {at}; it must lie between 0 and 1")
        context = 0.0 if self.context_um is None else self.context_um
        if not 0 <= context <= MAX_CONTEXT_UM:
            raise ConfigError(f"context is {context} µm; it must be 0 to {MAX_CONTEXT_UM:g}")
        if not (np.isfinite(self.min_region_mm2) and self.min_region_mm2 >= 0):
            raise ConfigError(f"min_region_mm2 is {self.min_region_mm2}; it must be 0 or more")
        if share is not None and not 0 < share < 1:
            raise ConfigError(f"prevalence is {share}; it must lie between 0 and 1")

    @property
    def is_plain(self) -> bool:
        """True if counts are made as those whose errors are known."""
        return replace(self, site=None) == Aggregation()

    def to_json(self) -> dict[str, Any]:
        """Return it as manifests record it."""
        return asdict(self) | {"site": self.site and self.site.to_json()}

    @classmethod
    def from_json(cls, view: Any) -> "Aggregation":
        """Return what a manifest's view records. Raises one of `DAMAGES`, or a WsiError."""
        if not isinstance(view, dict):
            raise TypeError("it is not a table")
        names = ("threshold", "context_um", "min_region_mm2", "prevalence")
        named = {name: view[name] for name in names if view.get(name) is not None}
        words = {name for name, value in named.items() if value in (COUNT, DETECT)}
        if words - {"threshold"} or not all(
            type(named[name]) in (int, float) for name in named.keys() - words
        ):
            raise TypeError("a value of its view is not a number")
        site = view.get("site")
        return cls(**named, site=None if site is None else SiteCalibration.from_json(site))


def read_aggregation(folder: Path) -> Aggregation:
    """Return the aggregation that made the outputs in a slide's folder. Raises StoreError."""
    try:
        return Aggregation.from_json(read_manifest(folder).recipe.get(VIEW, {}))
    except (ConfigError, ModelError, *DAMAGES) as error:
        raise damage_error(folder, f"its view is invalid ({error})") from error


@dataclass(frozen=True, slots=True)
class CountError:
    """The error of a count, in the arcsine of the share's square root; see counting/interval."""

    source: str
    """site or validation."""
    center: float
    radius: float


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Probabilities where they belong on the slide."""

    grid: Grid
    probability: NDArray[np.float32]
    """(rows, cols), 0 to 1; NaN = not assessed: no tissue, or unreadable."""
    threshold: float
    positive_class: str
    negative_class: str = "negative"
    threshold_source: str = COUNT
    """Source of the threshold: count or detect, both the model's, or user."""
    context_um: float = 0.0
    min_region_mm2: float = 0.0
    prevalence: float | None = None
    count_error: CountError | None = None
    """None where nothing is known of counts made in this way."""

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


def build_heatmap(predictions: Predictions, aggregation: Aggregation | None = None) -> Heatmap:
    """Return the map of a slide's predictions, on the model's own terms unless others are given.

    Raises ConfigError for a prevalence where the model does not say that of its validation.
    """
    rules, table = aggregation or Aggregation(), predictions.table
    if rules.context_um == predictions.terms.on_grid.context_um:
        rules = replace(rules, context_um=None)
    terms = predictions.terms.choose(rules.context_um)
    site = _find_site(predictions, rules)
    calibration = terms.calibration if site is None else site.calibration
    calibration = _shift(predictions, calibration, rules.prevalence)
    if terms.context_um == 0 and calibration == predictions.terms.alone.calibration:
        probability = place_on_grid(table, predictions.alone)
    else:
        stride_um = table.grid.spec.stride_px * table.grid.spec.mpp
        logits = place_on_grid(table, predictions.logit)
        probability = calibration.apply(average_context(logits, terms.context_um / stride_um))
    at = rules.threshold
    return Heatmap(
        grid=table.grid,
        probability=probability,
        threshold=terms.threshold(at) if isinstance(at, str) else at,
        positive_class=predictions.positive_class,
        negative_class=predictions.negative_class,
        threshold_source=at if isinstance(at, str) else USER,
        context_um=terms.context_um,
        min_region_mm2=rules.min_region_mm2,
        prevalence=rules.prevalence,
        count_error=find_count_error(predictions.terms, site) if rules.is_plain else None,
    )


def _find_site(predictions: Predictions, rules: Aggregation) -> SiteCalibration | None:
    """Return the site's calibration where it was fitted for this model and its own context."""
    site = rules.site
    is_for_it = site is not None and site.model_digest == predictions.model_digest
    return site if is_for_it and rules.context_um is None else None


def find_count_error(terms: ModelTerms, site: SiteCalibration | None) -> CountError | None:
    """Return what is known of the errors of a model's counts, at a site or at large."""
    if site is not None:
        return CountError("site", *predict_error(site.errors))
    radius = conformal_radius(terms.count_errors)
    return None if radius is None else CountError("validation", 0.0, radius)


def _shift(predictions: Predictions, calibration: Calibration, share: float | None) -> Calibration:
    """Return the calibration for a cohort of another share of positive patches."""
    if share is None:
        return calibration
    before = predictions.terms.positive_share
    if before is None:
        raise ConfigError(
            f"{predictions.path}: its model does not record the share of positive patches that it"
            " was calibrated on; leave --prevalence out"
        )
    return calibration.shift(log_odds(share) - log_odds(before))


def place_on_grid(table: PatchTable, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values (n,) of patches at their positions (rows, cols), NaN elsewhere."""
    placed = np.full((table.grid.rows, table.grid.cols), np.nan, dtype=np.float32)
    placed[table.positions[:, 0], table.positions[:, 1]] = values
    return placed


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
    """Return the summary of one slide's map."""
    table = predictions.table
    known = heatmap.probability[~np.isnan(heatmap.probability)].astype(np.float64)
    unreadable = int(np.count_nonzero(np.isnan(predictions.logit)))
    positive, above = heatmap.positive, find_positive(heatmap.probability, heatmap.threshold)
    positives, positions = int(np.count_nonzero(positive)), heatmap.probability.size
    return SlideSummary(
        **_describe_table(table),
        state=state_of(table.patches, unreadable),
        unreadable=unreadable,
        positives=positives,
        **_estimate_positives(positives, len(known), heatmap.count_error),
        positive_fraction=positives / len(known) if len(known) else None,
        assessed_mm2=round_area(len(known) * table.grid.patch_area_mm2),
        positive_mm2=round_area(positives * table.grid.patch_area_mm2),
        unreadable_fraction=unreadable / table.patches if table.patches else None,
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
        colour_distance=predictions.distance.colour,
        colour_limit=predictions.limits.colour,
        feature_distance=predictions.distance.features,
        feature_limit=predictions.limits.features,
        unlike_training=find_unlike(predictions.distance, predictions.limits),
        mean_probability=float(known.mean()) if len(known) else None,
        p95_probability=float(np.percentile(known, 95)) if len(known) else None,
        max_probability=float(known.max()) if len(known) else None,
        **_describe_regions(positive, table.grid),
    )


def _describe_table(table: PatchTable) -> dict[str, Any]:
    """Return the facts of a slide and its patches that no model decides."""
    slide, spec = table.slide, table.grid.spec
    return {
        "slide_id": slide.slide_id,
        "patient_id": table.patient_id,
        "columns": dict(table.columns),
        "patches": table.patches,
        "mpp": spec.mpp,
        "patch_um": spec.field_um,
        "slide_mpp": slide.mpp,
        "slide_mpp_source": slide.mpp_source,
        "colour_profile": slide.colour_profile,
        "reader_note": slide.reader_note,
        "mask": table.mask_name,
    }


def round_area(area_mm2: float) -> float:
    """Return an area in mm² to a thousandth of a µm²: what follows is noise of the arithmetic."""
    return round(float(area_mm2), 9)


def _estimate_positives(positives: int, assessed: int, error: CountError | None) -> dict[str, Any]:
    """Return the counted number as the estimate, with the interval that its error gives."""
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


def _describe_regions(positive: NDArray[np.bool_], grid: Grid) -> dict[str, Any]:
    sizes, area_mm2 = (
        np.bincount(number_groups(positive, corners=True).ravel())[1:],
        grid.patch_area_mm2,
    )
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


def number_groups(mask: NDArray[Any], corners: bool) -> NDArray[Any]:
    """Return groups that touch at edges, or also at corners, numbered from 1 in raster order.

    Where `mask` is of numbers, only equal ones are a group.
    """
    from skimage.measure import label

    groups: NDArray[Any] = label(mask, connectivity=2 if corners else 1)
    return groups


def describe_summary(summary: SlideSummary) -> str:
    """Return one line of a slide's summary."""
    if summary.state is SlideState.ZERO:
        return "no tissue, no patches"
    share = "" if summary.positive_fraction is None else f" ({summary.positive_fraction:.1%})"
    unreadable = f", {summary.unreadable} unreadable" if summary.unreadable else ""
    interval = "" if summary.positives_low is None else f", {describe_interval(summary)}"
    unlike, mask = describe_unlike(summary), summary.mask
    inside = "" if mask is None else f"; only inside {mask} was assessed"
    return (
        f"{summary.patches} patches, {summary.positives} {summary.positive_class}{share}{interval},"
        f" {summary.positive_mm2:.2f} of {summary.assessed_mm2:.2f} mm²{unreadable}"
        f"{inside}{unlike and f'; {unlike}'}"
    )
