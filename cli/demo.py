"""`wsi demo`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FOLDER, mode_option

if TYPE_CHECKING:
    from wsi_pipeline.training.data import LabelledPatches
    from wsi_pipeline.training.loop import Epoch
    from wsi_pipeline.training.split import Division


@click.command()
@click.option("--out", "-o", type=FOLDER, default=Path("wsi-demo"), help="Folder to write to.")
@mode_option
def demo(out: Path) -> None:
    """Run the whole chain on drawn slides: no input, no network, about two minutes on two cores.

    Draws small H&E-like slides whose tumour is known, tiles them, trains, infers on slides of other
    patients, compares with the truth and names the page to open.
    """
    from wsi_pipeline.runs.demo import DemoSize, run_demo
    from wsi_pipeline.training.run import TrainListener

    from .evaluate import draw_evaluation
    from .progress import show_progress
    from .train import describe_epoch, describe_split

    size = DemoSize()

    def on_epoch(epoch: "Epoch") -> None:
        click.echo(describe_epoch(epoch, size.epochs))

    def on_start(patches: "LabelledPatches", division: "Division", _events: Path) -> None:
        click.echo(describe_split(patches, division))

    listener = TrainListener(on_start, on_epoch=on_epoch)
    with show_progress() as progress:
        result = run_demo(out, size, say=click.echo, progress=progress, listener=listener)
    click.echo(draw_evaluation(result.evaluation))
    f1 = result.evaluation.pooled.scores.f1
    click.echo(f"\nF1 on the held-out slides: {'–' if f1 is None else f'{f1:.3f}'}")
    click.echo(
        f"heatmaps: open {result.index.resolve()}   (or run: wsi view {result.index.parent})"
    )
