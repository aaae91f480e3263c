"""Which patches of a slide a person should see, and their pixels."""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.outputs.gallery_png import COLUMNS
from wsi_pipeline.outputs.result import Sample
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import Predictions

ReadPixels = Callable[[NDArray[np.intp]], NDArray[np.uint8]]
"""Pixels (n, side, side, 3) of patches by their index in the predictions."""


def choose_samples(predictions: Predictions, read: ReadPixels) -> tuple[Sample, ...]:
    """The most and the least probable patches and a random sample, COLUMNS of each; unreadable ones are never shown.

    The sample hangs on the slide alone, so that every run shows the same.
    """
    known = np.flatnonzero(~np.isnan(predictions.probability))
    rising = known[np.argsort(predictions.probability[known], kind="stable")]
    seed = int.from_bytes(hashlib.sha256(predictions.table.slide.fingerprint.encode()).digest()[:8])
    random = np.sort(np.random.default_rng(seed).permutation(known)[:COLUMNS])
    chosen = {"most probable": rising[::-1][:COLUMNS], "least probable": rising[:COLUMNS], "random sample": random}
    cells, probability = predictions.table.cells, predictions.probability
    return tuple(Sample(title, cells[index], probability[index], read(index)) for title, index in chosen.items())


def read_from_slide(reader: SlideReader, predictions: Predictions) -> ReadPixels:
    """Pixels cut from the slide."""
    table = predictions.table

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        return SlidePatches(reader, table.grid, table.cells[index], max(len(index), 1)).read_block(0).pixels

    return read


def read_from_store(store: PatchStore) -> ReadPixels:
    """Pixels from the slide's patch store."""

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        side = store.grid.spec.side_px
        pixels = np.empty((len(index), side, side, 3), dtype=np.uint8)
        for block in np.unique(index // store.block_size).tolist():
            members = np.flatnonzero(index // store.block_size == block)
            pixels[members] = store.read_block(block).pixels[index[members] % store.block_size]
        return pixels

    return read
