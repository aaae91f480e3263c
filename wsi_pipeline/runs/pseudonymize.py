"""A folder of links under keyed pseudonyms, on which every other command runs.

A command that reads slides through these links knows no other name of a slide or patient, so that
none can reach a product, a log or a message.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from wsi_pipeline.core.choices import SLIDES_CSV, SPLIT_PARTS
from wsi_pipeline.core.csv_io import format_csv, unshield
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, LabelError
from wsi_pipeline.labels.annotation import IMAGE_SUFFIXES
from wsi_pipeline.labels.discovery import LABEL_ENDING
from wsi_pipeline.labels.tissue_mask import match_mask
from wsi_pipeline.runs.pseudonym_key import Pseudonyms, open_key
from wsi_pipeline.slides.selection import MAPPING_COLUMNS, MAPPING_CSV
from wsi_pipeline.slides.sheet import COLUMNS as SHEET_COLUMNS
from wsi_pipeline.slides.sheet import SheetRow
from wsi_pipeline.stages.ingest_layouts import TABLE_COLUMNS, Found, PatchEntry, PatientPatches
from wsi_pipeline.store.files import HOST, remove_dead_asides, write_file
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.training.split import read_split_file

PATCHES_CSV, SPLIT_JSON = "patches.csv", "split.json"
LABELS, MASKS = "labels", "masks"
MIRAX, DICOM = ".mrxs", ".dcm"
NAMING_OTHERS = frozenset({".vms", ".vmu", ".ndpis"})
"""Formats whose files name one another, so that links under other names cannot be read."""
KNOWN_SUFFIXES = frozenset(
    (
        *(".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".mrxs", ".svslide", ".dcm", ".czi"),
        *(".png", ".jpg", ".jpeg", ".bmp", ".geojson", ".json", ".xml"),
    )
)
"""The only part of a file's name that a link keeps: its format."""


class Identity(NamedTuple):
    """A line of mapping.csv: a slide or a patient, its pseudonym, and the slide's file."""

    kind: str
    name: str
    pseudonym: str
    path: str = ""


class PseudonymFolder(NamedTuple):
    """Counts of a folder of pseudonyms: what it holds, and what this run added or found."""

    table: Path | None
    """Sample sheet or table of patches for the next command; None for the IDC layout."""
    patients: int
    slides: int = 0
    labels: int = 0
    masks: int = 0
    patches: int = 0


@dataclass(frozen=True, slots=True)
class _Links:
    """Links to make (name below the folder → file or folder), and the identities behind them."""

    pseudonyms: Pseudonyms
    targets: dict[str, Path] = field(default_factory=dict)
    identities: list[Identity] = field(default_factory=list)

    def add(self, stem: str, path: Path) -> str:
        """Plan a link to a path; return its name."""
        suffix = path.suffix.lower()
        name = f"{stem}{suffix if suffix in KNOWN_SUFFIXES else ''}"
        self.targets[name] = path.absolute()
        return name

    def identify(self, kind: str, name: str, path: Path | None = None) -> str:
        """Note a name; return its pseudonym."""
        pseudonym = self.pseudonyms.name(name)
        place = "" if path is None else str(path.absolute())
        self.identities.append(Identity(kind, name, pseudonym, place))
        return pseudonym


def pseudonymize_slides(
    rows: Sequence[SheetRow],
    key_file: Path,
    out: Path,
    masks: Sequence[Path] = (),
    split_file: Path | None = None,
) -> PseudonymFolder:
    """Link slides, their label files and masks under pseudonyms in `out`, with a sample sheet."""
    links = _Links(open_key(key_file, out))
    table = [_plan_slide(row, links) for row in rows]
    found_masks = sum(_plan_mask(row, masks, links) for row in rows)
    _fill_folder(out, links, SLIDES_CSV, SHEET_COLUMNS, table, split_file)
    return PseudonymFolder(
        out / SLIDES_CSV,
        patients=len({row.patient_id for row in rows}),
        slides=len(rows),
        labels=sum(row.slide.label_file is not None for row in rows),
        masks=found_masks,
    )


