"""Parts of a slide: a sample of its patches, and areas that a person drew.

Recipes say of which part the results are. The table of all patches of a slide becomes that of a
sample (`draw_sample`), or gets the patches of the drawn areas (`add_areas`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import DRAWN, PREDICTIONS, ROLES
from wsi_pipeline.core.errors import LabelError, StoreError
from wsi_pipeline.core.geometry import choose_block_size, order_by_macro_tile
from wsi_pipeline.core.patch_table import PatchQuality, PatchTable, SampleDesign
from wsi_pipeline.core.recipe import file_sha256
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.counting.cluster_sample import draw_clusters
from wsi_pipeline.counting.context import add_context, find_reach
from wsi_pipeline.labels.tissue_mask import TissueMask
from wsi_pipeline.models.stains import sample_patches
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.patches import macro_tiles_per_patch, view_grid
from wsi_pipeline.slides.pieces import number_tissue
from wsi_pipeline.slides.quality import QualityParameters, flag_patches
from wsi_pipeline.slides.tissue import tissue_fraction
from wsi_pipeline.store.commit import without_view
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.predictions import SAMPLE, Predictions, is_estimate

AREAS_ALONE = "areas_alone"
PART = (SAMPLE, DRAWN, AREAS_ALONE)
"""Entries of a source's recipe that say of which part of the slide the patches are.

A sample: its settings. Drawn areas: the digest of their file. True: no patches but the areas'.
"""
MOST_OF_A_PATCH = 0.5
"""Share of its area from which on a patch counts as inside a drawn area, or as tissue."""
MOST_OF_A_SLIDE = 0.75
"""Largest share of a slide's patches that a sample and its context may be; else all are taken."""
TILES_ACROSS = 1 + math.sqrt(2)
"""Width in tiles of a square that touches twice as many tiles as fit into it: (w + 1)² = 2 w²."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of a sample."""

    patches: int
    """Wanted number of patches of each slide; whole squares give about as many."""
    seed: int = 0


def name_areas(results: Path, slide_id: str) -> Path:
    """Return the place of the file with the areas that are drawn on a slide."""
    return results / DRAWN / f"{slide_id}.geojson"


def find_areas(results: Path, slide_id: str) -> Path | None:
    """Return the file with the areas that are drawn on a slide; None where there is none."""
    path = name_areas(results, slide_id)
    return path if path.is_file() else None


def areas_entry(path: Path | None) -> dict[str, str]:
    """Return a recipe's entry for the file of the drawn areas."""
    return {} if path is None else {DRAWN: file_sha256(path)}


