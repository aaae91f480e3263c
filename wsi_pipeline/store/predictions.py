"""Predictions of one slide: a logit for every patch, NaN where it could not be read.

Beside the logits stand the probabilities that are made of them once all blocks are there: of each
patch alone, and with its neighbours as the slide's outputs show it. Those of an ensemble also have
the spread of its members' logits.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.calibration import ModelTerms, read_distance, read_limits
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import DAMAGES, ModelError, damage_error
from wsi_pipeline.core.outcome import Distance, Limits
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.store.arrays import MEANINGS
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.schema import (
    check_kind,
    is_first_format,
    read_table,
    write_table,
)
from wsi_pipeline.store.zarr_io import (
    ArrayLayout,
    add_attributes,
    check_layout,
    consolidate,
    create_array,
    flush_chunk,
    read_attributes,
    read_rows,
    write_rows,
)

KIND = "wsi predictions"
LOGIT, ALONE, FINAL = "logit", "raw_probability", "probability"
SPREAD, HAS_SPREAD = "spread", "has_spread"
"""An array of an ensemble's predictions, and the attribute that says that it is there."""
DISTANCE = "distance"
"""An attribute: how far the slide is from the training patches."""
COMPARED = "compared"
"""An attribute of results of a part: rows of the patches compared with training patches."""
SAMPLE = "sample"
"""Entry of a source's recipe: the results are an estimate of a sample of the slide's patches."""
ARRAYS = (LOGIT, ALONE, FINAL)
"""float32 (n,) each, in blocks."""


def is_estimate(recipe: Mapping[str, Any]) -> bool:
    """Return True for the recipe of results of a sample."""
    source = recipe.get("source")
    return isinstance(source, Mapping) and SAMPLE in source


def name_arrays(has_spread: bool) -> tuple[str, ...]:
    """Return the names of the arrays in blocks of predictions, of an ensemble if these spread."""
    return (*ARRAYS, SPREAD) if has_spread else ARRAYS


def prepare_predictions(
    staging: Staging, table: PatchTable, attributes: dict[str, Any], *, has_spread: bool = False
) -> None:
    """Create empty predictions for the table's patches."""
    staging.begin()
    path = staging.product / PREDICTIONS
    write_table(path, KIND, table, attributes | ({HAS_SPREAD: True} if has_spread else {}))
    for name in name_arrays(has_spread):
        _create(path, name, table)
    staging.mark_prepared()


def _create(path: Path, name: str, table: PatchTable) -> None:
    meaning = MEANINGS[name]
    create_array(
        path,
        name,
        (table.patches,),
        (table.block_size,),
        "float32",
        dimension_names=meaning.dimension_names,
        attributes=meaning.attributes,
    )


def has_logits(path: Path) -> bool:
    """Return False for predictions of a version that stored probabilities alone."""
    return (path / LOGIT).is_dir()


def write_prediction_block(
    staging: Staging,
    table: PatchTable,
    block: int,
    logits: NDArray[np.float32],
    report: dict[str, Any],
    spread: NDArray[np.float32] | None = None,
) -> None:
    """Write the logits (b,) of one block, NaN where it could not be read, and its report.

    `spread` (b,) is an ensemble's.
    """
    path = staging.product / PREDICTIONS
    if spread is not None:
        write_rows(path, SPREAD, table.block_slice(block), spread)
        flush_chunk(path, SPREAD, block, dimensions=1)
    checksum = write_rows(path, LOGIT, table.block_slice(block), logits)
    staging.mark_block(block, report, flush_chunk(path, LOGIT, block, dimensions=1), checksum)


def update_predictions(source: Path, path: Path) -> bool:
    """Write predictions of an earlier format in today's; return False for those of today.

    Raises StoreError.
    """
    if not is_first_format(read_attributes(source)):
        return False
    old = Predictions(source)
    write_table(path, KIND, old.table, old.attributes)
    values = {LOGIT: old.logit, ALONE: old.alone, FINAL: old.probability}
    values |= {} if old.spread is None else {SPREAD: old.spread}
    for name, array in values.items():
        _create(path, name, old.table)
        write_rows(path, name, slice(0, len(array)), array)
    return True


def write_probabilities(predictions: "Predictions", probability: NDArray[np.float32]) -> None:
    """Write the probabilities (n,) that outputs show, and those of each patch alone."""
    path, table = predictions.path, predictions.table
    values = {ALONE: predictions.alone, FINAL: probability}
    if not has_logits(path):
        values[LOGIT] = predictions.logit
        _create(path, LOGIT, table)
        _create(path, ALONE, table)
    for name, array in values.items():
        write_rows(path, name, slice(0, table.patches), array)
    consolidate(path)


def record_distance(path: Path, distance: Distance) -> None:
    """Record in predictions the slide's distance from the model's training patches."""
    add_attributes(path, {DISTANCE: distance._asdict()})


