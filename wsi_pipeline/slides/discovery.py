"""Search for slides in folders, and their names in a run."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from wsi_pipeline.core.choices import (
    HIDDEN,
    LABELS_SUFFIX,
    MANIFEST,
    MASK_SUFFIX,
    RESERVED,
    WRITTEN,
)
from wsi_pipeline.core.errors import ConfigError, machine_fault
from wsi_pipeline.core.recipe import TOOL

SIDECAR_SUFFIXES = frozenset({".csv", ".dat", ".geojson", ".json", ".md", ".xml", ".yaml", ".yml"})
"""Files beside slides (annotations, tables, MIRAX data) that are ignored in a folder."""

SHARD = re.compile(r"\.\d+-of-\d+(?=\.\w+$)")
HEAD_BYTES = 256
"""Of a manifest; the tool that made it stands in its first lines."""
MAPPING_CSV, MAPPING_COLUMNS = "mapping.csv", ("kind", "name", "pseudonym", "path")
"""The table that marks a folder of links under pseudonyms; its slides belong to other folders."""
LINKS_SUFFIX = ".links"
"""Of such folders of earlier versions, which lie beside their key."""
NO_USERS = "lost+found"
"""The file system's own folder, which only root may enter."""

MAX_ID_BYTES = 120
UNSAFE = re.compile(r"[^\w.+() -]")


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """A file that a run will try, under the name that its results will carry."""

    slide_id: str
    path: Path
    slide_mpp: float | None = None
    """µm per level-0 pixel by the sample sheet; overrules the file and every other word on it."""
    patient_id: str | None = None
    label_file: Path | None = None
    slide_label: str | None = None
    """Label of the whole slide, by the sample sheet."""
    mpp_source: str = "user"
    """Source of `slide_mpp`."""
    is_store: bool = False
    """A patch store instead of a slide."""


def list_found(places: Sequence[Path | str], paths: Iterable[Path]) -> list[FoundSlide]:
    """Return the slides found in `places`, each once. Raises ConfigError for none."""
    found = list(paths)
    once: dict[tuple[str, str], Path] = {}
    for path, entry in zip(found, locate(found), strict=True):
        once.setdefault(entry, path)
    if not once:
        raise ConfigError(
            f"{', '.join(map(str, places))}: no slide files; name a folder that holds some"
        )
    found = list(once.values())
    return [
        FoundSlide(slide_id, path) for slide_id, path in zip(name_slides(found), found, strict=True)
    ]


def locate(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (real folder, name) of each path, the same for every spelling; links stay distinct."""
    # Not Path.resolve, which raises where links form a circle.
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return [(folders[path.parent], path.name) for path in paths]


def list_folder(folder: Path, recursive: bool = False) -> list[Path]:
    """Return every file of a folder that may be a slide, sorted.

    These are visible files, without sidecars and files written by wsi; `recursive` includes the
    folders within. Raises EnvironmentFault where a folder may not be entered.
    """
    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=_refuse):
        if is_work_of_wsi(Path(where)) or _holds_pseudonyms(Path(where), folder):
            folders.clear()
            continue
        folders[:] = [name for name in folders if recursive and _may_be_entered(name, files)]
        found += [Path(where, name) for name in files if _may_be_slide(name)]
    return sorted(found)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder deleted meanwhile is empty
        raise machine_fault(error.filename, error) or error


def _may_be_entered(name: str, files: Sequence[str]) -> bool:
    """Return whether a folder beside `files` may hold slides other than pseudonyms' links."""
    are_links = name.endswith(LINKS_SUFFIX) and name.removesuffix(LINKS_SUFFIX) in files
    return not (name.startswith(".") or name == NO_USERS or are_links)


def _holds_pseudonyms(folder: Path, top: Path) -> bool:
    """Return True for a folder of `wsi pseudonymize` below `top`, whose slides are elsewhere."""
    header = ",".join(MAPPING_COLUMNS).encode()
    try:
        with (folder / MAPPING_CSV).open("rb") as stream:
            return folder != top and stream.read(len(header)) == header
    except OSError:
        return False


def _may_be_slide(name: str) -> bool:
    return not (
        name.startswith(".") or Path(name).suffix.lower() in SIDECAR_SUFFIXES or is_written(name)
    )


def is_written(name: str) -> bool:
    """Return whether wsi writes files of that name beside its products."""
    return name.endswith((MASK_SUFFIX, LABELS_SUFFIX)) or SHARD.sub("", name) in WRITTEN


def is_work_of_wsi(folder: Path) -> bool:
    """Return True for a product of wsi, or for work under way: no file in such a folder is a slide.

    Another program's `manifest.json` does not count, unlike in the store, which must not replace
    what it cannot read.
    """
    if folder.name == HIDDEN:
        return True
    manifest = folder / MANIFEST
    try:
        if not manifest.is_file():
            return False
        with manifest.open("rb") as stream:
            return f'"tool": "{TOOL} '.encode() in stream.read(HEAD_BYTES)
    except OSError:
        return False


def name_slides(paths: Sequence[Path]) -> list[str]:
    """Return one unique name per path, always the same for the same paths.

    The names are safe as folder names on any file system.
    """
    stems = [safe_name(path.stem) for path in paths]
    stems = [f"{stem}_" if stem.casefold() in RESERVED else stem for stem in stems]
    seen = Counter(map(_fold, stems))
    names = {
        place: stem
        for place, stem in enumerate(stems)
        if stem == paths[place].stem and seen[_fold(stem)] == 1
    }
    taken = set(map(_fold, names.values()))
    common = _common_folder(paths)
    for place in sorted(
        set(range(len(paths))) - set(names), key=lambda place: str(paths[place].absolute())
    ):
        # Another file may have that very name: then the hash is made again with a number.
        candidates = (
            f"{stems[place]}-{_short_hash(paths[place], common, turn)}" for turn in count()
        )
        names[place] = next(name for name in candidates if _fold(name) not in taken)
        taken.add(_fold(names[place]))
    return [names[place] for place in range(len(paths))]


def _fold(name: str) -> str:
    """Return a form that is equal for names that some file systems, or pseudonyms, take for one.

    Case and composition of letters make no difference.
    """
    return unicodedata.normalize("NFC", name.casefold())


def safe_name(name: str) -> str:
    """Return `name` with `_` for characters that a shell, a URL or a file system may not take."""
    safe = UNSAFE.sub("_", name).strip(" .")
    safe = f"_{safe[1:]}" if safe.startswith("-") else safe
    return safe.encode()[:MAX_ID_BYTES].decode(errors="ignore") or "_"


def _common_folder(paths: Sequence[Path]) -> Path:
    shared = [path.absolute().parent for path in paths]
    folder = shared[0]
    while not all(parent.is_relative_to(folder) for parent in shared):
        folder = folder.parent
    return folder


def _short_hash(path: Path, common: Path, turn: int) -> str:
    relative = path.absolute().relative_to(common).as_posix()
    hashed = f"{relative}\0{turn}" if turn else relative  # no path holds a zero
    return hashlib.sha256(hashed.encode(errors="surrogateescape")).hexdigest()[:8]
