"""Labels beside predictions, and two models paired on the same patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.geometry import Grid, all_positions
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.labels import label_positions
from wsi_pipeline.labels.discovery import list_label_files, match_labels
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.model import hash_patient
from wsi_pipeline.outputs.heatmap import build_heatmap
from wsi_pipeline.store.predictions import Predictions, find_results, open_result


@dataclass(frozen=True, slots=True)
class LabelledSlide:
    """The cells of one slide whose class is known, (n,) each."""

    slide_id: str
    table: PatchTable
    positions: NDArray[np.int32]
    """(n, 2) row, col."""
    labels: NDArray[np.int8]
    """0 or 1."""
    probability: NDArray[np.float32]
    """NaN where not assessed."""

    @property
    def patients(self) -> NDArray[np.str_]:
        """(n,) the slide's patient for each cell."""
        return np.full(len(self.labels), self.table.patient_id)

    def keep_assessed(self) -> "LabelledSlide":
        """The same without cells that have no probability."""
        known = ~np.isnan(self.probability)
        return LabelledSlide(
            self.slide_id,
            self.table,
            self.positions[known],
            self.labels[known],
            self.probability[known],
        )


@dataclass(frozen=True, slots=True)
class LabelledResults:
    """Every slide of a results folder that has labels."""

    path: Path
    model: Mapping[str, Any]
    """What the results record about the model that made them."""
    slides: tuple[LabelledSlide, ...]
    unlabelled: tuple[str, ...]

    @property
    def threshold(self) -> float:
        """The model's own."""
        return float(self.model["threshold"])

    @property
    def temperature(self) -> float:
        """What the logits were divided by; 1 where the record names none."""
        return float(self.model.get("temperature", 1.0))

    @property
    def class_names(self) -> tuple[str, str]:
        """As (negative, positive)."""
        negative, positive = self.model["class_names"]
        return str(negative), str(positive)

    @property
    def is_leaky(self) -> bool:
        """Whether the model was trained with patients on both sides."""
        return bool(self.model.get("is_leaky", False))

    def find_seen(self) -> list[str]:
        """Patients among the slides whom the model was trained, or its threshold chosen, on; none where its record names none."""
        seen = {*self.model.get("seen_patients", ())}
        return [patient for patient in self._list_patients() if hash_patient(patient) in seen]

    def describe_overlap(self) -> str:
        """A warning that patients are judged whom the model knows; empty where there are none."""
        known, judged = len(self.find_seen()), len(self._list_patients())
        if not known:
            return ""
        return (
            f"{self.model_name}: {known} of {judged} patients judged here trained it or chose its"
            " threshold; figures are inflated"
        )

    def _list_patients(self) -> list[str]:
        return sorted({slide.table.patient_id for slide in self.slides})

    @property
    def model_name(self) -> str:
        """Network and the beginning of the digest: enough to tell two models apart."""
        return f"{self.model.get('architecture', 'model')} {str(self.model.get('digest', ''))[:12]}"


def label_results(
    results: Path, labels: Sequence[Path] = (), rules: LabelRules | None = None
) -> LabelledResults:
    """The labelled slides of `results`: by the label files or folders given, else by what came with the stores.

    Raises LabelError where no slide has labels, StoreError where the slides were predicted by
    different models.
    """
    predictions = _open_all(results)
    if len({prediction.model_digest for prediction in predictions}) > 1:
        raise StoreError(
            f"{results}: its slides were predicted by different models; evaluate each model in a"
            " folder of its own"
        )
    files = list_label_files(labels) if labels else []
    slides: list[LabelledSlide] = []
    unlabelled: list[str] = []
    for prediction in predictions:
        slide_id = prediction.path.parent.name
        slide = _label_slide(
            slide_id,
            prediction,
            files,
            rules or LabelRules(class_names=prediction.table.class_names),
        )
        if slide is None or len(slide.labels) == 0:
            unlabelled.append(slide_id)
        else:
            slides.append(slide)
    if not slides:
        raise LabelError(
            f"{results}: no labels for any of {len(predictions)} slides; name label masks with"
            " --labels"
        )
    return LabelledResults(
        results, predictions[0].attributes["model"], tuple(slides), tuple(unlabelled)
    )


