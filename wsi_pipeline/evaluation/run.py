"""Evaluating finished results: metrics per slide and pooled, a report, and two models compared."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from wsi_pipeline.core.choices import (
    COMPARISON_CSV,
    EVALUATION_CSV,
    EVALUATION_HTML,
    EVALUATION_JSON,
)
from wsi_pipeline.evaluation.labelled import (
    LabelledResults,
    LabelledSlide,
    label_results,
    pair_results,
    pool_slides,
)
from wsi_pipeline.evaluation.page import write_evaluation_page
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.outputs.run_files import write_csv
from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.evaluate import (
    Comparison,
    Metrics,
    compare,
    evaluate_probability,
    format_calibration,
    format_intervals,
)
from wsi_pipeline.training.metrics import (
    METRIC_NAMES,
    Interval,
    Scores,
    format_confusion,
    score,
    show_metric,
)
from wsi_pipeline.training.report import LEAK_WARNING, ComparisonSection

POOLED = "all slides"


@dataclass(frozen=True, slots=True)
class SlideEvaluation:
    """Metrics of one slide's predictions, or of all slides together."""

    slide_id: str
    labelled: int
    """Patches whose class is known."""
    not_assessed: int
    """Labelled patches without a probability (no tissue, or unreadable); metrics leave them out."""
    scores: Scores


@dataclass(frozen=True, slots=True)
class Compared:
    """The comparison with another model on the same patches."""

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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of every slide with labels and of all together, and the slides without labels."""

    slides: tuple[SlideEvaluation, ...]
    pooled: SlideEvaluation
    metrics: Metrics
    """Of all slides together, with intervals from resampling patients."""
    class_names: tuple[str, str]
    unlabelled: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Warnings to read before the metrics."""
    compared: Compared | None = None

    def __str__(self) -> str:
        scores = self.pooled.scores
        lines = [f"WARNING: {warning}" for warning in self.warnings]
        lines += [*_format_slides([*self.slides, self.pooled]), ""]
        lines += [*format_intervals(self.metrics, "all slides"), ""]
        lines += [format_calibration(self.metrics), ""]
        lines.append(f"all slides at threshold {scores.threshold:.3f}:")
        lines.append(format_confusion(scores, self.class_names))
        if self.unlabelled:
            lines.append(f"without labels: {', '.join(self.unlabelled)}")
        return "\n".join(lines + (["", str(self.compared)] if self.compared else []))


def evaluate_results(
    results: Path,
    labels: Sequence[Path] = (),
    rules: LabelRules | None = None,
    *,
    threshold: ThresholdRule | None = None,
    compare_with: Path | None = None,
) -> Evaluation:
    """Evaluate every finished slide in `results`; write evaluation.csv, .json and .html there.

    Labels are the label files or folders given, else those that came with the stores. The threshold
    is the model's unless a rule is given. With `compare_with`, another results folder, both models
    are compared on the patches that they share (comparison.csv). Raises LabelError where no slide
    has labels, StoreError where slides were predicted by different models or nothing is shared.
    """
    labelled = label_results(results, labels, rules)
    other = None if compare_with is None else label_results(compare_with, labels, rules)
    known, probability, patients = pool_slides([slide.keep_assessed() for slide in labelled.slides])
    at = _choose_threshold(labelled, threshold)
    metrics = evaluate_probability(
        known, probability, patients, temperature=labelled.temperature, threshold=at
    )
    evaluation = Evaluation(
        slides=tuple(_evaluate(slide, at) for slide in labelled.slides),
        pooled=SlideEvaluation(POOLED, *_count_patches(labelled.slides), metrics.scores),
        metrics=metrics,
        class_names=labelled.class_names,
        unlabelled=labelled.unlabelled,
        warnings=tuple(_warn(labelled, other, threshold)),
        compared=None if other is None else _compare(labelled, other, threshold),
    )
    _write(results, labelled, evaluation, threshold)
    return evaluation


def _evaluate(slide: LabelledSlide, threshold: float) -> SlideEvaluation:
    assessed = slide.keep_assessed()
    return SlideEvaluation(
        slide.slide_id,
        *_count_patches([slide]),
        score(assessed.labels, assessed.probability, threshold),
    )


