"""Predictions of one slide: a probability for every patch, NaN where it could not be read."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.geometry import block_slice, count_blocks
from wsi_pipeline.core.slide import PatchTable
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.layout import CHECKSUM_BYTES, ArrayLayout, check_layout
from wsi_pipeline.store.manifest import Manifest, check_files, is_product, read_manifest
from wsi_pipeline.store.schema import check_kind, check_tables, read_table, write_table
from wsi_pipeline.store.zarr_io import create_array, flush_chunk, read_rows, write_rows

KIND = "wsi predictions"
RESULT_KIND = "wsi slide result"


def prepare_predictions(staging: Staging, table: PatchTable, attributes: dict[str, Any]) -> None:
    """Create empty predictions for the table's patches."""
    staging.begin()
    path = staging.product / PREDICTIONS
    write_table(path, KIND, table, attributes)
    create_array(
        path, "probability", (table.patches,), (table.block_size,), "float32", float("nan")
    )
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
    write_rows(
        path, "probability", block_slice(block, table.block_size, table.patches), probability
    )
    staging.mark_block(block, report, flush_chunk(path, "probability", block, dimensions=1))


class Predictions:
    """Predictions on disk, finished or not."""

    def __init__(self, path: Path) -> None:
        """Open predictions. Raises StoreError where `path` holds none."""
        self.path = path
        self.attributes = check_kind(path, KIND)
        self.table = read_table(path, self.attributes)
        rows, block_size = self.table.patches, self.table.block_size
        check_layout(path, "probability", ArrayLayout("float32", (rows,), (block_size,)))
        _check_model(path, self.attributes.get("model"))

    @property
    def threshold(self) -> float:
        """Probability from which on a patch counts as positive."""
        return float(self.attributes["model"]["threshold"])

    @property
    def positive_class(self) -> str:
        """The model's name of the class whose probability it predicts."""
        return str(self.attributes["model"]["class_names"][1])

    @property
    def negative_class(self) -> str:
        """The model's name of the other class."""
        return str(self.attributes["model"]["class_names"][0])

    @property
    def model_digest(self) -> str:
        """Digest of the checkpoint that made them."""
        return str(self.attributes["model"]["digest"])

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """float32 (n,), 0 to 1, NaN where a patch could not be read. Raises StoreError."""
        values = read_rows(self.path, "probability")
        known = values[~np.isnan(values)]
        if values.shape != (self.table.patches,) or ((known < 0) | (known > 1)).any():
            raise StoreError(
                f"{self.path}: damaged: probabilities outside 0 to 1; make it again with --force"
            )
        return values


def _check_model(path: Path, model: Any) -> None:
    """Raise StoreError where the recorded model lacks a threshold, two classes or a digest."""
    named = model if isinstance(model, dict) else {}
    threshold, names = named.get("threshold"), named.get("class_names")
    is_number = (
        isinstance(threshold, int | float)
        and not isinstance(threshold, bool)
        and 0 <= threshold <= 1
    )
    is_named = (
        isinstance(names, list) and len(names) == 2 and all(isinstance(name, str) for name in names)
    )
    if not (is_number and is_named and isinstance(named.get("digest"), str)):
        raise StoreError(
            f"{path}: damaged: does not say which model made it, with which threshold and classes;"
            " make it again with --force"
        )


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
        raise StoreError(
            f"{folder}: damaged: its predictions and its manifest disagree; make it again with"
            " --force"
        )
    return predictions


def _check_chunks(folder: Path, manifest: Manifest, table: PatchTable) -> None:
    """Raise StoreError where a block of probabilities differs from the manifest."""
    names = [
        f"{PREDICTIONS}/probability/c/{block}"
        for block in range(count_blocks(table.patches, table.block_size))
    ]
    wanted = (
        ArrayLayout("float32", (table.patches,), (table.block_size,)).chunk_bytes + CHECKSUM_BYTES
    )
    for block, name in enumerate(names):
        if manifest.files.get(name, (0, ""))[0] != wanted:
            raise StoreError(
                f"{folder}: damaged: block {block} of its predictions is missing or of another"
                " size; make it again with --force"
            )
    check_files(folder, manifest, names)


def find_results(places: Sequence[Path]) -> list[Path]:
    """Return the finished slide results in folders, sorted, perhaps none.

    Raises StoreError where a place is not a folder.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise StoreError(f"{place}: no such results folder; make one with `wsi infer`")
        candidates = [place] if (place / PREDICTIONS).is_dir() else sorted(place.iterdir())
        found += [folder for folder in candidates if _is_result(folder)]
    return found


def _is_result(folder: Path) -> bool:
    """Return True for a slide's results, and for a product that cannot be entered.

    Opening the latter gives the error.
    """
    return is_product(folder) and (
        not os.access(folder, os.X_OK) or (folder / PREDICTIONS).is_dir()
    )
