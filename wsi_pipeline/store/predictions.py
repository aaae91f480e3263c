"""Predictions of one slide: a probability for every patch, NaN where the patch could not be read."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import block_slice
from wsi_pipeline.sources import PatchTable
from wsi_pipeline.store.arrays import create_array, flush_chunk, read_rows, write_rows
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import check_files, is_product, read_manifest
from wsi_pipeline.store.schema import check_kind, read_table, write_table

KIND = "wsi predictions"
RESULT_KIND = "wsi slide result"
FOLDER = "predictions.zarr"


def prepare_predictions(staging: Staging, table: PatchTable, attributes: dict[str, Any]) -> None:
    """Lay out predictions for the table's patches, none of them made yet."""
    staging.begin()
    path = staging.product / FOLDER
    write_table(path, KIND, table, attributes)
    create_array(path, "probability", (table.patches,), (table.block_size,), "float32", float("nan"))
    staging.mark_prepared()


def write_prediction_block(
    staging: Staging, table: PatchTable, block: int, probability: NDArray[np.float32], report: dict[str, Any]
) -> None:
    """Write the probabilities (b,) of one block, and what came of it."""
    path = staging.product / FOLDER
    write_rows(path, "probability", block_slice(block, table.block_size, table.patches), probability)
    staging.mark_block(block, report, flush_chunk(path, "probability", block, dimensions=1))


class Predictions:
    """Predictions on disk, finished or under way."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError where `path` holds no predictions."""
        self.path = path
        self.attributes = check_kind(path, KIND)
        self.table = read_table(path, self.attributes)

    @property
    def threshold(self) -> float:
        """Probability from which on a patch counts as positive."""
        return float(self.attributes["model"]["threshold"])

    @property
    def positive_class(self) -> str:
        """What the model calls the class whose probability it predicts."""
        return str(self.attributes["model"]["class_names"][1])

    @property
    def negative_class(self) -> str:
        """What the model calls the other class."""
        return str(self.attributes["model"]["class_names"][0])

    @property
    def model_digest(self) -> str:
        """Digest of the checkpoint that made them."""
        return str(self.attributes["model"]["digest"])

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """float32 (n,), 0 to 1, NaN where a patch could not be read. Raises StoreError for anything else."""
        values = read_rows(self.path, "probability")
        known = values[~np.isnan(values)]
        if values.shape != (self.table.patches,) or ((known < 0) | (known > 1)).any():
            raise StoreError(f"{self.path}: damaged: probabilities outside 0 to 1; make it again with --force")
        return values


def open_result(folder: Path) -> Predictions:
    """The predictions of a finished slide result. Raises StoreError where they are not those that were written."""
    manifest = read_manifest(folder)
    check_files(folder, manifest, [name for name in manifest.files if name.startswith(f"{FOLDER}/")])
    return Predictions(folder / FOLDER)


def find_results(places: Sequence[Path]) -> list[Path]:
    """The finished slide results in result folders, sorted; none is an answer. Raises StoreError where a place is no folder."""
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise StoreError(f"{place}: no such results folder; make one with `wsi infer`")
        candidates = [place] if (place / FOLDER).is_dir() else sorted(place.iterdir())
        found += [folder for folder in candidates if (folder / FOLDER).is_dir() and is_product(folder)]
    return found
