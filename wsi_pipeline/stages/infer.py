"""The job that ends in a slide's results: its predictions, and everything that is made of them.

Predictions are made block by block, from any patch source; for the gallery it is chosen which
patches a person should see.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ModelError, StoreError
from wsi_pipeline.core.geometry import PatchSpec, count_blocks
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.core.slide import PatchSource, PatchTable, SlideInfo
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.outputs import heatmap
from wsi_pipeline.outputs.gallery_png import COLUMNS
from wsi_pipeline.outputs.result import Sample
from wsi_pipeline.outputs.style import View
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.discovery import FoundSlide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages import patch_plan
from wsi_pipeline.stages.model_choice import ModelChoice
from wsi_pipeline.stages.plan import (
    BlockReport,
    SlidePlan,
    finished_plan,
    open_patches,
    open_plan,
    open_store,
    read_staged_table,
    refuse_changed,
    refuse_unreadable,
    staged_table,
)
from wsi_pipeline.stages.preview import (
    PreviewState,
    SlidePreview,
    preview_finished,
    preview_started,
)
from wsi_pipeline.stages.publish import publish, take_over
from wsi_pipeline.store.commit import VIEW, Staging, check_finished, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import Manifest, is_product, read_manifest
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import (
    FOLDER,
    RESULT_KIND,
    Predictions,
    open_result,
    prepare_predictions,
    write_prediction_block,
)

PATCH_BYTES = 100
"""A million patches in all default formats take 68 MB, and some more on their way."""
ENGINE = "engine"
"""Entry of a recipe that says what computed the predictions."""
SCALE_TOLERANCE = 0.05
"""A model sees patches whose scale differs from its own by at most this share."""
ReadPixels = Callable[[NDArray[np.intp]], NDArray[np.uint8]]
"""Pixels (n, side, side, 3) of patches by their index in the predictions."""


def refuse_other_engine(staging: Staging) -> None:
    """Raise StoreError, saying how to go on, where what is there differs by what computed it and by nothing else."""
    if not is_product(staging.target):
        return
    made = read_manifest(staging.target).recipe
    old, new = made.get(ENGINE), staging.recipe[ENGINE]
    if (
        isinstance(old, Mapping)
        and old != new
        and {**made, ENGINE: new, VIEW: None} == {**staging.recipe, VIEW: None}
    ):
        one, other = describe_engine(old), describe_engine(new)
        raise StoreError(
            f"{staging.target}: was computed by {one}, this run computes by {other}, and their"
            f" results are not the same; run with --engine {old.get('engine')} --precision"
            f" {old.get('precision')}, with --force to replace it, or into another folder"
        )


class _Source(NamedTuple):
    """Where a slide's patches come from."""

    slide: SlideInfo
    recipe: dict[str, Any]
    """Everything that decides which patches there are."""
    choose_patches: Callable[[], PatchTable]


