"""Evaluating finished results: metrics per slide and pooled, a report, and two models compared."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.core.choices import (
    COMPARISON_CSV,
    EVALUATION_CSV,
    EVALUATION_HTML,
    EVALUATION_JSON,
    LEAK_WARNING,
)
from wsi_pipeline.evaluation.labelled import (
    LabelledResults,
    compare_results,
    label_results,
    pool_slides,
)
from wsi_pipeline.evaluation.page import write_evaluation_page
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.outputs.run_files import write_csv
from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.counts import Count, Counts, judge_count
from wsi_pipeline.training.evaluate import (
    Compared,
    Comparison,
    Metrics,
    evaluate_predictions,
    format_metrics,
)
from wsi_pipeline.training.metrics import METRIC_NAMES, Scores, describe_scores, score, show_metric

POOLED = "all slides"
HEADINGS = (
    *("slide", "labelled", "not assessed", "counted", "true", "interval"),
    *("AUROC", "F1", "bal. acc."),
)
NO_INTERVAL: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True)
class SlideEvaluation:
    """Metrics of one slide's predictions, or of all slides together."""

    slide_id: str
    labelled: int
    """Patches whose class is known."""
    not_assessed: int
    """Labelled patches without a probability (no tissue, or unreadable); metrics leave them out."""
    scores: Scores
    count: Count
    """Counted and true positives, of the same patches."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of every slide with labels and of all together, and the slides without labels."""

    slides: tuple[SlideEvaluation, ...]
    pooled: SlideEvaluation
    metrics: Metrics
    """Of all slides together, with intervals from resampling patients."""
    counts: Counts
    """Of all slides, with their mean errors."""
    class_names: tuple[str, str]
    unlabelled: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Warnings to read before the metrics."""
    compared: Compared | None = None
    at_models: Scores | None = None
    """Scores at the model's threshold for counting, where these results show another."""

    def __str__(self) -> str:
        lines = [f"WARNING: {warning}" for warning in self.warnings]
        lines += [*_format_slides([*self.slides, self.pooled]), "", *self.counts.sentences, ""]
        lines.append(format_metrics(self.metrics, POOLED, self.class_names))
        lines += [] if self.at_models is None else ["", describe_at_models(self.at_models)]
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
    is that of the results unless a rule is given. With `compare_with`, another results folder, both
    models are compared on the patches that they share (comparison.csv). Raises LabelError where no
    slide has labels, StoreError where slides were predicted by different models, aggregated in
    different ways, or nothing is shared.
    """
    labelled = label_results(results, labels, rules)
    other = None if compare_with is None else label_results(compare_with, labels, rules)
    metrics = _measure(labelled, threshold)
    at = metrics.scores.threshold
    slides = _evaluate_slides(labelled, (at, metrics.alone.threshold))
    rows = tuple(slide.count for slide in slides)
    compared = None
    if other is not None:
        compared = compare_results(labelled, other, (at, _choose_threshold(other, threshold)))
    evaluation = Evaluation(
        slides=slides,
        pooled=_pool(slides, metrics),
        metrics=metrics,
        counts=Counts(labelled.patch_um, at, rows, len(metrics.patients)),
        class_names=labelled.class_names,
        unlabelled=labelled.unlabelled,
        warnings=tuple(_warn(labelled, other, threshold)),
        compared=compared,
        at_models=_score_at_models(labelled, at),
    )
    _write(results, labelled, evaluation, threshold)
    return evaluation


def _measure(labelled: LabelledResults, rule: ThresholdRule | None) -> Metrics:
    """Return the metrics of all slides together: final, and of each patch alone."""
    labels, probability, patients = pool_slides(labelled.assessed)
    logits = np.concatenate([slide.logit for slide in labelled.assessed])
    alone = labelled.calibration_alone.apply(logits)
    at_alone = labelled.threshold_alone if rule is None else rule.choose(labels, alone)
    return evaluate_predictions(
        labels,
        patients,
        logits=logits,
        alone=alone,
        probability=probability,
        thresholds=(_choose_threshold(labelled, rule), at_alone),
    )


def _score_at_models(labelled: LabelledResults, at: float) -> Scores | None:
    """Return the scores at the model's own threshold for counting; None where it is `at`."""
    own = labelled.terms.choose(labelled.slides[0].summary.context_um).count
    if own == at:
        return None
    labels, probability, _ = pool_slides(labelled.assessed)
    return score(labels, probability, own)


def describe_at_models(scores: Scores) -> str:
    """Return the scores at the model's own threshold in one line."""
    counted = scores.true_positives + scores.false_positives
    true = scores.true_positives + scores.false_negatives
    return (
        f"at the model's own threshold for counting, {scores.threshold:.3f}:"
        f" {describe_scores(scores)}; {counted} counted, {true} true"
    )


def _pool(slides: Sequence[SlideEvaluation], metrics: Metrics) -> SlideEvaluation:
    return SlideEvaluation(
        POOLED,
        sum(slide.labelled for slide in slides),
        sum(slide.not_assessed for slide in slides),
        metrics.scores,
        Count(POOLED, metrics.scores, metrics.alone),
    )


