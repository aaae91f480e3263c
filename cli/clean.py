"""`wsi clean`."""

from pathlib import Path

import rich_click as click

from .main import printable
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH…")
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=0.0,
    metavar="DAYS",
    help="Only what nothing was written into for so long.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def clean(paths: tuple[Path, ...], older_than: float, dry_run: bool) -> None:
    """Remove the unfinished work of dead runs at or below PATH.

    The same line as before would take that work up where it stopped; once it is removed, it begins
    again. Finished products, and work that a living process is at, are not touched.
    """
    from wsi_pipeline.runs.clean import clean as remove_leftovers

    found = remove_leftovers(paths, older_than, dry_run)
    for leftover in found:
        size = f"{leftover.bytes / 1e6:,.1f} MB of unfinished work"
        said = f"left: {leftover.owner} is at work on it" if leftover.owner else size
        click.echo(printable(f"{leftover.target}: {said}"))
    gone = [leftover for leftover in found if not leftover.owner]
    megabytes = sum(leftover.bytes for leftover in gone) / 1e6
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {len(gone)}, {megabytes:,.1f} MB; left"
        f" {len(found) - len(gone)}"
    )
