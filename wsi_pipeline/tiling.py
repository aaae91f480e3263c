"""Cutting a slide: which patches to take, at which scale, and writing them to a store."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError, SlideError
from wsi_pipeline.geometry import (
    MAX_MPP,
    MIN_MPP,
    Grid,
    PatchSpec,
    all_cells,
    choose_block_size,
    downsample_between,
    lay_grid,
    order_by_macro_tile,
)
from wsi_pipeline.labels import label_patches, label_recipe
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.provenance import describe_tool
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.patches import macro_tile_cells, view_grid
from wsi_pipeline.slides.thumbnail import read_thumbnail
from wsi_pipeline.sources import PatchSource, PatchTable, SlideInfo, Thumbnail
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.patches import write_patch_block
from wsi_pipeline.tissue import TissueParameters, find_tissue, tissue_fraction

LEVEL_TOLERANCE = 0.02
"""A pyramid level this close to the wanted scale is read as it is; its true scale is recorded."""


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a slide is cut."""

    spec: PatchSpec = field(default_factory=PatchSpec)
    tissue: TissueParameters = field(default_factory=TissueParameters)
    slide_mpp: float | None = None
    """Overrules what the slides say of their own scale."""
    allow_upsample: bool = False
    """Cut finer than the scan, which adds pixels but no detail."""
    rules: LabelRules = field(default_factory=LabelRules)
    """What labels mean, and what the two classes are called."""

    def __post_init__(self) -> None:
        if self.slide_mpp is not None and not (math.isfinite(self.slide_mpp) and MIN_MPP <= self.slide_mpp <= MAX_MPP):
            raise ConfigError(f"slide mpp is {self.slide_mpp} µm/px; it must lie between {MIN_MPP:g} and {MAX_MPP:g}")


def tile_recipe(slide: SlideInfo, config: TileConfig, label_file: Path | None = None, patient_id: str | None = None) -> dict[str, Any]:
    """Everything that decides which patches a slide gives, with which labels, and whose they are."""
    return {
        "slide": slide.fingerprint,
        "slide_mpp": slide.mpp,
        "patch": {"side_px": config.spec.side_px, "stride_px": config.spec.stride_px, "mpp": config.spec.mpp},
        "tissue": config.tissue.to_json(),
        "allow_upsample": config.allow_upsample,
        "class_names": list(config.rules.class_names),
        "labels": label_recipe(config.rules, label_file),
        "patient_id": patient_id,
    }


def plan_patches(
    reader: SlideReader, config: TileConfig, label_file: Path | None = None, patient_id: str | None = None
) -> tuple[PatchTable, dict[str, Any]]:
    """Choose the cells of a slide that hold enough tissue, and label them; also what is to be recorded about it.

    Raises SlideError, or LabelError for labels that do not fit the slide.
    """
    slide = reader.info
    spec, downsample = settle_scale(reader, config)
    grid = lay_grid(slide.bounds_l0, downsample, spec)
    thumbnail, unreadable = read_thumbnail(reader, config.tissue.mask_mpp)
    mask = find_tissue(thumbnail.pixels, slide.mpp * float(thumbnail.downsample), config.tissue)
    # What cannot be seen may be tissue: such cells are tried, and counted as unreadable if they are.
    fraction = tissue_fraction(mask | unreadable, thumbnail, grid)
    cells = _take_cells(reader, grid, fraction, config.tissue.min_tissue)
    _refuse_lost_tissue(slide, mask, thumbnail, cells, config)
    labels = label_patches(label_file, slide, grid, cells, config.rules)
    table = PatchTable(
        slide=slide,
        grid=grid,
        cells=cells,
        labels=labels.labels,
        label_fraction=labels.fraction,
        tissue_fraction=fraction[cells[:, 0], cells[:, 1]],
        thumbnail=thumbnail,
        block_size=choose_block_size(len(cells), spec.side_px),
        patient_id=patient_id or slide.slide_id,
        class_names=config.rules.class_names,
    )
    return table, {"tissue": config.tissue.to_json(), "labels": labels.description, "provenance": describe_tool()}


def _refuse_lost_tissue(
    slide: SlideInfo, mask: NDArray[np.bool_], thumbnail: Thumbnail, cells: NDArray[np.int32], config: TileConfig
) -> None:
    """Raise SlideError where there is tissue but no patch takes it in: that must not look like a slide without tissue."""
    if len(cells) or not mask.any():
        return
    tissue_mm2 = float(mask.sum()) * (slide.mpp * float(thumbnail.downsample) / 1000) ** 2
    raise SlideError(
        f"{slide.path}: has {tissue_mm2:.3f} mm² of tissue, but no patch of {config.spec.field_um:g} µm lies in it by "
        f"{config.tissue.min_tissue:.0%} or more; lower --min-tissue or use smaller patches"
    )


def settle_scale(reader: SlideReader, config: TileConfig) -> tuple[PatchSpec, Fraction]:
    """The scale that is really cut, and level-0 pixels per patch pixel.

    A level within 2 % of the wanted scale is taken as it is. Raises SlideError where the scan is too coarse.
    """
    slide, spec = reader.info, config.spec
    near = [level for level in reader.levels if _is_near(slide.mpp * float(level.downsample), spec.mpp)]
    if near:
        level = min(near, key=lambda level: abs(slide.mpp * float(level.downsample) - spec.mpp))
        return PatchSpec(spec.side_px, spec.stride_px, slide.mpp * float(level.downsample)), level.downsample
    if spec.mpp < slide.mpp and not config.allow_upsample:
        raise SlideError(
            f"{slide.path}: scanned at {slide.mpp:g} µm/px, patches at {spec.mpp:g} µm/px would be made up; "
            f"use --mpp {slide.mpp:g} or more, or --allow-upsample"
        )
    return spec, downsample_between(slide.mpp, spec.mpp)


def _is_near(mpp: float, wanted_mpp: float) -> bool:
    return abs(mpp - wanted_mpp) <= LEVEL_TOLERANCE * wanted_mpp


def _take_cells(reader: SlideReader, grid: Grid, fraction: NDArray[np.float32], min_tissue: float) -> NDArray[np.int32]:
    cells = all_cells(grid)
    tissue = fraction[cells[:, 0], cells[:, 1]]
    kept = cells[(tissue >= min_tissue) & (tissue > 0) if min_tissue > 0 else np.ones(len(cells), dtype=np.bool_)]
    return order_by_macro_tile(kept, macro_tile_cells(view_grid(reader, grid), grid))


def store_block(source: PatchSource, table: PatchTable, staging: Staging, block: int) -> int:
    """Read one block and write it to the store; returns how many patches were unreadable."""
    return write_patch_block(staging, table, block, source.read_block(block))
