"""Scoring finished results: figures per slide and pooled, the report, and one model against another."""

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
)
from wsi_pipeline.evaluation.page import pool_slides, write_evaluation_page
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.outputs.run_tables import write_csv
from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.calibrate import ThresholdRule
from wsi_pipeline.training.evaluate import Comparison, Judgement, compare, judge_probability
from wsi_pipeline.training.metrics import FIGURES, Scores, score
from wsi_pipeline.training.report import LEAK_WARNING, ComparisonSection

POOLED = "all slides"


@dataclass(frozen=True, slots=True)
class SlideEvaluation:
    """How one slide's predictions, or all of them together, compare with the truth."""

    slide_id: str
    labelled: int
    """Cells whose class is known."""
    not_assessed: int
    """Of these, cells without a probability: no tissue by our mask, or unreadable. They enter no score."""
    scores: Scores


@dataclass(frozen=True, slots=True)
class Compared:
    """Another model on the same cells."""

    one: str
    other: str
    slides: int
    left_out: int
    """Labelled cells that could not be paired."""
    figures: Comparison


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every slide with labels, all pooled, and the names of those without."""

    slides: tuple[SlideEvaluation, ...]
    pooled: SlideEvaluation
    judgement: Judgement
    """Of all slides together, with intervals from resampling patients."""
    class_names: tuple[str, str]
    unlabelled: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """What must be known before the figures are believed."""
    compared: Compared | None = None


def evaluate_results(
    results: Path,
    labels: Sequence[Path] = (),
    rules: LabelRules | None = None,
    *,
    threshold: ThresholdRule | None = None,
    compare_with: Path | None = None,
) -> Evaluation:
    """Score every finished slide in `results`; write evaluation.csv, evaluation.json and evaluation.html there.

    Labels are the label files or folders given, else those that came with the stores. The threshold
    is the model's unless a rule is given. With `compare_with`, another results folder, both models
    are compared on the cells that they share (comparison.csv). Raises LabelError where no slide has
    labels, StoreError where slides were predicted by different models or nothing is shared.
    """
    labelled = label_results(results, labels, rules)
    other = None if compare_with is None else label_results(compare_with, labels, rules)
    assessed = [slide.keep_assessed() for slide in labelled.slides]
    known, probability, patients = pool_slides(assessed)
    at = _choose_threshold(labelled, threshold)
    judgement = judge_probability(
        known, probability, patients, temperature=labelled.temperature, threshold=at
    )
    evaluation = Evaluation(
        slides=tuple(_evaluate(slide, at) for slide in labelled.slides),
        pooled=SlideEvaluation(POOLED, *_count_patches(labelled.slides), judgement.scores),
        judgement=judgement,
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
    """Labelled cells, and those of them that were not assessed."""
    return sum(len(slide.labels) for slide in slides), sum(
        int(np.isnan(slide.probability).sum()) for slide in slides
    )


def _warn(
    labelled: LabelledResults, other: LabelledResults | None, threshold: ThresholdRule | None
) -> list[str]:
    warnings = [
        f"{item.model_name}: {LEAK_WARNING}"
        for item in (labelled, other)
        if item is not None and item.is_leaky
    ]
    warnings += [
        overlap
        for item in (labelled, other)
        if item is not None and (overlap := item.describe_overlap())
    ]
    if threshold is not None and threshold.name != "fixed":
        warnings.append(
            "the threshold was chosen on the very patients that it is judged on: figures at it are"
            " better than they will be on others"
        )
    return warnings


def _compare(one: LabelledResults, other: LabelledResults, rule: ThresholdRule | None) -> Compared:
    pairs = pair_results(one, other)
    thresholds = (_choose_threshold(one, rule), _choose_threshold(other, rule))
    figures = compare(pairs.labels, pairs.one, pairs.other, pairs.patients, thresholds=thresholds)
    return Compared(one.model_name, other.model_name, pairs.slides, pairs.left_out, figures)


def _choose_threshold(labelled: LabelledResults, rule: ThresholdRule | None) -> float:
    """The model's own threshold, or the rule's on all its labelled cells, whoever it is compared with."""
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
    record = {
        "model": dict(labelled.model),
        "warnings": list(evaluation.warnings),
    } | evaluation.judgement.to_json()
    write_file(
        results / EVALUATION_JSON, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    )
    source = (
        str(labelled.model.get("threshold_source", "the model's"))
        if threshold is None
        else threshold.describe()
    )
    compared, section = evaluation.compared, None
    (results / COMPARISON_CSV).unlink(
        missing_ok=True
    )  # of an earlier evaluation, which the page is no longer about
    if compared is not None:
        _write_comparison(results / COMPARISON_CSV, compared.figures)
        section = ComparisonSection(compared.one, compared.other, compared.figures)
    write_evaluation_page(
        results / EVALUATION_HTML,
        labelled,
        evaluation.judgement,
        source,
        section,
        evaluation.warnings,
    )


def _write_csv(path: Path, evaluation: Evaluation) -> None:
    names = [field.name for field in fields(Scores)]
    ends = [
        end
        for intervals in (evaluation.judgement.intervals,)
        for name in FIGURES
        for end in intervals.get(name, (None, None))
    ]
    rows = [
        [
            slide.slide_id,
            slide.labelled,
            slide.not_assessed,
            *(asdict(slide.scores)[name] for name in names),
        ]
        for slide in (*evaluation.slides, evaluation.pooled)
    ]
    # Slides have no interval of their own: it is from resampling patients.
    filled = [[*row, *([None] * len(ends))] for row in rows[:-1]] + [[*rows[-1], *ends]]
    interval_names = [f"{name}_{end}" for name in FIGURES for end in ("low", "high")]
    write_csv(path, ["slide_id", "labelled", "not_assessed", *names, *interval_names], filled)


def _write_comparison(path: Path, comparison: Comparison) -> None:
    rows = (
        [
            item.figure,
            item.one,
            item.other,
            item.difference,
            *(item.interval or (None, None)),
            comparison.patches,
            comparison.patients,
        ]
        for item in comparison.differences
    )
    write_csv(
        path, ["figure", "one", "other", "difference", "low", "high", "patches", "patients"], rows
    )
