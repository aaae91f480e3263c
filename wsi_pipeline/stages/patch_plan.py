"""Cutting a slide: which patches to take, at which scale, and writing them to a store."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.geometry import (
    MAX_MPP,
    MIN_MPP,
    Grid,
    PatchSpec,
    choose_block_size,
    downsample_between,
    lay_grid,
    order_by_macro_tile,
    positions_to_boxes_l0,
)
from wsi_pipeline.core.recipe import describe_tool, file_sha256
from wsi_pipeline.core.slide import PatchQuality, PatchTable, SlideInfo, Thumbnail
from wsi_pipeline.labels import label_patches, label_recipe
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.labels.user_mask import MaskPicture
from wsi_pipeline.slides.base import SlideReader, choose_level
from wsi_pipeline.slides.patches import macro_tiles_per_patch, view_grid
from wsi_pipeline.slides.quality import (
    SHARPNESS_MPP,
    QualityParameters,
    find_pen,
    is_kept,
    judge,
    measure_sharpness,
)
from wsi_pipeline.slides.scaling import ScaledView
from wsi_pipeline.slides.thumbnail import read_thumbnail
from wsi_pipeline.slides.tissue import TissueParameters, find_tissue, tissue_fraction

LEVEL_TOLERANCE = 0.02
"""A pyramid level this close to the wanted scale is read as it is; its own scale is recorded."""


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Scale, tissue, labels and quality of the patches that a slide is cut into."""

    spec: PatchSpec = field(default_factory=PatchSpec)
    tissue: TissueParameters = field(default_factory=TissueParameters)
    slide_mpp: float | None = None
    """µm per level-0 pixel, instead of the scale in the slide files."""
    allow_upsample: bool = False
    """Cut finer than the scan, which adds pixels but no detail."""
    rules: LabelRules = field(default_factory=LabelRules)
    """Meaning of labels, and names of the two classes."""
    quality: QualityParameters = field(default_factory=QualityParameters)
    """Limits for pen and blur flags, and the flags that leave a patch out."""
    reader: str = "auto"
    """Reader of the slides; it changes no pixel."""

    def __post_init__(self) -> None:
        if self.slide_mpp is not None and not (
            math.isfinite(self.slide_mpp) and MIN_MPP <= self.slide_mpp <= MAX_MPP
        ):
            raise ConfigError(
                f"slide mpp is {self.slide_mpp} µm/px; it must lie between {MIN_MPP:g} and"
                f" {MAX_MPP:g}"
            )


def tile_recipe(
    slide: SlideInfo,
    config: TileConfig,
    label_file: Path | None = None,
    patient_id: str | None = None,
    mask_file: Path | None = None,
) -> dict[str, Any]:
    """Return everything that decides a slide's patches, their labels and their patient."""
    return {
        "slide": slide.fingerprint,
        "slide_mpp": slide.mpp,
        "patch": config.spec.to_json(),
        "tissue": config.tissue.to_json(),
        "mask": None if mask_file is None else file_sha256(mask_file),
        "quality": config.quality.to_json(),
        "allow_upsample": config.allow_upsample,
        "class_names": list(config.rules.class_names),
        "labels": label_recipe(config.rules, label_file),
        "patient_id": patient_id,
    }


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
    spec, downsample = resolve_scale(reader, config)
    grid = lay_grid(slide.bounds_l0, downsample, spec)
    thumbnail, unreadable = read_thumbnail(reader, config.tissue.mask_mpp)
    if mask_file is None:
        tissue, tissue_mm2 = _find_tissue(slide, thumbnail, unreadable, config)
        fraction = tissue_fraction(tissue, thumbnail, grid)
    else:
        mask = MaskPicture(mask_file, slide)
        fraction, tissue_mm2 = _take_mask(mask, slide, grid)
        tissue = mask.lie_over(thumbnail)
    positions = _take_positions(reader, grid, fraction, config.tissue.min_tissue)
    _refuse_lost_tissue(slide, tissue_mm2, positions, config)
    positions, quality = _flag_patches(reader, grid, positions, thumbnail, config.quality)
    labels = label_patches(label_file, slide, grid, positions, config.rules)
    table = PatchTable(
        slide=slide,
        grid=grid,
        positions=positions,
        labels=labels.labels,
        label_fraction=labels.fraction,
        tissue_fraction=fraction[positions[:, 0], positions[:, 1]],
        thumbnail=thumbnail,
        block_size=choose_block_size(len(positions), spec.side_px),
        patient_id=patient_id or slide.slide_id,
        class_names=config.rules.class_names,
        quality=quality,
        tissue=tissue,
    )
    parameters = config.tissue.to_json() | {
        "mask": None if mask_file is None else mask_file.name,
        "tissue_mm2": tissue_mm2,
    }
    record = {
        "tissue": parameters,
        "quality": config.quality.to_json(),
        "labels": labels.description,
        "provenance": describe_tool(),
    }
    return table, record


