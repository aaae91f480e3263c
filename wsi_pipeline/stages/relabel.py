"""New labels for many stores: one outcome per store, whatever happens to it.

A store with new labels is a new generation of it, made without reading the slide again.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import LABELS_SUFFIX, STORE_SUFFIX
from wsi_pipeline.core.errors import EnvironmentFault, LabelError, StoreError, WsiError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.outcome import (
    RunAccount,
    SlideOutcome,
    SlideState,
    describe_failure,
    state_of,
)
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.counting.review import Review
from wsi_pipeline.counting.review_file import list_reviews, read_review
from wsi_pipeline.counting.training_calls import list_training_calls
from wsi_pipeline.labels import describe_labels, label_patches, label_recipe
from wsi_pipeline.labels.assignment import PatchLabels
from wsi_pipeline.labels.discovery import list_label_files, match_labels
from wsi_pipeline.labels.geojson import write_labels_geojson
from wsi_pipeline.labels.rules import LabelRules
from wsi_pipeline.outputs.previews import write_label_preview
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.files import make_folder
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import check_whole
from wsi_pipeline.store.patches import KIND, PatchStore, find_stores, write_generation

logger = logging.getLogger(__name__)


def relabel_stores(
    places: Sequence[Path],
    labels: Sequence[Path],
    rules: LabelRules,
    listener: Listener | None = None,
) -> RunAccount:
    """Relabel every store among `places` for which `labels` hold a file of its slide's name."""
    stores = find_stores(places)
    names = [store.name.removesuffix(STORE_SUFFIX) for store in stores]
    matches = match_labels(names, list_label_files(labels))
    for note in matches.notes:
        logger.warning(note)
    outcomes: list[SlideOutcome] = []
    for store, slide_id, label_file in zip(stores, names, matches.files, strict=True):
        try:
            outcomes.append(_relabel(store, slide_id, label_file, rules))
        except WsiError as error:
            outcomes.append(describe_failure(slide_id, str(store), error))
        if listener is not None:
            listener.slide_ended(outcomes[-1])
    warn_missing_classes(path for path, file in zip(stores, matches.files, strict=True) if file)
    return RunAccount(tuple(outcomes), "store")


def warn_missing_classes(stores: Iterable[Path]) -> None:
    """Warn where stores that were labelled have no patch of a class, which training needs."""
    found = np.zeros(2, dtype=np.int64)
    names: tuple[str, str] | None = None
    for path in stores:
        try:
            store = PatchStore(path)
        except (StoreError, EnvironmentFault):  # said with its slide
            continue
        names = store.class_names
        found += np.bincount(store.labels[store.labels >= 0], minlength=2)
        if found.all():
            return
    if names is not None:
        missing = " or ".join(
            repr(name) for name, number in zip(names, found, strict=True) if not number
        )
        logger.warning(
            "NO PATCH of class %s in the whole run: %d %s and %d %s; check the label files and what"
            " their classes mean, for a model needs both",
            missing,
            found[0],
            names[0],
            found[1],
            names[1],
        )


def _relabel(path: Path, slide_id: str, label_file: Path | None, rules: LabelRules) -> SlideOutcome:
    if label_file is None:
        message = "no label file of its name, left as it was"
        return SlideOutcome(slide_id, str(path), SlideState.OK, message, is_resumed_whole=True)
    return _describe_labels(path, slide_id, relabel_store(path, label_file, rules))


def _describe_labels(path: Path, slide_id: str, is_new: bool) -> SlideOutcome:
    """Draw the labels beside a store and return its outcome."""
    store = PatchStore(path)
    table = store.table
    write_label_preview(table, path.with_name(f"{slide_id}{LABELS_SUFFIX}"))
    counts = np.bincount(table.labels + 1, minlength=3).tolist()
    names = ("unknown", *table.class_names)
    message = ", ".join(f"{count} {name}" for count, name in zip(counts, names, strict=True))
    if described := describe_labels(store.attributes.get("labels") or {}):
        message += f"; {described}"
    state = state_of(table.patches, int(np.count_nonzero(~store.readable)))
    return SlideOutcome(slide_id, str(path), state, message, table.patches, not is_new)


def relabel_by_reviews(
    places: Sequence[Path], results: Path, listener: Listener | None = None
) -> RunAccount:
    """Label the patches of stores that `wsi review` of these results has called.

    A review is found by the slide's fingerprint and the grid. Raises StoreError where the results
    have no review, or a damaged one.
    """
    called = _list_calls(results)
    if not called:
        raise StoreError(f"{results}: holds no reviews; make some with `wsi review {results}`")
    outcomes: list[SlideOutcome] = []
    for path in find_stores(places):
        slide_id = path.name.removesuffix(STORE_SUFFIX)
        try:
            outcomes.append(_relabel_by_calls(path, slide_id, called))
        except WsiError as error:
            outcomes.append(describe_failure(slide_id, str(path), error))
        if listener is not None:
            listener.slide_ended(outcomes[-1])
    return RunAccount(tuple(outcomes), "store")


@dataclass(frozen=True, slots=True)
class _Called:
    """The calls of one slide's patches by people."""

    fingerprint: str
    grid: Grid
    class_names: tuple[str, str]
    calls: Mapping[int, bool]
    """By the patch's number."""
    described: Mapping[str, Any]
    """Record for the store that they label."""


