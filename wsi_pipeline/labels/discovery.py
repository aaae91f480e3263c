"""Search for label files, and the match between label files and slides by their names.

A file belongs to the slide that has exactly its name; then come the name with the slide's suffix
(`a.tif.geojson`), with `_labels`, and with `_mask`. A file that carries only the beginning of a
name is taken where no slide of the run has exactly that name and just one begins with it. Before
that, a database of SlideRunner belongs to the slides whose file names it holds.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels.annotation import DATABASE_SUFFIXES, IMAGE_SUFFIXES, LABEL_SUFFIXES
from wsi_pipeline.labels.sliderunner_db import MAX_SHOWN, list_slides

LABEL_ENDING = "_labels"
ENDINGS = (re.compile(r"[_-]labels?\Z", re.IGNORECASE), re.compile(r"[_-]masks?\Z", re.IGNORECASE))
SLIDE_SUFFIX = re.compile(
    r"\.(svs|svslide|tiff?|ndpi|mrxs|scn|bif|vms|vmu|dcm|czi|isyntax|qptiff|png|jpe?g|bmp)\Z",
    re.IGNORECASE,
)
SEPARATORS = "_-. "


class Matches(NamedTuple):
    """The label files of the slides of a run."""

    files: tuple[Path | None, ...]
    """One per slide; None where there is none."""
    notes: tuple[str, ...]
    """Lines about files that are taken, or not, by the beginning of a name."""


def list_label_files(places: Iterable[Path]) -> list[Path]:
    """Return the label files among files and folders.

    In a folder, these are annotations, and images called `*_labels` or `*_mask`. Raises LabelError
    where there is none.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(filter(_is_label_file, place.iterdir()))
        elif place.exists():
            found.append(place)
        else:
            raise LabelError(f"{place}: no such file or folder; check the path")
    if not found:
        where = ", ".join(map(str, places))
        raise LabelError(f"{where}: no annotations or *_labels.png; name the label files")
    return found


def _is_label_file(path: Path) -> bool:
    """Return whether a file is a label file; of images, only those called so."""
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    is_named = any(ending.search(path.stem) for ending in ENDINGS) or not is_image
    return is_named and path.suffix.lower() in LABEL_SUFFIXES and path.is_file()


def match_labels(
    slides: Sequence[str], files: Sequence[Path], suffixes: Sequence[str] = ()
) -> Matches:
    """Return the label file of each slide of a run, by the slides' names without their suffixes.

    Where `suffixes` are given, one per slide, a file with a suffix in its name belongs to the slide
    with that suffix. Raises LabelError where two files carry a slide's name equally well.
    """
    names = [_fold(slide) for slide in slides]
    exact = _match_exactly(names, files, [each.casefold() for each in suffixes])
    held, notes = _match_held(slides, files, suffixes)
    used = {path for ranks in (*exact, *held) for path in ranks}
    beginnings = {path: _find_begun(path, names) for path in files if path not in used}
    matched: list[Path | None] = []
    for place, slide in enumerate(slides):
        of_slide = {path: -_length(path) for path, found in beginnings.items() if found == [place]}
        known = exact[place] or held[place]
        best = _take_best(slide, known or of_slide)
        if best is not None and not known:
            notes.append(f"{best.name} is taken for {slide}, of whose name it has the beginning")
        matched.append(best)
    for path, places in beginnings.items():
        if len(places) > 1:
            shown = ", ".join(slides[place] for place in places[:5])
            notes.append(
                f"{path.name} is taken for no slide: the names of {len(places)} begin with its own"
                f" ({shown})"
            )
    return Matches(tuple(matched), tuple(notes))


def _match_exactly(
    names: Sequence[str], files: Sequence[Path], suffixes: Sequence[str]
) -> list[dict[Path, int]]:
    """Return the files that carry each name, with how well, the smaller the better."""
    by_name: defaultdict[str, list[tuple[Path, int, str]]] = defaultdict(list)
    for path in files:
        for name, rank, suffix in _list_names(_fold(path.stem)):
            by_name[name].append((path, rank, suffix))
    found: list[dict[Path, int]] = []
    for place, name in enumerate(names):
        own = suffixes[place] if suffixes else ""
        fitting = [each for each in by_name[name] if not (own and each[2]) or each[2] == own]
        found.append({path: rank for path, rank, _ in sorted(fitting, key=lambda each: -each[1])})
    return found


