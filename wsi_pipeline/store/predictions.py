"""Predictions of one slide: a probability for every patch, NaN where it could not be read."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import StoreError, damage_error
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.store.codecs import CHECKSUM_BYTES
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import Manifest, check_files, is_product, read_manifest
from wsi_pipeline.store.schema import check_kind, check_tables, read_table, write_table
from wsi_pipeline.store.zarr_io import (
    ArrayLayout,
    check_layout,
    create_array,
    flush_chunk,
    name_chunk,
    read_rows,
    write_rows,
)

KIND = "wsi predictions"
RESULT_KIND = "wsi slide result"


def prepare_predictions(staging: Staging, table: PatchTable, attributes: dict[str, Any]) -> None:
    """Create empty predictions for the table's patches."""
    staging.begin()
    path = staging.product / PREDICTIONS
    write_table(path, KIND, table, attributes)
    create_array(path, "probability", (table.patches,), (table.block_size,), "float32")
    staging.mark_prepared()


def write_prediction_block(
    staging: Staging,
    table: PatchTable,
    block: int,
    probability: NDArray[np.float32],
    report: dict[str, Any],
) -> None:
    """Write the probabilities (b,) of one block, and its report."""
    path = staging.product / PREDICTIONS
    write_rows(path, "probability", table.block_slice(block), probability)
    staging.mark_block(block, report, flush_chunk(path, "probability", block, dimensions=1))


class Predictions:
    """Predictions on disk, finished or not."""

    def __init__(self, path: Path) -> None:
        """Open predictions. Raises StoreError where `path` holds none."""
        self.path = path
        self.attributes = check_kind(path, KIND)
        self.table = read_table(path, self.attributes)
        check_layout(path, "probability", _layout(self.table))
        model = _check_model(path, self.attributes.get("model"))
        self.threshold = float(model["threshold"])
        """Probability from which on a patch counts as positive."""
        self.negative_class: str
        self.positive_class: str
        """The model's name of the class whose probability it predicts."""
        self.negative_class, self.positive_class = model["class_names"]
        self.model_digest: str = model["digest"]
        """Digest of the checkpoint that made them."""

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """float32 (n,), 0 to 1, NaN where a patch could not be read. Raises StoreError."""
        values = read_rows(self.path, "probability")
        known = values[~np.isnan(values)]
        if values.shape != (self.table.patches,) or ((known < 0) | (known > 1)).any():
            raise damage_error(self.path, "probabilities outside 0 to 1")
        return values


def _layout(table: PatchTable) -> ArrayLayout:
    return ArrayLayout("float32", (table.patches,), (table.block_size,))


def _check_model(path: Path, model: Any) -> dict[str, Any]:
    """Return the recorded model. Raises StoreError without threshold, two classes and digest."""
    named: dict[str, Any] = model if isinstance(model, dict) else {}
    threshold: Any = named.get("threshold")
    names = named.get("class_names")
    is_named = isinstance(names, list) and [type(name) for name in names] == [str, str]
    is_number = type(threshold) in (int, float) and 0 <= threshold <= 1
    if not (is_number and is_named and isinstance(named.get("digest"), str)):
        raise damage_error(path, "does not say which model made it, its threshold and classes")
    return named


def open_result(folder: Path) -> Predictions:
    """Return the predictions of a finished slide result. Raises StoreError where they were changed.

    A patch without a number is one that could not be read: where the manifest counts fewer of
    these, numbers are missing.
    """
    manifest = read_manifest(folder)
    check_tables(folder, manifest, KIND, PREDICTIONS)
    predictions = Predictions(folder / PREDICTIONS)
    counts, table = manifest.counts, predictions.table
    _check_chunks(folder, manifest, table)
    unreadable = int(np.count_nonzero(np.isnan(predictions.probability)))
    if (counts.get("patches"), counts.get("unreadable")) != (table.patches, unreadable):
        raise damage_error(folder, "its predictions and its manifest disagree")
    return predictions


def _check_chunks(folder: Path, manifest: Manifest, table: PatchTable) -> None:
    """Raise StoreError where a block of probabilities differs from the manifest."""
    chunks = [name_chunk(f"{PREDICTIONS}/probability", block, 1) for block in range(table.blocks)]
    wanted = _layout(table).chunk_bytes + CHECKSUM_BYTES
    for block, chunk in enumerate(chunks):
        if manifest.files.get(chunk, (0, ""))[0] != wanted:
            fault = f"block {block} of its predictions is missing or of another size"
            raise damage_error(folder, fault)
    check_files(folder, manifest, chunks)


def find_results(places: Sequence[Path]) -> list[Path]:
    """Return the finished slide results in folders, sorted, perhaps none.

    A product that cannot be entered counts as one: opening it gives the error. Raises StoreError
    where a place is not a folder.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise StoreError(f"{place}: no such results folder; make one with `wsi infer`")
        candidates = [place] if (place / PREDICTIONS).is_dir() else sorted(place.iterdir())
        found += [
            folder
            for folder in candidates
            if is_product(folder)
            and (not os.access(folder, os.X_OK) or (folder / PREDICTIONS).is_dir())
        ]
    return found
