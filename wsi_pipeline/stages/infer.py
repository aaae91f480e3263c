"""The job that ends in a slide's results: its predictions, and everything that is made of them.

Predictions are made block by block, from any patch source. On the way the job can leave the very
patch store that `wsi tile` makes: pixels are read once, and a store that is there is read instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pipeline.core.choices import DRAWN, PREDICTIONS
from wsi_pipeline.core.errors import SlideError, StoreError
from wsi_pipeline.core.geometry import choose_block_size, count_blocks
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.core.patch_table import PatchSource, PatchTable
from wsi_pipeline.outputs.result import Sample
from wsi_pipeline.stages.aggregate import (
    choose_samples,
    describe_result,
    publish,
    read_from_slide,
    read_from_store,
    record_view,
    take_over,
)
from wsi_pipeline.stages.infer_source import InferRequest, Source
from wsi_pipeline.stages.known import Known, find_known
from wsi_pipeline.stages.part import find_areas
from wsi_pipeline.stages.plan import (
    BlockReport,
    PreviewState,
    SlidePlan,
    SlidePreview,
    open_patches,
    open_store,
    read_staged_table,
    staged_table,
)
from wsi_pipeline.stages.predict import (
    begin_predictions,
    check_table,
    close_predictions,
    predict_block,
)
from wsi_pipeline.stages.tile import TileJob, store_block
from wsi_pipeline.stages.tile_config import TileConfig, describe_maker
from wsi_pipeline.store.commit import (
    VIEW,
    Staging,
    check_finished,
    find_finished,
    put_back,
)
from wsi_pipeline.store.lock import hold_lock, remove_remains
from wsi_pipeline.store.manifest import Manifest, is_product, read_manifest
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import Predictions, has_logits
from wsi_pipeline.store.slide_results import open_result

if TYPE_CHECKING:
    from wsi_pipeline.models.predictor import Predictor

PATCH_BYTES = 100
"""A million patches take 76 MB in all default formats, and some more while they are written."""


@dataclass(frozen=True, slots=True)
class InferJob(InferRequest):
    """Predict one slide, read directly or from its patch store, and write all its outputs."""

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """A probability with its rows in tables; the pixels of a store that is still to be made."""
        keep = self.keep
        store = {} if keep is None or is_product(keep.target) else keep.patch_bytes
        return {**store, self.out: PATCH_BYTES + store.get(self.out, 0)}

    def _load(self) -> "Predictor":
        """Return the predictor, loaded once per process, its answers checked.

        Raises ModelError, EnvironmentFault.
        """
        from wsi_pipeline.models.opening import open_choice

        return open_choice(self.model)[0]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the locks of the results and the kept store; one that is only read needs none."""
        keep = self.keep
        is_read = keep is not None and is_product(keep.target) and not self.force
        with hold_lock(self.target), nullcontext() if keep is None or is_read else keep.hold():
            yield
        if keep is not None and is_read:
            remove_remains(keep.target)

    def prepare(self) -> SlidePlan:
        """Choose the patches or take the kept ones, and lay them out; loads no model."""
        if self.keep is None:
            return self._prepare_predictions()
        with self.open() as reader:
            keep = self._settle_kept(self.keep, self.settle_cutting(reader.info))
        store = self._prepare_store(keep)
        target, product = keep.target, store.staging.product
        table = PatchStore(target).table if store.is_finished else staged_table(product)
        plan = self._prepare_predictions(replace(table, class_names=self.config.rules.class_names))
        return replace(
            plan,
            store=store,
            block_size=table.block_size,
            blocks=tuple(sorted({*store.blocks, *plan.blocks})),
            stored_only=frozenset(store.blocks) - {*plan.blocks},
        )

    def _prepare_store(self, keep: TileJob) -> SlidePlan:
        """Lay out the kept store; force replaces one of another recipe, never one of this."""
        try:
            return keep.prepare()
        except StoreError:
            if not self.force:
                raise
            return replace(keep, force=True).prepare()

    def _prepare_predictions(self, kept: PatchTable | None = None) -> SlidePlan:
        """Lay out the predictions of the patches of a kept store, or of those that are chosen here.

        Predictions that an earlier run began in blocks of another size than the store's are begun
        again, because a block is read once for both.
        """
        put_back(self.target)
        with self.open_source() as source:
            staging = self.stage(source.recipe)
            if manifest := self.look_for(staging, find_finished):
                return self._reuse(staging, manifest)
            folder = staging.product / PREDICTIONS
            is_begun = staging.is_prepared and has_logits(folder)
            if not is_begun or (
                kept is not None and read_staged_table(folder).block_size != kept.block_size
            ):
                table = kept or source.choose_patches()
                begin_predictions(staging, table, self.read_facts(), self.model.setting)
        slide = None if self.is_store else self.slide.path
        return SlidePlan.of_staged(staging, staged_table(folder), slide)

    def find_done(self) -> SlideOutcome | None:
        """Return the outcome where an earlier run made exactly this, None where work is left.

        Loads no model, and looks at no slide without results. A kept store is left to `prepare`.
        """
        if self.force or self.keep is not None or not is_product(self.target):
            return None
        with self.open_source() as source:
            staging = self.stage(source.recipe)
        manifest = self.look_for(staging, check_finished)
        if manifest is None or not self._is_shown(manifest):
            return None
        with self.hold():
            self.look_for(staging, find_finished)
            return self._describe(is_resumed_whole=True)

    def _describe(self, *, is_resumed_whole: bool) -> SlideOutcome:
        outcome = describe_result(
            self.slide.slide_id, self.slide.path, self.target, is_resumed_whole
        )
        source = read_manifest(self.target).recipe.get("source") or {}
        notes = describe_maker(source, self.config) + self._describe_left_out(source)
        return replace(outcome, message=outcome.message + notes)

    def _describe_left_out(self, source: Mapping[str, Any]) -> str:
        """Return a note for a slide whose drawn areas are not among the kept patches, else ""."""
        if (
            self.keep is None
            or DRAWN in source
            or find_areas(self.out, self.slide.slide_id) is None
        ):
            return ""
        return "; its drawn areas are left out: --keep-patches stores no area"

    def _is_shown(self, manifest: Manifest) -> bool:
        """Return whether the finished outputs are those of this view."""
        kept = self.view.keep(manifest.recipe).fit(manifest.recipe)
        return manifest.recipe.get(VIEW) == record_view(kept, self.target)

    def preview(self) -> SlidePreview:
        """Return what `prepare` would find out, without writing anything."""
        preview = self._preview_predictions()
        if self.keep is None or self._is_kept(self.keep):
            return preview
        is_done = preview.state in (PreviewState.DONE, PreviewState.PREDICTED)
        side_px = self.config.spec.side_px
        size = choose_block_size(preview.patches, side_px)
        return replace(
            preview,
            state=PreviewState.PATCHES_MISSING if is_done else preview.state,
            patch_bytes=count_blocks(preview.patches, size) * size * side_px * side_px * 3,
        )

    def _is_kept(self, keep: TileJob) -> bool:
        with self.open() as reader:
            keep = self._settle_kept(keep, self.settle_cutting(reader.info))
        try:
            return keep.is_finished()
        except StoreError:
            if not self.force:
                raise
            return False

    def _preview_predictions(self) -> SlidePreview:
        with self.open_source() as source:
            staging = self.stage(source.recipe)
            if manifest := self.look_for(staging, check_finished):
                is_shown = self._is_shown(manifest)
                state = PreviewState.DONE if is_shown else PreviewState.PREDICTED
                found = SlidePreview.of_finished(self.slide, source.slide, state, manifest)
                return self._note_maker(found, source)
            model = self.read_facts()
            done: dict[int, dict[str, Any]] = {}
            if staging.is_prepared and not self.force:
                table = read_staged_table(staging.product / PREDICTIONS)
                done = staging.block_reports()
            else:
                table = source.choose_patches()
                check_table(table, model)
            found = SlidePreview.of_started(self.slide, table, done, model.is_ensemble)
            if known := self._find_known(staging.recipe):
                missing = known.count_missing(table, done)
                found = replace(found, missing_patches=missing)
            return self._note_maker(found, source)

    def _note_maker(self, preview: SlidePreview, source: Source) -> SlidePreview:
        return replace(preview, doubts=preview.doubts + describe_maker(source.recipe, self.config))

    def _settle_kept(self, keep: TileJob, config: TileConfig) -> TileJob:
        """Return the job of the kept store, of the very patches that are predicted."""
        return replace(keep, config=replace(keep.config, tissue=config.tissue, takes_otsu=False))

    def _reuse(self, staging: Staging, manifest: Manifest) -> SlidePlan:
        """Return the plan where predictions exist; outputs that differ are rebuilt."""
        if self._is_shown(manifest):
            return SlidePlan.of_finished(staging, manifest)
        open_result(self.target)
        take_over(staging, self.target)
        return SlidePlan(staging, int(manifest.counts["patches"]), is_predicted=True)

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Read one block; predict it, store its pixels, or both, whatever is missing."""
        source, store = self._open_patches(plan), plan.store
        to_store = store.staging if store is not None and block in store.blocks else None
        if to_store is not None and block in plan.stored_only:
            return store_block(source, staged_table(to_store.product), to_store, block)
        table = staged_table(plan.staging.product / PREDICTIONS)
        known = self._find_known(plan.staging.recipe)
        return predict_block(source, self._load(), plan.staging, table, block, to_store, known)

    def _find_known(self, recipe: Mapping[str, Any]) -> Known | None:
        """Return what the finished product tells of the patches; nothing where it is replaced."""
        is_new = self.force or self.is_store or self.keep is not None
        return None if is_new else find_known(self.target, recipe)

    def _open_patches(self, plan: SlidePlan) -> PatchSource:
        if self.is_store:
            return open_store(self.slide.path, plan.staging.folder.name)
        if self.keep is None or plan.store is None:
            folder, scale = plan.staging.product / PREDICTIONS, self.config.scale_of(self.slide)
            return open_patches(self.slide, scale, folder, self.config.reader)
        if plan.store.is_finished:
            return open_store(self.keep.target, plan.store.staging.folder.name)
        return self.keep.open_patches(plan.store)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Commit the kept store, then every output of the predictions together."""
        store = plan.store
        try:
            if self.keep is not None and store is not None:
                if store.is_finished:
                    self.keep.draw_previews()
                else:
                    self.keep.finish(store, reports)
            self._finish_predictions(plan)
        except SlideError:
            if store is not None:  # nothing is kept of a slide that changed or cannot be read
                store.staging.discard()
                plan.staging.discard()
            raise
        is_resumed_whole = plan.is_finished and (store is None or store.is_finished)
        return self._describe(is_resumed_whole=is_resumed_whole)

    def _finish_predictions(self, plan: SlidePlan) -> None:
        if plan.is_finished:
            return
        if not plan.is_predicted:
            plan.refuse_changed(self.slide.path)
            plan.refuse_unreadable(self.slide.path)
            plan.staging.check_complete(count_blocks(plan.patches, plan.block_size))
            known = self._find_known(plan.staging.recipe)
            close_predictions(plan.staging, self._load().model, known)
        view = self.view
        if plan.is_predicted:
            view = view.keep(read_manifest(self.target).recipe)
        view = view.fit(plan.staging.recipe)
        predictions = Predictions(plan.staging.product / PREDICTIONS)
        samples = self._choose_samples(predictions) if "gallery" in view.formats else None
        publish(plan.staging, view, samples, self.target, predictions)

    def _choose_samples(self, predictions: Predictions) -> tuple[Sample, ...]:
        if self.is_store:
            return choose_samples(predictions, read_from_store(PatchStore(self.slide.path)))
        with self.open() as reader:
            return choose_samples(predictions, read_from_slide(reader, predictions))
