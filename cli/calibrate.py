"""`wsi calibrate`."""

from pathlib import Path

import rich_click as click

from wsi_pipeline.core.choices import INDEX_HTML

from .options import DEFAULT_RESULTS, mode_option, results_argument, unless_default
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@results_argument()
@click.option(
    "--reviewed",
    is_flag=True,
    help="By the patches that people called in `wsi review RESULTS`.",
)
@mode_option
def calibrate(results: Path, reviewed: bool) -> None:
    """Fit the model's calibration to the site whose slides are in RESULTS.

    Slope and offset follow from the reviews, of four slides at least; leaving each out in turn
    measures how far counts are off here. RESULTS/calibration.json keeps them, and the outputs of
    every slide are made again; later runs into RESULTS use them too. Remove the file and run `wsi
    aggregate` to go back.
    """
    if not reviewed:
        raise click.UsageError("say by what: --reviewed, by the reviews in RESULTS")
    from .progress import end_run, show_progress

    with show_progress() as progress:
        from wsi_pipeline.stages.aggregate import calibrate_results

        account, words = calibrate_results(results, progress)
    click.echo(words)
    end_run(account, results / INDEX_HTML, "wsi view", *unless_default(results, DEFAULT_RESULTS))