def pseudonymize_patches(
    found: Found, layout: str, key_file: Path, out: Path, split_file: Path | None = None
) -> PseudonymFolder:
    """Link ready-cut patches under pseudonyms in `out`, in the layout `idc` or with a table."""
    links = _Links(open_key(key_file, out))
    is_idc = layout == "idc"
    table = [
        _plan_patch(patient, links.identify("patient", patient.patient_id), entry, links, is_idc)
        for patient in found.patients
        for entry in patient.entries
    ]
    _fill_folder(out, links, None if is_idc else PATCHES_CSV, TABLE_COLUMNS, table, split_file)
    made = None if is_idc else out / PATCHES_CSV
    return PseudonymFolder(made, patients=len(found.patients), patches=len(table))


def _plan_slide(row: SheetRow, links: _Links) -> dict[str, Any]:
    """Plan the links of one slide; return its line of the sample sheet."""
    slide = row.slide
    if slide.path.suffix.lower() in NAMING_OTHERS:
        raise ConfigError(
            f"{slide.path}: the files of this format name one another and cannot be linked under"
            " pseudonyms; convert the slide to TIFF"
        )
    name, label = links.identify("slide", slide.slide_id, slide.path), slide.label_file
    return {
        "wsi": _plan_file(slide.path, name, links),
        "mpp": slide.slide_mpp,
        "patient_id": slide.patient_id and links.identify("patient", slide.patient_id),
        "labels": label and links.add(_label_stem(label, name), label),
        "mask": slide.mask_file and links.add(f"{MASKS}/{name}", slide.mask_file),
        "split": row.split,
        "label": slide.slide_label,
    }


def _plan_file(path: Path, name: str, links: _Links) -> str:
    """Plan links to a slide and to the rest of it: a MIRAX folder, the files of a DICOM series."""
    suffix = path.suffix.lower()
    if suffix == DICOM:  # in a folder of its own: each file beside it would be taken for a slide
        for other in sorted(path.parent.glob(f"*{path.suffix}")):
            if other != path:
                links.add(f"{name}/{links.pseudonyms.name(other.name)}", other)
        return links.add(f"{name}/{name}", path)
    if suffix == MIRAX and path.with_suffix("").is_dir():
        links.targets[name] = path.with_suffix("").absolute()
    return links.add(name, path)


def _label_stem(file: Path, name: str) -> str:
    """Return where a label file is linked: beside its slide, unless it would pass for a slide."""
    is_image = file.suffix.lower() in IMAGE_SUFFIXES
    return f"{LABELS}/{name}{LABEL_ENDING}" if is_image else name


def _plan_mask(row: SheetRow, masks: Sequence[Path], links: _Links) -> bool:
    """Plan the link of a slide's mask; False where it has none, which `wsi tile` will report.

    That of the sample sheet is planned with the slide.
    """
    if row.slide.mask_file is not None:
        return True
    with suppress(LabelError):
        mask = match_mask(row.slide.path.stem, masks)
        links.add(f"{MASKS}/{links.pseudonyms.name(row.slide.slide_id)}", mask)
        return True
    return False


def _plan_patch(
    patient: PatientPatches, name: str, entry: PatchEntry, links: _Links, is_idc: bool
) -> dict[str, Any]:
    """Plan the link of one patch; return its line of the table of patches."""
    file = Path(entry.file)
    if is_idc:  # <patient>_idx5_x<X>_y<Y>_class<C>.png: all but the patient stays
        place = links.pseudonyms.name(file.parent.as_posix())
        rest = file.name.partition(patient.patient_id)[2]  # "Copy of " may stand before
        link = f"{place}/{name}{rest}"
        links.targets.setdefault(link, (patient.folder / file).absolute())
    else:
        link = links.add(f"{name}/{links.pseudonyms.name(entry.file)}", patient.folder / file)
    return {"path": link, "patient": name, "label": entry.label, "x": entry.x, "y": entry.y}


