"""A model's terms, fitted on validation patients: context, calibration, thresholds, errors.

Whatever is chosen among several is chosen by cross-validation over the patients.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.counting.context import average_context
from wsi_pipeline.counting.interval import FEWEST_PATCHES, share_error
from wsi_pipeline.training.calibrate import (
    MAX_TEMPERATURE,
    ThresholdRule,
    check_logits,
    fit_temperature,
)
from wsi_pipeline.training.metrics import (
    Floats,
    Labels,
    Names,
    expected_calibration_error,
    negative_log_likelihood,
)

CONTEXTS: tuple[float, ...] = (0.0, 0.5, 0.7, 1.0, 1.25, 1.5, 2.0)
"""Standard deviations that are tried, in strides of the grid."""
CONTEXTS_WITHOUT_WHOLE: tuple[float, ...] = (0.0, 1.0)
CUTS = tuple(round(0.02 * step, 2) for step in range(1, 50))
"""Thresholds for counting that are tried."""
FEWEST_WHOLE = 3
"""Patients with whole slides from which on these decide the width of the context."""
FEWEST_OF_WHOLE, KNOWN_OF_WHOLE = 100, 0.4
"""Patches of a whole slide, and the weight of known neighbours; 0.16 is a patch alone."""
GROUPS = 5
"""Parts that the validation patients are cut into."""
HALF = 0.5
PRECISE = {"xatol": 1e-6, "fatol": 1e-10}


@dataclass(frozen=True)
class ValidationPatches:
    """Validation patches with their places, (n,) each."""

    labels: Labels
    logits: Floats
    patients: Names
    stores: NDArray[np.int64]
    """Number of the store that holds each patch."""
    positions: NDArray[np.int32]
    """(n, 2) row, col on the grid of its store."""
    stride_um: float

    def average(self, sigma_patches: float) -> Floats:
        """Return the logits (n,), each averaged with its labelled neighbours' in its store."""
        if sigma_patches == 0:
            return self.logits
        averaged = np.empty_like(self.logits)
        for store in np.unique(self.stores):
            own = self.stores == store
            row, col = (self.positions[own] - self.positions[own].min(axis=0)).T
            grid = np.full((int(row.max()) + 1, int(col.max()) + 1), np.nan, dtype=np.float32)
            grid[row, col] = self.logits[own]
            averaged[own] = average_context(grid, sigma_patches)[row, col]
        return averaged

    @cached_property
    def is_whole(self) -> NDArray[np.bool_]:
        """True (n,) for patches of whole slides: labelled ones stand together, in both classes.

        A slide of which only a selection is labelled shows neighbours that no slide has.
        """
        whole = np.zeros(len(self.labels), dtype=np.bool_)
        for store in np.unique(self.stores):
            own = np.flatnonzero(self.stores == store)
            labels, known = self.labels[own], _weigh_known(self.positions[own])
            shares = [known[labels == label].mean() for label in np.unique(labels)]
            whole[own] = len(own) >= FEWEST_OF_WHOLE and min(shares) >= KNOWN_OF_WHOLE
        return whole

    def apply(self, terms: Terms) -> Floats:
        """Return probabilities (n,) by a model's terms."""
        return terms.calibration.apply(self.average(terms.context_um / self.stride_um))

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """Group (n,) of each patch's patient for cross-validation, alike in their patches."""
        names, codes = np.unique(self.patients, return_inverse=True)
        order = np.argsort(np.bincount(codes), kind="stable")
        group = np.empty(len(names), dtype=np.intp)
        group[order] = np.arange(len(names)) % GROUPS
        return group[codes]


