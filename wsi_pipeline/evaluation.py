"""Predictions against known labels: those of the stores that were inferred, or label files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import LabelError, StoreError
from wsi_pipeline.geometry import all_cells
from wsi_pipeline.heatmap import draw_heatmap
from wsi_pipeline.labels import label_cells
from wsi_pipeline.labels.discovery import list_label_files, match_labels
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.outputs.run_tables import write_csv
from wsi_pipeline.store.predictions import Predictions, find_results, open_result
from wsi_pipeline.training.metrics import Scores, score

EVALUATION_CSV = "evaluation.csv"
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
class Evaluation:
    """Every slide with labels, all pooled, and the names of those without."""

    slides: tuple[SlideEvaluation, ...]
    pooled: SlideEvaluation
    class_names: tuple[str, str]
    unlabelled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    """Known labels beside probabilities, (n,) each; NaN where not assessed."""

    slide_id: str
    labels: NDArray[np.int8]
    probability: NDArray[np.float32]


def evaluate_results(results: Path, labels: Sequence[Path] = (), rules: LabelRules | None = None) -> Evaluation:
    """Score every finished slide in `results` and write evaluation.csv there.

    Labels are the label files or folders given, else those that came with the stores. Raises LabelError where no slide has any,
    StoreError where the slides were predicted by different models.
    """
    predictions = [open_result(folder) for folder in find_results([results])]
    if not predictions:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    _check_one_model(results, predictions)
    files = list_label_files(labels) if labels else []
    compared: list[_Compared] = []
    unlabelled: list[str] = []
    for prediction in predictions:
        slide_id = prediction.path.parent.name
        truth = _find_truth(slide_id, prediction, files, rules or LabelRules(class_names=prediction.table.class_names))
        if truth is None or len(truth.labels) == 0:
            unlabelled.append(slide_id)
        else:
            compared.append(truth)
    if not compared:
        raise LabelError(f"{results}: no labels for any of {len(predictions)} slides; name label masks with --labels")
    evaluation = Evaluation(
        slides=tuple(_evaluate(item, predictions[0].threshold) for item in compared),
        pooled=_evaluate(_pool(compared), predictions[0].threshold),
        class_names=predictions[0].table.class_names,
        unlabelled=tuple(unlabelled),
    )
    _write_csv(results / EVALUATION_CSV, evaluation)
    return evaluation


def find_class_names(results: Path) -> tuple[str, str]:
    """(negative, positive) as the model of the results calls them. Raises StoreError where there are no results."""
    folders = find_results([results])
    if not folders:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    return open_result(folders[0]).table.class_names


def _check_one_model(results: Path, predictions: Sequence[Predictions]) -> None:
    if len({prediction.model_digest for prediction in predictions}) > 1:
        raise StoreError(f"{results}: its slides were predicted by different models; evaluate each model in a folder of its own")


def _find_truth(slide_id: str, predictions: Predictions, files: Sequence[Path], rules: LabelRules) -> _Compared | None:
    table = predictions.table
    if not files:
        known = table.labels >= 0
        return _Compared(slide_id, table.labels[known], predictions.probability[known])
    label_file = match_labels(slide_id, files)
    if label_file is None:
        return None
    # Every cell of the grid, so that labelled tissue which was never assessed is counted too.
    cells = all_cells(table.grid)
    labels = label_cells(label_file, table.slide, table.grid, cells, rules).labels
    probability = draw_heatmap(predictions).probability[cells[:, 0], cells[:, 1]]
    return _Compared(slide_id, labels[labels >= 0], probability[labels >= 0])


def _pool(compared: Sequence[_Compared]) -> _Compared:
    return _Compared(
        POOLED,
        np.concatenate([item.labels for item in compared]),
        np.concatenate([item.probability for item in compared]),
    )


def _evaluate(compared: _Compared, threshold: float) -> SlideEvaluation:
    assessed = ~np.isnan(compared.probability)
    return SlideEvaluation(
        slide_id=compared.slide_id,
        labelled=len(compared.labels),
        not_assessed=int(np.count_nonzero(~assessed)),
        scores=score(compared.labels[assessed], compared.probability[assessed], threshold),
    )


def _write_csv(path: Path, evaluation: Evaluation) -> None:
    names = [field.name for field in fields(Scores)]
    rows = (
        [slide.slide_id, slide.labelled, slide.not_assessed, *(asdict(slide.scores)[name] for name in names)]
        for slide in (*evaluation.slides, evaluation.pooled)
    )
    write_csv(path, ["slide_id", "labelled", "not_assessed", *names], rows)