def _find_tissue(
    slide: SlideInfo, thumbnail: Thumbnail, unreadable: NDArray[np.bool_], config: TileConfig
) -> tuple[NDArray[np.bool_], float]:
    """Return the tissue found on the thumbnail, and its area in mm²."""
    mpp = slide.mpp * float(thumbnail.downsample)
    mask = find_tissue(thumbnail.pixels, mpp, config.tissue)
    # What cannot be decoded may be tissue: such patches are tried, and counted as unreadable.
    return mask | unreadable, float(mask.sum()) * (mpp / 1000) ** 2


def _take_mask(
    mask: MaskPicture, slide: SlideInfo, grid: Grid
) -> tuple[NDArray[np.float32], float]:
    """Return the share of tissue in every patch by the user's mask, and its area in mm²."""
    image = mask.thumbnail
    fraction = (
        mask.annotated_fraction(grid)
        if image is None
        else tissue_fraction(image.pixels[..., 0] > 0, image, grid)
    )
    pitch_mm = grid.spec.stride_px * float(grid.downsample) * slide.mpp / 1000
    return fraction, float(fraction.sum(dtype=np.float64)) * pitch_mm**2


def _flag_patches(
    reader: SlideReader,
    grid: Grid,
    positions: NDArray[np.int32],
    thumbnail: Thumbnail,
    parameters: QualityParameters,
) -> tuple[NDArray[np.int32], PatchQuality]:
    """Return the positions that are kept, and the quality of their patches."""
    mpp = reader.info.mpp * float(thumbnail.downsample)
    pen = tissue_fraction(find_pen(thumbnail.pixels, mpp), thumbnail, grid)[
        positions[:, 0], positions[:, 1]
    ]
    sharpness = np.full(len(positions), np.nan, dtype=np.float32)
    if parameters.min_sharpness is not None and len(positions):
        sharpness = _measure_sharpness(reader, grid, positions)
    quality = judge(pen, sharpness, parameters)
    kept = is_kept(quality, parameters)
    return positions[kept], PatchQuality(
        quality.pen_fraction[kept], quality.sharpness[kept], quality.flags[kept]
    )


def _measure_sharpness(
    reader: SlideReader, grid: Grid, positions: NDArray[np.int32]
) -> NDArray[np.float32]:
    slide = reader.info
    mpp = max(SHARPNESS_MPP, slide.mpp)
    downsample = downsample_between(slide.mpp, mpp)
    x, y, width, height = slide.bounds_l0
    view = ScaledView(reader, choose_level(reader.levels, downsample), downsample, (x, y))
    boxes = (positions_to_boxes_l0(positions, grid) - [x, y, 0, 0]) / float(downsample)
    size = (max(1, math.floor(width / downsample)), max(1, math.floor(height / downsample)))
    return measure_sharpness(view.read, size, boxes, mpp)


def _refuse_lost_tissue(
    slide: SlideInfo, tissue_mm2: float, positions: NDArray[np.int32], config: TileConfig
) -> None:
    """Raise SlideError where no patch holds the tissue: it must not pass for an empty slide."""
    if len(positions) or tissue_mm2 == 0:
        return
    raise SlideError(
        f"{slide.path}: has {tissue_mm2:.3f} mm² of tissue, but no patch of"
        f" {config.spec.field_um:g} µm lies in it by {config.tissue.min_tissue:.0%} or more; lower"
        " --min-tissue or use smaller patches"
    )


def resolve_scale(reader: SlideReader, config: TileConfig) -> tuple[PatchSpec, Fraction]:
    """Return the scale that is really cut, and level-0 pixels per patch pixel.

    A level within 2 % of the wanted scale is taken as it is. Raises SlideError where the scan is
    too coarse.
    """
    slide, spec = reader.info, config.spec
    near = [
        level for level in reader.levels if _is_near(slide.mpp * float(level.downsample), spec.mpp)
    ]
    if near:
        level = min(near, key=lambda level: abs(slide.mpp * float(level.downsample) - spec.mpp))
        return (
            PatchSpec(spec.side_px, spec.stride_px, slide.mpp * float(level.downsample)),
            level.downsample,
        )
    if spec.mpp < slide.mpp and not config.allow_upsample:
        raise SlideError(
            f"{slide.path}: scanned at {slide.mpp:g} µm/px, patches at {spec.mpp:g} µm/px would be"
            f" made up; use --mpp {slide.mpp:g} or more, or --allow-upsample"
        )
    return spec, downsample_between(slide.mpp, spec.mpp)


def _is_near(mpp: float, wanted_mpp: float) -> bool:
    return abs(mpp - wanted_mpp) <= LEVEL_TOLERANCE * wanted_mpp


def _take_positions(
    reader: SlideReader, grid: Grid, fraction: NDArray[np.float32], min_tissue: float
) -> NDArray[np.int32]:
    is_kept = (
        (fraction >= min_tissue) & (fraction > 0)
        if min_tissue > 0
        else np.ones_like(fraction, dtype=np.bool_)
    )
    kept = np.argwhere(is_kept).astype(np.int32)
    return order_by_macro_tile(kept, macro_tiles_per_patch(view_grid(reader, grid), grid))
