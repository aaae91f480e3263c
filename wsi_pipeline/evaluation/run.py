"""Evaluating finished results: metrics per slide and pooled, a report, and two models compared."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import (
    COMPARISON_CSV,
    EVALUATION_CSV,
    EVALUATION_GROUPS_CSV,
    EVALUATION_HTML,
    EVALUATION_JSON,
    EVALUATION_PATIENTS_CSV,
    LEAK_WARNING,
)
from wsi_pipeline.evaluation.groups import Grouped, group_slides
from wsi_pipeline.evaluation.labelled import (
    LabelledResults,
    compare_results,
    label_results,
    pool_logits,
    pool_slides,
)
from wsi_pipeline.evaluation.page import write_evaluation_page
from wsi_pipeline.evaluation.truth import keep_truths
from wsi_pipeline.evaluation.units import (
    NO_INTERVAL,
    UnitEvaluation,
    evaluate_patients,
    evaluate_slides,
)
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.outputs.run_files import write_csv
from wsi_pipeline.slides.sheet import read_columns
from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.counts import Count, Counts
from wsi_pipeline.training.evaluate import (
    Compared,
    Comparison,
    Metrics,
    evaluate_predictions,
    format_metrics,
)
from wsi_pipeline.training.metrics import Scores, describe_scores, score, show_metric

POOLED = "all slides"
HEADINGS = (
    *("slide", "labelled", "not assessed", "counted", "true", "interval"),
    *("AUROC", "F1", "bal. acc."),
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of every slide with labels and of all together, and the slides without labels."""

    slides: tuple[UnitEvaluation, ...]
    patients: tuple[UnitEvaluation, ...]
    pooled: UnitEvaluation
    metrics: Metrics
    """Of all slides together, with intervals from resampling patients."""
    counts: Counts
    """Of all slides, with their mean errors."""
    patient_counts: Counts
    """Of all patients."""
    class_names: tuple[str, str]
    unlabelled: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Warnings to read before the metrics."""
    compared: Compared | None = None
    at_models: Scores | None = None
    """Scores at the model's threshold for counting, where these results show another."""
    grouped: Grouped | None = None
    """The groups of a column, compared."""

    def __str__(self) -> str:
        lines = [f"WARNING: {warning}" for warning in self.warnings]
        lines += [*_format_slides([*self.slides, self.pooled]), "", *self.counts.sentences]
        if len(self.patients) < len(self.slides):
            lines += self.patient_counts.sentences[1:]
        lines += ["", str(self.grouped), ""] if self.grouped else [""]
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
    by: str | None = None,
    sheet: Path | None = None,
) -> Evaluation:
    """Evaluate every finished slide in `results`; write evaluation.csv, .json and .html there.

    Labels are the label files or folders given, else those that came with the stores. The threshold
    is that of the results unless a rule is given. With `compare_with`, another results folder, both
    models are compared on the patches that they share (comparison.csv). With `by`, the groups of
    that column are compared (evaluation_groups.csv): of the results, or of a sample sheet. Raises
    LabelError where no slide has labels, StoreError where slides were predicted by different
    models, aggregated in different ways, or nothing is shared.
    """
    labelled = label_results(results, labels, rules)
    other = None if compare_with is None else label_results(compare_with, labels, rules)
    metrics = _measure(labelled, threshold)
    at = metrics.scores.threshold
    thresholds = (at, metrics.alone.threshold)
    slides = evaluate_slides(labelled, thresholds)
    patients = evaluate_patients(labelled, slides, thresholds)
    grouped = None
    if by is not None:
        columns = None if sheet is None else read_columns(sheet)
        grouped = group_slides(by, labelled.assessed, slides, at, columns)
    compared = None
    if other is not None:
        compared = compare_results(labelled, other, (at, _choose_threshold(other, threshold)))
    evaluation = Evaluation(
        slides=slides,
        patients=patients,
        pooled=_pool(slides, metrics),
        metrics=metrics,
        counts=_count(labelled, slides, metrics),
        patient_counts=_count(labelled, patients, metrics, "patient"),
        class_names=labelled.class_names,
        unlabelled=labelled.unlabelled,
        warnings=tuple(_warn(labelled, other, threshold)),
        compared=compared,
        at_models=_score_at_models(labelled, at),
        grouped=grouped,
    )
    _write(results, labelled, evaluation, threshold)
    keep_truths(results, labelled.slides, labelled.class_names)
    return evaluation