def _list_calls(results: Path) -> list[_Called]:
    """Return the calls of reviews, after those for training: of a patch in both, the review's."""
    trained = [
        _Called(
            each.fingerprint,
            each.grid,
            each.class_names,
            each.labels,
            {"training": len(each.calls), "hard_negatives": each.hard_negatives},
        )
        for each in list_training_calls(results)
    ]
    return [*trained, *(_of_review(read_review(path)) for path in list_reviews(results))]


def _of_review(review: Review) -> _Called:
    calls = review.calls_of(review.first_reviewer)
    described = {"reviewer": review.first_reviewer}
    return _Called(review.fingerprint, review.grid, review.class_names, calls, described)


def _relabel_by_calls(path: Path, slide_id: str, called: Sequence[_Called]) -> SlideOutcome:
    store = PatchStore(path)
    of_slide = [each for each in called if each.fingerprint == store.slide.fingerprint]
    fitting = [each for each in of_slide if each.grid == store.grid]
    if of_slide and not fitting:
        raise LabelError(
            f"{path}: the review of its slide is of patches of another size or place; tile the"
            " slide as it was inferred"
        )
    calls = {number: call for each in fitting for number, call in each.calls.items()}
    if not calls:
        message = "no review of its slide, left as it was"
        return SlideOutcome(slide_id, str(path), SlideState.OK, message, is_resumed_whole=True)
    described = {key: value for each in fitting for key, value in each.described.items()}
    merged = replace(fitting[-1], calls=calls, described=described)
    return _describe_labels(path, slide_id, _put_calls(path, merged))


def put_review(path: Path, review: Review) -> bool:
    """Label the patches of a store that the first reviewer called; others keep their labels.

    Returns False where it has these labels already. Raises StoreError for a damaged store,
    LabelError where it has labels of other classes.
    """
    return _put_calls(path, _of_review(review))


def _put_calls(path: Path, called: _Called) -> bool:
    with hold_lock(path):
        store = PatchStore(path)
        table, calls = store.table, called.calls
        numbers = table.positions[:, 0].astype(np.int64) * table.grid.cols + table.positions[:, 1]
        values = np.array([calls.get(number, -1) for number in numbers.tolist()], dtype=np.int8)
        is_called = values >= 0
        labels = np.where(is_called, values, table.labels).astype(np.int8)
        names = called.class_names
        if (table.labels >= 0).any() and table.class_names[1] != names[1]:
            raise LabelError(
                f"{path}: its labels are of class {table.class_names[1]!r}, the review is of"
                f" {names[1]!r}; label the store anew with --class-names"
            )
        names = table.class_names if (table.labels >= 0).any() else names
        if np.array_equal(labels, table.labels) and names == table.class_names:
            return False
        fraction = np.where(is_called, np.float32(np.nan), table.label_fraction)
        described = dict(store.attributes.get("labels") or {})
        patches = int(np.count_nonzero(is_called))
        described["review"] = {**called.described, "patches": patches}
        before = store.manifest.recipe.get("labels")
        if isinstance(before, Mapping) and "review" in before:
            before = before.get("before")
        source = {"before": before, "review": labels_digest(labels)}
        staging = Staging(path, {**store.manifest.recipe, "labels": source})
        find_finished(staging, KIND, force=True, inputs=[])
        check_whole(path)
        new = PatchLabels(labels, fraction.astype(np.float32), described)
        _write_generation(staging, store, new, names)
        return True


def labels_digest(labels: NDArray[np.int8]) -> str:
    """Return a name of the labels of all patches of a store."""
    return hashlib.sha256(labels.tobytes()).hexdigest()


def export_labels(places: Sequence[Path], folder: Path) -> list[Path]:
    """Write the labels of every store among `places` as GeoJSON into a folder; return the files."""
    make_folder(folder)
    written = []
    for store in find_stores(places):
        written.append(folder / f"{store.name.removesuffix(STORE_SUFFIX)}.geojson")
        write_labels_geojson(PatchStore(store).table, written[-1])
    return written


def relabel_store(path: Path, label_file: Path, rules: LabelRules) -> bool:
    """Replace the labels of a store by those of a file; return False where it has them already.

    Pixels are taken over as they are (hard links where the file system has them). The old
    generation stays until the new one is complete. Raises StoreError for a damaged store,
    LabelError for labels that do not fit; the store is then as it was.
    """
    with hold_lock(path):
        store = PatchStore(path)
        old, table = store.manifest, store.table
        staging = Staging(path, {**old.recipe, "labels": label_recipe(rules, label_file)})
        if staging.recipe == old.recipe:
            return False
        find_finished(staging, KIND, force=True, inputs=[label_file])
        check_whole(path)
        labels = label_patches(label_file, table.slide, table.grid, table.positions, rules)
        _write_generation(staging, store, labels, rules.class_names)
        return True


def _write_generation(
    staging: Staging, store: PatchStore, labels: PatchLabels, class_names: tuple[str, str]
) -> None:
    """Commit a store with other labels; everything else is taken over."""
    table = replace(
        store.table,
        labels=labels.labels,
        label_fraction=labels.fraction,
        class_names=class_names,
    )
    generation = int(store.attributes.get("generation", 1)) + 1
    write_generation(
        staging, store, table, {"labels": labels.description, "generation": generation}
    )