def _weigh_known(positions: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the weight (n,) of the known positions in a Gaussian of one stride around each."""
    row, col = (positions - positions.min(axis=0)).T
    grid = np.zeros((int(row.max()) + 1, int(col.max()) + 1))
    grid[row, col] = 1
    return np.asarray(gaussian_filter(grid, 1.0, mode="constant")[row, col])


def fit_terms(patches: ValidationPatches, rule: ThresholdRule) -> tuple[ModelTerms, str]:
    """Return context, calibration and thresholds, and in words how they were chosen.

    Raises ConfigError where a class is missing or a logit is not finite.
    """
    check_logits(patches.labels, patches.logits)
    sigma = _choose_context(patches)
    alone, notes = _fit(patches, 0.0, rule)
    on_grid = alone
    if sigma:
        on_grid, notes = _fit(patches, sigma, rule)
    probability = patches.apply(on_grid)
    terms = ModelTerms(
        on_grid,
        alone,
        positive_share=float(np.mean(patches.labels)),
        count_errors=measure_count_errors(patches, probability, on_grid.count),
    )
    return terms, notes


def measure_count_errors(
    patches: ValidationPatches, probability: Floats, threshold: float
) -> tuple[float, ...]:
    """Return the error of each patient's count, sorted, of those with enough patches."""
    counted, true = _shares(patches, probability >= np.float32(threshold))
    return tuple(sorted(share_error(*pair) for pair in zip(counted, true, strict=True)))


def _shares(
    patches: ValidationPatches, called: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return counted and true share of positives of each patient with enough patches."""
    _, codes = np.unique(patches.patients, return_inverse=True)
    counts = np.bincount(codes)
    enough = counts >= FEWEST_PATCHES
    counted, true = (
        np.bincount(codes, values.astype(np.float64))[enough] / counts[enough]
        for values in (called, patches.labels)
    )
    return counted, true


def _choose_context(patches: ValidationPatches) -> float:
    """Return the deviation in strides with the lowest cross-validated log-loss.

    Widths are compared on whole slides: among selected patches a wide Gaussian learns how they were
    selected. Without enough whole slides, one stride is compared with none on all patches.
    """
    if len(np.unique(patches.patients)) < 2:
        return 0.0
    whole = patches.is_whole
    if len(np.unique(patches.patients[whole])) >= FEWEST_WHOLE:
        tried, judged = CONTEXTS, whole
    else:
        tried, judged = CONTEXTS_WITHOUT_WHOLE, np.ones_like(whole)
    losses = [float(_cross_validate(patches, sigma)[judged].mean()) for sigma in tried]
    return tried[int(np.argmin(losses))]


def _cross_validate(
    patches: ValidationPatches, sigma: float, *, has_offset: bool = False
) -> NDArray[np.float64]:
    """Return the log-loss (n,) of each patch, calibrated on patients of other groups."""
    logits, scaled = patches.average(sigma), np.empty(len(patches.labels))
    for group in np.unique(patches.groups):
        out = patches.groups == group
        calibration = _fit_calibration(patches.labels[~out], logits[~out], has_offset)
        scaled[out] = calibration.scale(logits[out])
    return _log_losses(patches.labels, scaled)


def _log_losses(labels: Labels, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    return np.asarray(np.logaddexp(0, z) - labels * z)


def _is_clearly_lower(
    new: NDArray[np.float64], old: NDArray[np.float64], groups: NDArray[Any]
) -> bool:
    """Return True where the mean of new values is lower by more than its standard error.

    Values of one of the `groups` (n,) are alike, so they count together.
    """
    _, codes = np.unique(groups, return_inverse=True)
    gain = np.bincount(codes, old - new)
    error = float(np.std(gain, ddof=1)) * math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return float(gain.sum()) > error


def _fit_calibration(labels: Labels, logits: Floats, has_offset: bool) -> Calibration:
    """Return slope and offset of the highest likelihood; none where a class is missing."""
    if len(np.unique(labels)) < 2:
        return Calibration()
    slope = 1 / fit_temperature(labels, logits)
    if not has_offset or slope == 1.0:
        return Calibration(slope)

    def loss(point: NDArray[np.float64]) -> float:
        return negative_log_likelihood(labels, np.exp(point[0]) * logits + point[1])

    found = minimize(loss, [math.log(slope), 0.0], method="Nelder-Mead", options=PRECISE)
    log_slope = float(np.clip(found.x[0], -math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE)))
    return Calibration(math.exp(log_slope), float(found.x[1]))


def _fit(patches: ValidationPatches, sigma: float, rule: ThresholdRule) -> tuple[Terms, str]:
    """Return the terms for one width, and in words how they were chosen."""
    labels, logits = patches.labels, patches.average(sigma)
    calibration, how = _choose_calibration(patches, sigma)
    probability = calibration.apply(logits)
    detect = rule.choose(labels, probability)
    count = rule.value if rule.name == "fixed" else _choose_cut(patches, probability)
    patients = len(np.unique(patches.patients))
    notes = (
        f"{how}; to detect: {rule.describe()}; on {patients} validation patients, {len(labels)}"
        " patches"
    )
    return Terms(calibration, count, detect, sigma * patches.stride_um), notes


def _choose_calibration(patches: ValidationPatches, sigma: float) -> tuple[Calibration, str]:
    """Return the calibration that cross-validation over patients finds best, and its words."""
    labels, logits = patches.labels, patches.average(sigma)
    fitted = _fit_calibration(labels, logits, has_offset=False)
    if len(np.unique(patches.patients)) < 2:
        return fitted, "slope fitted on one patient"
    plain, patients = _log_losses(labels, logits), patches.patients
    sloped = _cross_validate(patches, sigma)
    shifted = _cross_validate(patches, sigma, has_offset=True)
    candidates = {"slope": (sloped, fitted)}
    if _is_clearly_lower(shifted, sloped, patients):
        candidates["slope and offset"] = (shifted, _fit_calibration(labels, logits, True))
    before = expected_calibration_error(labels, Calibration().apply(logits))
    for words, (losses, calibration) in reversed(candidates.items()):
        after = expected_calibration_error(labels, calibration.apply(logits))
        if losses.mean() < plain.mean() and after <= before:
            return calibration, f"{words} fitted"
    return Calibration(), "no calibration, for none made the validation better"


def _choose_cut(patches: ValidationPatches, probability: Floats) -> float:
    """Return 0.5, or a threshold whose counts of other patients are clearly better.

    Nested cross-validation over patients says whether a choice beats 0.5; among equally good
    thresholds the nearest to 0.5 is taken.
    """
    groups = np.unique(patches.groups)
    if len(groups) < 2:
        return HALF
    chosen, half = [], []
    for group in groups:
        out = patches.groups == group
        others = _take(patches, ~out)
        cut = _best_cut(others, probability[~out])
        judged = _take(patches, out)
        chosen.append(_errors(judged, probability[out], cut))
        half.append(_errors(judged, probability[out], HALF))
    new, old = np.concatenate(chosen), np.concatenate(half)
    is_better = _is_clearly_lower(new, old, np.arange(len(new)))
    return _best_cut(patches, probability) if is_better else HALF


def _take(patches: ValidationPatches, chosen: NDArray[np.bool_]) -> ValidationPatches:
    return replace(
        patches,
        labels=patches.labels[chosen],
        logits=patches.logits[chosen],
        patients=patches.patients[chosen],
        stores=patches.stores[chosen],
        positions=patches.positions[chosen],
    )


def _best_cut(patches: ValidationPatches, probability: Floats) -> float:
    errors = [_errors(patches, probability, cut) for cut in CUTS]
    if not len(errors[0]):
        return HALF
    means = np.array([each.mean() for each in errors])
    best = np.flatnonzero(means <= means.min() + 1e-12)
    return min((CUTS[index] for index in best), key=lambda cut: (abs(cut - HALF), cut))


def _errors(patches: ValidationPatches, probability: Floats, cut: float) -> NDArray[np.float64]:
    counted, true = _shares(patches, probability >= np.float32(cut))
    return np.abs(counted - true)
