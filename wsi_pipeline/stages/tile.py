"""Tile: cut a slide into a patch store; the job, the choice of patches, and their storing.

Predictions choose their patches in the same way.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import LABELS_SUFFIX, MASK_SUFFIX, STORE_SUFFIX
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.geometry import (
    Grid,
    PatchSpec,
    choose_block_size,
    downsample_between,
    lay_grid,
    order_by_macro_tile,
    positions_to_boxes_l0,
)
from wsi_pipeline.core.outcome import SlideOutcome, state_of
from wsi_pipeline.core.patch_table import PatchSource, PatchTable
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.labels import describe_labels, label_patches
from wsi_pipeline.labels.tissue_mask import TissueMask, match_mask
from wsi_pipeline.outputs.previews import write_label_preview, write_mask_preview
from wsi_pipeline.slides import open_found
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.level_check import check_level
from wsi_pipeline.slides.patches import macro_tiles_per_patch, view_grid
from wsi_pipeline.slides.pieces import number_tissue
from wsi_pipeline.slides.quality import flag_patches
from wsi_pipeline.slides.scaling import read_thumbnail
from wsi_pipeline.slides.tissue import find_tissue, tissue_fraction
from wsi_pipeline.stages.plan import (
    BlockReport,
    SlidePlan,
    describe_doubts,
    open_patches,
    staged_table,
)
from wsi_pipeline.stages.tile_config import TileConfig, describe_maker, settle, tile_recipe
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.commit import Staging, check_finished, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.patches import (
    KIND,
    PatchStore,
    finish_patch_store,
    prepare_patch_store,
    write_patch_block,
)
from wsi_pipeline.store.zarr_io import AS_THEY_ARE

LEVEL_TOLERANCE = 0.02
"""A pyramid level this close to the wanted scale is read as it is; its own scale is recorded."""


@dataclass(frozen=True, slots=True)
class TileJob:
    """Cut one slide into a patch store."""

    slide: FoundSlide
    out: Path
    config: TileConfig
    force: bool = False
    codec: PixelCodec = AS_THEY_ARE
    masks: tuple[Path, ...] = ()
    """The user's masks, one of them this slide's; empty where tissue is found here."""

    @property
    def target(self) -> Path:
        """Path of the store."""
        return self.out / f"{self.slide.slide_id}{STORE_SUFFIX}"

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Bytes of a patch where pixels are stored as they are; 0 where they are compressed."""
        return {self.out: self.config.spec.side_px**2 * 3 if self.codec == AS_THEY_ARE else 0}

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return hold_lock(self.target)

    def prepare(self) -> SlidePlan:
        """Open the slide, choose its patches, lay out the store."""
        slide = self.slide
        with self._open() as reader:
            staging = self._stage(reader)
            if manifest := find_finished(staging, KIND, self.force, [slide.path, slide.label_file]):
                return SlidePlan.of_finished(staging, manifest)
            if not staging.is_prepared:
                chosen = (slide.label_file, slide.patient_id, self._mask)
                table, record = plan_patches(reader, self.config, *chosen)
                table = replace(table, columns=dict(slide.columns))
                record |= {"slide_label": slide.slide_label}
                prepare_patch_store(staging, table, record, self.codec)
        return SlidePlan.of_staged(staging, staged_table(staging.product), slide.path)

    def is_finished(self) -> bool:
        """Return whether this very store exists; write nothing. Raises StoreError for another."""
        inputs = [self.slide.path, self.slide.label_file]
        with self._open() as reader:
            return check_finished(self._stage(reader), KIND, self.force, inputs) is not None

    def _open(self) -> closing[SlideReader]:
        scale, icc = self.config.scale_of(self.slide), self.config.spec.icc
        return closing(open_found(self.slide, scale, self.config.reader, icc))

    def settle(self, slide: SlideInfo) -> TileConfig:
        """Return how the slide is cut: by otsu where that made what is here and is taken, too."""
        if self.force:
            return replace(self.config, takes_otsu=False)
        return settle(self.config, lambda config: self._stage_by(slide, config))

    def _stage(self, reader: SlideReader) -> Staging:
        return self._stage_by(reader.info, self.settle(reader.info))

    def _stage_by(self, slide: SlideInfo, config: TileConfig) -> Staging:
        chosen = (self.slide.label_file, self.slide.patient_id, self._mask)
        recipe = tile_recipe(slide, config, *chosen)
        recipe |= {"codec": self.codec.to_json()} | self.slide.columns_entry
        return Staging(self.target, recipe)

    @property
    def _mask(self) -> Path | None:
        return find_mask(self.slide, self.masks)

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Cut and store one block."""
        table = staged_table(plan.staging.product)
        return store_block(self.open_patches(plan), table, plan.staging, block)

    def open_patches(self, plan: SlidePlan) -> PatchSource:
        """Return the slide's patches, which stay open between blocks."""
        scale = self.config.scale_of(self.slide)
        return open_patches(self.slide, scale, plan.staging.product, self.config.reader)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Commit the store, and draw its patches, and its labels where it has any."""
        plan.refuse_changed(self.slide.path)
        recorded = {} if plan.is_finished else plan.staging.block_reports()
        fallbacks = sum(int(report.get("fallbacks", 0)) for report in recorded.values())
        outcome = finish_store(plan, self.slide.slide_id, self.slide.path)
        store = self.draw_previews(only_missing=plan.is_finished)
        message = outcome.message
        if fallbacks:
            message += f", {fallbacks} regions read by OpenSlide after a fault"
        if self.codec.is_lossy:
            message += f", lossy (JPEG quality {self.codec.quality})"
        flags = store.table.count_flags().items()
        message += "".join(f", {count} flagged {name}" for name, count in flags if count)
        if described := describe_labels(store.attributes.get("labels") or {}):
            message += f"; {described}"
        message += describe_doubts(store.table) + describe_maker(plan.staging.recipe, self.config)
        return replace(outcome, message=message)

    def draw_previews(self, only_missing: bool = True) -> PatchStore:
        """Draw the store's patches, and its labels if it has any; return the store."""
        store = PatchStore(self.target)
        writers = {MASK_SUFFIX: write_mask_preview}
        if self.slide.label_file is not None:
            writers[LABELS_SUFFIX] = write_label_preview
        for suffix, write in writers.items():
            path = self.out / f"{self.slide.slide_id}{suffix}"
            if not (only_missing and path.exists()):
                write(store.table, path)
        return store


