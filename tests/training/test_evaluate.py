"""Metrics, temperature, threshold rules, intervals over patients: numbers worked out by hand."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.measured import calibrate, measure
from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.calibrate import (
    MAX_TEMPERATURE,
    ThresholdRule,
    fit_temperature,
    parse_threshold_rule,
)
from wsi_pipeline.training.evaluate import (
    Metrics,
    evaluate_predictions,
    format_metrics,
    sweep_thresholds,
)
from wsi_pipeline.training.metrics import (
    METRIC_NAMES,
    ResampledMetrics,
    bootstrap_intervals,
    brier_score,
    expected_calibration_error,
    find_interval,
    measure_reliability,
    negative_log_likelihood,
    resample_patients,
    score,
)


def ints(*values: int) -> NDArray[np.int8]:
    return np.array(values, dtype=np.int8)


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def names(*values: str) -> NDArray[np.str_]:
    return np.array(values)


# Labels and probabilities of two to forty patches with both classes; few different probabilities,
# so that there are ties.
@st.composite
def patches(draw: st.DrawFn) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.intp]]:
    count = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    labels = np.array([0, 1, *rng.integers(0, 2, count - 2)], dtype=np.int8)
    return labels, (rng.integers(0, 21, count) / 20).astype(np.float32), rng.integers(0, 5, count)


def test_brier_score_by_hand() -> None:
    assert brier_score(ints(0, 1, 1), floats(0.5, 1.0, 0.25)) == pytest.approx(
        (0.25 + 0 + 0.5625) / 3
    )


def test_likelihood_by_hand() -> None:
    # ln 3 is the logit of 3/4: the positive patch got 3/4, the negative one 1/4.
    logits = floats(math.log(3), math.log(3))
    assert negative_log_likelihood(ints(1, 0), logits) == pytest.approx(
        (math.log(4 / 3) + math.log(4)) / 2
    )


def test_the_likelihood_of_a_sure_mistake_is_finite() -> None:
    assert negative_log_likelihood(ints(0), floats(500.0)) == 500.0


def test_average_precision_by_hand() -> None:
    # Called one by one from the top: true (1 of 1), false, true (2 of 3), false. Half of the
    # positives at each true one.
    scores = score(ints(1, 0, 1, 0), floats(0.9, 0.8, 0.7, 0.1), 0.5)
    assert scores.average_precision == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_calibration_error_by_hand() -> None:
    # Bin 3 (0.2 to 0.267): two patches promised 0.25 each, one is positive, so 0.5 came true: off
    # by 0.25. Bin 13 (0.867 to 0.933): two promised 0.9, both positive: off by 0.1. Each bin holds
    # half of the patches.
    labels, probability = ints(0, 1, 1, 1), floats(0.25, 0.25, 0.9, 0.9)
    assert expected_calibration_error(labels, probability) == pytest.approx((0.25 + 0.1) / 2)


def test_exact_probabilities_have_no_calibration_error() -> None:
    assert expected_calibration_error(ints(0, 0, 0, 1), floats(0.25, 0.25, 0.25, 0.25)) == 0


def test_the_calibration_error_is_of_the_positive_class() -> None:
    assert expected_calibration_error(ints(0, 0), floats(1.0, 1.0)) == 1.0


def test_the_last_bin_takes_in_certainty() -> None:
    bins = measure_reliability(ints(1, 0), floats(1.0, 0.0))
    assert [
        (item.patches, item.mean_probability, item.positive_share) for item in (bins[0], bins[14])
    ] == [(1, 0.0, 0.0), (1, 1.0, 1.0)]
    assert len(bins) == 15
    assert bins[1].mean_probability is None


def test_a_network_that_is_twice_too_sure_gets_temperature_two() -> None:
    # Of four patches at logit 2 ln 3 three are positive, of four at -2 ln 3 one: the true logits
    # are ±ln 3.
    sure = 2 * math.log(3)
    labels, logits = ints(1, 1, 1, 0, 0, 0, 0, 1), floats(*[sure] * 4, *[-sure] * 4)
    assert fit_temperature(labels, logits) == pytest.approx(2, rel=1e-6)


@settings(max_examples=30)
@given(st.floats(0.1, 15))
def test_the_temperature_undoes_any_scale(factor: float) -> None:
    true = math.log(3)
    labels, logits = (
        ints(1, 1, 1, 0, 0, 0, 0, 1),
        floats(*[true] * 4, *[-true] * 4) * np.float32(factor),
    )
    assert fit_temperature(labels, logits) == pytest.approx(factor, rel=1e-5)


def test_groups_of_one_logit_each_are_weighed_together() -> None:
    # Right for half of the patches at temperature 1, for the other half at 3; the slope of the
    # likelihood is 0 in between: Σ (sigmoid(z / T) - share) z = 0, here solved on a grid.
    logits = floats(*[math.log(3)] * 4, *[3 * math.log(3)] * 4)
    labels = ints(1, 1, 1, 0, 1, 1, 1, 0)
    best = fit_temperature(labels, logits)
    grid = np.linspace(1, 5, 40_001)
    losses = [
        negative_log_likelihood(labels, logits.astype(np.float64) / temperature)
        for temperature in grid
    ]
    assert best == pytest.approx(grid[int(np.argmin(losses))], abs=2e-4)


def test_perfectly_divided_patches_leave_the_temperature_alone() -> None:
    assert fit_temperature(ints(0, 1, 1), floats(-0.1, 0.2, 5)) == 1.0


def test_a_network_that_knows_nothing_gets_the_highest_temperature() -> None:
    assert fit_temperature(ints(0, 1), floats(3, -3)) == MAX_TEMPERATURE


@pytest.mark.parametrize("labels", [ints(0, 0), ints(1, 1), ints()])
def test_no_temperature_without_both_classes(labels: NDArray[np.int8]) -> None:
    with pytest.raises(ConfigError, match="without both classes"):
        fit_temperature(labels, np.zeros(len(labels), dtype=np.float32))


def test_no_temperature_of_logits_that_are_not_finite() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        fit_temperature(ints(0, 1), floats(0, math.nan))


@settings(max_examples=30)
@given(patches(), st.integers(0, 99))
def test_the_order_of_patches_does_not_change_the_temperature(
    item: tuple[NDArray[np.int8], ...], seed: int
) -> None:
    labels, logits = item[0], Calibration().undo(item[1].astype(np.float32))
    order = np.random.default_rng(seed).permutation(len(labels))
    assert fit_temperature(labels, logits) == fit_temperature(labels[order], logits[order])


@settings(max_examples=30)
@given(patches(), st.floats(0.25, 20))  # below, logits of ±4 reach 1 within float32
def test_no_temperature_changes_the_ranking(
    item: tuple[NDArray[np.int8], ...], temperature: float
) -> None:
    labels, logits = item[0], (item[1].astype(np.float32) - np.float32(0.5)) * 8
    before, after = (score(labels, calibrate(logits, t), 0.5) for t in (1.0, temperature))
    assert after.auroc == pytest.approx(before.auroc, abs=1e-12)
    assert after.average_precision == pytest.approx(before.average_precision, abs=1e-12)


@settings(max_examples=30)
@given(st.floats(-15, 15, width=32), st.floats(0.5, 10))
def test_a_temperature_can_be_undone(logit: float, temperature: float) -> None:
    again = Calibration(1 / temperature).undo(calibrate(floats(logit), temperature))
    # float32 holds probabilities near 1 to about 6e-8 only, the coarser the surer.
    assert again[0] == pytest.approx(
        logit, abs=temperature * (1e-6 + 1e-7 * math.exp(abs(logit) / temperature)), rel=1e-5
    )


def test_equal_logits_have_equal_probabilities_wherever_they_stand() -> None:
    assert len(set(calibrate(np.full(33, 0.8, dtype=np.float32), 0.25).tolist())) == 1


def test_certain_probabilities_have_finite_logits() -> None:
    logits = Calibration().undo(floats(0, 1))
    assert np.isfinite(logits).all()
    assert Calibration().apply(logits).tolist() == pytest.approx([0, 1], abs=1e-7)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("youden", ThresholdRule("youden")),
        ("f1", ThresholdRule("f1")),
        ("sensitivity=0.95", ThresholdRule("sensitivity", 0.95)),
        ("0.5", ThresholdRule("fixed", 0.5)),
        ("1", ThresholdRule("fixed", 1.0)),
    ],
)
def test_threshold_rules_are_read(text: str, rule: ThresholdRule) -> None:
    assert parse_threshold_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best",
        "f1=2",
        "sensitivity",
        "sensitivity=",
        "sensitivity=0",
        "sensitivity=1.1",
        "1.5",
        "-0.1",
        "nan",
    ],
)
def test_anything_else_is_no_threshold_rule(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_threshold_rule(text)


def test_rules_describe_themselves() -> None:
    assert [
        parse_threshold_rule(text).describe()
        for text in ("youden", "f1", "sensitivity=0.95", "0.5")
    ] == [
        "highest balanced accuracy (Youden)",
        "highest F1",
        "highest threshold with a sensitivity of at least 0.95",
        "set to 0.5 by hand",
    ]


def test_each_rule_by_hand() -> None:
    labels, probability = (
        ints(0, 0, 0, 1, 0, 1, 1, 1),
        floats(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    )
    # From 0.6 up: 3 of 4 positives, no false call: J = 0.75, F1 = 6/7. From 0.4 up: 4 of 4, one
    # false call of 4: J = 0.75, F1 = 8/9.
    assert parse_threshold_rule("youden").choose(labels, probability) == pytest.approx(0.55)
    assert parse_threshold_rule("f1").choose(labels, probability) == pytest.approx(0.35)
    assert parse_threshold_rule("sensitivity=0.5").choose(labels, probability) == pytest.approx(
        0.65
    )
    assert parse_threshold_rule("sensitivity=0.75").choose(labels, probability) == pytest.approx(
        0.55
    )
    assert parse_threshold_rule("sensitivity=0.76").choose(labels, probability) == pytest.approx(
        0.35
    )
    assert parse_threshold_rule("0.42").choose(labels, probability) == 0.42


@pytest.mark.parametrize("text", ["youden", "f1", "sensitivity=0.9"])
def test_rules_need_both_classes(text: str) -> None:
    with pytest.raises(ConfigError, match="a threshold cannot be chosen without both classes"):
        parse_threshold_rule(text).choose(ints(0, 0), floats(0.1, 0.2))


@settings(max_examples=30)
@given(patches(), st.floats(0.01, 1))
def test_a_required_sensitivity_is_reached_and_no_higher_threshold_reaches_it(
    item: tuple[NDArray[np.int8], ...], value: float
) -> None:
    labels, probability = item[0], item[1].astype(np.float32)
    threshold = ThresholdRule("sensitivity", value).choose(labels, probability)
    assert (score(labels, probability, threshold).sensitivity or 0) >= value - 1e-9
    higher = [float(p) for p in probability if p > threshold]
    called = min(higher, default=2.0)
    if any(p > called for p in higher):
        next_up = min(p for p in higher if p > called)
        missed = score(labels, probability, next_up).sensitivity or 0
        assert missed < value or not (labels[probability == np.float32(called)] == 1).any()


@settings(max_examples=30)
@given(patches())
def test_no_threshold_has_a_higher_f1(item: tuple[NDArray[np.int8], ...]) -> None:
    labels, probability = item[0], item[1].astype(np.float32)
    chosen = score(labels, probability, ThresholdRule("f1").choose(labels, probability)).f1 or 0
    assert chosen == pytest.approx(
        max(score(labels, probability, float(p)).f1 or 0 for p in probability)
    )


@settings(max_examples=30)
@given(patches())
def test_no_threshold_has_a_higher_balanced_accuracy(item: tuple[NDArray[np.int8], ...]) -> None:
    labels, probability = item[0], item[1].astype(np.float32)
    chosen = (
        score(
            labels, probability, ThresholdRule("youden").choose(labels, probability)
        ).balanced_accuracy
        or 0
    )
    others = max(score(labels, probability, float(p)).balanced_accuracy or 0 for p in probability)
    assert chosen == pytest.approx(max(others, 0.5))  # 0.5: everything is called


@settings(max_examples=30)
@given(patches(), st.integers(0, 99))
def test_metrics_of_a_sample_are_those_of_the_copied_patches(
    item: tuple[NDArray[np.int8], ...], seed: int
) -> None:
    labels, probability, codes = item[0], item[1].astype(np.float32), item[2].astype(np.intp)
    weights = np.random.default_rng(seed).integers(0, 3, 5)
    metrics = dict(
        zip(
            METRIC_NAMES, ResampledMetrics(labels, probability, codes, 5, 0.5)(weights), strict=True
        )
    )
    copies = np.repeat(np.arange(len(labels)), weights[codes])
    expected = asdict(score(labels[copies], probability[copies], 0.5))
    for name in METRIC_NAMES:
        assert metrics[name] == pytest.approx(
            math.nan if expected[name] is None else expected[name], abs=1e-9, nan_ok=True
        ), name


def test_a_draw_takes_as_many_patients_as_there_are() -> None:
    drawn = resample_patients(7, 50, seed=3)
    assert drawn.sum(axis=1).tolist() == [7] * 50
    assert np.array_equal(drawn, resample_patients(7, 50, seed=3))


def test_intervals_of_two_patients_by_hand() -> None:
    # Patient a is all right, b all wrong: a draw is aa, ab, ba or bb, so sensitivity is 1, 1/2 or
    # 0, and the middle 95 % spans them all.
    labels, probability = ints(0, 1, 0, 1), floats(0.1, 0.9, 0.9, 0.1)
    intervals = bootstrap_intervals(labels, probability, names("a", "a", "b", "b"), 0.5)
    assert [intervals[name] for name in ("sensitivity", "auroc")] == [(0, 1), (0, 1)]


def test_patients_who_agree_leave_no_width() -> None:
    labels, probability = np.tile(ints(0, 1, 1), 6), np.tile(floats(0.1, 0.9, 0.4), 6)
    intervals = bootstrap_intervals(
        labels, probability, np.repeat([f"p{k}" for k in range(6)], 3), 0.5
    )
    assert intervals["sensitivity"] == (0.5, 0.5)
    assert intervals["brier"] == pytest.approx([(0.01 + 0.01 + 0.36) / 3] * 2)
    assert set(intervals) == set(METRIC_NAMES)


def test_intervals_tell_patients_from_patches() -> None:
    # A hundred patches of one patient are one witness: were patches drawn, the interval would be
    # about ± 0.04.
    labels = np.ones(400, dtype=np.int8)
    probability = np.repeat(floats(0.9, 0.9, 0.1, 0.1), 100)
    low, high = bootstrap_intervals(labels, probability, np.repeat(["a", "b", "c", "d"], 100), 0.5)[
        "sensitivity"
    ]
    assert (low, high) == (0, 1)


def test_one_patient_has_no_interval() -> None:
    assert bootstrap_intervals(ints(0, 1), floats(0.1, 0.9), names("a", "a"), 0.5) == {}


def test_an_undefined_metric_has_no_interval() -> None:
    intervals = bootstrap_intervals(ints(0, 0, 0), floats(0.1, 0.4, 0.2), names("a", "b", "c"), 0.5)
    assert set(intervals) == {"specificity", "brier", "expected_calibration_error"}


def test_samples_without_a_value_are_left_out() -> None:
    assert find_interval(np.array([0.5, np.nan, 0.5])) == (0.5, 0.5)
    assert find_interval(np.array([0.5, np.nan, np.nan])) is None


def test_other_seeds_draw_other_patients() -> None:
    rng = np.random.default_rng(0)
    labels, probability = (
        rng.integers(0, 2, 200).astype(np.int8),
        rng.random(200).astype(np.float32),
    )
    patients = np.repeat([f"p{k}" for k in range(20)], 10)
    one, same, other = (
        bootstrap_intervals(labels, probability, patients, 0.5, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


def example(temperature: float = 2.0) -> Metrics:
    labels, logits = ints(0, 0, 1, 1, 0, 1), floats(-4, 1, 2, 5, -2, -1)
    return measure(labels, logits, names("b", "b", "b", "a", "a", "a"), temperature=temperature)


def test_metrics_hold_calibration_before_and_after() -> None:
    metrics = example()
    logits = [-4, 1, 2, 5, -2, -1]
    squares = [
        (1 / (1 + math.exp(-z)) - y) ** 2 for z, y in zip(logits, [0, 0, 1, 1, 0, 1], strict=True)
    ]
    assert metrics.before.brier == pytest.approx(sum(squares) / 6)
    halved = [
        (1 / (1 + math.exp(-z / 2)) - y) ** 2
        for z, y in zip(logits, [0, 0, 1, 1, 0, 1], strict=True)
    ]
    assert metrics.after.brier == metrics.scores.brier == pytest.approx(sum(halved) / 6)


def test_without_a_temperature_nothing_changes() -> None:
    metrics = example(temperature=1.0)
    assert metrics.before == metrics.after


def test_metrics_have_an_entry_for_each_patient() -> None:
    one, other = example().patients
    assert (one.patient_id, one.scores.patches, one.positives) == ("a", 3, 2)
    assert (one.scores.true_positives, one.scores.false_negatives, one.scores.true_negatives) == (
        1,
        1,
        1,
    )
    assert (other.patient_id, other.scores.false_positives) == ("b", 1)


def test_the_sweep_counts_from_the_threshold_on() -> None:
    labels, probability = ints(0, 0, 1, 1), floats(0.1, 0.5, 0.5, 0.9)
    points = sweep_thresholds(labels, probability, (0.5, 0.51, 0.95))
    counts = [
        (p.true_negatives, p.false_positives, p.false_negatives, p.true_positives) for p in points
    ]
    assert counts == [(1, 1, 0, 2), (2, 0, 1, 1), (2, 0, 2, 0)]
    assert (points[2].f1, points[2].balanced_accuracy) == (0.0, 0.5)


@settings(max_examples=30)
@given(patches(), st.floats(0, 1))
def test_sweep_and_scores_agree(item: tuple[NDArray[np.int8], ...], threshold: float) -> None:
    labels, probability = item[0], item[1].astype(np.float32)
    (point,) = sweep_thresholds(labels, probability, (threshold,))
    scores = score(labels, probability, threshold)
    assert (point.true_positives, point.false_positives, point.f1) == (
        scores.true_positives,
        scores.false_positives,
        scores.f1,
    )
    assert point.balanced_accuracy == scores.balanced_accuracy


def test_named_thresholds_lie_on_the_sweep() -> None:
    assert [example().at(threshold).threshold for threshold in (0.5, 0.7, 0.8, 0.9)] == [
        0.5,
        0.7,
        0.8,
        0.9,
    ]


def test_metrics_are_json() -> None:
    metrics = example()
    again = json.loads(json.dumps(asdict(metrics), allow_nan=False))
    assert again["scores"]["f1"] == metrics.scores.f1
    assert again["intervals"]["f1"] == list(metrics.intervals["f1"])


def test_patches_alone_are_scored_at_a_threshold_of_their_own() -> None:
    # Alone one patch of each class is called right; with context all are.
    labels, patients = ints(0, 0, 1, 1), names("a", "b", "a", "b")
    metrics = evaluate_predictions(
        labels,
        patients,
        logits=floats(-1, 1, -1, 1),
        alone=floats(0.2, 0.6, 0.2, 0.6),
        probability=floats(0.2, 0.3, 0.4, 0.6),
        thresholds=(0.35, 0.6),
        draws=5,
    )
    assert (metrics.alone.threshold, metrics.alone.true_positives) == (0.6, 1)
    assert (metrics.alone.false_positives, metrics.scores.f1) == (1, 1.0)
    assert "without context, each patch alone" in format_metrics(metrics, "it", ("no", "yes"))


def test_a_model_without_context_is_called_one() -> None:
    text = format_metrics(example(), "it", ("no", "yes"))
    assert "context: none, each patch is judged alone" in text


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_the_order_of_patches_changes_no_metric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = (
        rng.integers(0, 2, 60).astype(np.int8),
        rng.normal(size=60).astype(np.float32).round(1),
    )
    patients = rng.choice(["a", "b", "c", "d"], 60)
    order = rng.permutation(60)
    one = measure(labels, logits, patients, temperature=1.5, threshold=0.4, draws=50)
    other = measure(
        labels[order], logits[order], patients[order], temperature=1.5, threshold=0.4, draws=50
    )
    assert one.intervals == other.intervals
    assert one.sweep == other.sweep
    assert one.after.brier == pytest.approx(other.after.brier, abs=1e-12)


def test_no_patches_have_empty_metrics() -> None:
    nothing = measure(ints(), floats(), names())
    assert (nothing.scores.f1, nothing.intervals, nothing.patients, nothing.after.brier) == (
        None,
        {},
        (),
        None,
    )


@pytest.mark.parametrize(
    ("labels", "logits", "fault"),
    [
        (ints(0, -1), floats(0, 0), "neither 0 nor 1"),
        (ints(0), floats(0, 0), "one of each"),
        (ints(0, 1), floats(0, math.nan), "not finite"),
    ],
)
def test_impossible_input_is_refused(
    labels: NDArray[np.int8], logits: NDArray[np.float32], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        measure(labels, logits, names("a", "b"))


def test_own_ranking_metrics_are_those_of_the_library() -> None:
    rng = np.random.default_rng(5)
    labels, probability = (
        rng.integers(0, 2, 500).astype(np.int8),
        rng.random(500).astype(np.float32).round(2),
    )
    auroc, average_precision, *_ = ResampledMetrics(
        labels, probability, np.zeros(500, dtype=np.intp), 1, 0.5
    )(np.array([1]))
    assert auroc == pytest.approx(roc_auc_score(labels, probability))
    assert average_precision == pytest.approx(average_precision_score(labels, probability))
