"""`wsi store`."""

from pathlib import Path

import rich_click as click

from wsi_pipeline.core.choices import PATCH_FORMATS
from wsi_pipeline.core.options import ForceOptions

from .main import printable
from .options import EXISTING, FOLDER, mode_option, options_of
from .run_file import ConfigCommand


@click.group()
def store() -> None:
    """Look into patch stores, and write their patches as files for other programs."""


@store.command(cls=ConfigCommand)
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
def info(stores: tuple[Path, ...]) -> None:
    """Show what stores hold: patches, scale, labels, flags, codec and size. No pixel is read."""
    from wsi_pipeline.store.patches import PatchStore, describe_store, find_stores

    for path in find_stores(list(stores)):
        click.echo(printable(str(path)))
        for name, text in describe_store(PatchStore(path)).items():
            click.echo(f"  {name:<15}{printable(text)}")


@store.command(cls=ConfigCommand)
@click.argument("stores", nargs=-1, required=True, type=EXISTING, metavar="STORE_OR_FOLDER…")
@click.option("--out", "-o", type=FOLDER, required=True, help="Folder to write to.")
@click.option(
    "--to",
    "form",
    type=click.Choice(PATCH_FORMATS),
    default="png",
    help="png: a folder per class; webdataset: tars of 10,000 patches, each as png, cls and json.",
)
@options_of(ForceOptions)
@mode_option
def export(stores: tuple[Path, ...], out: Path, form: str, force: bool) -> None:
    """Write patches as PNG files or WebDataset tars, without loss. Unreadable patches are left out.

    The folder appears when it is complete, with a manifest; the same export is not made twice.
    """
    from wsi_pipeline.stages.export_patches import export_stores
    from wsi_pipeline.store.patches import PatchStore, find_stores

    opened = [PatchStore(path) for path in find_stores(list(stores))]
    counts = export_stores(opened, form, out, force)
    for store in opened:
        count = counts[store.path.name]
        left_out = store.table.patches - count
        said = f"{count} patches{f', {left_out} unreadable left out' if left_out else ''}"
        click.echo(printable(f"{store.path.name}: {said}  →  {out}"))
