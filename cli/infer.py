"""`wsi infer`, and what its `--dry-run` prints."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from wsi_pipeline.core.choices import INDEX_HTML
from wsi_pipeline.core.options import InferOptions, SheetOptions

from .main import leave, printable
from .options import (
    DEFAULT_RESULTS,
    EXISTING,
    build,
    check_watch,
    count_slides,
    describe_taken,
    make_out_option,
    mode_option,
    options_of,
    unless_default,
    watch_option,
)
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.runs.dry_run import RunPreview
    from wsi_pipeline.stages.plan import SlidePreview

UNITS = ("B", "kB", "MB", "GB", "TB")
STEP = 1000


@click.command(cls=ConfigCommand)
@click.argument("places", nargs=-1, type=EXISTING, metavar="[SLIDE_OR_FOLDER…]")
@click.option(
    "--slides",
    "--wsi-dir",
    "-i",
    panel="Input",
    type=EXISTING,
    multiple=True,
    metavar="DIR",
    help="Slides, or folders of them. May be repeated.",
)
@click.option(
    "--stores",
    panel="Input",
    type=EXISTING,
    multiple=True,
    metavar="DIR",
    help="Patch stores, or folders of them, instead of slides.",
)
@click.option("--recursive", panel="Input", is_flag=True, help="Go into folders within folders.")
@options_of(SheetOptions)
@click.option(
    "--model",
    "-m",
    panel="Input",
    type=click.Path(path_type=Path),
    help=(
        "A model.safetensors of `wsi train`, its folder, a folder of `wsi train --folds` (all its"
        " models together), an external model's folder, or idc or idc-cnn, which come with the"
        " package."
        " [default: ./model where there is one, else idc]"
    ),
)
@make_out_option(DEFAULT_RESULTS, "--results-dir")
@options_of(InferOptions)
@click.option(
    "--dry-run",
    panel="Operation",
    is_flag=True,
    help="Only list slides, sizes, patches, bytes and what would be gone on with; writes nothing.",
)
@watch_option
@click.option(
    "--view",
    "is_viewed",
    panel="Operation",
    is_flag=True,
    help="Show the results in the browser, from the first slide on, until Ctrl+C.",
)
@mode_option
def infer(
    places: tuple[Path, ...],
    slides: tuple[Path, ...],
    stores: tuple[Path, ...],
    sheet: Path | None,
    recursive: bool,
    model: Path | None,
    out: Path,
    dry_run: bool,
    watch: bool,
    is_viewed: bool,
    **options: Any,
) -> None:
    """Run a model over slides: heatmap, overlay and figures per slide, tables and a page for all.

    A folder with config.json and torchscript_model.pt, as in the WSInfer zoo, needs --trust-model:
    TorchScript is code. Slides are cut at the model's own µm per pixel. A slide that fails does not
    stop the others; failures.csv says why. Run again, it goes on where it stopped, and does nothing
    for slides that are done; with other --outputs it makes those from the predictions it has.
    """
    from .progress import close_run, end_run, show_progress
    from .view import view_alongside

    slides = (*places, *slides)
    if [bool(slides), bool(stores), bool(sheet)].count(True) != 1:
        raise click.UsageError("give one of slides, --stores and --sheet")
    if stores and options["keep_patches"]:
        raise click.UsageError("--keep-patches is for slides; --stores are kept patches already")
    check_watch(watch, dry_run=dry_run, stores=stores, sheet=sheet, shard=options["shard"])
    with view_alongside(out if is_viewed and not dry_run else None) as viewer:
        with show_progress(None if dry_run else out) as progress:
            from wsi_pipeline.models.loading import describe_place, find_model
            from wsi_pipeline.runs.dry_run import preview_run
            from wsi_pipeline.runs.infer import infer_slides, list_stores
            from wsi_pipeline.runs.watch import Watched, watch_slides
            from wsi_pipeline.slides.selection import find_slides

            settings = build(InferOptions, options)
            find = partial(find_slides, slides, recursive=recursive, sheet=sheet)
            found = list_stores(stores) if stores else [] if watch else find()
            model = find_model(model)
            taken = count_slides(found, slides if watch else ())
            taken = f"{taken}, {describe_place(model)}"
            progress.warn(printable(describe_taken(taken, None if dry_run else out)))
            viewer.start(progress.warn)
            if dry_run:
                preview = preview_run(found, model, out, settings, progress)
            elif watch:
                run = partial(infer_slides, model=model, results=out, options=settings)
                account = watch_slides(Watched(slides, recursive), out, run, progress)
            else:
                account = infer_slides(found, model, out, settings, progress)
        if dry_run:
            print_preview(preview, out, settings.keep_patches)
            leave(preview.account.exit_code)
        if viewer.is_running and not watch:
            close_run(account, out / INDEX_HTML)
            viewer.wait()
            leave(account.exit_code)
    end_run(account, out / INDEX_HTML, "wsi view", *unless_default(out, DEFAULT_RESULTS))


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
        f"{slide.patches:,} patches{slide.doubts}, predictions"
        f" {describe_bytes(slide.prediction_bytes)}",
    ]
    if slide.patch_bytes:
        parts.append(f"patches to keep {describe_bytes(slide.patch_bytes)}")
    done = f", {slide.blocks_done} of {slide.blocks} blocks done"
    progress = done if slide.state is PreviewState.STARTED else ""
    return printable(f"{slide.slide_id}: {slide.state.value}{progress}: {'; '.join(parts)}")


def print_preview(preview: "RunPreview", results: Path, keep_patches: Path | None) -> None:
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
    if keep_patches is not None:
        free = describe_bytes(free_bytes(keep_patches))
        click.echo(
            f"to keep: patches of about {describe_bytes(preview.patch_bytes)}; {free} are free at"
            f" {printable(str(keep_patches))}"
        )
    click.echo("nothing was written")
