"""`wsi evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import label_rules_options, labels_option, read_rules

if TYPE_CHECKING:
    from wsi_pipeline.evaluation import Evaluation


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@labels_option
@label_rules_options
def evaluate(results: Path, labels: tuple[Path, ...], **rules: Any) -> None:
    """Compare the predictions in RESULTS with known labels, per slide and pooled.

    Labels are those of the patch stores that were inferred, or files given with --labels. Writes RESULTS/evaluation.csv.
    """
    from wsi_pipeline.evaluation import EVALUATION_CSV, evaluate_results, find_class_names

    evaluation = evaluate_results(results, labels, read_rules(rules, find_class_names(results)))
    click.echo(draw_evaluation(evaluation))
    click.echo(f"→  {results / EVALUATION_CSV}")


def draw_evaluation(evaluation: "Evaluation") -> str:
    """The table of scores, the pooled confusion matrix, and what could not be scored."""
    from wsi_pipeline.training.metrics import draw_confusion

    rows: list[tuple[str, ...]] = [("slide", "labelled", "not assessed", "AUROC", "F1", "bal. acc.")]
    for slide in (*evaluation.slides, evaluation.pooled):
        scores = slide.scores
        figures = (scores.auroc, scores.f1, scores.balanced_accuracy)
        rows.append((slide.slide_id, str(slide.labelled), str(slide.not_assessed), *("–" if v is None else f"{v:.3f}" for v in figures)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    lines += [
        "",
        f"all slides at threshold {evaluation.pooled.scores.threshold:.3f}:",
        draw_confusion(evaluation.pooled.scores, evaluation.class_names),
    ]
    if evaluation.unlabelled:
        lines.append(f"without labels: {', '.join(evaluation.unlabelled)}")
    return "\n".join(lines)
