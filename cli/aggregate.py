"""`wsi aggregate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_pipeline.core.choices import INDEX_HTML

from .options import FOLDER, force_option, mode_option, read_view, view_options

if TYPE_CHECKING:
    from wsi_pipeline.core.outcome import SlideOutcome


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
def aggregate(
    results: Path,
    threshold: float | None,
    smooth: float,
    min_region_mm2: float,
    out: Path | None,
    force: bool,
    **view: Any,
) -> None:
    """Make the outputs of every slide in RESULTS anew from its stored probabilities, without model or slide.

    Each slide's folder then holds what this line asks for and nothing of another threshold; the
    probabilities stay as they are.
    """
    from wsi_pipeline.stages.aggregate import aggregate_results

    from .main import printable
    from .progress import close_run

    def say(outcome: "SlideOutcome") -> None:
        already = " (already done)" if outcome.is_resumed_whole else ""
        click.echo(
            f"{printable(outcome.slide_id)}: {outcome.state.word}:"
            f" {printable(outcome.message)}{already}",
            err=True,
        )

    account = aggregate_results(
        results, read_view(view, threshold, smooth, min_region_mm2), out, force=force, say=say
    )
    close_run(account, (out or results) / INDEX_HTML)
