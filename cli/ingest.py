"""`wsi ingest`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import LAYOUT_NAMES, LEFT_OUT_CSV

from .options import (
    build,
    force_option,
    min_free_option,
    mode_option,
    out_option,
    patch_size_option,
)


@click.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path), metavar="DIR")
@click.option(
    "--mpp",
    panel="Scale",
    type=float,
    required=True,
    metavar="UM_PER_PX",
    help=(
        "µm per pixel of the patches. Image files do not say; the public IDC set is at 4, because"
        " its patches were cut from 40x scans reduced 16 times (16 × 0.25)."
    ),
)
@out_option
@click.option(
    "--layout",
    panel="Input",
    type=click.Choice(LAYOUT_NAMES),
    default="idc",
    help="How the data set lies on disk.",
)
@click.option(
    "--patient-regex",
    panel="Input",
    metavar="REGEX",
    help="Layout folders: where the patient stands in a file's path; the part in parentheses.",
)
@click.option(
    "--class-names",
    panel="Labels",
    nargs=2,
    metavar="NEGATIVE POSITIVE",
    help="What the classes are called; for folders, the folders' names.",
)
@patch_size_option
@click.option(
    "--workers",
    panel="Compute",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Worker processes; 0: a plain loop in this one.",
)
@force_option
@min_free_option
@mode_option
def ingest(place: Path, out: Path, **options: Any) -> None:
    """Take in ready-cut labelled patches: one patch store per patient.

    \b
    idc      <patient>_idx5_x<X>_y<Y>_class<0|1>.png at any depth of DIR,
             as in the public set; X (column) and Y (row) count from 1
    folders  <class>/<image>; --patient-regex says where the patient stands
    stacks   NPZ files with images, labels and perhaps patients; or X.npy and
             Y.npy, or <name>_images.npy and <name>_labels.npy
    csv      DIR is a CSV with the columns path, patient, label and perhaps
             x, y (top-left pixel, from 0)

    Files that are no whole patch are left out, counted, and named in left_out.csv.
    """  # noqa: D301 - click takes the character itself for "keep the lines"
    from .main import leave, printable
    from .progress import close_run, show_progress

    with show_progress(out) as progress:
        from wsi_pipeline.runs.tile import IngestOptions, ingest_patches

        account = ingest_patches(place, out, build(IngestOptions, options), progress)
    side = options["patch_size"]
    click.echo(
        f"{account.patches} patches of {side}×{side} in {len(account.run.outcomes)} stores,"
        f" {len(account.left_out)} files left out"
    )
    for entry in account.left_out:
        click.echo(f"  left out: {printable(entry.file)}: {printable(entry.reason)}")
    if account.left_out:
        click.echo(f"  (also in {out / LEFT_OUT_CSV})")
    leave(close_run(account.run, out))
