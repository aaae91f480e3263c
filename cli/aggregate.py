"""`wsi aggregate`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import INDEX_HTML
from wsi_pipeline.core.options import AggregateOptions

from .options import (
    DEFAULT_RESULTS,
    FOLDER,
    build,
    mode_option,
    options_of,
    results_argument,
    unless_default,
)
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@results_argument()
@click.option(
    "--out",
    "-o",
    type=FOLDER,
    help="Write a results folder of its own instead of changing RESULTS.",
)
@options_of(AggregateOptions)
@mode_option
def aggregate(results: Path, out: Path | None, **options: Any) -> None:
    """Make the outputs of every slide in RESULTS again from its stored logits.

    Each slide's folder then holds what this line asks for and nothing of another threshold; the
    logits stay as they are.
    """
    from .progress import end_run, show_progress

    with show_progress() as progress:
        from wsi_pipeline.outputs import read_view
        from wsi_pipeline.stages.aggregate import aggregate_results

        settings = build(AggregateOptions, options)
        view = read_view(settings)
        account = aggregate_results(results, view, out, force=settings.force, listener=progress)
    target = out or results
    end_run(account, target / INDEX_HTML, "wsi view", *unless_default(target, DEFAULT_RESULTS))
