"""What is fitted on validation patients: context, calibration, thresholds, errors of counts.

Whatever is chosen among several is chosen by cross-validation over the patients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms, average_context
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.counting.interval import FEWEST_PATCHES, share_error
from wsi_pipeline.training.metrics import (
    Floats,
    Labels,
    Names,
    expected_calibration_error,
    negative_log_likelihood,
)

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
"""Limits of the temperature: a network off by a factor of twenty is broken, not miscalibrated."""
CONTEXTS = (0.0, 0.5, 0.7, 1.0, 1.25, 1.5, 2.0)
"""Standard deviations that are tried, in strides of the grid."""
CUTS = tuple(round(0.02 * step, 2) for step in range(1, 50))
"""Thresholds for counting that are tried."""
GROUPS = 5
"""Parts that the validation patients are cut into."""


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


def fit_terms(patches: ValidationPatches, rule: "ThresholdRule") -> tuple[ModelTerms, str]:
    """Return context, calibration and thresholds, and in words how they were chosen.

    Raises ConfigError where a class is missing or a logit is not finite.
    """
    _check_logits(patches.labels, patches.logits)
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
    """Return the deviation in strides with the lowest cross-validated log-loss; 0 for a patient."""
    if len(np.unique(patches.patients)) < 2:
        return 0.0
    losses = [_cross_validate(patches, sigma, has_offset=False) for sigma in CONTEXTS]
    return CONTEXTS[int(np.argmin(losses))]


def _cross_validate(patches: ValidationPatches, sigma: float, *, has_offset: bool) -> float:
    """Return the log-loss of patches that are calibrated on patients of other groups."""
    logits, scaled = patches.average(sigma), np.empty(len(patches.labels))
    for group in np.unique(patches.groups):
        out = patches.groups == group
        calibration = _fit_calibration(patches.labels[~out], logits[~out], has_offset)
        scaled[out] = calibration.scale(logits[out])
    return negative_log_likelihood(patches.labels, scaled)


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


PRECISE = {"xatol": 1e-6, "fatol": 1e-10}


def _fit(patches: ValidationPatches, sigma: float, rule: "ThresholdRule") -> tuple[Terms, str]:
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
    plain = negative_log_likelihood(labels, logits)
    sloped = _cross_validate(patches, sigma, has_offset=False)
    shifted = _cross_validate(patches, sigma, has_offset=True)
    candidates = {"slope": (sloped, fitted)}
    if shifted < sloped:
        candidates["slope and offset"] = (shifted, _fit_calibration(labels, logits, True))
    before = expected_calibration_error(labels, Calibration().apply(logits))
    for words, (loss, calibration) in reversed(candidates.items()):
        after = expected_calibration_error(labels, calibration.apply(logits))
        if loss < plain and after <= before:
            return calibration, f"{words} fitted"
    return Calibration(), "no calibration, for none made the validation better"


def _choose_cut(patches: ValidationPatches, probability: Floats) -> float:
    """Return 0.5, or a threshold that counts other patients' shares with a smaller mean error.

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
    errors = np.concatenate(chosen), np.concatenate(half)
    if not len(errors[1]) or errors[0].mean() >= errors[1].mean():
        return HALF
    return _best_cut(patches, probability)


HALF = 0.5


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


def _check_logits(labels: Labels, logits: Floats) -> None:
    if not np.isfinite(logits).all():
        raise ConfigError(
            "a logit is not finite: the temperature cannot be fitted; train again with a lower --lr"
        )
    _check_both_classes(labels, "the temperature cannot be fitted")


