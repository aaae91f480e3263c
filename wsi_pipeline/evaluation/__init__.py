"""Predictions against labels: figures, a report, and one model against another."""

from wsi_pipeline.evaluation.labelled import find_class_names
from wsi_pipeline.evaluation.run import (
    EVALUATION_CSV,
    EVALUATION_HTML,
    Evaluation,
    evaluate_results,
)

__all__ = [
    "EVALUATION_CSV",
    "EVALUATION_HTML",
    "Evaluation",
    "evaluate_results",
    "find_class_names",
]
