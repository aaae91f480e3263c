"""From predictions in a staging to a committed slide's folder: all outputs of a view in one commit.

It also chooses the patches of the gallery.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs import WRITERS, View
from wsi_pipeline.outputs.heatmap import build_heatmap, summarise
from wsi_pipeline.outputs.png import COLUMNS
from wsi_pipeline.outputs.result import Sample, SlideResult
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import is_product
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import RESULT_KIND, Predictions

ReadPixels = Callable[[NDArray[np.intp]], NDArray[np.uint8]]
"""Pixels (n, side, side, 3) of patches by their index in the predictions."""


def take_over(staging: Staging, folder: Path) -> None:
    """Begin a product with the predictions of a finished folder, to rebuild its outputs alone."""
    staging.begin()
    try:
        shutil.copytree(folder / PREDICTIONS, staging.product / PREDICTIONS)
    except shutil.Error as error:  # of every file that could not be copied; one says enough
        _, place, reason = error.args[0][0]
        raise EnvironmentFault(
            f"{place}: cannot be written ({reason}); mend that and run the same line again"
        ) from error


def _clear_outputs(product: Path) -> None:
    """Remove everything but the predictions, such as the outputs of a killed run."""
    for path in product.iterdir():
        if path.name == PREDICTIONS:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish(
    staging: Staging, view: View, samples: tuple[Sample, ...] | None, previous: Path
) -> SlideSummary:
    """Aggregate, write every format of the view, and commit them together.

    `previous` is the slide's finished folder, if there is one.
    """
    predictions = Predictions(staging.product / PREDICTIONS)
    aggregation = view.aggregation
    heatmap = build_heatmap(
        predictions,
        aggregation.threshold,
        smooth_um=aggregation.smooth_um,
        min_region_mm2=aggregation.min_region_mm2,
    )
    summary = summarise(predictions, heatmap)
    result = SlideResult(
        predictions.table,
        heatmap,
        summary,
        view.plot_style,
        samples,
        previous if is_product(previous) else None,
    )
    _clear_outputs(staging.product)
    for name in view.formats:
        WRITERS[name](result, staging.product)
    counts = {
        "patches": summary.patches,
        "unreadable": summary.unreadable,
        "positives": summary.positives,
    }
    staging.commit(RESULT_KIND, counts, view.to_json())
    return summary


def choose_samples(predictions: Predictions, read: ReadPixels) -> tuple[Sample, ...]:
    """Return the most and least probable patches and a random sample, COLUMNS of each.

    Unreadable patches are left out. The sample depends on the slide alone: every run has the same.
    """
    known = np.flatnonzero(~np.isnan(predictions.probability))
    rising = known[np.argsort(predictions.probability[known], kind="stable")]
    seed = int.from_bytes(hashlib.sha256(predictions.table.slide.fingerprint.encode()).digest()[:8])
    random = np.sort(np.random.default_rng(seed).permutation(known)[:COLUMNS])
    chosen = {
        "most probable": rising[::-1][:COLUMNS],
        "least probable": rising[:COLUMNS],
        "random sample": random,
    }
    positions, probability = predictions.table.positions, predictions.probability
    return tuple(
        Sample(title, positions[index], probability[index], read(index))
        for title, index in chosen.items()
    )


def read_from_slide(reader: SlideReader, predictions: Predictions) -> ReadPixels:
    """Return a function that cuts pixels from the slide."""
    table = predictions.table

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        return (
            SlidePatches(reader, table.grid, table.positions[index], max(len(index), 1))
            .read_block(0)
            .pixels
        )

    return read


def read_from_store(store: PatchStore) -> ReadPixels:
    """Return a function that takes pixels from the slide's patch store."""

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        side = store.grid.spec.side_px
        pixels = np.empty((len(index), side, side, 3), dtype=np.uint8)
        for block in np.unique(index // store.block_size).tolist():
            members = np.flatnonzero(index // store.block_size == block)
            pixels[members] = store.read_block(block).pixels[index[members] % store.block_size]
        return pixels

    return read
