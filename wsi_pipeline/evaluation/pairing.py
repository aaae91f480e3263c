"""Two models on the same cells of the same slides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.evaluation.truth import LabelledResults, LabelledSlide


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
