"""Finished results of slides: opening one, and finding those of a folder."""

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from wsi_pipeline.core.choices import AGGREGATE_JSON, PREDICTIONS, RUN_JSON, STORE_SUFFIX
from wsi_pipeline.core.errors import StoreError, damage_error
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, read_json
from wsi_pipeline.core.outcome import SlideState
from wsi_pipeline.store.codecs import CHECKSUM_BYTES
from wsi_pipeline.store.manifest import (
    Manifest,
    check_files,
    find_kind,
    is_product,
    read_manifest,
)
from wsi_pipeline.store.predictions import KIND, Predictions
from wsi_pipeline.store.schema import check_tables
from wsi_pipeline.store.zarr_io import name_chunk

RESULT_KIND = "wsi slide result"


def refuse_estimates(predictions: Iterable[Predictions]) -> None:
    """Raise StoreError where one is an estimate; the caller needs all patches of a slide."""
    for each in predictions:
        if each.table.sample is not None:
            raise StoreError(
                f"{each.path.parent}: is an estimate of a sample of the slide; run `wsi infer`"
                " without --sample first"
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
    _check_chunks(folder, manifest, predictions)
    unreadable = int(np.count_nonzero(np.isnan(predictions.logit)))
    is_missing = np.isnan(predictions.logit) | ~table.is_counted
    if not np.array_equal(np.isnan(predictions.probability), is_missing):
        raise damage_error(folder, "some of its logits have no probability, or the reverse")
    if (counts.get("patches"), counts.get("unreadable")) != (table.patches, unreadable):
        raise damage_error(folder, "its predictions and its manifest disagree")
    return predictions


def _check_chunks(folder: Path, manifest: Manifest, predictions: Predictions) -> None:
    """Raise StoreError where a block of an array differs from the manifest."""
    names, table = predictions.arrays, predictions.table
    blocks = range(table.blocks)
    chunks = [name_chunk(f"{PREDICTIONS}/{name}", block, 1) for block in blocks for name in names]
    wanted = predictions.layout.chunk_bytes + CHECKSUM_BYTES
    for number, chunk in enumerate(chunks):
        if manifest.files.get(chunk, (0, ""))[0] != wanted:
            block = number // len(names)
            fault = f"block {block} of its predictions is missing or of another size"
            raise damage_error(folder, fault)
    check_files(folder, manifest, chunks)


def find_results(places: Sequence[Path]) -> list[Path]:
    """Return the slide results in folders, sorted, perhaps none.

    What cannot be opened counts too, so that no slide is lost without a word, and opening it gives
    the error: a product that cannot be entered, results without a manifest, and what the record
    of a run names as finished. Raises StoreError where a place is not a folder.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise StoreError(f"{place}: no such results folder; make one with `wsi infer`")
        if (place / PREDICTIONS).is_dir():
            found += [place] if is_product(place) else []
        else:
            results = {folder for folder in place.iterdir() if _holds_result(folder)}
            found += sorted(results | set(list_named(place)))
    return found


def _holds_result(folder: Path) -> bool:
    """Return True for a slide's results, whole or not, and for what may be some."""
    if folder.name.endswith(STORE_SUFFIX):
        return False
    if is_product(folder) and not os.access(folder, os.X_OK):
        return True
    try:
        return os.path.lexists(folder / PREDICTIONS) or find_kind(folder) == RESULT_KIND
    except PermissionError:
        return False


def list_named(results: Path) -> list[Path]:
    """Return the folders of slides that the record of a run names as finished, there or not.

    The record is run.json, of every share of a run, and aggregate.json where no run wrote here.
    """
    stem, _, suffix = RUN_JSON.rpartition(".")
    records = sorted(results.glob(f"{stem}*.{suffix}")) or [results / AGGREGATE_JSON]
    names = {name for record in records for name in _read_names(record, *_stamp(record))}
    return [results / name for name in sorted(names)]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.lstat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=32)
def _read_names(record: Path, _size: int, _changed_ns: int) -> tuple[str, ...]:
    """Return the slides that a record names as finished; none where it cannot be read.

    It is read again where it changed: a server asks every second.
    """
    try:
        outcomes = read_json(record, MAX_RECORD_BYTES)["outcomes"]
        ended = [one["slide_id"] for one in outcomes if one["state"] != SlideState.FAILED]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(name for name in ended if isinstance(name, str) and _is_name(name))


def _is_name(text: str) -> bool:
    """Return True for a name within a folder: the record may be anyone's."""
    return text == Path(text).name and text not in ("", "..") and "\0" not in text
