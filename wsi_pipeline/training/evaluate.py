"""All metrics of one model on a set of patients, and of two models on the same patches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.calibrate import apply_temperature, undo_temperature
from wsi_pipeline.training.metrics import (
    DRAWS,
    FEW_PATIENTS,
    METRIC_NAMES,
    Interval,
    ReliabilityBin,
    ResampledMetrics,
    Scores,
    bootstrap_intervals,
    brier_score,
    expected_calibration_error,
    find_interval,
    measure_ratios,
    measure_reliability,
    negative_log_likelihood,
    resample_patients,
    score,
    show_metric,
)

FINE_SWEEP = tuple(step / 100 for step in range(1, 100))
NAMED_THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
"""Thresholds of the sweep that reports print."""


@dataclass(frozen=True, slots=True)
class CalibrationMetrics:
    """Calibration of probabilities at one temperature; None where there are no patches."""

    temperature: float
    brier: float | None
    expected_calibration_error: float | None
    negative_log_likelihood: float | None
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """The confusion matrix at one threshold, and its ratios."""

    threshold: float
    true_negatives: int
    false_positives: int
    false_negatives: int
    true_positives: int
    f1: float | None
    balanced_accuracy: float | None
    sensitivity: float | None
    specificity: float | None


@dataclass(frozen=True, slots=True)
class PatientScores:
    """The metrics of one patient's patches."""

    patient_id: str
    positives: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of one model on one set of patients; metrics.json holds these fields."""

    scores: Scores
    intervals: Mapping[str, Interval]
    """95 % intervals by metric, from resampling patients; absent where a metric has none."""
    draws: int
    """Number of samples of patients behind the intervals."""
    before: CalibrationMetrics
    """At temperature 1: of the network itself."""
    after: CalibrationMetrics
    """At the model's temperature."""
    sweep: tuple[SweepPoint, ...]
    patients: tuple[PatientScores, ...]
    """Sorted by name."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    def at(self, threshold: float) -> SweepPoint:
        """Return the point of the sweep nearest to a threshold."""
        return min(self.sweep, key=lambda point: abs(point.threshold - threshold))


def evaluate_logits(
    labels: NDArray[np.int8],
    logits: NDArray[np.float32],
    patients: NDArray[np.str_],
    *,
    temperature: float,
    threshold: float,
    seed: int = 0,
    draws: int = DRAWS,
) -> Metrics:
    """Return the metrics of uncalibrated logits (n,) for labels (n,) 0 or 1 of patients (n,).

    Raises ConfigError where lengths differ or values are not allowed.
    """
    _check(labels, logits, patients)
    probability = apply_temperature(logits, temperature)
    return _evaluate(
        labels, logits, probability, patients, temperature, threshold, seed=seed, draws=draws
    )


def evaluate_probability(
    labels: NDArray[np.int8],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    *,
    temperature: float,
    threshold: float,
    seed: int = 0,
    draws: int = DRAWS,
) -> Metrics:
    """Return the same from calibrated probabilities (n,), as results hold them.

    The temperature is undone for the metrics before calibration.
    """
    _check(labels, probability, patients)
    logits = undo_temperature(probability, temperature)
    return _evaluate(
        labels, logits, probability, patients, temperature, threshold, seed=seed, draws=draws
    )


def _check(
    labels: NDArray[np.int8], values: NDArray[np.float32], patients: NDArray[np.str_]
) -> None:
    if not len(labels) == len(values) == len(patients):
        raise ConfigError(
            f"{len(labels)} labels, {len(values)} predictions, {len(patients)} patients; give one"
            " of each per patch"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ConfigError("a label is neither 0 nor 1; leave out patches of unknown class")
    if not np.isfinite(values).all():
        raise ConfigError("a prediction is not finite; leave out patches that were not assessed")


def _evaluate(
    labels: NDArray[np.int8],
    logits: NDArray[np.float32],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    temperature: float,
    threshold: float,
    *,
    seed: int,
    draws: int,
) -> Metrics:
    return Metrics(
        scores=score(labels, probability, threshold),
        intervals=bootstrap_intervals(
            labels, probability, patients, threshold, draws=draws, seed=seed
        ),
        draws=draws,
        before=_measure_calibration(labels, logits, apply_temperature(logits, 1.0), 1.0),
        after=_measure_calibration(labels, logits, probability, temperature),
        sweep=sweep_thresholds(labels, probability, FINE_SWEEP),
        patients=_score_patients(labels, probability, patients, threshold),
    )


def _measure_calibration(
    labels: NDArray[np.int8],
    logits: NDArray[np.float32],
    probability: NDArray[np.float32],
    temperature: float,
) -> CalibrationMetrics:
    if not len(labels):
        return CalibrationMetrics(temperature, None, None, None, ())
    scaled = logits.astype(np.float64) / temperature
    return CalibrationMetrics(
        temperature=temperature,
        brier=brier_score(labels, probability),
        expected_calibration_error=expected_calibration_error(labels, probability),
        negative_log_likelihood=negative_log_likelihood(labels, scaled),
        reliability=measure_reliability(labels, probability),
    )


def sweep_thresholds(
    labels: NDArray[np.int8], probability: NDArray[np.float32], thresholds: Sequence[float]
) -> tuple[SweepPoint, ...]:
    """Return the confusion matrix at each threshold."""
    positive, negative = np.sort(probability[labels == 1]), np.sort(probability[labels == 0])
    at = np.array(thresholds, dtype=np.float32)  # compared as float32, like everywhere
    missed, spared = (
        np.searchsorted(values, at, side="left").tolist() for values in (positive, negative)
    )
    return tuple(
        _make_point(threshold, tn, len(negative) - tn, fn, len(positive) - fn)
        for threshold, tn, fn in zip(thresholds, spared, missed, strict=True)
    )


def _make_point(threshold: float, tn: int, fp: int, fn: int, tp: int) -> SweepPoint:
    return SweepPoint(threshold, tn, fp, fn, tp, **measure_ratios(tn, fp, fn, tp))


def _score_patients(
    labels: NDArray[np.int8],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    threshold: float,
) -> tuple[PatientScores, ...]:
    if not len(labels):
        return ()
    names, codes = np.unique(patients, return_inverse=True)
    members = np.split(
        np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
    )
    return tuple(
        PatientScores(
            str(name),
            int((labels[own] == 1).sum()),
            score(labels[own], probability[own], threshold),
        )
        for name, own in zip(names, members, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two models; None where undefined."""

    metric: str
    """A key of `METRIC_NAMES`."""
    one: float | None
    other: float | None
    difference: float | None
    """One minus the other."""
    interval: Interval | None
    """95 %, from drawing the same patients for both models; None with a single patient."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every metric of two models on the same patches."""

    patches: int
    patients: int
    thresholds: tuple[float, float]
    draws: int
    differences: tuple[Difference, ...]


