"""`wsi tile`."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from wsi_pipeline.core.options import SheetOptions, TileOptions

from .main import leave, printable
from .options import (
    DEFAULT_STORES,
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
    from wsi_pipeline.core.outcome import RunAccount
    from wsi_pipeline.slides.found_slide import FoundSlide

CUT = ("Input", "Scale", "Tissue", "Labels", "Output")
"""Panels whose options decide what is cut; the others are of how a run goes."""


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
@click.option(
    "--dry-run",
    panel="Operation",
    is_flag=True,
    help="Only say how many patches each slide would give; writes nothing but --preview.",
)
@watch_option
@click.option(
    "--preview",
    panel="Operation",
    is_flag=True,
    help=(
        "With --dry-run: write <slide>.preview.html, a page with the patches by reason and sliders"
        " that choose them again."
    ),
)
@mode_option
def tile(
    places: tuple[str, ...],
    slides: tuple[str, ...],
    sheet: Path | None,
    recursive: bool,
    out: Path,
    dry_run: bool,
    watch: bool,
    preview: bool,
    **options: Any,
) -> None:
    """Cut slides into patches: one patch store per slide.

    A patch of PX pixels at UM_PER_PX µm per pixel shows PX × UM_PER_PX µm of tissue: 50 px at 0.25
    are 12.5 µm. A pyramid level within 2 % of the wanted scale is read as it is and its true scale
    recorded. Run again, it goes on where it stopped. Beside each store, <slide>.mask.png shows
    which patches were taken.
    """
    from .progress import end_run, show_progress

    if preview and not dry_run:
        raise click.UsageError("--preview belongs to --dry-run")
    check_watch(watch, dry_run=dry_run, sheet=sheet, shard=options["shard"])
    if bool(places or slides) == bool(sheet) or (sheet and options["labels"]):
        raise click.UsageError("give either slides, with or without --labels, or --sheet")
    with show_progress(None if dry_run else out) as progress:
        progress.working_on("finding the slides")
        from wsi_pipeline.runs.tile import (
            TilingPages,
            find_classes,
            preview_tiling,
            read_tiling,
            tile_slides,
        )
        from wsi_pipeline.runs.watch import Watched, watch_slides
        from wsi_pipeline.slides.selection import find_slides

        settings = build(TileOptions, options)
        if settings.magnification is not None:
            mpp = read_tiling(settings).spec.mpp
            progress.warn(f"{settings.magnification:g}x is taken as {mpp:g} µm/px")
        slides = (*places, *slides)
        found = [] if watch else find_slides(slides, recursive=recursive, sheet=sheet)
        taken = count_slides(found, slides if watch else ())
        progress.warn(printable(describe_taken(taken, None if dry_run else out)))
        if watch:
            run = partial(tile_slides, out=out, options=settings)
            account = watch_slides(Watched(slides, recursive), out, run, progress)
        elif dry_run:
            words = partial(spell_command, out=out, options=settings)
            pages = TilingPages(out, words) if preview else None
            account = preview_tiling(found, settings, pages)
        else:
            account = tile_slides(found, out, settings, progress)
    if dry_run:
        print_preview(account, "" if preview else "nothing was written")
        leave(account.exit_code)
    end_run(account, out, *_propose(find_classes(out), out, sheet, slides))


def _propose(
    classes: set[int], out: Path, sheet: Path | None, slides: Sequence[str]
) -> tuple[str, *tuple[object, ...]]:
    """Return the words of the next command."""
    if len(classes) == 2:
        return "wsi train", *unless_default(out, DEFAULT_STORES)
    if classes:  # a model needs both
        return "wsi label", out, "--labels", "DIR"
    return "wsi infer", *(("--sheet", sheet) if sheet else slides)


def print_preview(account: "RunAccount", ending: str) -> None:
    """Print what each slide would give."""
    for outcome in account.outcomes:
        click.echo(printable(outcome.line))
    click.echo(account.sentence)
    if ending:
        click.echo(ending)


def spell_command(slide: "FoundSlide", out: Path, options: TileOptions) -> list[str]:
    """Return the words of `wsi tile` for one slide, quoted, without options that a page changes."""
    from wsi_pipeline.stages.measure_tiling import list_tuned

    place = () if out == DEFAULT_STORES else ("--out", out)
    words: list[Any] = ["wsi", "tile", slide.path, *place]
    for field in fields(options):
        value = getattr(options, field.name)
        is_given = value != field.default and field.metadata["panel"] in CUT
        if is_given and field.name not in list_tuned():
            words += spell_option(field.metadata.get("flag", f"--{field.name}"), value)
    return [shlex.quote(str(word)) for word in words]


def spell_option(flag: str, value: Any) -> list[Any]:
    """Return an option as words: a switch alone, a pair of values once, a list again and again."""
    flag = flag.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else [f"--no-{flag[2:]}"]
    if isinstance(value, tuple) and flag == "--class-names":
        return [flag, *value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [word for each in value for word in (flag, each)]
    return [flag, value]
