"""Temperature scaling and rules for a threshold, both on validation patients."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.metrics import Floats, Labels

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
"""Limits of the temperature: a network off by a factor of twenty is broken, not miscalibrated."""


def check_logits(labels: Labels, logits: Floats) -> None:
    """Raise ConfigError where a class is missing or a logit is not finite."""
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
    check_logits(labels, logits)
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
