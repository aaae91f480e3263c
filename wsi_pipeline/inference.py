"""Predictions for the patches of one slide, block by block, from any patch source."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from wsi_pipeline.core.errors import ModelError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.core.slide import PatchSource, PatchTable
from wsi_pipeline.models.model import Model
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import prepare_predictions, write_prediction_block

ENGINE = "engine"
"""Entry of a recipe that says what computed the predictions."""
SCALE_TOLERANCE = 0.05
"""A model sees patches whose scale differs from its own by at most this share."""


def check_fit(name: str, spec: PatchSpec, model: Model) -> None:
    """Raise ModelError where patches of `spec` are not what the model was trained on."""
    wanted = model.spec
    if spec.side_px != wanted.side_px:
        raise ModelError(
            f"{name}: patches of {spec.side_px} px, the model takes {wanted.side_px} px; tile with --patch-size {wanted.side_px}"
        )
    if abs(spec.mpp - wanted.mpp) > SCALE_TOLERANCE * wanted.mpp:
        raise ModelError(
            f"{name}: patches at {spec.mpp:g} µm/px, the model was trained at {wanted.mpp:g} µm/px; tile with --mpp {wanted.mpp:g}"
        )


def inference_recipe(source_recipe: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """Everything that decides a slide's predictions and what is drawn of them; the size of batches changes the last bits at most."""
    return {"source": dict(source_recipe), "model": predictor.model.digest, ENGINE: predictor.setting.to_json()}


def describe_engine(entry: Mapping[str, Any]) -> str:
    """What computed predictions, in words, from the entry of their recipe."""
    return f"{entry.get('engine')} {entry.get('precision')} ({entry.get('device')})"


def check_table(table: PatchTable, model: Model) -> None:
    """Raise ModelError where a slide's patches, or what their labels mean, do not fit the model."""
    check_fit(table.slide.path, table.grid.spec, model)
    if (table.labels >= 0).any() and table.class_names != model.class_names:
        raise ModelError(
            f"{table.slide.path}: its labels mean {' and '.join(table.class_names)}, "
            f"the model tells {' from '.join(model.class_names)}; "
            "label the store with the model's --class-names"
        )


def begin_predictions(staging: Staging, table: PatchTable, predictor: Predictor) -> None:
    """Lay out the predictions of a slide. Raises ModelError where its patches do not fit the model."""
    check_table(table, predictor.model)
    attributes = {"model": predictor.model.to_json(), ENGINE: predictor.setting.to_json(), "provenance": describe_tool()}
    prepare_predictions(staging, table, attributes)


def predict_block(source: PatchSource, predictor: Predictor, staging: Staging, table: PatchTable, block: int) -> dict[str, Any]:
    """Read, predict and write one block; returns counts and seconds by stage. Unreadable patches get NaN."""
    started = time.perf_counter()
    patches = source.read_block(block)
    was_read = time.perf_counter()
    probability = np.full(len(patches.readable), np.nan, dtype=np.float32)
    probability[patches.readable] = predictor(patches.pixels[patches.readable])
    was_computed = time.perf_counter()
    report: dict[str, Any] = {
        "patches": len(probability),
        "unreadable": int(np.count_nonzero(np.isnan(probability))),
        "seconds_read": was_read - started,
        "seconds_compute": was_computed - was_read,
    }
    write_prediction_block(staging, table, block, probability, report)
    return report | {"seconds_write": time.perf_counter() - was_computed}
