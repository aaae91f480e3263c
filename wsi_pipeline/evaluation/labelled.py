"""Labels beside predictions, and two models paired on the same patches."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.core.calibration import (
    COUNT,
    DETECT,
    USER,
    Calibration,
    ModelTerms,
    log_odds,
)
from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.geometry import Grid, all_positions
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.labels import label_positions
from wsi_pipeline.labels.discovery import Matches, list_label_files, match_labels
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.models.card import hash_patient
from wsi_pipeline.outputs.heatmap import Aggregation, place_on_grid, read_aggregation
from wsi_pipeline.outputs.run_files import read_finished
from wsi_pipeline.store.predictions import Predictions
from wsi_pipeline.store.slide_results import find_results, open_result, refuse_estimates
from wsi_pipeline.training.evaluate import Compared, compare
from wsi_pipeline.training.metrics import Floats, Labels, Names

logger = logging.getLogger(__name__)

THRESHOLD_WORDS = {
    COUNT: "the model's for counting",
    DETECT: "the model's for finding patches",
    USER: "a number that the results were made with",
}


@dataclass(frozen=True, slots=True)
class LabelledSlide:
    """The patches of one slide whose class is known, (n,) each."""

    slide_id: str
    table: PatchTable
    positions: NDArray[np.int32]
    """(n, 2) row, col."""
    labels: Labels
    logit: Floats
    """As the network gave it; NaN where not assessed."""
    probability: Floats
    """As the results show it; NaN where not assessed."""
    summary: SlideSummary
    source: str
    """Name of the label file, or where else the labels are from."""
    areas: tuple[BaseGeometry, BaseGeometry] | None
    """Negative and positive area of the label file, where it has regions."""

    def take(self, chosen: NDArray[Any]) -> "LabelledSlide":
        """Return the slide with some of its patches."""
        return replace(
            self,
            positions=self.positions[chosen],
            labels=self.labels[chosen],
            logit=self.logit[chosen],
            probability=self.probability[chosen],
        )


@dataclass(frozen=True)
class LabelledResults:
    """Every slide of a results folder that has labels."""

    path: Path
    model: Mapping[str, Any]
    """The results' record of the model that made them."""
    slides: tuple[LabelledSlide, ...]
    unlabelled: tuple[str, ...]
    aggregation: Aggregation = field(default_factory=Aggregation)
    """The terms by which logits became probabilities, alike for all slides."""

    @cached_property
    def assessed(self) -> tuple[LabelledSlide, ...]:
        """The slides without patches that have no probability."""
        return tuple(slide.take(~np.isnan(slide.probability)) for slide in self.slides)

    @property
    def threshold(self) -> float:
        """The threshold that the results record."""
        return self.slides[0].summary.threshold

    @cached_property
    def terms(self) -> ModelTerms:
        """The terms that the model records."""
        return ModelTerms.of_record(self.model)

    @property
    def threshold_words(self) -> str:
        """The source of that threshold, in words."""
        return THRESHOLD_WORDS[self.slides[0].summary.threshold_source]

    @property
    def patch_um(self) -> float:
        """Side of a patch in µm."""
        return self.slides[0].table.grid.spec.field_um

    @property
    def threshold_alone(self) -> float:
        """The threshold for each patch alone: the model's of that name, or the user's."""
        source = self.slides[0].summary.threshold_source
        return self.threshold if source == USER else self.terms.alone.threshold(source)

    @cached_property
    def calibration_alone(self) -> Calibration:
        """The calibration of each patch alone, for the share of positives of the results."""
        calibration, before = self.terms.alone.calibration, self.terms.positive_share
        share = self.aggregation.prevalence
        if share is None or before is None:
            return calibration
        return calibration.shift(log_odds(share) - log_odds(before))

    @property
    def class_names(self) -> tuple[str, str]:
        """As (negative, positive)."""
        negative, positive = self.model["class_names"]
        return str(negative), str(positive)

    @property
    def is_leaky(self) -> bool:
        """True if the model was trained with the same patients in training and validation."""
        return bool(self.model.get("is_leaky", False))

    @property
    def model_name(self) -> str:
        """Architecture and the beginning of the digest: enough to tell two models apart."""
        return f"{self.model.get('architecture', 'model')} {str(self.model.get('digest', ''))[:12]}"

    def describe_overlap(self) -> str:
        """Return a warning if the model was trained or its threshold chosen on these patients."""
        patients = {slide.table.patient_id for slide in self.slides}
        seen = {*self.model.get("seen_patients", ())}
        known = sum(hash_patient(patient) in seen for patient in patients)
        if not known:
            return ""
        return (
            f"{self.model_name}: {known} of {len(patients)} patients here were used to train it or"
            " to choose its threshold; metrics are inflated"
        )

    def describe_site(self) -> str:
        """Return a warning if reviews, perhaps of these slides, calibrated the probabilities."""
        site = self.aggregation.site
        if site is None or site.model_digest != self.model.get("digest"):
            return ""
        return (
            f"{self.model_name}: calibrated on {site.answers} answers of reviews (wsi calibrate);"
            " where these are of the slides here, metrics are slightly too good"
        )


