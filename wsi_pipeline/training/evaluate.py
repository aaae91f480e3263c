"""All metrics of one model on a set of patients, and of two models on the same patches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.metrics import (
    DRAWS,
    FEW_PATIENTS,
    METRIC_NAMES,
    Floats,
    Interval,
    Labels,
    Names,
    ReliabilityBin,
    ResampledMetrics,
    Scores,
    bootstrap_intervals,
    brier_score,
    describe_scores,
    expected_calibration_error,
    find_interval,
    format_confusion,
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
    """Calibration of probabilities; None where there are no patches."""

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
    alone: Scores
    """Of each patch alone: calibrated, without its neighbours, at the threshold for that."""
    intervals: Mapping[str, Interval]
    """95 % intervals by metric, from resampling patients; absent where a metric has none."""
    draws: int
    """Number of samples of patients behind the intervals."""
    before: CalibrationMetrics
    """Of the network itself: each patch alone, uncalibrated."""
    after: CalibrationMetrics
    """Of the final probabilities: with context and calibrated."""
    sweep: tuple[SweepPoint, ...]
    patients: tuple[PatientScores, ...]
    """Sorted by name."""

    def at(self, threshold: float) -> SweepPoint:
        """Return the point of the sweep nearest to a threshold."""
        return min(self.sweep, key=lambda point: abs(point.threshold - threshold))


def evaluate_predictions(
    labels: Labels,
    patients: Names,
    *,
    logits: Floats,
    alone: Floats,
    probability: Floats,
    thresholds: tuple[float, float],
    seed: int = 0,
    draws: int = DRAWS,
) -> Metrics:
    """Return the metrics of predictions (n,) for labels (n,) 0 or 1 of patients (n,).

    `logits` are the network's, `alone` the probabilities of each patch by itself, `probability` the
    final ones, `thresholds` of the final ones and of those alone. Raises ConfigError where lengths
    differ or values are not allowed.
    """
    for values in (logits, alone, probability):
        _check(labels, values, patients)
    threshold, threshold_alone = thresholds
    return Metrics(
        scores=score(labels, probability, threshold),
        alone=score(labels, alone, threshold_alone),
        intervals=bootstrap_intervals(
            labels, probability, patients, threshold, draws=draws, seed=seed
        ),
        draws=draws,
        before=_measure_calibration(labels, Calibration().apply(logits)),
        after=_measure_calibration(labels, probability),
        sweep=sweep_thresholds(labels, probability, FINE_SWEEP),
        patients=_score_patients(labels, probability, patients, threshold),
    )


def _check(labels: Labels, values: Floats, patients: Names) -> None:
    if not len(labels) == len(values) == len(patients):
        raise ConfigError(
            f"{len(labels)} labels, {len(values)} predictions, {len(patients)} patients; give one"
            " of each per patch"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ConfigError("a label is neither 0 nor 1; leave out patches of unknown class")
    if not np.isfinite(values).all():
        raise ConfigError("a prediction is not finite; leave out patches that were not assessed")


def _measure_calibration(labels: Labels, probability: Floats) -> CalibrationMetrics:
    if not len(labels):
        return CalibrationMetrics(None, None, None, ())
    return CalibrationMetrics(
        brier_score(labels, probability),
        expected_calibration_error(labels, probability),
        negative_log_likelihood(labels, Calibration().undo(probability)),
        measure_reliability(labels, probability),
    )


def sweep_thresholds(
    labels: Labels, probability: Floats, thresholds: Sequence[float]
) -> tuple[SweepPoint, ...]:
    """Return the confusion matrix at each threshold."""
    positive, negative = np.sort(probability[labels == 1]), np.sort(probability[labels == 0])
    at = np.array(thresholds, dtype=np.float32)  # compared as float32, like everywhere
    spared, missed = np.searchsorted(negative, at).tolist(), np.searchsorted(positive, at).tolist()
    points = []
    for threshold, tn, fn in zip(thresholds, spared, missed, strict=True):
        fp, tp = len(negative) - tn, len(positive) - fn
        points.append(SweepPoint(threshold, tn, fp, fn, tp, **measure_ratios(tn, fp, fn, tp)))
    return tuple(points)


def _score_patients(
    labels: Labels, probability: Floats, patients: Names, threshold: float
) -> tuple[PatientScores, ...]:
    names, codes = np.unique(patients, return_inverse=True)
    found = []
    for code, name in enumerate(names):
        own = codes == code
        scores = score(labels[own], probability[own], threshold)
        positives = scores.true_positives + scores.false_negatives
        found.append(PatientScores(str(name), positives, scores))
    return tuple(found)


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


@dataclass(frozen=True, slots=True)
class Compared:
    """A model's results compared with another's on the same patches."""

    one: str
    other: str
    slides: int
    left_out: int
    """Labelled patches that could not be paired."""
    comparison: Comparison

    def __str__(self) -> str:
        pair = self.comparison
        lines = [
            f"{self.one} (one) against {self.other} (other): {pair.patches} patches of"
            f" {pair.patients} patients on {self.slides} slides paired, {self.left_out} labelled"
            " patches left out",
            f"  {'':<28}{'one':>8}{'other':>8}{'one − other':>13}   95 % interval",
        ]
        for item in pair.differences:
            low_high = item.interval and f"{item.interval[0]:+.3f} to {item.interval[1]:+.3f}"
            difference = "–" if item.difference is None else f"{item.difference:+.3f}"
            values = f"{show_metric(item.one):>8}{show_metric(item.other):>8}{difference:>13}"
            lines.append(f"  {METRIC_NAMES[item.metric]:<28}{values}   {low_high or '–'}")
        return "\n".join(lines)


def compare(
    labels: Labels,
    one: Floats,
    other: Floats,
    patients: Names,
    *,
    thresholds: tuple[float, float],
    seed: int = 0,
    draws: int = DRAWS,
) -> Comparison:
    """Compare probabilities (n,) of two models, each at its own threshold, on labels (n,) 0 or 1.

    In each sample both models get the same patients, so what is hard for both cancels out.
    """
    names, codes = np.unique(patients, return_inverse=True)
    first = ResampledMetrics(labels, one, codes, len(names), thresholds[0])
    second = ResampledMetrics(labels, other, codes, len(names), thresholds[1])
    once = np.ones(len(names), dtype=np.int64)
    weights = resample_patients(len(names), draws, seed)
    gaps = np.array([first(row) - second(row) for row in weights])  # (draws, metrics)
    columns = zip(METRIC_NAMES, first(once).tolist(), second(once).tolist(), gaps.T, strict=True)
    differences = tuple(
        _make_difference(name, a, b, find_interval(drawn) if len(names) > 1 else None)
        for name, a, b, drawn in columns
    )
    return Comparison(len(labels), len(names), thresholds, draws, differences)


def _make_difference(
    metric: str, one: float, other: float, interval: Interval | None
) -> Difference:
    first, second = None if math.isnan(one) else one, None if math.isnan(other) else other
    if first is None or second is None:
        return Difference(metric, first, second, None, None)
    return Difference(metric, one, other, one - other, interval)


def format_metrics(
    metrics: Metrics, what: str, class_names: tuple[str, str], note: str = ""
) -> str:
    """Return intervals, calibration and confusion matrix as text; `what` names the set."""
    scores, count = metrics.scores, len(metrics.patients)
    hint = ": so few that the intervals are a hint at most" if count < FEW_PATIENTS else ""
    lines = [f"{what}, with 95 % intervals from {metrics.draws} samples of {count} patients{hint}:"]
    if count < 2:
        lines = [f"{what}; one patient only, so no intervals:"]
    for key, name in METRIC_NAMES.items():
        interval = metrics.intervals.get(key)
        ends = "" if interval is None else f"   {interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"  {name:<28}{show_metric(getattr(scores, key))}{ends}")
    lines += [
        "",
        _format_calibration(metrics),
        _format_alone(metrics),
        *([note] if note else []),
        "",
    ]
    lines += [f"{what} at threshold {scores.threshold:.3f}:", format_confusion(scores, class_names)]
    return "\n".join(lines)


def _format_calibration(metrics: Metrics) -> str:
    before, after = metrics.before, metrics.after
    return (
        f"calibration: expected calibration error {show_metric(before.expected_calibration_error)}"
        f" of the network itself, {show_metric(after.expected_calibration_error)} at the end; Brier"
        f" score {show_metric(before.brier)}, {show_metric(after.brier)}"
    )


def _format_alone(metrics: Metrics) -> str:
    if metrics.alone == metrics.scores:
        return "context: none, each patch is judged alone"
    return f"without context, each patch alone: {describe_scores(metrics.alone)}"
