"""`wsi tile`."""

from pathlib import Path
from typing import Any

import click

from .options import (
    EXISTING,
    allow_upsample_option,
    force_option,
    label_rules_options,
    min_tissue_option,
    out_option,
    patch_size_option,
    read_rules,
    scheduler_option,
    sheet_option,
    slide_mpp_option,
    workers_option,
)


@click.command()
@click.argument("slides", nargs=-1, type=EXISTING, metavar="SLIDE_OR_FOLDER…")
@sheet_option
@out_option
@click.option("--mpp", type=float, default=0.25, metavar="UM_PER_PX", help="µm per patch pixel; 0.25 is what scanners call 40x.")
@patch_size_option
@click.option("--stride", type=click.IntRange(1), metavar="PX", help="Distance between patches in pixels. [default: the patch size]")
@min_tissue_option
@slide_mpp_option
@allow_upsample_option
@click.option(
    "--labels",
    multiple=True,
    metavar="auto|FILE|DIR",
    help="What is known of the slides: QuPath GeoJSON, ASAP or ImageScope XML, label images, or folders of them, matched by name; "
    "auto: the label file beside each slide.",
)
@label_rules_options
@click.option(
    "--patient-regex",
    metavar="REGEX",
    help="Where the patient stands in a slide's file name; the part in parentheses. [default: every slide is a patient of its own]",
)
@workers_option
@scheduler_option
@force_option
def tile(
    slides: tuple[Path, ...],
    sheet: Path | None,
    out: Path,
    mpp: float,
    patch_size: int,
    stride: int | None,
    min_tissue: float,
    slide_mpp: float | None,
    allow_upsample: bool,
    labels: tuple[str, ...],
    patient_regex: str | None,
    workers: int | None,
    scheduler: str | None,
    force: bool,
    **rules: Any,
) -> None:
    """Cut slides into patches: one patch store per slide.

    A patch of PX pixels at UM_PER_PX µm per pixel shows PX × UM_PER_PX µm of tissue: 50 px at 0.25 are 12.5 µm. A pyramid level within
    2 % of the wanted scale is read as it is and its true scale recorded. Run again, it goes on where it stopped.
    """
    from wsi_pipeline.geometry import PatchSpec
    from wsi_pipeline.pipeline import choose_workers, tile_found, tile_slides
    from wsi_pipeline.slides.sheet import read_sheet
    from wsi_pipeline.tiling import TileConfig
    from wsi_pipeline.tissue import TissueParameters

    from .progress import close_run, log_to, show_progress

    if bool(slides) == bool(sheet) or (sheet and labels):
        raise click.UsageError("give either slides, with or without --labels, or --sheet")
    config = TileConfig(
        spec=PatchSpec(patch_size, stride or patch_size, mpp),
        tissue=TissueParameters(min_tissue=min_tissue),
        slide_mpp=slide_mpp,
        allow_upsample=allow_upsample,
        rules=read_rules(rules),
    )
    crew = choose_workers(workers, scheduler)
    with log_to(out), show_progress() as progress:
        if sheet is not None:
            found = [row.slide for row in read_sheet(sheet)]
            account = tile_found(found, out, config, workers=crew, force=force, progress=progress)
        else:
            files = None if labels == ("auto",) else [Path(place) for place in labels]
            account = tile_slides(
                slides, out, config, labels=files, patient_regex=patient_regex, workers=crew, force=force, progress=progress
            )
    close_run(account, out)
