"""`wsi evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .options import label_rules_options, labels_option, mode_option

if TYPE_CHECKING:
    from wsi_pipeline.evaluation import Evaluation
    from wsi_pipeline.evaluation.run import Compared, SlideEvaluation
    from wsi_pipeline.training.evaluate import Metrics

RESULTS = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("results", type=RESULTS)
@labels_option
@label_rules_options
@click.option(
    "--threshold",
    metavar="RULE|NUMBER",
    help=(
        "Judge at another threshold than the model's: a number, or chosen here by youden, f1 or"
        " sensitivity=NUMBER, which flatters."
    ),
)
@click.option(
    "--compare",
    type=RESULTS,
    metavar="OTHER_RESULTS",
    help="Another model's results: both on the patients and patches they share.",
)
@mode_option
def evaluate(
    results: Path,
    labels: tuple[Path, ...],
    threshold: str | None,
    compare: Path | None,
    **rules: Any,
) -> None:
    """Compare the predictions in RESULTS with known labels, per slide and pooled.

    Labels are those of the patch stores that were inferred, or files given with --labels. Writes
    evaluation.html, evaluation.csv and evaluation.json into RESULTS, with 95 % intervals from
    resampling patients; with --compare also comparison.csv.
    """
    from wsi_pipeline.core.choices import EVALUATION_CSV, EVALUATION_HTML
    from wsi_pipeline.evaluation import evaluate_results, find_class_names
    from wsi_pipeline.labels.rules import LabelOptions
    from wsi_pipeline.training.calibrate import parse_threshold_rule

    evaluation = evaluate_results(
        results,
        labels,
        LabelOptions(**rules).label_rules(find_class_names(results)),
        threshold=None if threshold is None else parse_threshold_rule(threshold),
        compare_with=compare,
    )
    click.echo(format_evaluation(evaluation))
    click.echo(f"→  {results / EVALUATION_CSV}  {results / EVALUATION_HTML}")


def format_evaluation(evaluation: "Evaluation") -> str:
    """Return the scores, intervals, calibration, confusion matrix, and what has no score."""
    from wsi_pipeline.training.metrics import format_confusion

    scores = evaluation.pooled.scores
    lines = [f"WARNING: {warning}" for warning in evaluation.warnings]
    lines += _format_slides([*evaluation.slides, evaluation.pooled])
    lines += [
        "",
        *format_intervals(evaluation.metrics, "all slides"),
        "",
        *format_calibration(evaluation.metrics),
    ]
    lines += [
        "",
        f"all slides at threshold {scores.threshold:.3f}:",
        format_confusion(scores, evaluation.class_names),
    ]
    if evaluation.unlabelled:
        lines.append(f"without labels: {', '.join(evaluation.unlabelled)}")
    if evaluation.compared is not None:
        lines += ["", *_format_comparison(evaluation.compared)]
    return "\n".join(lines)


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _format_slides(slides: "list[SlideEvaluation]") -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("slide", "labelled", "not assessed", "AUROC", "F1", "bal. acc.")
    ]
    for slide in slides:
        values = (slide.scores.auroc, slide.scores.f1, slide.scores.balanced_accuracy)
        rows.append(
            (slide.slide_id, str(slide.labelled), str(slide.not_assessed), *map(_show, values))
        )
    width = max(len(row[0]) for row in rows)
    return [
        f"{row[0]:<{width}}" + "".join(f"{position:>14}" for position in row[1:]) for row in rows
    ]


def format_intervals(metrics: "Metrics", what: str) -> list[str]:
    """Every figure with its 95 % interval, under a line that says of what."""
    from wsi_pipeline.training.metrics import FEW_PATIENTS, METRIC_NAMES

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
        lines.append(f"  {name:<28}{_show(getattr(metrics.scores, key))}{ends}")
    return lines


def format_calibration(metrics: "Metrics") -> list[str]:
    """Return the effect of the temperature in one line."""
    before, after = metrics.before, metrics.after
    if after.temperature == 1.0:
        return ["calibration: the model's temperature is 1, nothing was changed"]
    return [
        f"calibration: expected calibration error {_show(before.expected_calibration_error)}"
        f" before, {_show(after.expected_calibration_error)} after temperature"
        f" {after.temperature:.3f}; Brier score {_show(before.brier)}, {_show(after.brier)}"
    ]


def _format_comparison(compared: "Compared") -> list[str]:
    from wsi_pipeline.training.metrics import METRIC_NAMES

    comparison = compared.comparison
    lines = [
        (
            f"{compared.one} (one) against {compared.other} (other):"
            f" {comparison.patches} patches of {comparison.patients} patients on"
            f" {compared.slides} slides paired, {compared.left_out} labelled patches left out"
        ),
        f"  {'':<28}{'one':>8}{'other':>8}{'one − other':>13}   95 % interval",
    ]
    for item in comparison.differences:
        ends = (
            "–" if item.interval is None else f"{item.interval[0]:+.3f} to {item.interval[1]:+.3f}"
        )
        difference = "–" if item.difference is None else f"{item.difference:+.3f}"
        lines.append(
            f"  {METRIC_NAMES[item.metric]:<28}{_show(item.one):>8}{_show(item.other):>8}"
            f"{difference:>13}   {ends}"
        )
    return lines
