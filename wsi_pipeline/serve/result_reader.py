"""Whole results in memory: maps, regions, masks. A few are kept, by the stamp of their manifest."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from threading import Condition
from typing import Any

import numpy as np
from cachetools import LRUCache, cached
from numpy.typing import NDArray

from wsi_pipeline.core.errors import DAMAGES, StoreError
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs.heatmap import Heatmap, build_heatmap, place_on_grid, read_aggregation
from wsi_pipeline.outputs.regions import Region, find_regions
from wsi_pipeline.outputs.tissue import OutlinedPieces, TissuePiece, count_pieces, outline_pieces
from wsi_pipeline.serve.catalogue import Result, read_model
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.store.slide_results import open_result

DAMAGED = "the results are damaged; infer the slide again"
KEPT_RESULTS = 16
KEPT_REGIONS = 32


@dataclass(frozen=True, slots=True)
class LoadedResult:
    """One slide's results."""

    result: Result
    summary: SlideSummary
    table: PatchTable
    heatmap: Heatmap
    """With the threshold, context and smallest region of the slide's outputs."""
    model: dict[str, Any]
    """Description of the model that made the results."""
    model_threshold: float
    """The model's own for counting."""
    own: NDArray[np.float32]
    """(rows, cols) probability of each patch alone, without its neighbours."""
    spread: NDArray[np.float32] | None = None
    """(rows, cols) standard deviation of the logits of an ensemble's members; None: one model."""


class ResultReader:
    """Loads results; safe to share between threads.

    What was asked for last is kept, and made once when several ask at the same time.
    """

    def __init__(self) -> None:
        results: LRUCache[Hashable, LoadedResult] = LRUCache(KEPT_RESULTS)
        regions: LRUCache[Hashable, tuple[Region, ...]] = LRUCache(KEPT_REGIONS)
        self._load = cached(results, key=_stamp, condition=Condition())(_load)
        outlined: LRUCache[Hashable, OutlinedPieces | None] = LRUCache(KEPT_RESULTS)
        self._outline = cached(outlined, key=_stamp, condition=Condition())(self._outline_pieces)
        self._find = cached(regions, key=_stamp, condition=Condition())(self._find_regions)

    def load(self, result: Result) -> LoadedResult:
        """Return the whole result.

        Raises Refusal where it is known to be damaged, StoreError where it is found to be, or is
        being replaced.
        """
        return replace(self._load(result), result=result, summary=require_summary(result))

    def regions(self, result: Result, threshold: float, min_area_mm2: float) -> tuple[Region, ...]:
        """Return the regions at a threshold. Raises as `load`."""
        return self._find(result, threshold, min_area_mm2)

    def pieces(self, result: Result, threshold: float | None = None) -> tuple[TissuePiece, ...]:
        """Return the pieces of tissue on the glass, counted at a threshold. Raises as `load`."""
        loaded, outlined = self.load(result), self._outline(result)
        at = loaded.heatmap.threshold if threshold is None else threshold
        heatmap = replace(loaded.heatmap, threshold=at)
        return () if outlined is None else count_pieces(outlined, loaded.table, heatmap)

    def _outline_pieces(self, result: Result) -> OutlinedPieces | None:
        return outline_pieces(self.load(result).table)

    def _find_regions(self, result: Result, *limits: float) -> tuple[Region, ...]:
        return find_regions(self.load(result).heatmap, *limits)


def _stamp(result: Result, *more: float) -> Hashable:
    """Return the key of a result: another after it was replaced."""
    return result.folder, result.stamp, *more


def _load(result: Result) -> LoadedResult:
    summary = require_summary(result)
    predictions = open_result(result.folder)
    try:
        view = read_aggregation(result.folder)
        model = read_model(predictions.attributes)
    except DAMAGES as error:
        raise StoreError(f"{result.folder}: damaged ({error}); infer the slide again") from error
    heatmap, table = build_heatmap(predictions, view), predictions.table
    own = place_on_grid(table, predictions.alone)
    threshold = predictions.terms.choose(view.context_um).count
    described = describe_model(model)
    spread = None if predictions.spread is None else place_on_grid(table, predictions.spread)
    return LoadedResult(result, summary, table, heatmap, described, threshold, own, spread)


def require_summary(result: Result) -> SlideSummary:
    """Return the metrics of results. Raises Refusal where these are damaged."""
    if result.summary is None:
        raise Refusal(422, DAMAGED)
    return result.summary


def describe_model(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's description without the patients that it has seen.

    Their hashes can be guessed from their names.
    """
    return {name: value for name, value in recorded.items() if name != "seen_patients"}
