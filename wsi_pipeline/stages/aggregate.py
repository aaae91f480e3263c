"""From stored logits to a slide's committed folder: all outputs of a view in one commit.

Also rebuilds them for every finished slide, without model or slide.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import AGGREGATE_JSON, PREDICTIONS
from wsi_pipeline.core.errors import DAMAGES, EnvironmentFault, StoreError, WsiError
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideSummary, describe_failure
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.counting.context import average_context
from wsi_pipeline.counting.interval import conformal_radius
from wsi_pipeline.counting.review_file import read_review, review_path
from wsi_pipeline.counting.site import (
    ReviewedSlide,
    describe_site,
    fit_site,
    read_site,
    write_site,
)
from wsi_pipeline.outputs import WRITERS, View
from wsi_pipeline.outputs.heatmap import build_heatmap, place_on_grid
from wsi_pipeline.outputs.png import COLUMNS
from wsi_pipeline.outputs.result import Sample, SlideResult
from wsi_pipeline.outputs.run_files import (
    read_finished,
    write_failures_csv,
    write_index,
    write_slides_tables,
)
from wsi_pipeline.outputs.summarise import describe_summary, summarise
from wsi_pipeline.outputs.summary_json import add_review, read_summary
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.stages.part import is_part
from wsi_pipeline.stages.plan import describe_areas, describe_doubts
from wsi_pipeline.store.commit import VIEW, Staging, find_finished, put_back_retired, without_view
from wsi_pipeline.store.files import make_folder, remove_dead_asides, write_file
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import check_whole, is_product, read_manifest
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import Predictions, update_predictions, write_probabilities
from wsi_pipeline.store.slide_results import RESULT_KIND, find_results, open_result

ReadPixels = Callable[[NDArray[np.intp]], NDArray[np.uint8]]
"""Pixels (n, side, side, 3) of patches by their index in the predictions."""


def aggregate_results(
    results: Path,
    view: View | None = None,
    out: Path | None = None,
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> RunAccount:
    """Rebuild the outputs of every finished slide in `results`, in place or in the folder `out`.

    With `view` None each slide keeps its own; the site's calibration is that of the folder. One
    outcome per slide, whatever is raised; a slide whose outputs show this very view already is left
    alone. Raises StoreError where `results` holds no finished slide.
    """
    listener = listener or Listener()
    put_back_retired(results)
    folders = [folder.absolute() for folder in find_results([results])]
    if not folders:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    target = (out or results).absolute()
    make_folder(target)
    outcomes: list[SlideOutcome] = []
    site = read_site(results)
    for folder in folders:
        own = (view or _read_view(folder)).at_site(site)
        outcomes.append(aggregate_slide(folder, target / folder.name, own, force=force))
        listener.slide_ended(outcomes[-1])
        listener.progress(f"{len(outcomes)} of {len(folders)} slides", len(outcomes), len(folders))
    finished = read_finished(target)
    account = RunAccount(tuple(outcomes)).with_failures(finished.damaged)
    shown = None if view is None else view.at_site(site).to_json()
    ended = [{"slide_id": one.slide_id, "state": one.state} for one in account.outcomes]
    record = {"view": shown, "account": account.closing_line, "outcomes": ended}
    record["tool"] = describe_tool()
    write_file(target / AGGREGATE_JSON, (format_json(record, indent=1) + "\n").encode())
    if target != results.absolute():
        write_failures_csv(target, account.outcomes)
    write_slides_tables(target, finished.summaries)
    write_index(target, finished)
    remove_dead_asides(target)
    return account


def _read_view(folder: Path) -> View:
    """Return the view of a slide's outputs; all of them where it cannot be read."""
    try:
        return View.from_json(read_manifest(folder).recipe.get(VIEW, {}))
    except (WsiError, MemoryError, *DAMAGES):
        return View()


def calibrate_results(results: Path, listener: Listener | None = None) -> tuple[RunAccount, str]:
    """Fit the site's calibration on the reviews in `results` and make every slide's outputs again.

    Returns the outcome of each slide, and in words what the reviews came to. Raises ConfigError for
    fewer than four reviewed slides, StoreError for damaged ones or different models.
    """
    slides, terms, digests = [], ModelTerms(), set[str]()
    for folder in find_results([results]):
        path = review_path(results, folder.name)
        if not path.exists():
            continue
        predictions = open_result(folder)
        table, grid = predictions.table, predictions.table.grid
        review = read_review(path, table.slide.fingerprint, grid)
        stride_um = grid.spec.stride_px * grid.spec.mpp
        sigma = predictions.terms.on_grid.context_um / stride_um
        logits = average_context(place_on_grid(table, predictions.logit), sigma)
        if found := ReviewedSlide.of_review(review, logits):
            slides.append(found)
            terms = predictions.terms
            digests.add(predictions.model_digest)
    if len(digests) > 1:
        raise StoreError(
            f"{results}: its reviewed slides are of different models; infer them again"
        )
    own, digest = terms.on_grid, next(iter(digests), "")
    site = fit_site(slides, own.calibration, own.count, digest)
    write_site(results, site)
    account = aggregate_results(results, listener=listener)
    return account, describe_site(site, conformal_radius(terms.count_errors))


def aggregate_slide(folder: Path, target: Path, view: View, *, force: bool = False) -> SlideOutcome:
    """Make one finished slide's outputs again, in `target`; whatever is raised is the outcome."""
    try:
        with hold_lock(target):
            is_new = _aggregate(folder, target, view, force)
        outcome = describe_result(folder.name, folder, target, is_resumed_whole=not is_new)
        left_out = view.describe_left_out(read_manifest(target).recipe)
        return replace(outcome, message=outcome.message + left_out)
    except Exception as error:  # noqa: BLE001 - the batch boundary: a fault is the slide's outcome, its neighbours go on
        return describe_failure(folder.name, str(folder), error)