def store_block(
    source: PatchSource, table: PatchTable, staging: Staging, block: int
) -> BlockReport:
    """Read one block and write it to the store."""
    started = time.perf_counter()
    patches = source.read_block(block)
    was_read = time.perf_counter()
    unreadable = write_patch_block(staging, table, block, patches)
    return BlockReport(
        patches=len(patches.readable),
        unreadable=unreadable,
        seconds_read=was_read - started,
        seconds_write=time.perf_counter() - was_read,
        fallbacks=patches.fallbacks,
    )


def finish_store(plan: SlidePlan, slide_id: str, path: Path) -> SlideOutcome:
    """Commit a store that is not finished yet, and return how the slide ended."""
    if plan.is_finished:
        counts = read_manifest(plan.staging.target).counts
    else:
        plan.refuse_unreadable(path)
        counts = finish_patch_store(plan.staging, staged_table(plan.staging.product)).counts
    patches, unreadable, labelled = (counts[key] for key in ("patches", "unreadable", "labelled"))
    message = f"{patches} patches" if patches else "no tissue, no patches"
    message += f", {labelled} labelled" if labelled else ""
    message += f", {unreadable} unreadable" if unreadable else ""
    state = state_of(patches, unreadable)
    return SlideOutcome(slide_id, str(path), state, message, patches, plan.is_finished)


def find_mask(slide: FoundSlide, masks: Sequence[Path]) -> Path | None:
    """Return the slide's mask by the sample sheet, or by name; None where no masks are given.

    Raises LabelError where masks are given and none, or several, are the slide's.
    """
    if slide.mask_file is not None:
        return slide.mask_file
    return match_mask(slide.path.stem, masks) if masks else None


def _no_patch_error(slide: SlideInfo, tissue_mm2: float, config: TileConfig) -> SlideError:
    return SlideError(
        f"{slide.path}: has {tissue_mm2:.3f} mm² of tissue, but no patch of"
        f" {config.spec.field_um:g} µm lies in it by {config.tissue.min_tissue:.0%} or more;"
        " lower --min-tissue or use smaller patches"
    )


def lay_slide_grid(reader: SlideReader, config: TileConfig) -> Grid:
    """Return the grid of a slide's positions. Raises SlideError where it holds no patch."""
    slide, (spec, downsample) = reader.info, resolve_scale(reader, config)
    grid = lay_grid(slide.bounds_l0, downsample, spec)
    if grid.rows * grid.cols:
        return grid
    _, _, width, height = slide.bounds_l0
    size = f"{width * slide.mpp:g} × {height * slide.mpp:g} µm"
    remedy = "use smaller patches or a finer scale, or leave it out"
    raise SlideError(f"{slide.path}: its {size} hold no patch of {spec.field_um:g} µm; {remedy}")


