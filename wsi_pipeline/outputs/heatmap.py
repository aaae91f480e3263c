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
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.counting.context import average_context, find_reach
from wsi_pipeline.counting.interval import conformal_radius, predict_error
from wsi_pipeline.counting.site import SiteCalibration
from wsi_pipeline.store.commit import VIEW
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.predictions import Predictions


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

    Raises ConfigError for a prevalence where the model does not say that of its validation, and for
    what an estimate cannot know.
    """
    rules, table = aggregation or Aggregation(), predictions.table
    if rules.context_um == predictions.terms.on_grid.context_um:
        rules = replace(rules, context_um=None)
    terms = predictions.terms.choose(rules.context_um)
    _check_estimate(predictions, rules, terms.context_um)
    site = _find_site(predictions, rules)
    calibration = terms.calibration if site is None else site.calibration
    calibration = _shift(predictions, calibration, rules.prevalence)
    if terms.context_um == 0 and calibration == predictions.terms.alone.calibration:
        probability = place_on_grid(table, predictions.alone)
    else:
        stride_um = table.grid.spec.stride_px * table.grid.spec.mpp
        logits = place_on_grid(table, predictions.logit)
        probability = calibration.apply(average_context(logits, terms.context_um / stride_um))
    probability[tuple(table.positions[~table.is_counted].T)] = np.nan
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


def _check_estimate(predictions: Predictions, rules: Aggregation, context_um: float) -> None:
    """Raise ConfigError for regions of an estimate, or for a context beyond what it computed."""
    table = predictions.table
    if table.sample is None:
        return
    sigma = context_um / (table.grid.spec.stride_px * table.grid.spec.mpp)
    if rules.min_region_mm2:
        what, remedy = "of which no region is known", "leave --min-region-mm2 out"
    elif find_reach(sigma) > table.sample.reach:
        what, remedy = f"which has no context of {context_um:g} µm", "leave --context out"
    else:
        return
    raise ConfigError(f"{predictions.path}: is an estimate of a sample, {what}; {remedy}")


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


def round_area(area_mm2: float) -> float:
    """Return an area in mm² to a thousandth of a µm²: what follows is noise of the arithmetic."""
    return round(float(area_mm2), 9)


def number_groups(mask: NDArray[Any], corners: bool) -> NDArray[Any]:
    """Return groups that touch at edges, or also at corners, numbered from 1 in raster order.

    Where `mask` is of numbers, only equal ones are a group.
    """
    from skimage.measure import label

    groups: NDArray[Any] = label(mask, connectivity=2 if corners else 1)
    return groups
