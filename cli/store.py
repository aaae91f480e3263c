"""`wsi store`."""

from pathlib import Path

import click

from .main import printable
from .options import EXISTING, FOLDER
from .output_options import mode_option


@click.group()
def store() -> None:
    """Look into patch stores, and write their patches as files for other programs."""


@store.command()
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
def info(stores: tuple[Path, ...]) -> None:
    """Show what stores hold: patches, scale, labels, flags, codec and size. No pixel is read."""
    from wsi_pipeline.store.patches import PatchStore, describe_store, find_stores

    for path in find_stores(list(stores)):
        click.echo(printable(str(path)))
        for name, text in describe_store(PatchStore(path)).items():
            click.echo(f"  {name:<15}{printable(text)}")


@store.command()
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@click.option("--out", "-o", type=FOLDER, required=True, help="Folder to write to.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["png", "webdataset"]),
    default="png",
    help="png: a folder per class; webdataset: tars of 10,000 patches, each as png, cls and json.",
)
@mode_option
def export(stores: tuple[Path, ...], out: Path, form: str) -> None:
    """Write patches as PNG files or WebDataset tars, without loss. Unreadable patches are left out."""
    from wsi_pipeline.store.export import EXPORTS
    from wsi_pipeline.store.patches import PatchStore, find_stores

    for path in find_stores(list(stores)):
        opened = PatchStore(path)
        count = EXPORTS[form](opened, out)
        left_out = opened.table.patches - count
        click.echo(printable(f"{path.name}: {count} patches{f', {left_out} unreadable left out' if left_out else ''}  →  {out}"))
