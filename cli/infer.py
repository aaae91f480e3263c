"""`wsi infer`."""

from pathlib import Path
from typing import Any

import click

from .main import printable
from .options import (
    EXISTING,
    FOLDER,
    allow_upsample_option,
    anonymous_option,
    choose_engine_name,
    crew_options,
    device_option,
    engine_options,
    force_option,
    min_tissue_option,
    positive_class_option,
    read_crew,
    read_pseudonyms,
    read_view,
    shard_option,
    sheet_option,
    slide_mpp_option,
    trust_option,
    view_options,
)
from .output_options import min_free_option, mode_option


@click.command()
@click.option(
    "--slides", "--wsi-dir", "-i", type=EXISTING, multiple=True, metavar="DIR", help="Slides, or folders of them. May be repeated."
)
@click.option("--stores", type=EXISTING, multiple=True, metavar="DIR", help="Patch stores, or folders of them, instead of slides.")
@sheet_option
@click.option("--model", "-m", type=click.Path(path_type=Path), required=True, help="A model.safetensors of `wsi train`, or a folder.")
@trust_option
@positive_class_option
@click.option("--results-dir", "-o", type=FOLDER, required=True, help="Folder for one folder per slide and the tables of the run.")
@min_tissue_option
@slide_mpp_option
@allow_upsample_option
@device_option
@engine_options
@anonymous_option
@shard_option
@crew_options
@force_option
@click.option("--keep-patches", type=FOLDER, metavar="DIR", help="Also write the slides' patch stores there, or read them where they are.")
@click.option("--dry-run", is_flag=True, help="Only list slides, sizes, patches, bytes and what would be gone on with; writes nothing.")
@view_options
@min_free_option
@mode_option
def infer(
    slides: tuple[Path, ...],
    stores: tuple[Path, ...],
    sheet: Path | None,
    model: Path,
    trust_model: str | None,
    positive_class: str | None,
    results_dir: Path,
    min_tissue: float,
    slide_mpp: float | None,
    allow_upsample: bool,
    device: str,
    engine: str,
    compile_network: bool,
    precision: str,
    batch_size: int | None,
    anonymous_ids: Path | None,
    shard: str | None,
    force: bool,
    keep_patches: Path | None,
    dry_run: bool,
    min_free: int,
    **options: Any,
) -> None:
    """Run a model over slides: heatmap, overlay and figures per slide, slides.csv and index.html for all.

    A folder with config.json and torchscript_model.pt, as in the WSInfer zoo, needs --trust-model: TorchScript is code.
    Slides are cut at the model's own µm per pixel. A slide that fails does not stop the others; failures.csv says why. Run again, it
    goes on where it stopped, and does nothing for slides that are done; with other --outputs it makes those from the predictions it has.
    """
    from wsi_pipeline.dry_run import preview_run
    from wsi_pipeline.jobs.inferring import list_stores
    from wsi_pipeline.jobs.model_choice import settle_engine
    from wsi_pipeline.jobs.room import Room
    from wsi_pipeline.models.description import LEAK
    from wsi_pipeline.models.loading import ForeignTerms, load_model
    from wsi_pipeline.pipeline import InferConfig, infer_found, infer_slides, infer_stores
    from wsi_pipeline.slides.discovery import find_slides
    from wsi_pipeline.slides.selection import Shard
    from wsi_pipeline.slides.sheet import read_sheet
    from wsi_pipeline.tiling import TileConfig
    from wsi_pipeline.tissue import TissueParameters

    from .dry_run import print_preview
    from .progress import close_run, log_to, show_progress

    if [bool(slides), bool(stores), bool(sheet)].count(True) != 1:
        raise click.UsageError("give one of --slides, --stores and --sheet")
    if stores and keep_patches:
        raise click.UsageError("--keep-patches is for slides; --stores are kept patches already")
    if stores and anonymous_ids:
        raise click.UsageError("--anonymous-ids is for slides; --stores carry the ids that `wsi tile --anonymous-ids` gave them")
    crew = read_crew(options, device)
    terms = ForeignTerms(trust_model, positive_class)
    loaded = load_model(model, terms)
    click.echo(
        f"model {printable(loaded.architecture)}: patches of {loaded.spec.side_px} px at {loaded.spec.mpp:g} µm/px, "
        f"{printable(loaded.positive_class)} from probability {loaded.threshold:.3f} on ({loaded.threshold_source})"
        f"{f'; LEAKY: {LEAK}' if loaded.is_leaky else ''}"
    )
    config = InferConfig(
        tiling=TileConfig(tissue=TissueParameters(min_tissue=min_tissue), slide_mpp=slide_mpp, allow_upsample=allow_upsample),
        device=device,
        engine=choose_engine_name(engine, compile_network),
        precision=precision,
        batch_size=batch_size,
        force=force,
        view=read_view(options),
        shard=None if shard is None else Shard.parse(shard),
        terms=terms,
        keep_patches=keep_patches,
        pseudonyms=read_pseudonyms(anonymous_ids, results_dir),
        room=Room(min_free),
    )
    if dry_run:
        found = [row.slide for row in read_sheet(sheet)] if sheet else find_slides(slides) if slides else list_stores(stores)
        print_preview(preview_run(found, bool(stores), model, results_dir, config), results_dir, keep_patches)
    if not crew.is_elsewhere:
        click.echo(printable(settle_engine(loaded, model, config.wish, terms).line))
    with log_to(results_dir), show_progress() as progress:
        if sheet is not None:
            found = [row.slide for row in read_sheet(sheet)]
            account = infer_found(found, model, results_dir, config, workers=crew, progress=progress)
        elif slides:
            account = infer_slides(slides, model, results_dir, config, workers=crew, progress=progress)
        else:
            account = infer_stores(stores, model, results_dir, config, workers=crew, progress=progress)
    close_run(account, results_dir / "index.html")
