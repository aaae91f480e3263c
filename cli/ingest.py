"""`wsi ingest`."""

from pathlib import Path

import click

from wsi_pipeline.core.choices import LAYOUT_NAMES

from .options import (
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
    type=click.Choice(LAYOUT_NAMES),
    default="idc",
    help="How the data set lies on disk.",
)
@click.option(
    "--patient-regex",
    metavar="REGEX",
    help="Layout folders: where the patient stands in a file's path; the part in parentheses.",
)
@click.option(
    "--class-names",
    nargs=2,
    metavar="NEGATIVE POSITIVE",
    help="What the classes are called; for folders, the folders' names.",
)
@patch_size_option
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Worker processes; 0: a plain loop in this one.",
)
@force_option
@min_free_option
@mode_option
def ingest(
    place: Path,
    mpp: float,
    out: Path,
    layout: str,
    patient_regex: str | None,
    class_names: tuple[str, str] | None,
    patch_size: int,
    workers: int,
    force: bool,
    min_free: int,
) -> None:
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
    from wsi_pipeline.core.choices import LEFT_OUT_CSV
    from wsi_pipeline.core.geometry import PatchSpec
    from wsi_pipeline.runs.disk_space import DiskSpace
    from wsi_pipeline.runs.tile import ingest_patches
    from wsi_pipeline.scheduling import Workers
    from wsi_pipeline.stages.ingest_layouts import LayoutOptions

    from .main import printable
    from .progress import close_run, log_to, show_progress

    with log_to(out), show_progress() as progress:
        account = ingest_patches(
            place,
            out,
            PatchSpec(patch_size, patch_size, mpp),
            layout=layout,
            options=LayoutOptions(patient_regex, class_names),
            workers=Workers(count=workers),
            force=force,
            progress=progress,
            disk_space=DiskSpace(min_free),
        )
    stores = (
        f"{account.patches} patches of {patch_size}×{patch_size} in {len(account.run.outcomes)}"
        " stores"
    )
    click.echo(f"{stores}, {len(account.left_out)} files left out")
    for entry in account.left_out:
        click.echo(f"  left out: {printable(entry.file)}: {printable(entry.reason)}")
    if account.left_out:
        click.echo(f"  (also in {out / LEFT_OUT_CSV})")
    close_run(account.run, out)
