"""`wsi infer`.

With what `wsi infer --dry-run` prints.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_pipeline.core.choices import INDEX_HTML

from .main import printable
from .options import (
    EXISTING,
    FOLDER,
    allow_upsample_option,
    choose_engine_name,
    device_option,
    engine_options,
    force_option,
    min_free_option,
    min_tissue_option,
    mode_option,
    positive_class_option,
    read_view,
    read_workers,
    shard_option,
    sheet_option,
    slide_mpp_option,
    trust_option,
    view_options,
    worker_options,
)

if TYPE_CHECKING:
    from wsi_pipeline.models.model import Model
    from wsi_pipeline.runs.dry_run import RunPreview
    from wsi_pipeline.runs.infer import InferConfig
    from wsi_pipeline.slides.discovery import FoundSlide
    from wsi_pipeline.stages.plan import SlidePreview

UNITS = ("B", "kB", "MB", "GB", "TB")
STEP = 1000


@click.command()
@click.option(
    "--slides",
    "--wsi-dir",
    "-i",
    type=EXISTING,
    multiple=True,
    metavar="DIR",
    help="Slides, or folders of them. May be repeated.",
)
@click.option(
    "--stores",
    type=EXISTING,
    multiple=True,
    metavar="DIR",
    help="Patch stores, or folders of them, instead of slides.",
)
@sheet_option
@click.option(
    "--model",
    "-m",
    type=click.Path(path_type=Path),
    required=True,
    help="A model.safetensors of `wsi train`, or a folder.",
)
@trust_option
@positive_class_option
@click.option(
    "--results-dir",
    "-o",
    type=FOLDER,
    required=True,
    help="Folder for one folder per slide and the tables of the run.",
)
@min_tissue_option
@slide_mpp_option
@allow_upsample_option
@device_option
@engine_options
@shard_option
@worker_options
@force_option
@click.option(
    "--keep-patches",
    type=FOLDER,
    metavar="DIR",
    help="Also write the slides' patch stores there, or read them where they are.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only list slides, sizes, patches, bytes and what would be gone on with; writes nothing.",
)
@view_options
@min_free_option
@mode_option
def infer(
    slides: tuple[Path, ...],
    stores: tuple[Path, ...],
    sheet: Path | None,
    model: Path,
    results_dir: Path,
    device: str,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run a model over slides: heatmap, overlay and figures per slide, slides.csv and index.html for all.

    A folder with config.json and torchscript_model.pt, as in the WSInfer zoo, needs --trust-model:
    TorchScript is code. Slides are cut at the model's own µm per pixel. A slide that fails does not
    stop the others; failures.csv says why. Run again, it goes on where it stopped, and does nothing
    for slides that are done; with other --outputs it makes those from the predictions it has.
    """
    from wsi_pipeline.models.loading import load_model
    from wsi_pipeline.models.opening import resolve_engine
    from wsi_pipeline.runs.dry_run import preview_run
    from wsi_pipeline.runs.infer import infer_found, infer_stores, list_stores

    from .progress import close_run, log_to, show_progress

    check_sources(slides, stores, sheet, options)
    workers = read_workers(options, device)
    config = read_config(options, device, results_dir)
    loaded = load_model(model, config.terms)
    with suppress(BrokenPipeError):  # as with `| head -1`: the run goes on all the same
        click.echo(describe_model(loaded))
    if dry_run:
        found = list_stores(stores) if stores else list_slides(slides, sheet)
        print_preview(
            preview_run(found, bool(stores), model, results_dir, config), results_dir, config
        )
    if not workers.is_elsewhere:
        line = printable(resolve_engine(loaded, model, config.engine_request, config.terms).line)
        with suppress(BrokenPipeError):
            click.echo(line)
    with log_to(results_dir), show_progress() as progress:
        if stores:
            account = infer_stores(
                stores, model, results_dir, config, workers=workers, progress=progress
            )
        else:
            account = infer_found(
                list_slides(slides, sheet),
                model,
                results_dir,
                config,
                workers=workers,
                progress=progress,
            )
    close_run(account, results_dir / INDEX_HTML)


def check_sources(
    slides: tuple[Path, ...], stores: tuple[Path, ...], sheet: Path | None, options: dict[str, Any]
) -> None:
    """Raise UsageError where it is not clear what to infer, or options do not fit that."""
    if [bool(slides), bool(stores), bool(sheet)].count(True) != 1:
        raise click.UsageError("give one of --slides, --stores and --sheet")
    if stores and options["keep_patches"]:
        raise click.UsageError("--keep-patches is for slides; --stores are kept patches already")


