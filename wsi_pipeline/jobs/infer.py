"""The job that ends in a slide's results: its predictions, and everything that is made of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from wsi_pipeline import inference, tiling
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.geometry import count_blocks
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.core.slide import PatchSource, PatchTable, SlideInfo
from wsi_pipeline.jobs.model_choice import ModelChoice
from wsi_pipeline.jobs.plan import (
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
from wsi_pipeline.jobs.preview import SlidePreview, Standing, preview_begun, preview_finished
from wsi_pipeline.jobs.publish import publish, take_over
from wsi_pipeline.jobs.samples import choose_samples, read_from_slide, read_from_store
from wsi_pipeline.outputs import heatmap
from wsi_pipeline.outputs.result import Sample
from wsi_pipeline.outputs.style import View
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.discovery import FoundSlide
from wsi_pipeline.store.commit import VIEW, Staging, find_finished, look_for_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import Manifest, is_product, read_manifest
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import FOLDER, RESULT_KIND, Predictions, open_result

PATCH_BYTES = 100
"""A million patches in all default formats take 68 MB, and some more on their way."""


def refuse_other_engine(staging: Staging) -> None:
    """Raise StoreError, saying how to go on, where what is there differs by what computed it and by nothing else."""
    if not is_product(staging.target):
        return
    made = read_manifest(staging.target).recipe
    old, new = made.get(inference.ENGINE), staging.recipe[inference.ENGINE]
    if isinstance(old, Mapping) and old != new and {**made, inference.ENGINE: new, VIEW: None} == {**staging.recipe, VIEW: None}:
        one, other = inference.describe_engine(old), inference.describe_engine(new)
        raise StoreError(
            f"{staging.target}: was computed by {one}, this run computes by {other}, and their results are not the same; "
            f"run with --engine {old.get('engine')} --precision {old.get('precision')}, with --force to replace it, or into another folder"
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
    config: tiling.TileConfig
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
            if manifest := find_finished(staging, RESULT_KIND, self.force, [self.slide.path, self.model.path]):
                return self._reuse(staging, manifest)
            if not staging.is_prepared:
                self._begin(staging, known or source.choose_patches())
        return open_plan(staging, staged_table(staging.product / FOLDER), None if self.is_store else self.slide.path)

    def look(self) -> SlidePreview:
        """What the job would come to: everything that `prepare` finds out, and nothing is written."""
        with self._open_source() as source:
            staging = self._stage(source.recipe)
            manifest = look_for_finished(staging, RESULT_KIND, self.force, [self.slide.path, self.model.path])
            if manifest is not None:
                standing = Standing.DONE if manifest.recipe.get(VIEW) == self.view.to_json() else Standing.PREDICTED
                return preview_finished(self.slide, source.slide, standing, manifest)
            if staging.is_prepared and not self.force:
                table = read_staged_table(staging.product / FOLDER)
                return preview_begun(self.slide, table, staging.block_reports())
            table = source.choose_patches()
            inference.check_table(table, self.model.load().model)
            return preview_begun(self.slide, table, {})

    @contextmanager
    def _open_source(self) -> Iterator["_Source"]:
        """Where the patches come from, open while it is looked at."""
        slide = self.slide
        if self.is_store:
            store = PatchStore(slide.path)
            yield _Source(store.slide, {"store": store.manifest.content_digest}, lambda: store.table)
            return
        with closing(open_slide(slide.path, slide.slide_id, self._slide_mpp)) as reader:
            recipe = tiling.tile_recipe(reader.info, self.config, patient_id=slide.patient_id)
            yield _Source(reader.info, recipe, lambda: tiling.plan_patches(reader, self.config, patient_id=slide.patient_id)[0])

    def _stage(self, source_recipe: dict[str, Any]) -> Staging:
        staging = Staging(self.target, inference.inference_recipe(source_recipe, self.model.load()))
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
        inference.begin_predictions(staging, table, self.model.load())

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Read, predict and write one block."""
        folder = plan.staging.product / FOLDER
        if self.is_store:
            source: PatchSource = open_store(self.slide.path, plan.staging.folder.name)
        else:
            source = open_patches(self.slide, self._slide_mpp, folder)
        return BlockReport(**inference.predict_block(source, self.model.load(), plan.staging, staged_table(folder), block))

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Aggregate, write every output, commit them together."""
        if not plan.is_finished:
            if not plan.is_predicted:
                self._check_predictions(plan)
            publish(plan.staging, self.view, self._choose_samples(plan.staging), previous=self.target)
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
