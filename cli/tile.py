"""`wsi tile`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_pipeline.core.choices import CODECS

from .options import (
    allow_upsample_option,
    force_option,
    label_rules_options,
    min_free_option,
    mode_option,
    out_option,
    patch_size_option,
    read_rules,
    read_workers,
    reader_option,
    shard_option,
    sheet_option,
    slide_mpp_option,
    tissue_options,
    worker_options,
)

if TYPE_CHECKING:
    from wsi_pipeline.runs.tile import TileOptions
    from wsi_pipeline.stages.patch_plan import TileConfig

MPP_OF_40X = 0.25
UM_PER_PX_AT_1X = 10.0
"""Scanners call 0.25 µm/px 40x, 0.5 µm/px 20x and 1 µm/px 10x."""
DEFAULT_QUALITY = 90


@click.command()
@click.argument("places", nargs=-1, metavar="SLIDE_OR_FOLDER…")
@click.option(
    "--slides",
    "-i",
    multiple=True,
    metavar="DIR|GLOB|CSV",
    help="The same as the arguments: folders, patterns, a sample sheet.",
)
@click.option("--recursive", is_flag=True, help="Go into folders within folders.")
@sheet_option
@out_option
@click.option(
    "--mpp",
    type=float,
    metavar="UM_PER_PX",
    help=f"µm per patch pixel; 0.25 is what scanners call 40x. [default: {MPP_OF_40X}]",
)
@click.option(
    "--magnification",
    type=float,
    metavar="X",
    help="The same as --mpp, by the scanner's word: 40 is 0.25 µm/px, 20 is 0.5.",
)
@patch_size_option
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="PX",
    help="Distance between patches in pixels. [default: the patch size]",
)
@tissue_options
@slide_mpp_option
@click.option(
    "--mpp-csv",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="µm per pixel of single slides, columns wsi and mpp; overrules the files and --slide-mpp.",
)
@allow_upsample_option
@reader_option
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    default="none",
    help="How pixels are stored; jpeg is lossy.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), help=f"Of --codec jpeg. [default: {DEFAULT_QUALITY}]"
)
@click.option(
    "--labels",
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
    out: Path,
    labels: tuple[str, ...],
    patient_regex: str | None,
    force: bool,
    **settings: Any,
) -> None:
    """Cut slides into patches: one patch store per slide.

    A patch of PX pixels at UM_PER_PX µm per pixel shows PX × UM_PER_PX µm of tissue: 50 px at 0.25
    are 12.5 µm. A pyramid level within 2 % of the wanted scale is read as it is and its true scale
    recorded. Run again, it goes on where it stopped. Beside each store, <slide>.mask.png shows
    which patches were taken.
    """
    from wsi_pipeline.runs.tile import tile_found, tile_slides
    from wsi_pipeline.slides.sheet import read_sheet

    from .progress import close_run, log_to, show_progress

    if bool(places or slides) == bool(sheet) or (sheet and labels):
        raise click.UsageError("give either slides, with or without --labels, or --sheet")
    workers = read_workers(settings, is_tiling=True)
    config, options = read_config(settings), read_tile_options(settings, out)
    if settings["magnification"] is not None:
        click.echo(
            f"{settings['magnification']:g}x is taken as {config.spec.mpp:g} µm/px", err=True
        )
    with log_to(out), show_progress() as progress:
        if sheet is not None:
            found = [row.slide for row in read_sheet(sheet)]
            account = tile_found(
                found, out, config, options=options, workers=workers, force=force, progress=progress
            )
        else:
            account = tile_slides(
                [*places, *slides],
                out,
                config,
                labels=None if labels == ("auto",) else [Path(place) for place in labels],
                patient_regex=patient_regex,
                options=options,
                workers=workers,
                force=force,
                progress=progress,
            )
    close_run(account, out)


def read_config(settings: dict[str, Any]) -> "TileConfig":
    """How slides are cut, by the options."""
    from wsi_pipeline.core.geometry import PatchSpec
    from wsi_pipeline.slides.quality import QualityParameters
    from wsi_pipeline.slides.tissue import TissueParameters
    from wsi_pipeline.stages.patch_plan import TileConfig

    tissue = TissueParameters(
        mask_mpp=settings["mask_mpp"],
        min_object_um2=settings["min_object"],
        max_hole_um2=settings["max_hole"],
        min_tissue=settings["min_tissue"],
    )
    return TileConfig(
        spec=PatchSpec(
            settings["patch_size"], settings["stride"] or settings["patch_size"], read_mpp(settings)
        ),
        tissue=tissue,
        slide_mpp=settings["slide_mpp"],
        allow_upsample=settings["allow_upsample"],
        rules=read_rules(settings),
        quality=QualityParameters(
            settings["max_pen"], settings["min_sharpness"], tuple(sorted(set(settings["drop"])))
        ),
        reader=settings["reader"],
    )


def read_mpp(settings: dict[str, Any]) -> float:
    """µm per patch pixel, by --mpp or --magnification."""
    mpp, magnification = settings["mpp"], settings["magnification"]
    if magnification is None:
        return MPP_OF_40X if mpp is None else float(mpp)
    if mpp is not None:
        raise click.UsageError("--mpp and --magnification say the same; give one of them")
    if not magnification > 0:
        raise click.UsageError(
            f"a magnification of {magnification:g} cannot be; 40 means 0.25 µm/px"
        )
    return float(UM_PER_PX_AT_1X / magnification)


def read_tile_options(settings: dict[str, Any], out: Path) -> "TileOptions":
    """Which slides are tiled and how stores are written, by the options."""
    from wsi_pipeline.runs.disk_space import DiskSpace
    from wsi_pipeline.runs.tile import TileOptions
    from wsi_pipeline.slides.selection import Shard
    from wsi_pipeline.store.codecs import PixelCodec

    codec, quality = settings["codec"], settings["quality"]
    if quality is not None and codec != "jpeg":
        raise click.UsageError("--quality belongs to --codec jpeg")
    return TileOptions(
        recursive=settings["recursive"],
        mpp_csv=settings["mpp_csv"],
        masks=settings["mask"],
        codec=PixelCodec(codec, (quality or DEFAULT_QUALITY) if codec == "jpeg" else None),
        shard=None if settings["shard"] is None else Shard.parse(settings["shard"]),
        disk_space=DiskSpace(settings["min_free"]),
    )