def record_compared(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Record rows of number, nine stains and feature distance, one for each compared patch."""
    add_attributes(path, {COMPARED: [[*row] for row in rows]})


class Predictions:
    """Predictions on disk, finished or not."""

    def __init__(self, path: Path) -> None:
        """Open predictions. Raises StoreError where `path` holds none."""
        self.path = path
        self.attributes = check_kind(path, KIND)
        self.table = read_table(path, self.attributes)
        self._has_logits = has_logits(path)
        self.arrays = _list_arrays(path, self.attributes)
        """Names of its arrays in blocks."""
        self.layout = ArrayLayout("float32", (self.table.patches,), (self.table.block_size,))
        """Layout of each of them."""
        for name in self.arrays:
            check_layout(path, name, self.layout)
        model, self.terms = _check_model(path, self.attributes.get("model"))
        """Context, calibration and thresholds for the model's logits."""
        self.negative_class: str
        self.positive_class: str
        """The model's name of the class whose probability it predicts."""
        self.negative_class, self.positive_class = model["class_names"]
        self.model_digest: str = model["digest"]
        """Digest of the checkpoint that made them."""
        self.distance, self.limits = _read_distance(path, self.attributes, model)
        """Distance of the slide from the model's training patches, and its limits."""

    @cached_property
    def compared(self) -> dict[int, tuple[float, ...]]:
        """Number of a patch → its row of `record_compared`, if any. Raises StoreError."""
        rows = self.attributes.get(COMPARED, [])
        try:
            found = {int(row[0]): tuple(map(float, row)) for row in rows}
        except DAMAGES as error:
            raise damage_error(self.path, f"{COMPARED} in its attributes is invalid") from error
        return found

    @cached_property
    def logit(self) -> NDArray[np.float32]:
        """float32 (n,) as the network gave it, NaN where a patch could not be read.

        Of predictions that hold no logits, it is made of the probabilities. Raises StoreError.
        """
        if not self._has_logits:
            return self.terms.alone.calibration.undo(self.probability)
        values = read_rows(self.path, LOGIT)
        if values.shape != (self.table.patches,) or np.isinf(values).any():
            raise damage_error(self.path, "logits that are not finite")
        return values

    @cached_property
    def spread(self) -> NDArray[np.float32] | None:
        """Standard deviation of the logits of an ensemble's members, float32 (n,), NaN as above.

        None for one model. Raises StoreError.
        """
        if SPREAD not in self.arrays:
            return None
        values = read_rows(self.path, SPREAD)
        is_wrong = np.isinf(values) | (values < 0) | (np.isnan(values) != np.isnan(self.logit))
        if is_wrong.any():
            raise damage_error(self.path, "spreads that are not finite and 0 or more")
        return values

    @cached_property
    def alone(self) -> NDArray[np.float32]:
        """Probability of each patch by itself, float32 (n,), NaN as above. Raises StoreError."""
        if not self._has_logits:
            return self.probability
        return self.terms.alone.calibration.apply(self.logit)

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """Probability that the outputs show, float32 (n,), 0 to 1, NaN as above.

        NaN everywhere before the outputs are made. Raises StoreError.
        """
        values = read_rows(self.path, FINAL)
        known = values[~np.isnan(values)]
        if values.shape != (self.table.patches,) or ((known < 0) | (known > 1)).any():
            raise damage_error(self.path, "probabilities outside 0 to 1")
        return values


def _read_distance(
    path: Path, attributes: dict[str, Any], model: dict[str, Any]
) -> tuple[Distance, Limits]:
    """Return the recorded distance and limits, nothing where none is. Raises StoreError."""
    found, limits = attributes.get(DISTANCE) or {}, model.get("limits") or {}
    try:
        return read_distance(found), read_limits(limits)
    except (ModelError, AttributeError, TypeError, ValueError) as error:
        raise damage_error(path, f"a distance in its attributes is invalid ({error})") from error


def _list_arrays(path: Path, attributes: dict[str, Any]) -> tuple[str, ...]:
    if not has_logits(path):
        return (FINAL,)
    return name_arrays(bool(attributes.get(HAS_SPREAD)))


def _check_model(path: Path, model: Any) -> tuple[dict[str, Any], ModelTerms]:
    """Return the recorded model and its terms.

    Raises StoreError without terms, two classes and digest.
    """
    named: dict[str, Any] = model if isinstance(model, dict) else {}
    names = named.get("class_names")
    is_named = isinstance(names, list) and [type(name) for name in names] == [str, str]
    try:
        terms = ModelTerms.of_record(named)
    except (ModelError, *DAMAGES):
        is_named = False
    if not (is_named and isinstance(named.get("digest"), str)):
        raise damage_error(path, "does not say which model made it, its thresholds and classes")
    return named, terms
