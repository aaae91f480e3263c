"""`wsi aggregate`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import INDEX_HTML

from .main import leave
from .options import FOLDER, build, force_option, mode_option, view_options


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--threshold",
    "-t",
    type=click.FloatRange(0, 1),
    help="Probability from which on a patch is positive. [default: the model's own]",
)
@click.option(
    "--smooth",
    type=click.FloatRange(0),
    default=0.0,
    metavar="UM",
    help="Smooth the map with a Gaussian of this standard deviation in µm.",
)
@click.option(
    "--min-region-mm2",
    type=click.FloatRange(0),
    default=0.0,
    metavar="MM2",
    help="Positive areas smaller than this do not count.",
)
@click.option(
    "--out",
    "-o",
    type=FOLDER,
    help="Write a results folder of its own instead of changing RESULTS.",
)
@force_option
@view_options
@mode_option
def aggregate(results: Path, out: Path | None, **options: Any) -> None:
    """Make the outputs of every slide in RESULTS again from its stored probabilities.

    Each slide's folder then holds what this line asks for and nothing of another threshold; the
    probabilities stay as they are.
    """
    from .progress import close_run, show_progress

    with show_progress() as progress:
        from wsi_pipeline.outputs import AggregateOptions
        from wsi_pipeline.stages.aggregate import aggregate_results

        settings = build(AggregateOptions, options)
        account = aggregate_results(
            results, settings.view, out, force=settings.force, listener=progress
        )
    leave(close_run(account, (out or results) / INDEX_HTML))