@dataclass(frozen=True, slots=True)
class InferJob:
    """Predict one slide, read directly or from its patch store, and write everything that is made of the predictions."""

    slide: FoundSlide
    """A slide file, or a patch store where `is_store`."""
    out: Path
    model: ModelChoice
    config: patch_plan.TileConfig
    is_store: bool = False
    force: bool = False
    view: View = field(default_factory=View)

    @property
    def target(self) -> Path:
        """The slide's folder of results."""
        return self.out / self.slide.slide_id

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """A probability, its cell, and what the tables of all formats say of it."""
        return {self.out: PATCH_BYTES}

    @property
    def _slide_mpp(self) -> float | None:
        return self.slide.slide_mpp or self.config.slide_mpp

    def hold(self) -> AbstractContextManager[None]:
        """The result's lock."""
        return hold_lock(self.target)

    def prepare(self, known: PatchTable | None = None) -> SlidePlan:
        """Choose the patches, or take those that are `known` to be the slide's; lay out the predictions.

        The engine's answers are checked before the slide is opened.
        """
        self.model.load()
        with self._open_source() as source:
            staging = self._stage(source.recipe)
            if manifest := find_finished(
                staging, RESULT_KIND, self.force, [self.slide.path, self.model.path]
            ):
                return self._reuse(staging, manifest)
            if not staging.is_prepared:
                self._begin(staging, known or source.choose_patches())
        return open_plan(
            staging,
            staged_table(staging.product / FOLDER),
            None if self.is_store else self.slide.path,
        )

    def preview(self) -> SlidePreview:
        """What the job would come to: everything that `prepare` finds out, and nothing is written."""
        with self._open_source() as source:
            staging = self._stage(source.recipe)
            manifest = check_finished(
                staging, RESULT_KIND, self.force, [self.slide.path, self.model.path]
            )
            if manifest is not None:
                state = (
                    PreviewState.DONE
                    if manifest.recipe.get(VIEW) == self.view.to_json()
                    else PreviewState.PREDICTED
                )
                return preview_finished(self.slide, source.slide, state, manifest)
            if staging.is_prepared and not self.force:
                table = read_staged_table(staging.product / FOLDER)
                return preview_started(self.slide, table, staging.block_reports())
            table = source.choose_patches()
            check_table(table, self.model.load().model)
            return preview_started(self.slide, table, {})

    @contextmanager
    def _open_source(self) -> Iterator["_Source"]:
        """Where the patches come from, open while it is looked at."""
        slide = self.slide
        if self.is_store:
            store = PatchStore(slide.path)
            yield _Source(
                store.slide, {"store": store.manifest.content_digest}, lambda: store.table
            )
            return
        with closing(open_slide(slide.path, slide.slide_id, self._slide_mpp)) as reader:
            recipe = patch_plan.tile_recipe(reader.info, self.config, patient_id=slide.patient_id)
            yield _Source(
                reader.info,
                recipe,
                lambda: patch_plan.plan_patches(reader, self.config, patient_id=slide.patient_id)[
                    0
                ],
            )

    def _stage(self, source_recipe: dict[str, Any]) -> Staging:
        staging = Staging(self.target, inference_recipe(source_recipe, self.model.load()))
        if not self.force:
            refuse_other_engine(staging)
        return staging

    def _reuse(self, staging: Staging, manifest: Manifest) -> SlidePlan:
        """The plan where the predictions are there; outputs that are not as asked for are made anew from them."""
        if manifest.recipe.get(VIEW) == self.view.to_json():
            return finished_plan(staging, manifest)
        open_result(self.target)
        take_over(staging, self.target)
        return SlidePlan(staging, int(manifest.counts["patches"]), (), 1, is_predicted=True)

    def _begin(self, staging: Staging, table: PatchTable) -> None:
        begin_predictions(staging, table, self.model.load())

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Read, predict and write one block."""
        folder = plan.staging.product / FOLDER
        if self.is_store:
            source: PatchSource = open_store(self.slide.path, plan.staging.folder.name)
        else:
            source = open_patches(self.slide, self._slide_mpp, folder)
        return BlockReport(
            **predict_block(source, self.model.load(), plan.staging, staged_table(folder), block)
        )

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Aggregate, write every output, commit them together."""
        if not plan.is_finished:
            if not plan.is_predicted:
                self._check_predictions(plan)
            publish(
                plan.staging, self.view, self._choose_samples(plan.staging), previous=self.target
            )
        summary = read_summary(self.target)
        return SlideOutcome(
            slide_id=self.slide.slide_id,
            path=str(self.slide.path),
            state=summary.state,
            message=heatmap.describe_summary(summary),
            patches=summary.patches,
            is_resumed_whole=plan.is_finished,
        )

    def _check_predictions(self, plan: SlidePlan) -> None:
        if not self.is_store:
            refuse_changed(self.slide.path, plan)
        refuse_unreadable(self.slide.path, plan)
        plan.staging.check_complete(count_blocks(plan.patches, plan.block_size))

    def _choose_samples(self, staging: Staging) -> tuple[Sample, ...] | None:
        if "gallery" not in self.view.formats:
            return None
        predictions = Predictions(staging.product / FOLDER)
        if self.is_store:
            return choose_samples(predictions, read_from_store(PatchStore(self.slide.path)))
        with closing(open_slide(self.slide.path, self.slide.slide_id, self._slide_mpp)) as reader:
            return choose_samples(predictions, read_from_slide(reader, predictions))