def _aggregate(folder: Path, target: Path, view: View, force: bool) -> bool:
    """Make one slide's outputs; False where they were there."""
    staging = Staging(target, without_view(check_whole(folder).recipe))
    manifest, view = find_finished(staging, RESULT_KIND, force), view.fit(staging.recipe)
    if manifest is not None and manifest.recipe.get(VIEW) == record_view(view, folder):
        return False
    take_over(staging, folder)
    publish(staging, view, None, previous=folder)
    return True


def record_view(view: View, folder: Path) -> dict[str, Any]:
    """Return the view as a manifest records it, with the review of the slide in its folder."""
    try:
        review = review_path(folder.parent, folder.name).read_bytes()
    except OSError:
        return view.to_json()
    return view.to_json() | {"review": hashlib.sha256(review).hexdigest()}


def describe_result(
    slide_id: str, path: Path, target: Path, is_resumed_whole: bool
) -> SlideOutcome:
    """Return the outcome of a slide by the summary in its committed folder."""
    summary = read_summary(target)
    table = Predictions(target / PREDICTIONS).table
    doubts = describe_areas(table) + describe_doubts(table)
    state, message, patches = summary.state, describe_summary(summary) + doubts, summary.patches
    return SlideOutcome(slide_id, str(path), state, message, patches, is_resumed_whole)


def take_over(staging: Staging, folder: Path) -> None:
    """Begin a product with the predictions of a finished folder, to rebuild its outputs alone."""
    staging.begin()
    if update_predictions(folder / PREDICTIONS, staging.product / PREDICTIONS):
        return
    try:
        shutil.copytree(folder / PREDICTIONS, staging.product / PREDICTIONS)
    except shutil.Error as error:  # of every file that could not be copied; one says enough
        _, place, reason = error.args[0][0]
        what = f"{place}: cannot be written ({reason})"
        raise EnvironmentFault(f"{what}; mend that and run the same line again") from error


def publish(
    staging: Staging,
    view: View,
    samples: tuple[Sample, ...] | None,
    previous: Path,
    predictions: Predictions | None = None,
) -> SlideSummary:
    """Write every format of the view and commit; `previous` is the slide's finished folder.

    `predictions` are those of the staging, where they are open already.
    """
    predictions = predictions or Predictions(staging.product / PREDICTIONS)
    record = record_view(view, previous)
    heatmap = build_heatmap(predictions, view.aggregation)
    table = predictions.table
    write_probabilities(predictions, heatmap.probability[tuple(table.positions.T)])
    place = (previous, table.slide.fingerprint, table.grid)
    summary = add_review(summarise(predictions, heatmap), *place)
    folder = previous if is_product(previous) else None
    result = SlideResult(
        table, heatmap, summary, view.plot_style, samples, folder, predictions.spread
    )
    for path in staging.product.iterdir():  # outputs of a killed run
        if path.name != PREDICTIONS:
            remove = shutil.rmtree if path.is_dir() else Path.unlink
            remove(path)
    for name in view.formats:
        WRITERS[name](result, staging.product)
    unreadable = int(np.count_nonzero(np.isnan(predictions.logit)))
    counts = {
        "patches": table.patches,
        "unreadable": unreadable,
        "positives": summary.positives,
    }
    # What was begun of the whole slide outlasts a sample or an area that is looked at meanwhile.
    staging.commit(RESULT_KIND, counts, record, keeps_begun=is_part(staging.recipe))
    return summary


def choose_samples(predictions: Predictions, read: ReadPixels) -> tuple[Sample, ...]:
    """Return the most and least probable patches and a random sample, COLUMNS of each.

    Unreadable patches are left out. The sample depends on the slide alone: every run has the same.
    """
    positions = predictions.table.positions
    probability = build_heatmap(predictions).probability[tuple(positions.T)]
    known = np.flatnonzero(~np.isnan(probability))
    rising = known[np.argsort(probability[known], kind="stable")]
    seed = int.from_bytes(hashlib.sha256(predictions.table.slide.fingerprint.encode()).digest()[:8])
    chosen = {
        "most probable": rising[::-1][:COLUMNS],
        "least probable": rising[:COLUMNS],
        "random sample": np.sort(np.random.default_rng(seed).permutation(known)[:COLUMNS]),
    }
    return tuple(
        Sample(title, positions[index], probability[index], read(index))
        for title, index in chosen.items()
    )


def read_from_slide(reader: SlideReader, predictions: Predictions) -> ReadPixels:
    """Return a function that cuts pixels from the slide."""
    grid, positions = predictions.table.grid, predictions.table.positions

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        patches = SlidePatches(reader, grid, positions[index], max(len(index), 1))
        return patches.read_block(0).pixels

    return read


def read_from_store(store: PatchStore) -> ReadPixels:
    """Return a function that takes pixels, with their checksums, from the slide's patch store."""

    def read(index: NDArray[np.intp]) -> NDArray[np.uint8]:
        side = store.grid.spec.side_px
        pixels = np.empty((len(index), side, side, 3), dtype=np.uint8)
        blocks, rows = np.divmod(index, store.block_size)
        for block in np.unique(blocks).tolist():
            members = np.flatnonzero(blocks == block)
            pixels[members] = store.read_block(block).pixels[rows[members]]
        return pixels

    return read