def list_slides(slides: tuple[Path, ...], sheet: Path | None) -> list["FoundSlide"]:
    """Those of the sample sheet, or those in the folders."""
    from wsi_pipeline.slides.discovery import find_slides
    from wsi_pipeline.slides.sheet import read_sheet

    return [row.slide for row in read_sheet(sheet)] if sheet else find_slides(slides)


def read_config(options: dict[str, Any], device: str, results_dir: Path) -> "InferConfig":
    """How slides are inferred, by the options."""
    from wsi_pipeline.models.loading import ExternalModelTerms
    from wsi_pipeline.runs.disk_space import DiskSpace
    from wsi_pipeline.runs.infer import InferConfig
    from wsi_pipeline.slides.selection import Shard
    from wsi_pipeline.slides.tissue import TissueParameters
    from wsi_pipeline.stages.patch_plan import TileConfig

    return InferConfig(
        tiling=TileConfig(
            tissue=TissueParameters(min_tissue=options["min_tissue"]),
            slide_mpp=options["slide_mpp"],
            allow_upsample=options["allow_upsample"],
        ),
        device=device,
        engine=choose_engine_name(options["engine"], options["compile_network"]),
        precision=options["precision"],
        batch_size=options["batch_size"],
        force=options["force"],
        view=read_view(options),
        shard=None if options["shard"] is None else Shard.parse(options["shard"]),
        terms=ExternalModelTerms(options["trust_model"], options["positive_class"]),
        keep_patches=options["keep_patches"],
        disk_space=DiskSpace(options["min_free"]),
    )


def describe_model(model: "Model") -> str:
    """The terms on which a model is run, in one line."""
    from wsi_pipeline.models.description import LEAK

    return (
        f"model {printable(model.architecture)}: patches of {model.spec.side_px} px at"
        f" {model.spec.mpp:g} µm/px, {printable(model.positive_class)} from probability"
        f" {model.threshold:.3f} on"
        f" ({model.threshold_source}){f'; LEAKY: {LEAK}' if model.is_leaky else ''}"
    )


def describe_bytes(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in UNITS:
        if count < STEP or unit == UNITS[-1]:
            break
        count /= STEP
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def describe_preview(slide: "SlidePreview") -> str:
    """One slide in one line."""
    from wsi_pipeline.stages.plan import PreviewState

    if slide.state is PreviewState.FAILED:
        return printable(f"{slide.slide_id}: cannot be run: {slide.reason}")
    width, height = slide.size_l0
    parts = [
        f"{describe_bytes(slide.file_bytes)}, {width} × {height} px at {slide.mpp:g} µm/px",
        f"{slide.patches:,} patches, predictions {describe_bytes(slide.prediction_bytes)}",
    ]
    if slide.patch_bytes:
        parts.append(f"patches to keep {describe_bytes(slide.patch_bytes)}")
    progress = (
        f", {slide.blocks_done} of {slide.blocks} blocks done"
        if slide.state is PreviewState.STARTED
        else ""
    )
    return printable(f"{slide.slide_id}: {slide.state.value}{progress}: {'; '.join(parts)}")


def print_preview(preview: "RunPreview", results: Path, config: "InferConfig") -> None:
    """Every slide, what it comes to, and whether there is room for it."""
    from wsi_pipeline.core.outcome import describe_counts
    from wsi_pipeline.runs.dry_run import free_bytes
    from wsi_pipeline.stages.plan import PreviewState

    for slide in preview.slides:
        click.echo(describe_preview(slide))
    click.echo(describe_counts({state: preview.count(state) for state in PreviewState}))
    click.echo(
        f"to predict: {preview.missing_patches:,} patches, predictions of about"
        f" {describe_bytes(preview.prediction_bytes)}; {describe_bytes(free_bytes(results))} are"
        f" free at {printable(str(results))}"
    )
    if (keep_patches := config.keep_patches) is not None:
        free = describe_bytes(free_bytes(keep_patches))
        click.echo(
            f"to keep: patches of about {describe_bytes(preview.patch_bytes)}; {free} are free at"
            f" {printable(str(keep_patches))}"
        )
    click.echo("nothing was written")
    click.get_current_context().exit(preview.account.exit_code)
