"""Measure by what the patches of a slide are chosen, without choosing, for a page that tunes it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import LOCAL, OTSU
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.slide import Thumbnail
from wsi_pipeline.labels.tissue_mask import TissueMask
from wsi_pipeline.outputs.tiling_page import MaskStep, TilingMeasures
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.quality import QualityParameters, complete_faults, measure_sharpness
from wsi_pipeline.slides.scaling import read_thumbnail
from wsi_pipeline.slides.tissue import TissueParameters, find_tissue, tissue_fraction
from wsi_pipeline.stages.tile import lay_slide_grid, take_mask
from wsi_pipeline.stages.tile_config import TileConfig

FIELDS = {
    "tissue": "detector",
    "closing": "closing_radius_um",
    "min_density": "sure_density",
    "min_object": "min_object_um2",
}
"""Options that make steps of the mask, and their parameters."""


def choose_steps(given: TissueParameters) -> list[tuple[str, dict[str, Any]]]:
    """Return names and options of the mask's steps: as given, then one option changed in each."""
    other = OTSU if given.detector == LOCAL else LOCAL
    steps: list[tuple[str, dict[str, Any]]] = [
        ("as given", {}),
        (f"detector {other}", {"tissue": other}),
        ("gaps stay open", {"closing": 0.0}),
        ("wider gaps closed", {"closing": 2 * given.closing_radius_um or 96.0}),
        ("smaller pieces kept", {"min_object": given.min_object_um2 / 4}),
        ("smaller pieces dropped", {"min_object": 5 * given.min_object_um2 or 100_000.0}),
    ]
    if given.detector == LOCAL:
        steps += [
            ("paler tissue kept", {"min_density": round(given.sure_density / 2, 4)}),
            ("paler tissue dropped", {"min_density": round(given.sure_density * 2, 4)}),
        ]
    return [
        (name, settings)
        for name, settings in steps
        if not settings or change(given, settings) != given
    ]


def change(given: TissueParameters, settings: Mapping[str, Any]) -> TissueParameters:
    """Return the parameters with some options changed."""
    return replace(given, **{FIELDS[name]: value for name, value in settings.items()})


def measure_tiling(
    reader: SlideReader, config: TileConfig, mask_file: Path | None = None
) -> TilingMeasures:
    """Return every share and the sharpness of the slide's positions, by several masks.

    With a user's mask there is one step. Raises SlideError, or LabelError for such a mask.
    """
    slide = reader.info
    grid = lay_slide_grid(reader, config)
    thumbnail, unreadable = read_thumbnail(reader, config.tissue.mask_mpp)
    chosen = choose_steps(config.tissue) if mask_file is None else [("your mask", {})]
    mpp, shares = slide.mpp * float(thumbnail.downsample), []
    for _, settings in chosen:
        found = find_tissue(thumbnail.pixels, mpp, change(config.tissue, settings))
        if mask_file is None:
            tissue = tissue_fraction(found.tissue | unreadable, thumbnail, grid)
        else:
            tissue, _ = take_mask(TissueMask(mask_file, slide), slide, grid)
        shares.append((tissue, complete_faults(found.faults, thumbnail, mpp)))
    is_any = np.any([tissue > 0 for tissue, _ in shares], axis=0) | (config.tissue.min_tissue == 0)
    positions = np.argwhere(is_any).astype(np.int32)
    steps = [
        _take_step(name, settings, positions, share, (thumbnail, grid))
        for (name, settings), share in zip(chosen, shares, strict=True)
    ]
    sharpness = measure_sharpness(reader, grid, positions) if len(positions) else np.zeros(0)
    return TilingMeasures(slide, grid, thumbnail, positions, sharpness.astype(np.float32), steps)


def _take_step(
    name: str,
    settings: Mapping[str, Any],
    positions: NDArray[np.int32],
    share: tuple[NDArray[np.float32], Mapping[str, NDArray[np.bool_]]],
    place: tuple[Thumbnail, Grid],
) -> MaskStep:
    """Return the shares of the positions."""
    rows, cols = positions.T
    faults = {flag: tissue_fraction(mask, *place)[rows, cols] for flag, mask in share[1].items()}
    return MaskStep(name, settings, share[0][rows, cols], faults)


def count_kept(measures: TilingMeasures, config: TileConfig) -> int:
    """Return the number of patches that `wsi tile` keeps with the settings as given."""
    step, quality = measures.steps[0], config.quality
    least = config.tissue.min_tissue
    is_kept = (step.tissue >= least) & (step.tissue > 0) if least > 0 else step.tissue >= 0
    for name in quality.drop:
        is_kept &= ~_has_fault(name, step, measures.sharpness, quality)
    return int(np.count_nonzero(is_kept))


def _has_fault(
    name: str, step: MaskStep, sharpness: NDArray[np.float32], quality: QualityParameters
) -> NDArray[np.bool_]:
    if name == "blur":
        return np.asarray(sharpness < (quality.min_sharpness or 0.0))
    return np.asarray(step.faults[name] > quality.most[name])


def list_tuned() -> Sequence[str]:
    """Return the options that a page changes."""
    return (*FIELDS, "min_tissue", "max_pen", "max_fold", "max_bubble", "min_sharpness", "drop")
