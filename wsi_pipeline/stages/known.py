"""Logits of a slide's finished product, which its next product takes over.

Where a sample, the drawn areas or the whole slide are asked for after another of these, on the same
grid and by the same model and engine, only the patches without a logit are computed.
"""

import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import Distance
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs.heatmap import place_on_grid
from wsi_pipeline.stages.part import find_compared
from wsi_pipeline.store.manifest import is_product, read_manifest
from wsi_pipeline.store.slide_results import open_result

logger = logging.getLogger(__name__)

SAME_PIXELS = ("profile", "reader", "slide", "slide_mpp", "patch", "allow_upsample")
"""Entries of a source's recipe that decide the pixels of the patch at a position."""


class Known(NamedTuple):
    """Logits of a slide's finished product by position, and what was compared for its distance."""

    logit: NDArray[np.float32]
    """(rows, cols); NaN where none was computed, or the patch could not be read."""
    spread: NDArray[np.float32] | None
    """(rows, cols) as `logit`; None where the model is no ensemble."""
    compared: Mapping[int, tuple[float, ...]]
    """Number of a position → the row that an estimate recorded of it; empty of other products."""
    distance: Distance
    """Distance of the compared patches from the training patches."""
    numbers: NDArray[np.int64]
    """(k,) numbers of the positions whose patches gave `distance`."""

    def of_block(
        self, table: PatchTable, block: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return logits and spreads of one block, (b,) each."""
        place = tuple(table.positions[table.block_slice(block)].T)
        return self.logit[place], None if self.spread is None else self.spread[place]

    def count_missing(self, table: PatchTable, done: Collection[int]) -> int:
        """Return the number of patches in blocks that are not `done` whose logit is not known."""
        blocks = (block for block in range(table.blocks) if block not in done)
        return sum(int(np.isnan(self.of_block(table, block)[0]).sum()) for block in blocks)

    def has_distance_of(self, table: PatchTable) -> bool:
        """Return True where `distance` was measured on the same patches that `table` compares."""
        numbers = table.numbers[find_compared(table)]
        is_same = np.array_equal(np.sort(numbers), np.sort(self.numbers))
        return is_same and self.distance != Distance()


def find_known(target: Path, recipe: Mapping[str, Any]) -> Known | None:
    """Return the logits of the finished product at `target`, for a product of another recipe.

    None where there is no product, or its logits would differ: another slide, grid, model or
    engine. A damaged product is passed over with a warning.
    """
    if not is_product(target):
        return None
    try:
        manifest = read_manifest(target)
        if not _gives_same_logits(manifest.recipe, recipe):
            return None
        return _read_known(target, manifest.content_digest)
    except StoreError as error:
        logger.warning("%s; what it holds is computed again", error)
        return None


def _gives_same_logits(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return True where a patch has the same logit by both recipes; stores are never the same."""
    one, other = made.get("source"), wanted.get("source")
    if not isinstance(one, Mapping) or not isinstance(other, Mapping) or "slide" not in one:
        return False
    is_same_slide = all(one.get(name) == other.get(name) for name in SAME_PIXELS)
    return is_same_slide and all(made.get(name) == wanted.get(name) for name in ("model", "engine"))


@lru_cache(2)
def _read_known(target: Path, _digest: str) -> Known:
    """Read the logits of a product; its digest makes the cache forget a replaced one."""
    predictions = open_result(target)
    table, spread = predictions.table, predictions.spread
    placed = None if spread is None else place_on_grid(table, spread)
    return Known(
        place_on_grid(table, predictions.logit),
        placed,
        predictions.compared,
        predictions.distance,
        table.numbers[find_compared(table)],
    )
