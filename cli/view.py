"""`wsi view`."""

from pathlib import Path

import click


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--open/--no-open", "is_opened", default=True, help="Open the page in the browser.")
def view(results: Path, is_opened: bool) -> None:
    """Build one page with every heatmap in RESULTS and the table of slides, and open it."""
    from wsi_pipeline.outputs.index_page import write_index

    page = write_index(results).resolve()
    click.echo(f"→  {page}")
    if is_opened:
        click.launch(str(page))
