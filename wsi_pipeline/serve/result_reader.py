"""Whole results in memory: maps, regions, masks. A few are kept, by the mark of their manifest."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import DAMAGES, StoreError
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.outputs.heatmap import Aggregation, Heatmap, build_heatmap
from wsi_pipeline.outputs.regions import Region, find_regions
from wsi_pipeline.serve.catalogue import Result, read_aggregation, read_model
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.predictions import Predictions, open_result

KEPT_RESULTS = 16
KEPT_REGIONS = 32

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class LoadedResult:
    """One slide's results."""

    table: PatchTable
    heatmap: Heatmap
    model: dict[str, Any]
    """What the results say of the model that made them."""
    own: NDArray[np.float32]
    """(rows, cols) as predicted; the heatmap's values are smoothed where the results are."""


class RecentlyUsed:
    """The values last asked for, by key; each is made once, whoever asks at the same time."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of that key, made now where it is not here."""
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        try:
            with turn:
                with self._lock:
                    if key in self._values:
                        self._values.move_to_end(key)
                        return cast("Value", self._values[key])
                value = make()
                self._keep(key, value)
                return value
        finally:
            with self._lock:
                self._making.pop(key, None)

    def _keep(self, key: Hashable, value: Any) -> None:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._capacity:
                self._values.popitem(last=False)


class ResultReader:
    """Loads results; safe to share between threads."""

    def __init__(self) -> None:
        self._results = RecentlyUsed(KEPT_RESULTS)
        self._regions = RecentlyUsed(KEPT_REGIONS)

    def load(self, result: Result) -> LoadedResult:
        """The whole result. Raises StoreError where it is damaged or being replaced."""
        return self._results.get((result.folder, result.stamp), lambda: _load(result))

    def regions(self, result: Result, threshold: float, min_area_mm2: float) -> tuple[Region, ...]:
        """Regions at a threshold."""
        loaded = self.load(result)
        key = (result.folder, result.stamp, threshold, min_area_mm2)
        return self._regions.get(key, lambda: find_regions(loaded.heatmap, threshold, min_area_mm2))


def _load(result: Result) -> LoadedResult:
    predictions = open_result(result.folder)
    try:
        view = read_aggregation(read_manifest(result.folder).recipe)
        model = read_model(predictions.attributes)
    except DAMAGES as error:
        raise StoreError(
            f"{result.folder}: damaged ({error}); make it again with --force"
        ) from error
    heatmap = _draw_as_published(predictions, view)
    return LoadedResult(
        table=predictions.table,
        heatmap=heatmap,
        model=describe_model(model),
        own=build_heatmap(predictions).probability if heatmap.smooth_um else heatmap.probability,
    )


def describe_model(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What may be said of a model: everything but the patients that it has seen, whose hashes can be guessed from their names."""
    return {name: value for name, value in recorded.items() if name != "seen_patients"}


def _draw_as_published(predictions: Predictions, view: Aggregation) -> Heatmap:
    """The map with the threshold, smoothing and smallest region that the slide's outputs were made with."""
    return build_heatmap(
        predictions, view.threshold, smooth_um=view.smooth_um, min_region_mm2=view.min_region_mm2
    )
