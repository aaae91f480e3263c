"""One slide's predictions: laid out, computed block by block, and closed.

Of an even sample of the patches, stains and features are compared with the model's training patches
on the way.
"""

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import PREDICTIONS, SCALE_TOLERANCE
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.core.slide import (
    PatchBlock,
    PatchSource,
    PatchTable,
    TiledBlock,
    TileSource,
)
from wsi_pipeline.models.card import STAIN_MEASURES, ModelFacts
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.stains import measure_stains, sample_patches
from wsi_pipeline.stages.plan import BlockReport
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.patches import write_patch_block
from wsi_pipeline.store.predictions import (
    prepare_predictions,
    record_distance,
    write_prediction_block,
)

if TYPE_CHECKING:
    from wsi_pipeline.models.model import Model
    from wsi_pipeline.models.predictor import Predicted, Predictor

ENGINE = "engine"
"""Entry of recipes and predictions that names the engine."""
MOSTLY = 0.5
"""Share of tissue from which on a patch can be in the sample."""


def check_table(table: PatchTable, model: ModelFacts) -> None:
    """Raise ModelError where a slide's patches, or what their labels mean, do not fit the model."""
    name, spec, wanted = table.slide.path, table.grid.spec, model.spec
    if (side := wanted.side_px) != spec.side_px:
        what = f"patches of {spec.side_px} px, the model takes {side} px"
        raise ModelError(f"{name}: {what}; tile with --patch-size {side}")
    if abs(spec.mpp - wanted.mpp) > SCALE_TOLERANCE * wanted.mpp:
        what = f"patches at {spec.mpp:g} µm/px, the model was trained at {wanted.mpp:g} µm/px"
        raise ModelError(f"{name}: {what}; tile with --mpp {wanted.mpp:g}")
    if spec.icc != wanted.icc:
        what = f"patches in {spec.icc} colours, the model was trained on {wanted.icc}"
        raise ModelError(f"{name}: {what}; tile with --icc {wanted.icc}")
    if (table.labels >= 0).any() and table.class_names != model.class_names:
        ours, its = " and ".join(table.class_names), " from ".join(model.class_names)
        what = f"its labels mean {ours}, the model tells {its}"
        raise ModelError(f"{name}: {what}; label the store with the model's --class-names")


def begin_predictions(
    staging: Staging, table: PatchTable, model: ModelFacts, setting: EngineSetting
) -> None:
    """Lay out the predictions of a slide by an engine.

    Raises ModelError where patches do not fit the model.
    """
    check_table(table, model)
    attributes = {
        "model": model.to_json(),
        ENGINE: setting.to_json(),
        "provenance": describe_tool(),
    }
    prepare_predictions(staging, table, attributes, has_spread=model.is_ensemble)


def predict_block(
    source: PatchSource,
    predictor: "Predictor",
    staging: Staging,
    table: PatchTable,
    block: int,
    store: Staging | None = None,
) -> BlockReport:
    """Read, predict and write one block; its pixels go into `store` first, if there is one.

    Unreadable patches get NaN. Batches start again with every block, so that the last bits of a
    logit may depend on the block size, but never on whether pixels are kept.
    """
    started = time.perf_counter()
    sample = _find_sample(table, block)
    found = _read_tiles(source, predictor, block, sample) if store is None else None
    was_read = was_stored = time.perf_counter()
    if found is None:
        patches = source.read_block(block)
        was_read = time.perf_counter()
        if store is not None:
            write_patch_block(store, table, block, patches)
        was_stored = time.perf_counter()
        found = _take_readable(patches, sample)
    predicted = predictor.predict(found.patches, found.compared)
    logits = _place(predicted.logits, found.readable)
    spread = None if predicted.spread is None else _place(predicted.spread, found.readable)
    was_computed = time.perf_counter()
    report = BlockReport(
        patches=len(logits),
        unreadable=int(np.count_nonzero(np.isnan(logits))),
        seconds_read=was_read - started,
        seconds_compute=was_computed - was_stored,
        seconds_write=was_stored - was_read,
        fallbacks=found.fallbacks,
        is_predicted=True,
        compared=_compare(found.sample, predicted),
    )
    write_prediction_block(staging, table, block, logits, asdict(report), spread)
    return replace(report, seconds_write=report.seconds_write + time.perf_counter() - was_computed)


class _Found(NamedTuple):
    """The readable patches of a block, as a model takes them."""

    patches: NDArray[np.uint8] | TiledBlock
    readable: NDArray[np.bool_]
    """(b,) of all patches of the block."""
    compared: NDArray[np.intp]
    """(k,) those of the sample, among the readable ones."""
    sample: NDArray[np.uint8]
    """(k, side, side, 3)"""
    fallbacks: int = 0


def _read_tiles(
    source: PatchSource, predictor: "Predictor", block: int, sample: NDArray[np.intp]
) -> _Found | None:
    """Read the tiles under a block, where a GPU cuts the patches and the source has tiles."""
    buffers = predictor.tile_buffers
    if buffers is None or not isinstance(source, TileSource):
        return None
    tiles = source.read_tiles(block, buffers)
    if tiles is None:
        return None
    readable = np.ones(len(tiles), dtype=np.bool_)
    return _Found(tiles, readable, sample, predictor.cut(tiles, sample))


def _take_readable(patches: PatchBlock, sample: NDArray[np.intp]) -> _Found:
    pixels, readable = patches.pixels, patches.readable
    sample = sample[readable[sample]]
    return _Found(
        pixels if readable.all() else pixels[readable],
        readable,
        np.cumsum(readable)[sample] - 1,
        pixels[sample],
        patches.fallbacks,
    )


def _find_sample(table: PatchTable, block: int) -> NDArray[np.intp]:
    """Return the block's part of the slide's sample, of patches that are mostly tissue."""
    is_tissue = ~(table.tissue_fraction < MOSTLY)  # NaN: not measured
    members = np.flatnonzero(is_tissue | ~is_tissue.any())
    sample, rows = members[sample_patches(len(members))], table.block_slice(block)
    sample = sample[(sample >= rows.start) & (sample < rows.stop)]
    return np.asarray(sample - rows.start, dtype=np.intp)


def _compare(pixels: NDArray[np.uint8], predicted: "Predicted") -> tuple[tuple[float, ...], ...]:
    """Return stains and feature distance of each of some patches, as reports hold them."""
    if predicted.distance is None:
        return ()
    columns = np.column_stack([measure_stains(pixels), predicted.distance])
    known = columns[np.isfinite(columns).all(axis=1)]
    return tuple(tuple(row) for row in known.tolist())


def _place(values: NDArray[np.float32], readable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the values of the readable patches in their places, NaN elsewhere."""
    placed = np.full(len(readable), np.nan, dtype=np.float32)
    placed[readable] = values
    return placed


def close_predictions(staging: Staging, model: "Model") -> None:
    """Record the slide's distance from the training patches, by what the blocks report."""
    reports = staging.block_reports()
    rows = [row for block in sorted(reports) for row in reports[block].get("compared", ())]
    if model.domain is not None and rows:
        values = np.array(rows, dtype=np.float32)
        distance = model.domain.measure(values[:, :STAIN_MEASURES], values[:, STAIN_MEASURES])
        record_distance(staging.product / PREDICTIONS, distance)