def compare(
    labels: NDArray[np.int8],
    one: NDArray[np.float32],
    other: NDArray[np.float32],
    patients: NDArray[np.str_],
    *,
    thresholds: tuple[float, float],
    seed: int = 0,
    draws: int = DRAWS,
) -> Comparison:
    """Compare probabilities (n,) of two models, each at its own threshold, on labels (n,) 0 or 1.

    In each sample both models get the same patients, so what is hard for both cancels out.
    """
    names, codes = np.unique(patients, return_inverse=True)
    first, second = (
        ResampledMetrics(labels, probability, codes, len(names), threshold)
        for probability, threshold in zip((one, other), thresholds, strict=True)
    )
    once = np.ones(len(names), dtype=np.int64)
    weights = resample_patients(len(names), draws, seed)
    gaps = np.stack([first(row) - second(row) for row in weights])  # (draws, metrics)
    pairs = zip(METRIC_NAMES, first(once), second(once), strict=True)
    differences = tuple(
        _make_difference(
            name, float(a), float(b), find_interval(gaps[:, index]) if len(names) > 1 else None
        )
        for index, (name, a, b) in enumerate(pairs)
    )
    return Comparison(len(labels), len(names), thresholds, draws, differences)


def _make_difference(
    metric: str, one: float, other: float, interval: Interval | None
) -> Difference:
    known = not (np.isnan(one) or np.isnan(other))
    return Difference(
        metric=metric,
        one=None if np.isnan(one) else one,
        other=None if np.isnan(other) else other,
        difference=one - other if known else None,
        interval=interval if known else None,
    )


def format_intervals(metrics: Metrics, what: str) -> list[str]:
    """Return every metric with its 95 % interval, under a line that names the set."""
    count = len(metrics.patients)
    if count < 2:
        head = f"{what}; one patient only, so no intervals:"
    else:
        hint = ": so few that the intervals are a hint at most" if count < FEW_PATIENTS else ""
        head = (
            f"{what}, with 95 % intervals from {metrics.draws} samples of {count} patients{hint}:"
        )
    lines = [head]
    for key, name in METRIC_NAMES.items():
        interval = metrics.intervals.get(key)
        ends = "" if interval is None else f"   {interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"  {name:<28}{show_metric(getattr(metrics.scores, key))}{ends}")
    return lines


def format_calibration(metrics: Metrics) -> str:
    """Return the effect of the temperature in one line."""
    before, after = metrics.before, metrics.after
    if after.temperature == 1.0:
        return "calibration: the model's temperature is 1, nothing was changed"
    return (
        f"calibration: expected calibration error {show_metric(before.expected_calibration_error)}"
        f" before, {show_metric(after.expected_calibration_error)} after temperature"
        f" {after.temperature:.3f}; Brier score {show_metric(before.brier)}, {show_metric(after.brier)}"
    )