def _count_patches(slides: Sequence[LabelledSlide]) -> tuple[int, int]:
    """Return the number of labelled patches, and of those that were not assessed."""
    return sum(len(slide.labels) for slide in slides), sum(
        int(np.isnan(slide.probability).sum()) for slide in slides
    )


def _warn(
    labelled: LabelledResults, other: LabelledResults | None, threshold: ThresholdRule | None
) -> list[str]:
    results = [item for item in (labelled, other) if item is not None]
    warnings = [f"{item.model_name}: {LEAK_WARNING}" for item in results if item.is_leaky]
    warnings += [overlap for item in results if (overlap := item.describe_overlap())]
    if threshold is not None and threshold.name != "fixed":
        warnings.append(
            "the threshold was chosen on the same patients that are evaluated: metrics at it are"
            " better than they will be on other patients"
        )
    return warnings


def _compare(one: LabelledResults, other: LabelledResults, rule: ThresholdRule | None) -> Compared:
    pairs = pair_results(one, other)
    thresholds = (_choose_threshold(one, rule), _choose_threshold(other, rule))
    found = compare(pairs.labels, pairs.one, pairs.other, pairs.patients, thresholds=thresholds)
    return Compared(one.model_name, other.model_name, pairs.slides, pairs.left_out, found)


def _choose_threshold(labelled: LabelledResults, rule: ThresholdRule | None) -> float:
    """Return the model's own threshold, or the rule's on all its labelled patches."""
    if rule is None:
        return labelled.threshold
    known, probability, _ = pool_slides([slide.keep_assessed() for slide in labelled.slides])
    return rule.choose(known, probability)


def _write(
    results: Path,
    labelled: LabelledResults,
    evaluation: Evaluation,
    threshold: ThresholdRule | None,
) -> None:
    _write_csv(results / EVALUATION_CSV, evaluation)
    record = {"model": dict(labelled.model), "warnings": list(evaluation.warnings)}
    record |= asdict(evaluation.metrics)
    write_file(
        results / EVALUATION_JSON, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    )
    source = (
        str(labelled.model.get("threshold_source", "the model's"))
        if threshold is None
        else threshold.describe()
    )
    compared, section = evaluation.compared, None
    # One of an earlier evaluation would not belong to the new page.
    (results / COMPARISON_CSV).unlink(missing_ok=True)
    if compared is not None:
        _write_comparison(results / COMPARISON_CSV, compared.comparison)
        section = ComparisonSection(compared.one, compared.other, compared.comparison)
    write_evaluation_page(
        results / EVALUATION_HTML,
        labelled,
        evaluation.metrics,
        source,
        section,
        evaluation.warnings,
    )


def _write_csv(path: Path, evaluation: Evaluation) -> None:
    names = [field.name for field in fields(Scores)]
    intervals = evaluation.metrics.intervals
    ends = [end for name in METRIC_NAMES for end in _ends(intervals.get(name))]
    rows = [
        [item.slide_id, item.labelled, item.not_assessed, *asdict(item.scores).values()]
        for item in (*evaluation.slides, evaluation.pooled)
    ]
    # Slides have no intervals of their own, because these come from resampling patients.
    filled = [[*row, *([None] * len(ends))] for row in rows[:-1]] + [[*rows[-1], *ends]]
    interval_names = [f"{name}_{end}" for name in METRIC_NAMES for end in ("low", "high")]
    write_csv(path, ["slide_id", "labelled", "not_assessed", *names, *interval_names], filled)


def _write_comparison(path: Path, comparison: Comparison) -> None:
    counts = (comparison.patches, comparison.patients)
    rows = (
        [item.metric, item.one, item.other, item.difference, *_ends(item.interval), *counts]
        for item in comparison.differences
    )
    write_csv(
        path, ["figure", "one", "other", "difference", "low", "high", "patches", "patients"], rows
    )


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return interval or (None, None)


def _format_slides(slides: list[SlideEvaluation]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("slide", "labelled", "not assessed", "AUROC", "F1", "bal. acc.")
    ]
    for slide in slides:
        values = (slide.scores.auroc, slide.scores.f1, slide.scores.balanced_accuracy)
        rows.append(
            (
                slide.slide_id,
                str(slide.labelled),
                str(slide.not_assessed),
                *map(show_metric, values),
            )
        )
    width = max(len(row[0]) for row in rows)
    return [
        f"{row[0]:<{width}}" + "".join(f"{position:>14}" for position in row[1:]) for row in rows
    ]