def _fill_folder(
    out: Path,
    links: _Links,
    table_name: str | None,
    columns: Sequence[str],
    table: Sequence[Mapping[str, Any]],
    split_file: Path | None,
) -> None:
    """Make the links, then the table that names them; what earlier runs made stays."""
    out = out.absolute()
    split = None if split_file is None else _translate_split(split_file, links.pseudonyms)
    _claim_folder(out)
    with hold_lock(out / MAPPING_CSV):
        identities = _merge_identities(out / MAPPING_CSV, links)
        _write_private(out / MAPPING_CSV, format_csv(MAPPING_COLUMNS, identities))
        for name, target in links.targets.items():
            _make_link(out / name, target)
        if table_name is not None:
            lines = _merge_table(out / table_name, columns, table)
            _write_private(out / table_name, format_csv(columns, lines))
        if split is not None:
            _write_private(out / SPLIT_JSON, json.dumps(split, indent=2, allow_nan=False) + "\n")
        remove_dead_asides(out)


def _claim_folder(out: Path) -> None:
    """Make the folder, for its owner alone. Raises ConfigError where it holds anything else."""
    is_new = not (out / MAPPING_CSV).is_file()
    if is_new and out.is_dir() and any(not each.name.startswith(".") for each in out.iterdir()):
        raise ConfigError(f"{out}: holds other files; name a new folder")
    _make_private(out)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: cannot be made ({error.strerror}); name a folder that you may write to"
        ) from error


def _write_private(path: Path, text: str) -> None:
    write_file(path, text.encode(errors="surrogateescape"))  # names of files may be no text
    path.chmod(0o600)


def _merge_identities(path: Path, links: _Links) -> list[Identity]:
    """Return the lines of mapping.csv, old and new. Raises ConfigError where they contradict."""
    known: dict[tuple[str, str], Identity] = {}
    for line in _read_table(path, MAPPING_COLUMNS):
        entry = Identity(*(unshield(line[column]) for column in MAPPING_COLUMNS))
        if links.pseudonyms.name(entry.name) != entry.pseudonym:
            raise ConfigError(
                f"{path}: was made with another key; give that key, or a new folder with --out"
            )
        known[entry.kind, entry.pseudonym] = entry
    for entry in links.identities:
        earlier = known.setdefault((entry.kind, entry.pseudonym), entry)
        if _is_another_file(earlier.path, entry.path):
            raise ConfigError(
                f"{entry.path}: {earlier.path} is already linked as {entry.pseudonym}; rename one"
                " of them, or give a new folder with --out"
            )
        known[entry.kind, entry.pseudonym] = entry
    return sorted(known.values())


def _is_another_file(earlier: str, path: str) -> bool:
    """Tell two files of one name apart from one file that has moved, or has two paths."""
    if earlier == path or not os.path.exists(earlier):  # noqa: PTH110 - a path may be no text
        return False
    return not (os.path.exists(path) and os.path.samefile(earlier, path))  # noqa: PTH110, PTH121


def _merge_table(
    path: Path, columns: Sequence[str], table: Iterable[Mapping[str, Any]]
) -> list[list[Any]]:
    """Return the lines of a table, old and new; a new line replaces the old one of its link."""
    lines: dict[str, list[Any]] = {}
    for line in _read_table(path, columns):
        lines[line[columns[0]]] = [unshield(line[column]) for column in columns]
    for entry in table:
        lines[entry[columns[0]]] = [entry[column] for column in columns]
    return [lines[name] for name in sorted(lines)]


def _read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the lines of a table that an earlier run wrote; none where there is no such file."""
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
        lines = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError:
        return []
    except (OSError, csv.Error) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); restore it, or give a new folder with --out"
        ) from error
    if any(set(line) != set(columns) or None in line.values() for line in lines):
        raise ConfigError(
            f"{path}: is not the table that `wsi pseudonymize` writes; restore it, or give a new"
            " folder with --out"
        )
    return lines


def _make_link(link: Path, target: Path) -> None:
    """Make a link in one step, or replace one whose target has moved."""
    try:
        if link.parent.name and not link.parent.is_dir():
            _make_private(link.parent)
        if link.is_symlink() and link.readlink() == target:
            return
        aside = link.with_name(f".{link.name}.{HOST}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(link)
    except OSError as error:
        raise EnvironmentFault(
            f"{link}: no link could be made ({error.strerror}); give a folder on a file system"
            " that has links"
        ) from error


def _translate_split(split_file: Path, pseudonyms: Pseudonyms) -> dict[str, list[str]]:
    """Return a published split under pseudonyms."""
    split = read_split_file(split_file)
    return {side: [pseudonyms.name(name) for name in getattr(split, side)] for side in SPLIT_PARTS}
