"""`wsi tile`."""

from pathlib import Path
from typing import Any

import rich_click as click

from wsi_pipeline.core.options import SheetOptions, TileOptions

from .main import printable
from .options import (
    DEFAULT_STORES,
    build,
    count_slides,
    describe_taken,
    make_out_option,
    mode_option,
    options_of,
    unless_default,
)
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
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
@options_of(SheetOptions)
@make_out_option(DEFAULT_STORES)
@options_of(TileOptions)
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
    from .progress import end_run, show_progress

    if bool(places or slides) == bool(sheet) or (sheet and options["labels"]):
        raise click.UsageError("give either slides, with or without --labels, or --sheet")
    with show_progress(out) as progress:
        progress.working_on("finding the slides")
        from wsi_pipeline.runs.tile import find_classes, read_tiling, tile_slides
        from wsi_pipeline.slides.selection import find_slides

        settings = build(TileOptions, options)
        if settings.magnification is not None:
            mpp = read_tiling(settings).spec.mpp
            progress.warn(f"{settings.magnification:g}x is taken as {mpp:g} µm/px")
        found = find_slides([*places, *slides], recursive=recursive, sheet=sheet)
        progress.warn(printable(describe_taken(count_slides(found), out)))
        account = tile_slides(found, out, settings, progress)
    classes = find_classes(out)
    if len(classes) == 2:
        end_run(account, out, "wsi train", *unless_default(out, DEFAULT_STORES))
    if classes:  # a model needs both
        end_run(account, out, "wsi label", out, "--labels", "DIR")
    end_run(account, out, "wsi infer", *(("--sheet", sheet) if sheet else (*places, *slides)))
