"""`wsi demo`."""

from pathlib import Path

import rich_click as click

from .options import FOLDER, mode_option
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.option("--out", "-o", type=FOLDER, default=Path("wsi-demo"), help="Folder to write to.")
@mode_option
def demo(out: Path) -> None:
    """Run the whole chain on drawn slides: no input, no network, about two minutes on two cores.

    Draws small H&E-like slides whose tumour is known, tiles them, trains, infers on slides of other
    patients, compares with the truth and names the page to open.
    """
    from wsi_pipeline.runs.demo import run_demo

    from .progress import show_progress

    with show_progress() as progress:
        result = run_demo(out, listener=progress)
    click.echo(str(result.evaluation))
    f1 = result.evaluation.pooled.scores.f1
    click.echo(f"\nF1 on the held-out slides: {'–' if f1 is None else f'{f1:.3f}'}")
    click.echo(
        f"heatmaps: open {result.index.resolve()}   (or run: wsi view {result.index.parent})"
    )