def label_results(
    results: Path, labels: Sequence[Path] = (), rules: LabelRules | None = None
) -> LabelledResults:
    """Return the slides of `results` with labels from files or folders, else from the stores.

    Raises LabelError where no slide has labels, StoreError where the slides were predicted by
    different models or aggregated in different ways.
    """
    predictions = _open_all(results)
    aggregation = _read_aggregation(results, predictions)
    summaries = _read_summaries(results)
    if len({prediction.model_digest for prediction in predictions}) > 1:
        raise StoreError(
            f"{results}: its slides were predicted by different models; infer each model into a"
            " folder of its own"
        )
    names = [prediction.path.parent.name for prediction in predictions]
    matches = match_labels(names, list_label_files(labels)) if labels else Matches((), ())
    for note in matches.notes:
        logger.warning(note)
    files = dict(zip(names, matches.files, strict=False))
    slides: list[LabelledSlide] = []
    unlabelled: list[str] = []
    for prediction in predictions:
        slide_id = prediction.path.parent.name
        slide_rules = rules or LabelRules(class_names=prediction.table.class_names)
        summary = summaries[slide_id]
        slide = _label_slide(summary, prediction, files, slide_rules)
        if slide is None or len(slide.labels) == 0:
            unlabelled.append(slide_id)
        else:
            slides.append(slide)
    if not slides:
        raise LabelError(
            f"{results}: no labels for any of {len(predictions)} slides; name label files with"
            " --labels"
        )
    model = predictions[0].attributes["model"]
    return LabelledResults(results, model, tuple(slides), tuple(unlabelled), aggregation)


def find_class_names(results: Path) -> tuple[str, str]:
    """Return the (negative, positive) class of the results' model.

    Raises StoreError where there are no results.
    """
    return _open_all(results)[0].table.class_names


def _open_all(results: Path) -> list[Predictions]:
    predictions = [open_result(folder) for folder in find_results([results])]
    if not predictions:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    refuse_estimates(predictions)
    return predictions


def _read_aggregation(results: Path, predictions: Sequence[Predictions]) -> Aggregation:
    """Return what all slides were aggregated by. Raises StoreError where they differ."""
    views = {read_aggregation(each.path.parent) for each in predictions}
    if len(views) > 1:
        raise StoreError(
            f"{results}: its slides were aggregated in {len(views)} ways; run `wsi aggregate` on it"
            " first"
        )
    return views.pop()


def _read_summaries(results: Path) -> dict[str, SlideSummary]:
    """Return the summary of each slide by its folder's name. Raises StoreError."""
    finished = read_finished(results)
    if finished.damaged:
        raise StoreError(finished.damaged[0].message)
    return {summary.slide_id: summary for summary in finished.summaries}


