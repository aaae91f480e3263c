"""A slide that was found, and the names under which slides are kept apart."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from wsi_pipeline.core.choices import RESERVED

MAX_ID_BYTES = 120
SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
"""Folders that systems and archives leave among the user's; none of it is the user's data."""
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
    mask_file: Path | None = None
    """Mask of the tissue to look at, by the sample sheet."""
    is_store: bool = False
    """A patch store instead of a slide."""
    columns: tuple[tuple[str, str], ...] = ()
    """Name and value of each free column of the sample sheet that is not empty."""
    copy: Path | None = None
    """A copy on a local disk, which is read in place of `path`; results name `path`."""

    @property
    def columns_entry(self) -> dict[str, dict[str, str]]:
        """The entry of the columns in a recipe; nothing where there are none, as before them."""
        return {"columns": dict(self.columns)} if self.columns else {}


def locate_files(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (real folder, name) of each path, the same for every spelling; links stay distinct."""
    # Not Path.resolve, which raises where links form a circle.
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return [(folders[path.parent], path.name) for path in paths]


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
    folders = [path.absolute().parent for path in paths]
    common = next(
        shared
        for shared in (folders[0], *folders[0].parents)
        if all(folder.is_relative_to(shared) for folder in folders)
    )
    unnamed = set(range(len(paths))) - set(names)
    for place in sorted(unnamed, key=lambda place: str(paths[place].absolute())):
        # Another file may have that very name: then the hash is made again with a number.
        hashes = (_short_hash(paths[place], common, turn) for turn in count())
        candidates = (f"{stems[place]}-{digest}" for digest in hashes)
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


def _short_hash(path: Path, common: Path, turn: int) -> str:
    relative = path.absolute().relative_to(common).as_posix()
    hashed = f"{relative}\0{turn}" if turn else relative  # no path holds a zero
    return hashlib.sha256(hashed.encode(errors="surrogateescape")).hexdigest()[:8]
