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
    FIGURES,
    Interval,
    ReliabilityBin,
    ResampledFigures,
    Scores,
    bootstrap_intervals,
    brier_score,
    draw_patients,
    expected_calibration_error,
    find_interval,
    measure_reliability,
    negative_log_likelihood,
    score,
)

FINE_SWEEP = tuple(step / 100 for step in range(1, 100))
NAMED_THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
"""Points of the sweep that reports print; all of them lie on it."""


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """How far probabilities at one temperature can be believed; None where there are no patches."""

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
    """One patient's patches by themselves."""

    patient_id: str
    positives: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class Judgement:
    """All figures of one model on one set of patients."""

    scores: Scores
    intervals: Mapping[str, Interval]
    """95 % intervals by figure, from resampling patients; a figure that has none is absent."""
    draws: int
    """Samples of patients that the intervals are from."""
    before: CalibrationFigures
    """At temperature 1: the network's own."""
    after: CalibrationFigures
    """At the model's temperature."""
    sweep: tuple[SweepPoint, ...]
    patients: tuple[PatientScores, ...]
    """By name."""

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)

    def at(self, threshold: float) -> SweepPoint:
        """The point of the sweep nearest to a threshold."""
        return min(self.sweep, key=lambda point: abs(point.threshold - threshold))


def judge(
    labels: NDArray[np.int8],
    logits: NDArray[np.float32],
    patients: NDArray[np.str_],
    *,
    temperature: float,
    threshold: float,
    seed: int = 0,
    draws: int = DRAWS,
) -> Judgement:
    """Judge uncalibrated logits (n,) against labels (n,) 0 or 1 of patches of patients (n,), at a temperature and a threshold.

    Raises ConfigError where they do not fit together or hold anything else.
    """
    _check(labels, logits, patients)
    return _judge(
        labels,
        logits,
        apply_temperature(logits, temperature),
        patients,
        temperature,
        threshold,
        seed,
        draws,
    )


def judge_probability(
    labels: NDArray[np.int8],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    *,
    temperature: float,
    threshold: float,
    seed: int = 0,
    draws: int = DRAWS,
) -> Judgement:
    """The same from calibrated probabilities (n,), as results hold them: the temperature is undone for the figures before it."""
    _check(labels, probability, patients)
    return _judge(
        labels,
        undo_temperature(probability, temperature),
        probability,
        patients,
        temperature,
        threshold,
        seed,
        draws,
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
        raise ConfigError("a label is neither 0 nor 1; leave out patches whose class is unknown")
    if not np.isfinite(values).all():
        raise ConfigError("a prediction is no number; leave out patches that were not assessed")


def _judge(
    labels: NDArray[np.int8],
    logits: NDArray[np.float32],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    temperature: float,
    threshold: float,
    seed: int,
    draws: int,
) -> Judgement:
    return Judgement(
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
) -> CalibrationFigures:
    if not len(labels):
        return CalibrationFigures(temperature, None, None, None, ())
    return CalibrationFigures(
        temperature=temperature,
        brier=brier_score(labels, probability),
        expected_calibration_error=expected_calibration_error(labels, probability),
        negative_log_likelihood=negative_log_likelihood(
            labels, logits.astype(np.float64) / temperature
        ),
        reliability=measure_reliability(labels, probability),
    )


def sweep_thresholds(
    labels: NDArray[np.int8], probability: NDArray[np.float32], thresholds: Sequence[float]
) -> tuple[SweepPoint, ...]:
    """The confusion matrix at each threshold."""
    positive, negative = np.sort(probability[labels == 1]), np.sort(probability[labels == 0])
    at = np.array(thresholds, dtype=np.float32)  # compared as float32, like everywhere
    fn, tn = (np.searchsorted(values, at, side="left").tolist() for values in (positive, negative))
    return tuple(
        _describe_point(
            threshold, tn[index], len(negative) - tn[index], fn[index], len(positive) - fn[index]
        )
        for index, threshold in enumerate(thresholds)
    )


def _describe_point(threshold: float, tn: int, fp: int, fn: int, tp: int) -> SweepPoint:
    sensitivity = tp / (tp + fn) if tp + fn else None
    specificity = tn / (tn + fp) if tn + fp else None
    return SweepPoint(
        threshold=threshold,
        true_negatives=tn,
        false_positives=fp,
        false_negatives=fn,
        true_positives=tp,
        f1=2 * tp / (2 * tp + fp + fn) if 2 * tp + fp + fn else None,
        balanced_accuracy=(
            None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
        ),
        sensitivity=sensitivity,
        specificity=specificity,
    )


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
    """One figure of both models; None where it has no meaning."""

    figure: str
    """A key of `FIGURES`."""
    one: float | None
    other: float | None
    difference: float | None
    """One minus the other."""
    interval: Interval | None
    """95 %, from drawing the same patients for both; None with a single patient."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every figure of two models on the same patches."""

    patches: int
    patients: int
    thresholds: tuple[float, float]
    draws: int
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


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
    """Compare probabilities of two models (n,) (n,), each at its own threshold, on labels (n,) 0 or 1 of patients (n,).

    In each draw both models get the same patients, so what is hard for both cancels out.
    """
    names, codes = np.unique(patients, return_inverse=True)
    first, second = (
        ResampledFigures(labels, probability, codes, len(names), threshold)
        for probability, threshold in zip((one, other), thresholds, strict=True)
    )
    once = np.ones(len(names), dtype=np.int64)
    weights = draw_patients(len(names), draws, seed)
    drawn = np.stack([first(row) - second(row) for row in weights])  # (draws, figures)
    pairs = zip(FIGURES, first(once), second(once), strict=True)
    differences = tuple(
        _describe(
            figure, float(a), float(b), find_interval(drawn[:, index]) if len(names) > 1 else None
        )
        for index, (figure, a, b) in enumerate(pairs)
    )
    return Comparison(len(labels), len(names), thresholds, draws, differences)


def _describe(figure: str, one: float, other: float, interval: Interval | None) -> Difference:
    known = not (np.isnan(one) or np.isnan(other))
    return Difference(
        figure=figure,
        one=None if np.isnan(one) else one,
        other=None if np.isnan(other) else other,
        difference=one - other if known else None,
        interval=interval if known else None,
    )