def _count(
    labelled: LabelledResults,
    units: Sequence[UnitEvaluation],
    metrics: Metrics,
    noun: str = "slide",
) -> Counts:
    rows = tuple(unit.count for unit in units)
    at = metrics.scores.threshold
    return Counts(labelled.patch_um, at, rows, len(metrics.patients), noun)


def _measure(labelled: LabelledResults, rule: ThresholdRule | None) -> Metrics:
    """Return the metrics of all slides together: final, and of each patch alone."""
    labels, probability, patients = pool_slides(labelled.assessed)
    logits = pool_logits(labelled.assessed)
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


def _pool(slides: Sequence[UnitEvaluation], metrics: Metrics) -> UnitEvaluation:
    return UnitEvaluation(
        POOLED,
        sum(slide.labelled for slide in slides),
        sum(slide.not_assessed for slide in slides),
        metrics.scores,
        Count(POOLED, metrics.scores, metrics.alone),
    )


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
    # Slides and patients have no intervals of their own: these come from resampling patients.
    _write_units(results / EVALUATION_CSV, "slide_id", evaluation.slides, evaluation)
    _write_units(results / EVALUATION_PATIENTS_CSV, "patient_id", evaluation.patients, evaluation)
    record: dict[str, Any] = {
        "model": dict(labelled.model),
        "warnings": list(evaluation.warnings),
    }
    record |= {**asdict(metrics), "counts": evaluation.counts.to_json()}
    record["counts_of_patients"] = evaluation.patient_counts.to_json()
    at_models, grouped = evaluation.at_models, evaluation.grouped
    record["at_models_threshold"] = None if at_models is None else asdict(at_models)
    record["by"] = None if grouped is None else grouped.to_json()
    text = json.dumps(record, indent=1, allow_nan=False)
    write_file(results / EVALUATION_JSON, f"{text}\n".encode())
    # Those of an earlier evaluation would not belong to the new page.
    (results / COMPARISON_CSV).unlink(missing_ok=True)
    (results / EVALUATION_GROUPS_CSV).unlink(missing_ok=True)
    if compared is not None:
        _write_comparison(results / COMPARISON_CSV, compared.comparison)
    if grouped is not None:
        _write_groups(results / EVALUATION_GROUPS_CSV, grouped)
    source = labelled.threshold_words if threshold is None else threshold.describe()
    page = results / EVALUATION_HTML
    counts, notes = evaluation.counts, list(evaluation.warnings)
    notes += [] if at_models is None else [describe_at_models(at_models)]
    write_evaluation_page(page, labelled, metrics, counts, source, compared, notes, grouped)


def _write_units(
    path: Path, key: str, units: Sequence[UnitEvaluation], evaluation: Evaluation
) -> None:
    rows = [{key: unit.name} | unit.to_row() for unit in units]
    pooled = evaluation.pooled
    rows.append({key: POOLED} | pooled.to_row(evaluation.metrics.intervals))
    write_csv(path, list(rows[0]), (list(row.values()) for row in rows))


def _write_groups(path: Path, grouped: Grouped) -> None:
    """Write a row for each group, then the difference of each metric and its p."""
    rows = [{grouped.column: group.value} | group.to_row() for group in grouped.groups]
    header = list(rows[0])
    for name in ("difference", "p"):
        values = {test.metric: getattr(test, name) for test in grouped.tests}
        rows.append(dict.fromkeys(header) | {grouped.column: f"({name})"} | values)
    write_csv(path, header, (list(row.values()) for row in rows))


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


def _format_slides(slides: Sequence[UnitEvaluation]) -> list[str]:
    rows: list[tuple[str, ...]] = [HEADINGS]
    for slide in slides:
        scores, count = slide.scores, slide.count
        patches = (slide.labelled, slide.not_assessed, count.counted, count.true)
        ratios = (scores.auroc, scores.f1, scores.balanced_accuracy)
        rows.append(
            (slide.name, *map(str, patches), count.interval_text, *map(show_metric, ratios))
        )
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        f"{row[0]:<{first}}"
        + "".join(f"   {value:>{width}}" for value, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]
