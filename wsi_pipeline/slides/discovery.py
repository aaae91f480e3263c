"""Which files of a folder are slides, and what each is called in a run."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.errors import ConfigError

SIDECAR_SUFFIXES = frozenset({".csv", ".dat", ".geojson", ".json", ".md", ".xml", ".yaml", ".yml"})
"""Files that lie beside slides (annotations, tables, MIRAX data) and are passed over in a folder."""

RESERVED = frozenset(
    {
        "slides.csv",
        "failures.csv",
        "run.json",
        "index.html",
        "evaluation.csv",
        "evaluation.json",
        "evaluation.html",
        "comparison.csv",
        "events.jsonl",
        "left_out.csv",
        "wsi.log",
    }
)
"""Names that the tables of a run carry."""

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
    """What the sample sheet says of the whole slide."""
    mpp_source: str = "user"
    """Where `slide_mpp` was said."""


def find_slides(places: Sequence[Path]) -> list[FoundSlide]:
    """Files named directly, and every visible file of folders that is no sidecar, in sorted order.

    Each `slide_id` is the file's stem where that is unique and safe as a file name, else stem and a hash of the path.
    Raises ConfigError where a place does not exist or nothing is found.
    """
    paths = list(dict.fromkeys(path for place in places for path in _list_place(place)))
    if not paths:
        raise ConfigError(f"{', '.join(map(str, places))}: no slide files; name a folder that holds some")
    ids = name_slides(paths)
    return [FoundSlide(slide_id, path) for slide_id, path in zip(ids, paths, strict=True)]


def _list_place(place: Path) -> Iterable[Path]:
    if place.is_dir():
        return sorted(entry for entry in place.iterdir() if is_candidate(entry, place))
    if not place.exists() and not place.is_symlink():
        raise ConfigError(f"{place}: no such file or folder; check the path")
    return [place]


def is_candidate(path: Path, folder: Path) -> bool:
    """Whether a path below a folder may be a slide: a visible file in visible folders, and no sidecar."""
    is_visible = not any(part.startswith(".") for part in path.relative_to(folder).parts)
    return is_visible and not path.is_dir() and path.suffix.lower() not in SIDECAR_SUFFIXES


def name_slides(paths: Sequence[Path]) -> list[str]:
    """One unique name per path, safe as a folder name on any file system, the same whenever the same paths are given."""
    stems = [safe_name(path.stem) for path in paths]
    stems = [f"{stem}_" if stem.casefold() in RESERVED else stem for stem in stems]
    folded = [stem.casefold() for stem in stems]
    seen = Counter(folded)
    common = _common_folder(paths)
    return [
        stem if stem == path.stem and seen[key] == 1 else f"{stem}-{_short_hash(path, common)}"
        for path, stem, key in zip(paths, stems, folded, strict=True)
    ]


def safe_name(name: str) -> str:
    """`name` with anything that a shell, a URL or a file system may trip over replaced by an underscore."""
    safe = UNSAFE.sub("_", name).strip(" .")
    safe = f"_{safe[1:]}" if safe.startswith("-") else safe
    return safe.encode()[:MAX_ID_BYTES].decode(errors="ignore") or "_"


def _common_folder(paths: Sequence[Path]) -> Path:
    shared = [path.absolute().parent for path in paths]
    folder = shared[0]
    while not all(parent.is_relative_to(folder) for parent in shared):
        folder = folder.parent
    return folder


def _short_hash(path: Path, common: Path) -> str:
    relative = path.absolute().relative_to(common).as_posix()
    return hashlib.sha256(relative.encode(errors="surrogateescape")).hexdigest()[:8]