def _match_held(
    slides: Sequence[str], files: Sequence[Path], suffixes: Sequence[str]
) -> tuple[list[dict[Path, int]], list[str]]:
    """Return the databases that hold each slide by its file name, and what they hold, as lines."""
    found: list[dict[Path, int]] = [{} for _ in slides]
    notes: list[str] = []
    for path in files:
        if path.suffix.lower() not in DATABASE_SUFFIXES:
            continue
        try:
            names = list_slides(path)
        except LabelError as error:
            notes.append(str(error))
            continue
        folded = {_fold(name) for name in names}
        stems = {Path(name).stem for name in folded}
        taken = [
            place
            for place, slide in enumerate(slides)
            if (_fold(slide + suffixes[place]) in folded if suffixes else _fold(slide) in stems)
        ]
        for place in taken:
            found[place][path] = 0
        if len(names) > 1:
            shown = ", ".join(names[:MAX_SHOWN]) + (", …" if len(names) > MAX_SHOWN else "")
            of = f"{len(taken)} of this run" if taken else "none of this run"
            notes.append(f"{path.name} holds {len(names)} slides, {of}: {shown}")
    return found, notes


def _list_names(stem: str) -> Iterator[tuple[str, int, str]]:
    """Yield the slides' names that a file's stem carries, each with its rank and suffix."""
    forms = {stem: 0}
    for number, ending in enumerate(ENDINGS, start=1):
        forms.setdefault(ending.sub("", stem), 2 * number)
    for bare, rank in forms.items():
        yield bare, rank, ""
        if suffix := SLIDE_SUFFIX.search(bare):
            yield bare[: suffix.start()], rank + 1, suffix[0].casefold()


def _find_begun(path: Path, names: Sequence[str]) -> list[int]:
    """Return the places of the names that begin with a file's, up to a separator."""
    bare = strip_ending(_fold(path.stem))
    return [
        place
        for place, name in enumerate(names)
        if bare and name.startswith(bare) and name[len(bare) :][:1] in [*SEPARATORS]
    ]


def _length(path: Path) -> int:
    return len(strip_ending(_fold(path.stem)))


def _take_best(slide: str, ranks: dict[Path, int]) -> Path | None:
    best = [path for path, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) > 1:
        raise LabelError(
            f"{slide}: both {best[0]} and {best[1]} could be its labels; name one of them"
        )
    return best[0] if best else None


def strip_ending(stem: str) -> str:
    """Return a label file's stem without `_labels` or `_mask`."""
    for ending in ENDINGS:
        stem = ending.sub("", stem)
    return stem


def _fold(name: str) -> str:
    """Return a name in one composition of its letters, of which file systems differ."""
    return unicodedata.normalize("NFC", name)


def match_beside(
    slides: Sequence[Path], masks: Sequence[Path] = (), is_mask_taken: bool = True
) -> Matches:
    """Return the label file beside each slide; images called `*_mask` only where they are taken.

    `masks` are of tissue. Raises LabelError where two carry a slide's name equally well.
    """
    others = {path.absolute() for path in (*slides, *masks)}
    found: dict[Path, Path | None] = {}
    notes: tuple[str, ...] = ()
    for folder in dict.fromkeys(slide.parent for slide in slides):
        here = [slide for slide in slides if slide.parent == folder]
        files = [
            path
            for path in sorted(filter(_is_label_file, folder.iterdir()))
            if path.absolute() not in others and (is_mask_taken or not _is_mask(path))
        ]
        stems, suffixes = [each.stem for each in here], [each.suffix for each in here]
        matches = match_labels(stems, files, suffixes)
        found |= zip(here, matches.files, strict=True)
        notes += matches.notes
    return Matches(tuple(found[slide] for slide in slides), notes)


def _is_mask(path: Path) -> bool:
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    return is_image and ENDINGS[1].search(path.stem) is not None