def plan_patches(
    reader: SlideReader,
    config: TileConfig,
    label_file: Path | None = None,
    patient_id: str | None = None,
    mask_file: Path | None = None,
) -> tuple[PatchTable, dict[str, Any]]:
    """Choose the patches of a slide with enough tissue and label them; return the record, too.

    Raises SlideError, or LabelError for labels or a mask that do not fit the slide.
    """
    slide = reader.info
    grid = lay_slide_grid(reader, config)
    thumbnail, unreadable = read_thumbnail(reader, config.tissue.mask_mpp)
    found = find_tissue(thumbnail.pixels, slide.mpp * float(thumbnail.downsample), config.tissue)
    if mask_file is None:
        tissue, fraction, tissue_mm2 = _take_found(found.tissue, unreadable, thumbnail, slide, grid)
    else:
        mask = TissueMask(mask_file, slide)
        fraction, tissue_mm2 = take_mask(mask, slide, grid)
        tissue = mask.mask_thumbnail(thumbnail)
    positions = _take_positions(reader, grid, fraction, config.tissue.min_tissue)
    _check_levels(reader, grid, positions, thumbnail)
    if tissue_mm2 and not len(positions):  # it must not pass for an empty slide
        raise _no_patch_error(slide, tissue_mm2, config)
    chosen = (grid, positions, thumbnail, found.faults, config.quality)
    positions, quality = flag_patches(reader, *chosen)
    labels = label_patches(label_file, slide, grid, positions, config.rules)
    table = PatchTable(
        slide,
        grid,
        positions,
        labels.labels,
        labels.fraction,
        tissue_fraction=fraction[positions[:, 0], positions[:, 1]],
        thumbnail=thumbnail,
        block_size=choose_block_size(len(positions), grid.spec.side_px),
        patient_id=patient_id or slide.slide_id,
        class_names=config.rules.class_names,
        quality=quality,
        tissue=tissue,
        areas=found.areas if mask_file is None else None,
        mask_name=None if mask_file is None else mask_file.name,
    )
    return number_tissue(table), {
        "tissue": config.tissue.to_json() | {"mask": table.mask_name, "tissue_mm2": tissue_mm2},
        "quality": config.quality.to_json(),
        "labels": labels.description,
        "provenance": describe_tool(),
    }


def _take_found(
    found: NDArray[np.bool_],
    unreadable: NDArray[np.bool_],
    thumbnail: Thumbnail,
    slide: SlideInfo,
    grid: Grid,
) -> tuple[NDArray[np.bool_], NDArray[np.float32], float]:
    """Return the tissue that was found, its share in every patch, and its area in mm²."""
    # What cannot be decoded may be tissue: such patches are tried, counted as unreadable.
    tissue = found | unreadable
    pixel_mm = slide.mpp * float(thumbnail.downsample) / 1000
    area_mm2 = float(found.sum()) * pixel_mm**2
    return tissue, tissue_fraction(tissue, thumbnail, grid), area_mm2


def take_mask(mask: TissueMask, slide: SlideInfo, grid: Grid) -> tuple[NDArray[np.float32], float]:
    """Return the share of tissue in every patch by the user's mask, and its area in mm²."""
    image = mask.thumbnail
    if image is None:
        fraction = mask.fraction(grid)
    else:
        fraction = tissue_fraction(image.pixels[..., 0] > 0, image, grid)
    pitch_mm = grid.spec.stride_px * float(grid.downsample) * slide.mpp / 1000
    return fraction, float(fraction.sum(dtype=np.float64)) * pitch_mm**2


def resolve_scale(reader: SlideReader, config: TileConfig) -> tuple[PatchSpec, Fraction]:
    """Return the scale that is really cut, and level-0 pixels per patch pixel.

    A level within 2 % of the wanted scale is taken as it is. Raises SlideError where the scan is
    too coarse.
    """
    slide, spec = reader.info, config.spec
    levels = [(slide.mpp * float(level.downsample), level.downsample) for level in reader.levels]
    mpp, downsample = min(levels, key=lambda level: abs(level[0] - spec.mpp))
    if abs(mpp - spec.mpp) <= LEVEL_TOLERANCE * spec.mpp:
        return replace(spec, mpp=mpp), downsample
    if spec.mpp < slide.mpp and not config.allow_upsample:
        what = f"scanned at {slide.mpp:g} µm/px, patches at {spec.mpp:g} µm/px would be made up"
        remedy = f"use --mpp {slide.mpp:g} or more, or --allow-upsample"
        raise SlideError(f"{slide.path}: {what}; {remedy}")
    return spec, downsample_between(slide.mpp, spec.mpp)


def _check_levels(
    reader: SlideReader, grid: Grid, positions: NDArray[np.int32], thumbnail: Thumbnail
) -> None:
    """Require that tissue and patches are read from levels that show the picture of level 0."""
    boxes = positions_to_boxes_l0(positions, grid)
    centres = (boxes[:, :2] + boxes[:, 2:] / 2).astype(np.int64)
    used = (choose_level(reader.levels, each.downsample) for each in (grid, thumbnail))
    for level in dict.fromkeys(used):
        check_level(reader, level, centres)


def _take_positions(
    reader: SlideReader, grid: Grid, fraction: NDArray[np.float32], min_tissue: float
) -> NDArray[np.int32]:
    is_kept = np.ones_like(fraction, dtype=np.bool_)
    if min_tissue > 0:
        is_kept = (fraction >= min_tissue) & (fraction > 0)
    kept = np.argwhere(is_kept).astype(np.int32)
    return order_by_macro_tile(kept, macro_tiles_per_patch(view_grid(reader, grid), grid))
