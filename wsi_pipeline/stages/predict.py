"""One slide's predictions: laid out, computed block by block, and closed.

Stains and features of some of its patches, those of `find_compared`, are compared with the model's
training patches at the same time.
"""

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import PREDICTIONS, SCALE_TOLERANCE
from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.geometry import number_positions
from wsi_pipeline.core.patch_table import (
    PartSource,
    PatchBlock,
    PatchSource,
    PatchTable,
    TiledBlock,
    TileSource,
)
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.models.card import STAIN_MEASURES, ModelFacts
from wsi_pipeline.models.choice import EngineSetting
from wsi_pipeline.models.stains import measure_stains
from wsi_pipeline.stages.known import Known
from wsi_pipeline.stages.part import find_compared, is_part
from wsi_pipeline.stages.plan import BlockReport, read_staged_table
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.patches import write_patch_block
from wsi_pipeline.store.predictions import (
    prepare_predictions,
    record_compared,
    record_distance,
    write_prediction_block,
)

if TYPE_CHECKING:
    from wsi_pipeline.models.model import Model
    from wsi_pipeline.models.predictor import Predicted, Predictor

ENGINE = "engine"
"""Entry of recipes and predictions that names the engine."""


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
    known: Known | None = None,
) -> BlockReport:
    """Read, predict and write one block; its pixels go into `store` first, if there is one.

    Unreadable patches get NaN. Logits that are `known` are kept, and only the other patches are
    read, with those that must be compared with the training patches. Batches start again with every
    block, so that the last bits of a logit may depend on the block size, but never on whether
    pixels are kept.
    """
    started = time.perf_counter()
    if known is not None and isinstance(source, PartSource):
        return _predict_unknown(source, predictor, staging, table, block, known)
    compared = find_compared_in(table, block)
    found = _read_tiles(source, predictor, block, compared) if store is None else None
    was_read = was_stored = time.perf_counter()
    if found is None:
        patches = source.read_block(block)
        was_read = time.perf_counter()
        if store is not None:
            write_patch_block(store, table, block, patches)
        was_stored = time.perf_counter()
        found = _take_readable(patches, compared)
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
        predicted=len(logits),
        compared=tuple(_compare(found, predicted, _number(table, block)[compared])),
    )
    write_prediction_block(staging, table, block, logits, asdict(report), spread)
    return replace(report, seconds_write=report.seconds_write + time.perf_counter() - was_computed)


def _predict_unknown(
    source: PartSource,
    predictor: "Predictor",
    staging: Staging,
    table: PatchTable,
    block: int,
    known: Known,
) -> BlockReport:
    """Predict the patches of a block without a known logit, and those that must be compared.

    Rows that an earlier estimate recorded of compared patches are taken from `known`.
    """
    started = time.perf_counter()
    logits, spread = known.of_block(table, block)
    numbers = _number(table, block)
    is_known = predictor.model.domain is None or known.has_distance_of(table)
    compared = np.empty(0, np.intp) if is_known else find_compared_in(table, block)
    rows = [
        known.compared[number] for number in numbers[compared].tolist() if number in known.compared
    ]
    compared = compared[~np.isin(numbers[compared], [*known.compared])]
    is_wanted = np.isnan(logits)
    is_wanted[compared] = True
    wanted = np.flatnonzero(is_wanted)
    patches = source.read_some(block, wanted)
    found = _take_readable(patches, np.searchsorted(wanted, compared))
    was_read = time.perf_counter()
    if len(found.patches):
        predicted = predictor.predict(found.patches, found.compared)
        logits[wanted] = _place(predicted.logits, found.readable)
        if spread is not None and predicted.spread is not None:
            spread[wanted] = _place(predicted.spread, found.readable)
        rows += _compare(found, predicted, numbers[compared])
    was_computed = time.perf_counter()
    report = BlockReport(
        patches=len(logits),
        unreadable=int(np.count_nonzero(np.isnan(logits))),
        seconds_read=was_read - started,
        seconds_compute=was_computed - was_read,
        fallbacks=found.fallbacks,
        predicted=len(wanted),
        compared=tuple(rows),
    )
    write_prediction_block(staging, table, block, logits, asdict(report), spread)
    return replace(report, seconds_write=time.perf_counter() - was_computed)


