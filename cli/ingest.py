"""`wsi ingest`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import LEFT_OUT_CSV
from wsi_pipeline.core.options import IngestOptions

from .options import (
    DEFAULT_STORES,
    EXISTING,
    build,
    make_out_option,
    mode_option,
    options_of,
    say_taken,
    unless_default,
)
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.argument("place", type=EXISTING, metavar="DIR")
@make_out_option(DEFAULT_STORES)
@options_of(IngestOptions)
@mode_option
def ingest(place: Path, out: Path, **options: Any) -> None:
    """Take in ready-cut labelled patches: one patch store per patient.

    \b
    idc      <patient>_idx5_x<X>_y<Y>_class<0|1>.png at any depth of DIR,
             as in the public set; X (column) and Y (row) count from 1;
             JPEG, TIFF and copies called "… (1).png" are taken too
    folders  <class>/<image>; --patient-regex says where the patient stands
    stacks   NPZ files with images, labels and perhaps patients; or X.npy and
             Y.npy, or <name>_images.npy and <name>_labels.npy
    csv      DIR is a CSV with the columns path, patient, label and perhaps
             x, y (top-left pixel, from 0)

    Files that are no whole patch are left out, counted, and named in left_out.csv.
    """  # noqa: D301 - click takes the character itself for "keep the lines"
    from .main import printable
    from .progress import end_run, show_progress

    say_taken(str(place), out)
    with show_progress(out) as progress:
        from wsi_pipeline.runs.tile import ingest_patches
        from wsi_pipeline.stages.ingest_layouts import summarise

        account = ingest_patches(place, out, build(IngestOptions, options), progress)
    side = options["patch_size"]
    click.echo(
        f"{account.patches} patches of {side}×{side} in {len(account.run.outcomes)} stores,"
        f" {len(account.left_out)} files left out"
    )
    for line in summarise(account.left_out):
        click.echo(f"  left out: {printable(line)}")
    if account.left_out:
        click.echo(f"  (each in {out / LEFT_OUT_CSV})")
    end_run(account.run, out, "wsi train", *unless_default(out, DEFAULT_STORES))
