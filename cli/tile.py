"""`wsi tile`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.choices import CODECS

from .main import leave
from .options import (
    allow_upsample_option,
    build,
    force_option,
    label_rules_options,
    min_free_option,
    mode_option,
    out_option,
    patch_size_option,
    reader_option,
    shard_option,
    sheet_option,
    slide_mpp_option,
    tissue_options,
    worker_options,
)


@click.command()
@click.argument("places", nargs=-1, metavar="SLIDE_OR_FOLDER…")
@click.option(
    "--slides",
    "-i",
    panel="Input",
    multiple=True,
    metavar="DIR|GLOB|CSV",
    help="The same as the arguments: folders, patterns, a sample sheet.",
)
@click.option("--recursive", panel="Input", is_flag=True, help="Go into folders within folders.")
@sheet_option
@out_option
@click.option(
    "--mpp",
    panel="Scale",
    type=float,
    metavar="UM_PER_PX",
    help="µm per patch pixel; 0.25 is what scanners call 40x. [default: 0.25]",
)
@click.option(
    "--magnification",
    panel="Scale",
    type=float,
    metavar="X",
    help="The same as --mpp, by the scanner's word: 40 is 0.25 µm/px, 20 is 0.5.",
)
@patch_size_option
@click.option(
    "--stride",
    panel="Scale",
    type=click.IntRange(1),
    metavar="PX",
    help="Distance between patches in pixels. [default: the patch size]",
)
@tissue_options
@slide_mpp_option
@click.option(
    "--mpp-csv",
    panel="Scale",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="µm per pixel of single slides, columns wsi and mpp; overrules the files and --slide-mpp.",
)
@allow_upsample_option
@reader_option
@click.option(
    "--codec",
    panel="Output",
    type=click.Choice(CODECS),
    default="none",
    help="How pixels are stored; jpeg is lossy.",
)
@click.option(
    "--quality", panel="Output", type=click.IntRange(1, 100), help="Of --codec jpeg. [default: 90]"
)
@click.option(
    "--labels",
    panel="Labels",
    multiple=True,
    metavar="auto|FILE|DIR",
    help=(
        "What is known of the slides: QuPath GeoJSON, ASAP or ImageScope XML, label images, or"
        " folders of them, matched by name; auto: the label file beside each slide."
    ),
)
@label_rules_options
@click.option(
    "--patient-regex",
    panel="Input",
    metavar="REGEX",
    help=(
        "Where the patient stands in a slide's file name; the part in parentheses. [default: every"
        " slide is a patient of its own]"
    ),
)
@shard_option
@worker_options
@force_option
@min_free_option
@mode_option
def tile(
    places: tuple[str, ...],
    slides: tuple[str, ...],
    sheet: Path | None,
    recursive: bool,
    out: Path,
    **options: Any,
) -> None:
    """Cut slides into patches: one patch store per slide.

    A patch of PX pixels at UM_PER_PX µm per pixel shows PX × UM_PER_PX µm of tissue: 50 px at 0.25
    are 12.5 µm. A pyramid level within 2 % of the wanted scale is read as it is and its true scale
    recorded. Run again, it goes on where it stopped. Beside each store, <slide>.mask.png shows
    which patches were taken.
    """
    from .progress import close_run, show_progress

    if bool(places or slides) == bool(sheet) or (sheet and options["labels"]):
        raise click.UsageError("give either slides, with or without --labels, or --sheet")
    with show_progress(out) as progress:
        progress.working_on("finding the slides")
        from wsi_pipeline.runs.tile import TileOptions, tile_slides
        from wsi_pipeline.slides.selection import find_slides

        settings = build(TileOptions, options)
        if settings.magnification is not None:
            mpp = settings.tiling.spec.mpp
            progress.warn(f"{settings.magnification:g}x is taken as {mpp:g} µm/px")
        found = find_slides([*places, *slides], recursive=recursive, sheet=sheet)
        account = tile_slides(found, out, settings, progress)
    leave(close_run(account, out))
