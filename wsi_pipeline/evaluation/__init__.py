"""Predictions against labels: figures, a report, and one model against another."""

from wsi_pipeline.evaluation.run import (
    EVALUATION_CSV,
    EVALUATION_HTML,
    Evaluation,
    evaluate_results,
)
from wsi_pipeline.evaluation.truth import find_class_names

__all__ = [
    "EVALUATION_CSV",
    "EVALUATION_HTML",
    "Evaluation",
    "evaluate_results",
    "find_class_names",
]
