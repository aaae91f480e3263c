"""`wsi pseudonymize`."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from wsi_pipeline.core.options import SheetOptions

from .options import EXISTING, options_of, out_option

if TYPE_CHECKING:
    from wsi_pipeline.slides.selection import SheetRow


@click.command()
@click.argument("places", nargs=-1, metavar="SLIDE_OR_FOLDER…")
@click.option("--recursive", is_flag=True, help="Go into folders within folders.")
@options_of(SheetOptions)
@out_option
@click.option(
    "--key",
    "key_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="KEYFILE",
    help=(
        "File with the secret key, outside of DIR; made if it does not exist. Keep it: the same key"
        " gives the same pseudonyms."
    ),
)
@click.option(
    "--patient-regex",
    metavar="REGEX",
    help=(
        "Where the patient stands in a slide's file name; the part in parentheses. [default: every"
        " slide is a patient of its own]"
    ),
)
@click.option(
    "--labels",
    multiple=True,
    metavar="auto|FILE|DIR",
    help="Label files to link, matched by name. [default: auto, the file beside each slide]",
)
@click.option(
    "--mask", type=EXISTING, metavar="DIR", help="Tissue masks to link, named like the slides."
)
@click.option(
    "--mpp-csv",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="µm per pixel of single slides, columns wsi and mpp; goes into slides.csv.",
)
@click.option(
    "--split-file",
    type=EXISTING,
    metavar="DIR|JSON",
    help="A published split of patients, as `wsi train` reads it; becomes split.json.",
)
@click.option(
    "--layout",
    type=click.Choice(["idc", "folders", "csv"]),
    help="Link ready-cut patches instead of slides; layouts as in `wsi ingest`.",
)
@click.option(
    "--class-names",
    nargs=2,
    metavar="NEGATIVE POSITIVE",
    help="With --layout folders or csv: the names of the classes.",
)
def pseudonymize(
    places: tuple[str, ...],
    recursive: bool,
    sheet: Path | None,
    out: Path,
    key_file: Path,
    patient_regex: str | None,
    labels: tuple[str, ...],
    mask: Path | None,
    mpp_csv: Path | None,
    split_file: Path | None,
    layout: str | None,
    class_names: tuple[str, str] | None,
) -> None:
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
    from wsi_pipeline.labels.mask import list_masks
    from wsi_pipeline.runs.pseudonymize import pseudonymize_patches, pseudonymize_slides
    from wsi_pipeline.stages.ingest_layouts import LayoutOptions, find_patches

    if layout is not None:
        if len(places) != 1 or sheet or labels or mask or mpp_csv:
            raise click.UsageError("--layout takes one data set of patches, and no slide options")
        found = find_patches(
            Path(places[0]).absolute(), layout, LayoutOptions(patient_regex, class_names)
        )
        made = pseudonymize_patches(found, layout, key_file, out, split_file)
        click.echo(f"{made.patches} patches of {made.patients} patients linked in {out}")
        if found.left_out:
            click.echo(f"{len(found.left_out)} files left out: --patient-regex finds no patient")
        names = " ".join(found.patients[0].class_names)
        click.echo(
            f"next: wsi ingest {out} --mpp UM_PER_PX --out STORES"
            if made.table is None
            else f"next: wsi ingest {made.table} --layout csv --class-names {names}"
            " --mpp UM_PER_PX --out STORES"
        )
    else:
        if class_names:
            raise click.UsageError("--class-names belongs to --layout")
        rows = list_rows(places, recursive, sheet, patient_regex, labels, mpp_csv)
        made = pseudonymize_slides(
            rows, key_file, out, () if mask is None else list_masks(mask), split_file
        )
        click.echo(
            f"{made.slides} slides of {made.patients} patients linked in {out}, with"
            f" {made.labels} label files and {made.masks} masks"
        )
        click.echo(f"next: wsi tile --sheet {made.table} --out STORES")
    click.echo(f"keep to yourself: {key_file}, and {out} with its mapping.csv")


def list_rows(
    places: tuple[str, ...],
    recursive: bool,
    sheet: Path | None,
    patient_regex: str | None,
    labels: tuple[str, ...],
    mpp_csv: Path | None,
) -> list["SheetRow"]:
    """Return the slides that the options name, as lines of a sample sheet."""
    from dataclasses import replace

    from wsi_pipeline.runs.tile import label_slides
    from wsi_pipeline.slides.selection import SheetRow, find_slides, read_sheet, scale_slides

    if bool(places) == bool(sheet) or (sheet and (labels or patient_regex)):
        raise click.UsageError(
            "give either slides, with or without --labels and --patient-regex, or --sheet"
        )
    if sheet is not None:
        rows = read_sheet(sheet)
    else:
        slides = label_slides(
            find_slides(places, recursive=recursive), labels or ("auto",), patient_regex
        )
        rows = [SheetRow(slide, None) for slide in slides]
    if mpp_csv is None:
        return rows
    scaled = scale_slides([row.slide for row in rows], mpp_csv)
    return [replace(row, slide=slide) for row, slide in zip(rows, scaled, strict=True)]
