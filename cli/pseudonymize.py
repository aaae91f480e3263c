"""`wsi pseudonymize`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from wsi_pipeline.core.pseudonym_options import PseudonymizeOptions

from .options import options_of, out_option
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.slides.sheet import SheetRow


@click.command(cls=ConfigCommand, is_kept=False)
@click.argument("places", nargs=-1, metavar="SLIDE_OR_FOLDER…")
@out_option
@options_of(PseudonymizeOptions)
def pseudonymize(places: tuple[str, ...], out: Path, **settings: Any) -> None:
    """Make a folder of links that call slides and patients by pseudonyms.

    Run every other command on that folder: it then knows no other name, and none reaches a
    product, a log or a message. Nothing is copied: the slides must stay where they are.

    \b
    DIR/anon-….svs    a link to each slide; label files lie beside them
    DIR/masks         links to the masks, for `wsi tile --mask`
    DIR/slides.csv    sample sheet for --sheet of tile, infer and train
    DIR/mapping.csv   real names and pseudonyms: for the owner of the key

    \b
    wsi pseudonymize slides --out links --key ~/project.key
    wsi tile --sheet links/slides.csv --out stores
    wsi infer --sheet links/slides.csv --model model --results-dir results

    Only you can enter DIR, because links show where they lead. Write products elsewhere. Run again,
    it adds new slides and keeps every pseudonym.
    """  # noqa: D301 - click takes the character itself for "keep the lines"
    from wsi_pipeline.labels.tissue_mask import list_masks
    from wsi_pipeline.runs.pseudonymize import pseudonymize_patches, pseudonymize_slides
    from wsi_pipeline.stages.ingest_layouts import LayoutOptions, find_patches

    options = PseudonymizeOptions(**settings)
    if options.layout is not None:
        if len(places) != 1 or options.sheet or options.labels or options.mask or options.mpp_csv:
            raise click.UsageError("--layout takes one data set of patches, and no slide options")
        terms = LayoutOptions(options.patient_regex, options.class_names)
        found = find_patches(Path(places[0]).absolute(), options.layout, terms)
        made = pseudonymize_patches(
            found, options.layout, options.key_file, out, options.split_file
        )
        click.echo(f"{made.patches} patches of {made.patients} patients linked in {out}")
        # Without the files' names, which may be patients'.
        for kind, count in Counter(entry.kind for entry in found.left_out).items():
            click.echo(f"left out: {count} files: {kind}")
        names = " ".join(found.patients[0].class_names)
        click.echo(
            f"next: wsi ingest {out} --mpp UM_PER_PX --out STORES"
            if made.table is None
            else f"next: wsi ingest {made.table} --layout csv --class-names {names}"
            " --mpp UM_PER_PX --out STORES"
        )
    else:
        if options.class_names:
            raise click.UsageError("--class-names belongs to --layout")
        masks = list_masks(options.mask) if options.mask else ()
        rows = list_rows(places, options)
        made = pseudonymize_slides(rows, options.key_file, out, masks, options.split_file)
        click.echo(
            f"{made.slides} slides of {made.patients} patients linked in {out}, with"
            f" {made.labels} label files and {made.masks} masks"
        )
        if free := sorted({name for row in rows for name, _ in row.slide.columns}):
            click.echo(f"left out: columns of the sheet: {', '.join(free)}")
        click.echo(f"next: wsi tile --sheet {made.table} --out STORES")
    click.echo(f"keep to yourself: {options.key_file}, and {out} with its mapping.csv")


def list_rows(places: tuple[str, ...], options: PseudonymizeOptions) -> list["SheetRow"]:
    """Return the slides that the options name, as lines of a sample sheet."""
    from dataclasses import replace

    from wsi_pipeline.runs.tile import label_slides
    from wsi_pipeline.slides.selection import find_slides
    from wsi_pipeline.slides.sheet import SheetRow, read_sheet, scale_slides

    sheet, names_more = options.sheet, options.labels or options.patient_regex
    if bool(places) == bool(sheet) or (sheet and names_more):
        raise click.UsageError(
            "give either slides, with or without --labels and --patient-regex, or --sheet"
        )
    if sheet is not None:
        rows = read_sheet(sheet)
    else:
        found = find_slides(places, recursive=options.recursive)
        slides = label_slides(found, options.labels or ("auto",), options.patient_regex)
        rows = [SheetRow(slide, None) for slide in slides]
    if options.mpp_csv is None:
        return rows
    scaled = scale_slides([row.slide for row in rows], options.mpp_csv)
    return [replace(row, slide=slide) for row, slide in zip(rows, scaled, strict=True)]
