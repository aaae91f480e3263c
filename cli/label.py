"""`wsi label`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.options import LabelOptions

from .main import leave
from .options import EXISTING, FOLDER, RESULTS, labels_option, mode_option, options_of
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@labels_option
@click.option(
    "--reviews",
    type=RESULTS,
    metavar="RESULTS",
    help=(
        "Label the patches that were called by `wsi review` of these results; others keep their"
        " labels."
    ),
)
@options_of(LabelOptions)
@click.option(
    "--export",
    type=FOLDER,
    help=(
        "Write the labels that the stores have as QuPath GeoJSON into this folder, and change"
        " nothing."
    ),
)
@mode_option
def label(
    stores: tuple[Path, ...],
    labels: tuple[Path, ...],
    reviews: Path | None,
    export: Path | None,
    **rules: Any,
) -> None:
    """Give existing patch stores new labels, without reading the slides again.

    Each store becomes a new generation of itself; its pixels stay as they are. A store without a
    label file of its name, or a review of its slide and grid, is left alone. Beside each store,
    <slide>.labels.png shows the labelled patches with counts per class and mm².
    """
    from wsi_pipeline.labels.rules import read_rules
    from wsi_pipeline.stages.relabel import export_labels, relabel_by_reviews, relabel_stores

    from .progress import show_progress

    if [bool(labels), bool(reviews), bool(export)].count(True) != 1:
        raise click.UsageError("give either --labels, or --reviews, or --export")
    if export is not None:
        for path in export_labels(stores, export):
            click.echo(f"→  {path}")
        return
    with show_progress() as progress:
        if reviews is not None:
            account = relabel_by_reviews(stores, reviews, progress)
        else:
            account = relabel_stores(stores, labels, read_rules(LabelOptions(**rules)), progress)
    click.echo(account.sentence)
    leave(account.exit_code)