class _Found(NamedTuple):
    """The readable patches of a block, as a model takes them."""

    patches: NDArray[np.uint8] | TiledBlock
    readable: NDArray[np.bool_]
    """(b,) of all patches of the block."""
    compared: NDArray[np.intp]
    """(k,) index, among the readable patches, of those to compare."""
    compared_pixels: NDArray[np.uint8]
    """(k, side, side, 3) of the patches to compare."""
    is_compared: NDArray[np.bool_]
    """Whether each patch that was to be compared could be read."""
    fallbacks: int = 0


def _read_tiles(
    source: PatchSource, predictor: "Predictor", block: int, compared: NDArray[np.intp]
) -> _Found | None:
    """Read the tiles under a block, where a GPU cuts the patches and the source has tiles."""
    buffers = predictor.tile_buffers
    if buffers is None or not isinstance(source, TileSource):
        return None
    tiles = source.read_tiles(block, buffers)
    if tiles is None:
        return None
    readable = np.ones(len(tiles), dtype=np.bool_)
    return _Found(tiles, readable, compared, predictor.cut(tiles, compared), readable[compared])


def _take_readable(patches: PatchBlock, compared: NDArray[np.intp]) -> _Found:
    pixels, readable = patches.pixels, patches.readable
    is_compared = readable[compared]
    compared = compared[is_compared]
    return _Found(
        pixels if readable.all() else pixels[readable],
        readable,
        np.cumsum(readable)[compared] - 1,
        pixels[compared],
        is_compared,
        patches.fallbacks,
    )


def _number(table: PatchTable, block: int) -> NDArray[np.int64]:
    """Return the numbers (b,) of a block's positions on the grid."""
    return number_positions(table.positions[table.block_slice(block)], table.grid)


def find_compared_in(table: PatchTable, block: int) -> NDArray[np.intp]:
    """Return the index (k,) within a block of its patches among the slide's compared ones."""
    compared, rows = find_compared(table), table.block_slice(block)
    compared = compared[(compared >= rows.start) & (compared < rows.stop)]
    return np.asarray(compared - rows.start, dtype=np.intp)


def _compare(
    found: _Found, predicted: "Predicted", numbers: NDArray[np.int64]
) -> list[tuple[float, ...]]:
    """Return a row of number, nine stains and feature distance for each compared patch.

    `numbers` are those of all patches to compare, readable or not. A patch with a value that is not
    finite has no row.
    """
    if predicted.distance is None or not len(found.compared_pixels):
        return []
    columns = np.column_stack([measure_stains(found.compared_pixels), predicted.distance])
    is_known = np.isfinite(columns).all(axis=1)
    return [
        (number, *row)
        for number, row in zip(
            numbers[found.is_compared][is_known].tolist(), columns[is_known].tolist(), strict=True
        )
    ]


def _place(values: NDArray[np.float32], readable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the values of the readable patches in their places, NaN elsewhere."""
    placed = np.full(len(readable), np.nan, dtype=np.float32)
    placed[readable] = values
    return placed


def close_predictions(staging: Staging, model: "Model", known: Known | None = None) -> None:
    """Record the slide's distance from the training patches, from the reports of its blocks.

    The distance of the `known` product is taken where its compared patches are the same. Of a part
    of a slide the rows of the compared patches are recorded too, for the next product.
    """
    path = staging.product / PREDICTIONS
    table = read_staged_table(path)
    if known is not None and known.has_distance_of(table):
        record_distance(path, known.distance)
        return
    reports = staging.block_reports()
    rows = [row for block in sorted(reports) for row in reports[block].get("compared", ())]
    if model.domain is None or not rows:
        return
    values = np.array(rows)[:, -STAIN_MEASURES - 1 :].astype(np.float32)
    distance = model.domain.measure(values[:, :STAIN_MEASURES], values[:, STAIN_MEASURES])
    record_distance(path, distance)
    if is_part(staging.recipe):
        record_compared(path, rows)
