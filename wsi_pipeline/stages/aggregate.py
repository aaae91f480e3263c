"""New outputs for every slide from its stored probabilities, without model or slide."""

import json
from pathlib import Path

from wsi_pipeline.core.choices import AGGREGATE_JSON
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, describe_failure
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import describe_summary
from wsi_pipeline.outputs.run_files import (
    read_finished,
    write_failures_csv,
    write_index,
    write_slides_tables,
)
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.stages.publish import publish, take_over
from wsi_pipeline.store.commit import VIEW, Staging, find_finished, put_back_retired
from wsi_pipeline.store.files import make_folder, remove_dead_asides, write_file
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import check_whole
from wsi_pipeline.store.predictions import RESULT_KIND, find_results


def aggregate_results(
    results: Path,
    view: View,
    out: Path | None = None,
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> RunAccount:
    """Rebuild the outputs of every finished slide in `results`, in place or in the folder `out`.

    One outcome per slide, whatever is raised; a slide whose outputs show this very view already is
    left alone. Raises StoreError where `results` holds no finished slide.
    """
    listener = listener or Listener()
    put_back_retired(results)
    folders = find_results([results])
    if not folders:
        raise StoreError(f"{results}: holds no finished slide; make some with `wsi infer`")
    target = (out or results).absolute()
    make_folder(target)
    outcomes: list[SlideOutcome] = []
    for folder in folders:
        outcomes.append(
            _try_aggregate(folder.absolute(), target / folder.absolute().name, view, force)
        )
        listener.slide_ended(outcomes[-1])
        listener.progress(f"{len(outcomes)} of {len(folders)} slides", len(outcomes), len(folders))
    finished = read_finished(target)
    account = RunAccount(tuple(outcomes)).with_failures(finished.damaged)
    record = {"view": view.to_json(), "account": account.closing_line, "tool": describe_tool()}
    write_file(
        target / AGGREGATE_JSON, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    )
    if target != results.absolute():
        write_failures_csv(target, account.outcomes)
    write_slides_tables(target, finished.summaries)
    write_index(target, finished)
    remove_dead_asides(target)
    return account


def _try_aggregate(folder: Path, target: Path, view: View, force: bool) -> SlideOutcome:
    try:
        with hold_lock(target):
            is_new = _aggregate(folder, target, view, force)
        summary = read_summary(target)
    except Exception as error:  # noqa: BLE001 - the batch boundary: a fault is the slide's outcome, its neighbours go on
        return describe_failure(folder.name, str(folder), error)
    message = describe_summary(summary)
    return SlideOutcome(
        folder.name,
        str(folder),
        summary.state,
        message,
        summary.patches,
        is_resumed_whole=not is_new,
    )


def _aggregate(folder: Path, target: Path, view: View, force: bool) -> bool:
    """Make one slide's outputs; False where they were there."""
    source = check_whole(folder)
    staging = Staging(
        target, {name: entry for name, entry in source.recipe.items() if name != VIEW}
    )
    manifest = find_finished(staging, RESULT_KIND, force)
    if manifest is not None and manifest.recipe.get(VIEW) == view.to_json():
        return False
    take_over(staging, folder)
    publish(staging, view, None, previous=folder)
    return True