def _evaluate_slides(
    labelled: LabelledResults, thresholds: tuple[float, float]
) -> tuple[SlideEvaluation, ...]:
    """Return the metrics of each slide at the thresholds of final probabilities and of alone."""
    found = []
    for slide, assessed in zip(labelled.slides, labelled.assessed, strict=True):
        labels, known = assessed.labels, len(assessed.labels)
        scores = score(labels, assessed.probability, thresholds[0])
        alone = score(labels, labelled.calibration_alone.apply(assessed.logit), thresholds[1])
        count = judge_count(Count(slide.slide_id, scores, alone), slide.summary)
        left_out = len(slide.labels) - known
        found.append(SlideEvaluation(slide.slide_id, len(slide.labels), left_out, scores, count))
    return tuple(found)


def _warn(
    labelled: LabelledResults, other: LabelledResults | None, threshold: ThresholdRule | None
) -> list[str]:
    results = [labelled] if other is None else [labelled, other]
    warnings = [f"{item.model_name}: {LEAK_WARNING}" for item in results if item.is_leaky]
    warnings += [overlap for item in results if (overlap := item.describe_overlap())]
    warnings += [site for item in results if (site := item.describe_site())]
    if threshold is not None and threshold.name != "fixed":
        warnings.append(
            "the threshold was chosen on the same patients that are evaluated: metrics at it are"
            " better than they will be on other patients"
        )
    return warnings


def _choose_threshold(labelled: LabelledResults, rule: ThresholdRule | None) -> float:
    """Return the threshold of the results, or the rule's on all their labelled patches."""
    if rule is None:
        return labelled.threshold
    labels, probability, _ = pool_slides(labelled.assessed)
    return rule.choose(labels, probability)


def _write(
    results: Path,
    labelled: LabelledResults,
    evaluation: Evaluation,
    threshold: ThresholdRule | None,
) -> None:
    metrics, compared = evaluation.metrics, evaluation.compared
    _write_csv(results / EVALUATION_CSV, evaluation)
    record: dict[str, Any] = {
        "model": dict(labelled.model),
        "warnings": list(evaluation.warnings),
    }
    record |= {**asdict(metrics), "counts": evaluation.counts.to_json()}
    at_models = evaluation.at_models
    record["at_models_threshold"] = None if at_models is None else asdict(at_models)
    text = json.dumps(record, indent=1, allow_nan=False)
    write_file(results / EVALUATION_JSON, f"{text}\n".encode())
    # One of an earlier evaluation would not belong to the new page.
    (results / COMPARISON_CSV).unlink(missing_ok=True)
    if compared is not None:
        _write_comparison(results / COMPARISON_CSV, compared.comparison)
    source = labelled.threshold_words if threshold is None else threshold.describe()
    page = results / EVALUATION_HTML
    counts, notes = evaluation.counts, list(evaluation.warnings)
    notes += [] if at_models is None else [describe_at_models(at_models)]
    write_evaluation_page(page, labelled, metrics, counts, source, compared, notes)


def _write_csv(path: Path, evaluation: Evaluation) -> None:
    intervals = evaluation.metrics.intervals
    ends = [end for name in METRIC_NAMES for end in intervals.get(name) or NO_INTERVAL]
    # Slides have no intervals of their own, because these come from resampling patients.
    filled = [(slide, [*NO_INTERVAL] * len(METRIC_NAMES)) for slide in evaluation.slides]
    rows = [
        [
            *(item.slide_id, item.labelled, item.not_assessed),
            *(*asdict(item.scores).values(), *own, *item.count.to_row().values()),
        ]
        for item, own in [*filled, (evaluation.pooled, ends)]
    ]
    names = [field.name for field in fields(Scores)]
    names += [f"{name}_{end}" for name in METRIC_NAMES for end in ("low", "high")]
    names += evaluation.pooled.count.to_row()
    write_csv(path, ["slide_id", "labelled", "not_assessed", *names], rows)


def _write_comparison(path: Path, comparison: Comparison) -> None:
    names = ["figure", "one", "other", "difference", "low", "high", "patches", "patients"]
    counts = (comparison.patches, comparison.patients)
    rows = (
        [
            item.metric,
            item.one,
            item.other,
            item.difference,
            *(item.interval or NO_INTERVAL),
            *counts,
        ]
        for item in comparison.differences
    )
    write_csv(path, names, rows)


def _format_slides(slides: list[SlideEvaluation]) -> list[str]:
    rows: list[tuple[str, ...]] = [HEADINGS]
    for slide in slides:
        scores, count = slide.scores, slide.count
        patches = (slide.labelled, slide.not_assessed, count.counted, count.true)
        ratios = (scores.auroc, scores.f1, scores.balanced_accuracy)
        rows.append(
            (slide.slide_id, *map(str, patches), count.interval_text, *map(show_metric, ratios))
        )
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        f"{row[0]:<{first}}"
        + "".join(f"   {value:>{width}}" for value, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]