def fit_temperature(labels: Labels, logits: Floats) -> float:
    """Return the temperature that gives logits (n,) the highest likelihood for labels (n,) 0 or 1.

    Temperature scaling after Guo et al. (2017): one positive number, which changes no ranking. The
    likelihood is concave in its inverse, so there is one optimum; it is kept within 0.05 to 20.
    Where no patch lies on the wrong side of logit 0, the likelihood grows without end as the
    temperature falls, so the patches cannot tell it, and the result is 1. Raises ConfigError where
    a class is missing or a logit is not finite.
    """
    _check_logits(labels, logits)
    z = logits.astype(np.float64)
    if not np.where(labels == 1, z < 0, z > 0).any():
        return 1.0
    # A fixed order of addition gives the same bits for the same patches in any order.
    order = np.lexsort((z, labels))
    z, y = z[order], labels[order].astype(np.float64)

    def slope(sharpness: float) -> float:
        return float(np.mean((expit(sharpness * z) - y) * z))

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return float(1 / brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """A rule that chooses the threshold from validation patients; see `parse_threshold_rule`."""

    name: str
    """youden, f1, sensitivity or fixed."""
    value: float = 0.0
    """The sensitivity to reach, or the threshold itself; the other rules ignore it."""

    def __post_init__(self) -> None:
        if self.name not in DESCRIPTIONS:
            raise ConfigError(f"threshold rule {self.name!r} is unknown; take {CHOICES}")
        if self.name == "fixed" and not 0 <= self.value <= 1:
            raise ConfigError(f"the threshold is {self.value}; it must lie between 0 and 1")
        if self.name == "sensitivity" and not 0 < self.value <= 1:
            raise ConfigError(
                f"the sensitivity to reach is {self.value}; it must be above 0 and at most 1"
            )

    def describe(self) -> str:
        """Return the rule in words; checkpoints and recipes record this text."""
        return DESCRIPTIONS[self.name].format(self.value)

    def choose(self, labels: Labels, probability: Floats) -> float:
        """Return the threshold for labels (n,) 0 or 1 and probabilities (n,).

        It lies halfway between two probabilities that occur. Raises ConfigError where the rule
        needs both classes and one is missing.
        """
        if self.name == "fixed":
            return self.value
        _check_both_classes(labels, "a threshold cannot be chosen")
        return RULES[self.name](labels, probability, self.value)


CHOICES = "youden, f1, sensitivity=NUMBER or a number from 0 to 1"
DESCRIPTIONS = {
    "youden": "highest balanced accuracy (Youden)",
    "f1": "highest F1",
    "sensitivity": "highest threshold with a sensitivity of at least {}",
    "fixed": "set to {} by hand",
}


def parse_threshold_rule(text: str) -> ThresholdRule:
    """Return the rule of a text such as youden, f1, sensitivity=0.95 or 0.5.

    Raises ConfigError for any other text.
    """
    name, equals, number = text.strip().partition("=")
    if name in ("youden", "f1") and not equals:
        return ThresholdRule(name)
    try:
        value = float(number if name == "sensitivity" and equals else text)
    except ValueError as error:
        raise ConfigError(f"threshold {text!r} is unknown; take {CHOICES}") from error
    return ThresholdRule("sensitivity" if equals else "fixed", value)


def _choose_youden(labels: Labels, probability: Floats, _value: float) -> float:
    """Return the threshold with the highest balanced accuracy (Youden's J).

    Unlike F1, balanced accuracy does not depend on the share of positives, which differs between
    selected training patches and whole slides.
    """
    false_rate, true_rate, thresholds = roc_curve(labels, probability, drop_intermediate=False)
    # The first point calls nothing; no threshold up to 1 does that where a probability is 1.
    best = 1 + int(np.argmax((true_rate - false_rate)[1:]))
    return _cut_below(probability, float(thresholds[best]))


def _choose_f1(labels: Labels, probability: Floats, _value: float) -> float:
    """Return the highest of the thresholds with the highest F1."""
    precision, sensitivity, thresholds = precision_recall_curve(labels, probability)
    total = precision + sensitivity
    f1 = (2 * precision * sensitivity / np.where(total > 0, total, 1))[:-1]
    return _cut_below(probability, float(thresholds[::-1][int(np.argmax(f1[::-1]))]))


def _choose_sensitivity(labels: Labels, probability: Floats, value: float) -> float:
    """Return the highest threshold that reaches the sensitivity."""
    positives = np.sort(probability[labels == 1])[::-1]
    needed = max(1, math.ceil(value * len(positives) - 1e-9))
    return _cut_below(probability, float(positives[needed - 1]))


RULES: dict[str, Callable[[Labels, Floats, float], float]] = {
    "youden": _choose_youden,
    "f1": _choose_f1,
    "sensitivity": _choose_sensitivity,
}


def _cut_below(probability: Floats, lowest_called: float) -> float:
    """Return the threshold halfway between `lowest_called` and the next lower probability.

    A threshold equal to some patch's probability would depend on the last bit of that probability.
    """
    below = probability[probability < np.float32(lowest_called)]
    highest_spared = float(below.max()) if len(below) else 0.0
    lowest_called = min(lowest_called, 1.0)
    halfway = (lowest_called + highest_spared) / 2
    return halfway if np.float32(highest_spared) < np.float32(halfway) else lowest_called


def _check_both_classes(labels: Labels, consequence: str) -> None:
    positives = int(np.count_nonzero(labels == 1))
    if positives == 0 or positives == len(labels):
        raise ConfigError(
            f"{len(labels)} labelled patches, {positives} positive: {consequence} without both"
            " classes; choose patients who have both"
        )