def check_fit(name: str, spec: PatchSpec, model: Model) -> None:
    """Raise ModelError where patches of `spec` are not what the model was trained on."""
    wanted = model.spec
    if spec.side_px != wanted.side_px:
        raise ModelError(
            f"{name}: patches of {spec.side_px} px, the model takes {wanted.side_px} px; tile with"
            f" --patch-size {wanted.side_px}"
        )
    if abs(spec.mpp - wanted.mpp) > SCALE_TOLERANCE * wanted.mpp:
        raise ModelError(
            f"{name}: patches at {spec.mpp:g} µm/px, the model was trained at {wanted.mpp:g} µm/px;"
            f" tile with --mpp {wanted.mpp:g}"
        )


def inference_recipe(source_recipe: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """Everything that decides a slide's predictions and what is drawn of them; the size of batches changes the last bits at most."""
    return {
        "source": dict(source_recipe),
        "model": predictor.model.digest,
        ENGINE: predictor.setting.to_json(),
    }


def describe_engine(entry: Mapping[str, Any]) -> str:
    """What computed predictions, in words, from the entry of their recipe."""
    return f"{entry.get('engine')} {entry.get('precision')} ({entry.get('device')})"


def check_table(table: PatchTable, model: Model) -> None:
    """Raise ModelError where a slide's patches, or what their labels mean, do not fit the model."""
    check_fit(table.slide.path, table.grid.spec, model)
    if (table.labels >= 0).any() and table.class_names != model.class_names:
        raise ModelError(
            f"{table.slide.path}: its labels mean {' and '.join(table.class_names)}, "
            f"the model tells {' from '.join(model.class_names)}; "
            "label the store with the model's --class-names"
        )


def begin_predictions(staging: Staging, table: PatchTable, predictor: Predictor) -> None:
    """Lay out the predictions of a slide. Raises ModelError where its patches do not fit the model."""
    check_table(table, predictor.model)
    attributes = {
        "model": predictor.model.to_json(),
        ENGINE: predictor.setting.to_json(),
        "provenance": describe_tool(),
    }
    prepare_predictions(staging, table, attributes)


def predict_block(
    source: PatchSource, predictor: Predictor, staging: Staging, table: PatchTable, block: int
) -> dict[str, Any]:
    """Read, predict and write one block; returns counts and seconds by stage. Unreadable patches get NaN."""
    started = time.perf_counter()
    patches = source.read_block(block)
    was_read = time.perf_counter()
    probability = np.full(len(patches.readable), np.nan, dtype=np.float32)
    probability[patches.readable] = predictor(patches.pixels[patches.readable])
    was_computed = time.perf_counter()
    report: dict[str, Any] = {
        "patches": len(probability),
        "unreadable": int(np.count_nonzero(np.isnan(probability))),
        "seconds_read": was_read - started,
        "seconds_compute": was_computed - was_read,
    }
    write_prediction_block(staging, table, block, probability, report)
    return report | {"seconds_write": time.perf_counter() - was_computed}


def choose_samples(predictions: Predictions, read: ReadPixels) -> tuple[Sample, ...]:
    """The most and the least probable patches and a random sample, COLUMNS of each; unreadable ones are never shown.

    The sample hangs on the slide alone, so that every run shows the same.
    """
    known = np.flatnonzero(~np.isnan(predictions.probability))
    rising = known[np.argsort(predictions.probability[known], kind="stable")]
    seed = int.from_bytes(hashlib.sha256(predictions.table.slide.fingerprint.encode()).digest()[:8])
    random = np.sort(np.random.default_rng(seed).permutation(known)[:COLUMNS])
    chosen = {
        "most probable": rising[::-1][:COLUMNS],
        "least probable": rising[:COLUMNS],
        "random sample": random,
    }
    positions, probability = predictions.table.positions, predictions.probability
    return tuple(
        Sample(title, positions[index], probability[index], read(index))
        for title, index in chosen.items()
    )


def read_from_slide(reader: SlideReader, predictions: Predictions) -> ReadPixels:
    """Pixels cut from the slide."""
    table = predictions.table

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        return (
            SlidePatches(reader, table.grid, table.positions[index], max(len(index), 1))
            .read_block(0)
            .pixels
        )

    return read


def read_from_store(store: PatchStore) -> ReadPixels:
    """Pixels from the slide's patch store."""

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        side = store.grid.spec.side_px
        pixels = np.empty((len(index), side, side, 3), dtype=np.uint8)
        for block in np.unique(index // store.block_size).tolist():
            members = np.flatnonzero(index // store.block_size == block)
            pixels[members] = store.read_block(block).pixels[index[members] % store.block_size]
        return pixels

    return read