def find_class_names(results: Path) -> tuple[str, str]:
    """(negative, positive) as the model of the results calls them. Raises StoreError where there are no results."""
    return _open_all(results)[0].table.class_names


def _open_all(results: Path) -> list[Predictions]:
    predictions = [open_result(folder) for folder in find_results([results])]
    if not predictions:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    return predictions


def _label_slide(
    slide_id: str, predictions: Predictions, files: Sequence[Path], rules: LabelRules
) -> LabelledSlide | None:
    table = predictions.table
    if not files:
        known = table.labels >= 0
        return LabelledSlide(
            slide_id,
            table,
            table.positions[known],
            table.labels[known],
            predictions.probability[known],
        )
    label_file = match_labels(slide_id, files)
    if label_file is None:
        return None
    # Every cell of the grid, so that labelled tissue which was never assessed is counted too.
    positions = all_positions(table.grid)
    labels = label_positions(label_file, table.slide, table.grid, positions, rules).labels
    probability = build_heatmap(predictions).probability[positions[:, 0], positions[:, 1]]
    known = labels >= 0
    return LabelledSlide(slide_id, table, positions[known], labels[known], probability[known])


@dataclass(frozen=True, slots=True)
class PairedPatches:
    """Cells that both models assessed, (n,) each."""

    labels: NDArray[np.int8]
    one: NDArray[np.float32]
    other: NDArray[np.float32]
    patients: NDArray[np.str_]
    slides: int
    left_out: int
    """Labelled cells of the first results that the other has not, or that one of them did not assess."""


def pair_results(one: LabelledResults, other: LabelledResults) -> PairedPatches:
    """The labelled cells that both results assessed, matched by slide content, grid and place.

    Raises StoreError where nothing is shared or the two mean other classes or patients, LabelError
    where their labels differ.
    """
    if one.class_names != other.class_names:
        raise StoreError(
            f"{other.path}: tells {' from '.join(other.class_names)}, {one.path}"
            f" {' from '.join(one.class_names)}; compare models of one task"
        )
    by_content = {_content(slide): slide for slide in other.slides}
    pairs = [
        _pair_slides(slide, by_content[_content(slide)])
        for slide in one.slides
        if _content(slide) in by_content
    ]
    paired = [pair for pair in pairs if len(pair.labels)]
    if not paired:
        raise StoreError(
            f"{other.path}: shares no labelled cell with {one.path}; infer both models on the same"
            " slides or stores, at one scale"
        )
    return _pool(paired, sum(len(slide.labels) for slide in one.slides))


def _content(slide: LabelledSlide) -> tuple[str, Grid]:
    return slide.table.slide.fingerprint, slide.table.grid


def _pair_slides(one: LabelledSlide, other: LabelledSlide) -> PairedPatches:
    if one.table.patient_id != other.table.patient_id:
        raise StoreError(
            f"{one.slide_id}: of patient {one.table.patient_id} here, of {other.table.patient_id}"
            " there; infer both with the same patients"
        )
    _, first, second = np.intersect1d(
        _number_positions(one), _number_positions(other), assume_unique=True, return_indices=True
    )
    differing = int(np.count_nonzero(one.labels[first] != other.labels[second]))
    if differing:
        raise LabelError(
            f"{one.slide_id}: {differing} cells are labelled otherwise in the other results;"
            " evaluate both with the same --labels"
        )
    both = ~np.isnan(one.probability[first]) & ~np.isnan(other.probability[second])
    first, second = first[both], second[both]
    return PairedPatches(
        one.labels[first],
        one.probability[first],
        other.probability[second],
        one.patients[first],
        1,
        0,
    )


def _number_positions(slide: LabelledSlide) -> NDArray[np.int64]:
    """The place of each cell in raster order."""
    return slide.positions[:, 0].astype(np.int64) * slide.table.grid.cols + slide.positions[:, 1]


def _pool(pairs: Sequence[PairedPatches], labelled: int) -> PairedPatches:
    labels = np.concatenate([pair.labels for pair in pairs])
    return PairedPatches(
        labels=labels,
        one=np.concatenate([pair.one for pair in pairs]),
        other=np.concatenate([pair.other for pair in pairs]),
        patients=np.concatenate([pair.patients for pair in pairs]),
        slides=len(pairs),
        left_out=labelled - len(labels),
    )