def _label_slide(
    summary: SlideSummary,
    predictions: Predictions,
    files: Mapping[str, Path | None],
    rules: LabelRules,
) -> LabelledSlide | None:
    table, slide_id = predictions.table, summary.slide_id
    positions, labels = table.positions, table.labels
    logit, probability = predictions.logit, predictions.probability
    source, areas = "patch store", None
    if files:
        label_file = files[slide_id]
        if label_file is None:
            return None
        # Every position of the grid, so that labelled tissue that was not assessed counts too.
        positions = all_positions(table.grid)
        found = label_positions(label_file, table.slide, table.grid, positions, rules)
        labels, areas, source = found.labels, found.areas, label_file.name
        logit, probability = (
            place_on_grid(table, values)[tuple(positions.T)] for values in (logit, probability)
        )
    slide = LabelledSlide(
        slide_id, table, positions, labels, logit, probability, summary, source, areas
    )
    return slide.take(labels >= 0)


def pool_slides(slides: Sequence[LabelledSlide]) -> tuple[Labels, Floats, Names]:
    """Return labels, probabilities and patients of all slides, (n,) each."""
    return (
        np.concatenate([slide.labels for slide in slides]),
        np.concatenate([slide.probability for slide in slides]),
        np.concatenate([np.full(len(slide.labels), slide.table.patient_id) for slide in slides]),
    )


def pool_logits(slides: Sequence[LabelledSlide]) -> Floats:
    """Return the logits of all slides, (n,), as the network gave them."""
    return np.concatenate([slide.logit for slide in slides])


def compare_results(
    one: LabelledResults, other: LabelledResults, thresholds: tuple[float, float]
) -> Compared:
    """Compare two models on the patches that both assessed, matched by slide, grid and position.

    Raises StoreError where nothing is shared or classes or patients differ, LabelError where labels
    differ.
    """
    if one.class_names != other.class_names:
        raise StoreError(
            f"{other.path}: its classes are {' and '.join(other.class_names)}, those of {one.path}"
            f" {' and '.join(one.class_names)}; compare models of the same classes"
        )
    others = {_content(slide): slide for slide in other.slides}
    shared = [slide for slide in one.slides if _content(slide) in others]
    pairs = [_pair_slides(slide, others[_content(slide)]) for slide in shared]
    pairs = [(first, second) for first, second in pairs if len(first.labels)]
    if not pairs:
        raise StoreError(
            f"{other.path}: shares no labelled patch with {one.path}; infer both models on the same"
            " slides or stores, at one scale"
        )
    labels, first, patients = pool_slides([own for own, _ in pairs])
    _, second, _ = pool_slides([theirs for _, theirs in pairs])
    left_out = sum(len(slide.labels) for slide in one.slides) - len(labels)
    comparison = compare(labels, first, second, patients, thresholds=thresholds)
    return Compared(one.model_name, other.model_name, len(pairs), left_out, comparison)


def _content(slide: LabelledSlide) -> tuple[str, Grid]:
    return slide.table.slide.fingerprint, slide.table.grid


def _pair_slides(one: LabelledSlide, other: LabelledSlide) -> tuple[LabelledSlide, LabelledSlide]:
    """Return both slides with the patches that both assessed, in the same order."""
    if one.table.patient_id != other.table.patient_id:
        raise StoreError(
            f"{one.slide_id}: of patient {one.table.patient_id} here, of {other.table.patient_id}"
            " there; infer both with the same patients"
        )
    _, first, second = np.intersect1d(
        _number_positions(one), _number_positions(other), assume_unique=True, return_indices=True
    )
    one, other = one.take(first), other.take(second)
    differing = int(np.count_nonzero(one.labels != other.labels))
    if differing:
        raise LabelError(
            f"{one.slide_id}: {differing} patches have another label in the other results; evaluate"
            " both with the same --labels"
        )
    both = ~np.isnan(one.probability) & ~np.isnan(other.probability)
    return one.take(both), other.take(both)


def _number_positions(slide: LabelledSlide) -> NDArray[np.int64]:
    """Return the number of each position in raster order."""
    return slide.positions[:, 0].astype(np.int64) * slide.table.grid.cols + slide.positions[:, 1]
