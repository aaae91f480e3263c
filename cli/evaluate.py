"""`wsi evaluate`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.options import LabelOptions

from .options import (
    DEFAULT_RESULTS,
    PATHS,
    RESULTS,
    labels_option,
    mode_option,
    options_of,
    results_argument,
    say_next,
    unless_default,
)
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@results_argument()
@labels_option
@options_of(LabelOptions)
@click.option(
    "--threshold",
    metavar="RULE|NUMBER",
    help=(
        "Judge at another threshold than that of the results: a number, or chosen here by"
        " youden, f1 or sensitivity=NUMBER, which flatters."
    ),
)
@click.option(
    "--compare",
    type=RESULTS,
    metavar="OTHER_RESULTS",
    help="Another model's results: both on the patients and patches they share.",
)
@click.option(
    "--by",
    metavar="COLUMN",
    help=(
        "Compare the groups of a column of the sample sheet, such as site, and test if they differ."
    ),
)
@click.option(
    "--sheet",
    type=PATHS["file"],
    metavar="CSV",
    help="Sample sheet with that column. [default: the columns that the results record]",
)
@mode_option
def evaluate(
    results: Path,
    labels: tuple[Path, ...],
    threshold: str | None,
    compare: Path | None,
    by: str | None,
    sheet: Path | None,
    **rules: Any,
) -> None:
    """Compare the predictions in RESULTS with known labels, per slide and pooled.

    Labels are those of the patch stores that were inferred, or files given with --labels. Writes
    evaluation.html, evaluation.csv and evaluation.json into RESULTS, with 95 % intervals from
    resampling patients, and judges each slide's count; evaluation_patients.csv has the same of each
    patient. With --by also evaluation_groups.csv, with --compare comparison.csv.
    """
    from wsi_pipeline.core.choices import (
        EVALUATION_CSV,
        EVALUATION_GROUPS_CSV,
        EVALUATION_HTML,
    )
    from wsi_pipeline.evaluation import evaluate_results, find_class_names
    from wsi_pipeline.labels.rules import read_rules
    from wsi_pipeline.training.calibrate import parse_threshold_rule

    evaluation = evaluate_results(
        results,
        labels,
        read_rules(LabelOptions(**rules), find_class_names(results)),
        threshold=None if threshold is None else parse_threshold_rule(threshold),
        compare_with=compare,
        by=by,
        sheet=sheet,
    )
    click.echo(str(evaluation))
    made = (EVALUATION_CSV, *((EVALUATION_GROUPS_CSV,) if by else ()), EVALUATION_HTML)
    click.echo(f"→  {'  '.join(str(results / name) for name in made)}")
    say_next("wsi view", *unless_default(results, DEFAULT_RESULTS))
