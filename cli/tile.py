"""`wsi tile`."""

from pathlib import Path

import click

from .options import (
    EXISTING,
    allow_upsample_option,
    force_option,
    labels_option,
    mask_values_options,
    min_tissue_option,
    out_option,
    patch_size_option,
    scheduler_option,
    slide_mpp_option,
    workers_option,
)


@click.command()
@click.argument("slides", nargs=-1, required=True, type=EXISTING, metavar="SLIDE_OR_FOLDER…")
@out_option
@click.option("--mpp", type=float, default=0.25, metavar="UM_PER_PX", help="µm per patch pixel; 0.25 is what scanners call 40x.")
@patch_size_option
@click.option("--stride", type=click.IntRange(1), metavar="PX", help="Distance between patches in pixels. [default: the patch size]")
@min_tissue_option
@slide_mpp_option
@allow_upsample_option
@labels_option
@mask_values_options
@click.option("--class-names", nargs=2, default=("negative", "positive"), metavar="NEGATIVE POSITIVE", help="What the labels mean.")
@workers_option
@scheduler_option
@force_option
def tile(
    slides: tuple[Path, ...],
    out: Path,
    mpp: float,
    patch_size: int,
    stride: int | None,
    min_tissue: float,
    slide_mpp: float | None,
    allow_upsample: bool,
    labels: tuple[Path, ...],
    positive_value: int,
    negative_value: int,
    class_names: tuple[str, str],
    workers: int | None,
    scheduler: str | None,
    force: bool,
) -> None:
    """Cut slides into patches: one patch store per slide.

    A patch of PX pixels at UM_PER_PX µm per pixel shows PX × UM_PER_PX µm of tissue: 50 px at 0.25 are 12.5 µm. A pyramid level within
    2 % of the wanted scale is read as it is and its true scale recorded. Run again, it goes on where it stopped.
    """
    from wsi_pipeline.geometry import PatchSpec
    from wsi_pipeline.labels.mask import MaskValues
    from wsi_pipeline.pipeline import choose_workers, tile_slides
    from wsi_pipeline.tiling import TileConfig
    from wsi_pipeline.tissue import TissueParameters

    from .progress import close_run, log_to, show_progress

    config = TileConfig(
        spec=PatchSpec(patch_size, stride or patch_size, mpp),
        tissue=TissueParameters(min_tissue=min_tissue),
        slide_mpp=slide_mpp,
        allow_upsample=allow_upsample,
        class_names=class_names,
        label_values=MaskValues(negative_value, positive_value),
    )
    crew = choose_workers(workers, scheduler)
    with log_to(out), show_progress() as progress:
        account = tile_slides(slides, out, config, labels=labels, workers=crew, force=force, progress=progress)
    close_run(account, out)
