"""The job that ends in a slide's results and in its patch store: pixels are read once, and a store that is there is read instead.

The store is the very one that `wsi tile` makes with the same parameters, and the results are those
of a run that keeps no patches.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import SlideError, StoreError
from wsi_pipeline.core.geometry import (
    Grid,
    block_slice,
    choose_block_size,
    choose_store_block_size,
    count_blocks,
)
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.core.slide import PatchBlock, PatchSource, SlideInfo
from wsi_pipeline.stages import infer
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.plan import BlockReport, SlidePlan, open_patches, open_store, staged_table
from wsi_pipeline.stages.preview import PreviewState, SlidePreview
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.store.lock import remove_remains
from wsi_pipeline.store.manifest import is_product
from wsi_pipeline.store.patches import PatchStore, write_patch_block
from wsi_pipeline.store.predictions import FOLDER


@dataclass(frozen=True, slots=True)
class KeepPlan:
    """What is to be done for one slide: the blocks of the store, each with the blocks of predictions that begin in it."""

    store: SlidePlan
    results: SlidePlan
    patches: int
    store_block_size: int
    blocks: tuple[int, ...]
    """Of the store, where it or a prediction is missing."""

    @property
    def missing_patches(self) -> int:
        """Patches that the missing blocks are reported with."""
        return sum(self.count_patches(block) for block in self.blocks)

    def count_patches(self, block: int) -> int:
        """Patches predicted with a block of the store; where none is, those that are only stored."""
        size = self.results.block_size
        predicted = [
            block_slice(number, size, self.patches) for number in self.predictions_in(block)
        ]
        rows = predicted or [block_slice(block, self.store_block_size, self.patches)]
        return sum(part.stop - part.start for part in rows)

    def predictions_in(self, block: int) -> tuple[int, ...]:
        """Missing blocks of predictions that begin in a block of the store; the last may reach into the next."""
        rows = block_slice(block, self.store_block_size, self.patches)
        size = self.results.block_size
        return tuple(
            number for number in self.results.blocks if rows.start <= number * size < rows.stop
        )


@dataclass(frozen=True, slots=True)
class KeepJob:
    """Predict one slide and keep its patches."""

    results: InferJob
    patches: TileJob

    @property
    def target(self) -> Path:
        """The slide's folder of results."""
        return self.results.target

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Those of the results, and those of the store where it is still to be made."""
        store = {} if is_product(self.patches.target) else self.patches.patch_bytes
        results = self.results.patch_bytes
        return {
            folder: results.get(folder, 0) + store.get(folder, 0) for folder in {**results, **store}
        }

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The locks of the results and of the store; a store that is only read needs none."""
        is_read = is_product(self.patches.target) and not self.results.force
        store: AbstractContextManager[None] = nullcontext() if is_read else self.patches.hold()
        with self.results.hold(), store:
            yield
        if is_read:
            remove_remains(self.patches.target)

    def prepare(self) -> KeepPlan:
        """Lay out the store, or take the one that is there; then the predictions of the same patches."""
        store = self._prepare_store()
        table = (
            PatchStore(self.patches.target).table
            if store.is_finished
            else staged_table(store.staging.product)
        )
        side = table.grid.spec.side_px
        known = replace(
            table,
            block_size=choose_block_size(table.patches, side),
            class_names=self.results.config.rules.class_names,
        )
        results = self.results.prepare(known)
        size = choose_store_block_size(table.patches, side)
        blocks = {
            *store.blocks,
            *(number * results.block_size // size for number in results.blocks),
        }
        return KeepPlan(store, results, table.patches, size, tuple(sorted(blocks)))

    def _prepare_store(self) -> SlidePlan:
        """With force, a store of another recipe is replaced; one of this recipe is what would be made, and stays."""
        try:
            return self.patches.prepare()
        except StoreError:
            if not self.results.force:
                raise
            return replace(self.patches, force=True).prepare()

    def preview(self) -> SlidePreview:
        """What the job would come to; nothing is written."""
        preview = self.results.preview()
        try:
            is_kept = self.patches.is_finished()
        except StoreError:
            if not self.results.force:
                raise
            is_kept = False
        if is_kept:
            return preview
        state = (
            PreviewState.PATCHES_MISSING
            if preview.state in (PreviewState.DONE, PreviewState.PREDICTED)
            else preview.state
        )
        side = self.patches.config.spec.side_px
        size = choose_store_block_size(preview.patches, side)
        padded = count_blocks(preview.patches, size) * size
        return replace(preview, state=state, patch_bytes=padded * side * side * 3)

    def run_block(self, plan: KeepPlan, block: int) -> BlockReport:
        """Read one block of the store's patches, store it, and predict those in it, where this has not been done yet."""
        started = time.perf_counter()
        source = self._read(plan, block)
        was_read = time.perf_counter()
        if block in plan.store.blocks:
            write_patch_block(
                plan.store.staging, staged_table(plan.store.staging.product), block, source.held
            )
        written = time.perf_counter()
        parts = [self._predict(plan, source, number) for number in plan.predictions_in(block)]
        return BlockReport(
            patches=plan.count_patches(block),
            unreadable=sum(part.unreadable for part in parts),
            seconds_read=was_read - started + sum(part.seconds_read for part in parts),
            seconds_compute=sum(part.seconds_compute for part in parts),
            seconds_write=written - was_read + sum(part.seconds_write for part in parts),
            fallbacks=source.held.fallbacks,
            is_predicted=bool(parts),
        )

    def _read(self, plan: KeepPlan, block: int) -> "HeldBlock":
        """One block of the store's patches, from the store where it is finished, else from the slide."""
        source: PatchSource
        if plan.store.is_finished:
            source = open_store(self.patches.target, plan.store.staging.folder.name)
        else:
            source = open_patches(
                self.patches.slide,
                self.patches.slide_mpp,
                plan.store.staging.product,
                self.patches.config.reader,
            )
        rows = block_slice(block, plan.store_block_size, plan.patches)
        return HeldBlock(source, source.read_block(block), rows, plan.store_block_size)

    def _predict(self, plan: KeepPlan, source: "HeldBlock", number: int) -> BlockReport:
        table = staged_table(plan.results.staging.product / FOLDER)
        parts = replace(source, block_size=table.block_size)
        return BlockReport(
            **infer.predict_block(
                parts, self.results.model.load(), plan.results.staging, table, number
            )
        )

    def finish(self, plan: KeepPlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Commit the store where it was not there already, then the results."""
        try:
            if plan.store.is_finished:
                self.patches.draw_missing()
            else:
                self.patches.finish(plan.store, reports)
            outcome = self.results.finish(plan.results, reports)
        except SlideError:
            for part in (plan.store, plan.results):
                part.staging.discard()  # nothing is kept of a slide that changed, or that cannot be read
            raise
        return replace(
            outcome, is_resumed_whole=outcome.is_resumed_whole and plan.store.is_finished
        )


@dataclass(frozen=True, slots=True)
class HeldBlock:
    """Patches that were read together, as the source of other, mostly smaller, blocks."""

    source: PatchSource
    """In blocks of the store."""
    held: PatchBlock
    rows: slice
    """Which of the slide's patches are held."""
    block_size: int

    @property
    def slide(self) -> SlideInfo:
        """The slide that they are from."""
        return self.source.slide

    @property
    def grid(self) -> Grid:
        """Where they lie."""
        return self.source.grid

    @property
    def positions(self) -> NDArray[np.int32]:
        """Those of all patches of the slide."""
        return self.source.positions

    def read_block(self, block: int) -> PatchBlock:
        """A block that begins among the patches held; what lies beyond them is read now."""
        rows = block_slice(block, self.block_size, len(self.positions))
        pixels, readable = [self.held.pixels], [self.held.readable]
        stop, following = self.rows.stop, self.rows.stop // self.source.block_size
        while stop < rows.stop:
            more = self.source.read_block(following)
            pixels, readable = [*pixels, more.pixels], [*readable, more.readable]
            stop, following = stop + len(more.readable), following + 1
        part = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        if len(pixels) == 1:
            return PatchBlock(self.held.pixels[part], self.held.readable[part])
        return PatchBlock(np.concatenate(pixels)[part], np.concatenate(readable)[part])