def _leave_part_out(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe of predictions without the entries of `PART`: that of the whole slide."""
    source = recipe.get("source")
    if not isinstance(source, Mapping):
        return dict(recipe)
    kept = {name: entry for name, entry in source.items() if name not in PART}
    return {**recipe, "source": kept}


def is_same_but_part(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return True where two recipes differ at most in the part of the slide."""
    return _leave_part_out(made) == _leave_part_out(wanted)


def is_other_part(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return True where two recipes differ in the part of the slide, and at most also in the view.

    Results of such a recipe may be replaced without --force.
    """
    return without_view(made) != without_view(wanted) and is_same_but_part(
        without_view(made), without_view(wanted)
    )


def with_part_of(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as it would be for the part of the slide that another is of."""
    source, other = wanted.get("source"), made.get("source")
    if not isinstance(source, Mapping) or not isinstance(other, Mapping):
        return dict(wanted)
    part = {name: entry for name, entry in other.items() if name in PART}
    return {**wanted, "source": {**_leave_part_out(wanted)["source"], **part}}


def is_of_areas(recipe: Mapping[str, Any]) -> bool:
    """Return True for the recipe of results that hold no patches but those of drawn areas."""
    source = recipe.get("source")
    return isinstance(source, Mapping) and AREAS_ALONE in source


def is_part(recipe: Mapping[str, Any]) -> bool:
    """Return True for the recipe of results of a sample, or of drawn areas alone."""
    return is_of_areas(recipe) or is_estimate(recipe)


def is_larger_sample(made: Any, wanted: Sampling) -> bool:
    """Return True for the recipe of a sample that holds another one of the same seed."""
    return (
        isinstance(made, Mapping)
        and made.get("seed") == wanted.seed
        and isinstance(made.get("patches"), int)
        and made["patches"] >= wanted.patches
    )


def read_extensible(target: Path, slide: SlideInfo) -> dict[str, Any]:
    """Return the source's recipe, without its part, of finished results that areas can join.

    Raises StoreError where they are an estimate, or of another slide, scale or source.
    """
    recipe = read_manifest(target).recipe
    source = recipe.get("source")
    if is_estimate(recipe) and Predictions(target / PREDICTIONS).table.sample is not None:
        what, remedy = "is an estimate of a sample", "infer the whole slide first"
    elif not isinstance(source, Mapping) or "slide" not in source:
        what, remedy = "was made from a patch store", "infer the slide itself into another folder"
    elif source["slide"] != slide.fingerprint:
        what, remedy = f"is not of {slide.path}, as it is now", "infer it with --force"
    elif source.get("slide_mpp") != slide.mpp:
        what = f"takes the slide at {source.get('slide_mpp')} µm/px, the file says {slide.mpp:g}"
        remedy = "infer it with --force, or add the area by `wsi infer` with the same scale"
    else:
        return {name: entry for name, entry in source.items() if name not in PART}
    raise StoreError(f"{target}: {what}, to which no area can be added; {remedy}")


def draw_sample(
    reader: SlideReader, table: PatchTable, sampling: Sampling, context_um: float
) -> PatchTable:
    """Return the table of a sample's patches and of the patches within reach of their context.

    `context_um` is the standard deviation of the model's context. Squares are so large that, with
    their context, they touch at most twice the tiles that fit into them. Where the sample and its
    context are more than `MOST_OF_A_SLIDE` of the slide, the table is returned unchanged.
    """
    grid = table.grid
    if table.patches <= sampling.patches:
        return table
    view = view_grid(reader, grid)
    tile_px = max(view.level.tile or (1, 1))
    reach = find_reach(context_um / (grid.spec.stride_px * grid.spec.mpp))
    across = TILES_ACROSS * tile_px / (grid.spec.stride_px * float(view.reduction))
    least_side = max(1, math.ceil(across) - 2 * reach)
    found = draw_clusters(table.positions, sampling.patches, sampling.seed, least_side)
    drawn = np.zeros((grid.rows, grid.cols), dtype=np.bool_)
    drawn[tuple(table.positions[found.drawn].T)] = True
    index = np.flatnonzero(add_context(drawn, reach)[tuple(table.positions.T)])
    if len(index) > MOST_OF_A_SLIDE * table.patches:
        return table
    role = np.where(found.drawn, ROLES.index("tissue"), ROLES.index("context")).astype(np.uint8)
    part = replace(table, role=role).take(index)
    compared = np.intersect1d(table.numbers[find_compared(table)], part.numbers)
    design = SampleDesign(
        *(sampling.patches, sampling.seed, found.side, found.clusters),
        slide_patches=table.patches,
        reach=reach,
        compared=tuple(compared.tolist()),
    )
    size = choose_block_size(part.patches, grid.spec.side_px)
    return replace(part, sample=design, block_size=size)


def drop_areas(table: PatchTable) -> PatchTable:
    """Return the table without the patches that are in it for drawn areas alone."""
    if table.role is None:
        return table
    kept = replace(table.take(np.flatnonzero(table.role != ROLES.index("area"))), role=None)
    return replace(kept, block_size=choose_block_size(kept.patches, table.grid.spec.side_px))


def add_areas(reader: SlideReader, table: PatchTable, path: Path) -> PatchTable:
    """Return the table with the patches of the drawn areas in the file at `path`.

    Patches that the table has in drawn areas alone are removed first, so that it fits the file as
    it is now. Raises LabelError where the areas are of another slide, or hold no patch.
    """
    table = drop_areas(table)
    grid = table.grid
    share = TissueMask(path, table.slide).fraction(grid)
    if not (share >= MOST_OF_A_PATCH).any():
        raise LabelError(
            f"{path}: no patch of {grid.spec.field_um:g} µm lies in its areas by"
            f" {MOST_OF_A_PATCH:.0%}; draw larger ones, or remove the file"
        )
    share[tuple(table.positions.T)] = 0
    added = np.argwhere(share >= MOST_OF_A_PATCH).astype(np.int32)
    whole = _append(reader, table, added)
    size = choose_block_size(whole.patches, grid.spec.side_px)
    return replace(_order(reader, whole), block_size=size)


def _append(reader: SlideReader, table: PatchTable, added: NDArray[np.int32]) -> PatchTable:
    """Return the table with patches at the positions `added` (m, 2), without labels."""
    count, grid = len(added), table.grid
    unknown = np.full(count, np.nan, dtype=np.float32)
    tissue = unknown
    if table.tissue is not None:
        tissue = tissue_fraction(table.tissue, table.thumbnail, grid)[tuple(added.T)]
    quality = table.quality
    if quality is not None:
        limits = QualityParameters()
        _, found = flag_patches(reader, grid, added, table.thumbnail, {}, limits)
        pairs = zip(quality, found, strict=True)
        quality = PatchQuality(*(np.concatenate([*pair]) for pair in pairs))
    role = np.zeros(table.patches, np.uint8) if table.role is None else table.role
    return number_tissue(
        replace(
            table,
            positions=np.concatenate([table.positions, added]),
            labels=np.concatenate([table.labels, np.full(count, -1, np.int8)]),
            label_fraction=np.concatenate([table.label_fraction, unknown]),
            tissue_fraction=np.concatenate([table.tissue_fraction, tissue]),
            quality=quality,
            role=np.concatenate([role, np.full(count, ROLES.index("area"), np.uint8)]),
        )
    )


def _order(reader: SlideReader, table: PatchTable) -> PatchTable:
    """Return the table in the order in which patches are read: by macro-tile."""
    per_patch = macro_tiles_per_patch(view_grid(reader, table.grid), table.grid)
    ordered = order_by_macro_tile(table.positions, per_patch)
    place = np.empty((table.grid.rows, table.grid.cols), dtype=np.intp)
    place[tuple(table.positions.T)] = np.arange(table.patches)
    return table.take(place[tuple(ordered.T)])


def find_compared(table: PatchTable) -> NDArray[np.intp]:
    """Return the index (k,), ascending, of the patches that are compared with training patches.

    They are spread evenly over the patches that are mostly tissue, those of drawn areas left out.
    Of an estimate they are also the patches in it that the whole slide would compare.
    """
    is_tissue = ~(table.tissue_fraction < MOST_OF_A_PATCH)  # NaN: not measured
    if table.role is not None:
        is_tissue &= table.role != ROLES.index("area")
    members = np.flatnonzero(is_tissue | ~is_tissue.any())
    compared = members[sample_patches(len(members))]
    if table.sample is None:
        return compared
    shared = np.flatnonzero(np.isin(table.numbers, table.sample.compared))
    return np.union1d(compared, shared)
