"""Predictions against labels: metrics, a report, and two models compared."""

from wsi_pipeline.evaluation.labelled import find_class_names
from wsi_pipeline.evaluation.run import Evaluation, evaluate_results

__all__ = ["Evaluation", "evaluate_results", "find_class_names"]
