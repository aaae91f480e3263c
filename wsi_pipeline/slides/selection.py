"""The slides of a run: folders, patterns, sample sheets, and shards of array jobs."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from wsi_pipeline.core.choices import (
    HIDDEN,
    LABELS_SUFFIX,
    MANIFEST,
    MASK_SUFFIX,
    PREVIEW_SUFFIX,
    WRITTEN,
)
from wsi_pipeline.core.errors import ConfigError, machine_fault
from wsi_pipeline.core.recipe import TOOL
from wsi_pipeline.slides.dicom_series import holds_series, merge_series
from wsi_pipeline.slides.found_slide import SYSTEM_FOLDERS, FoundSlide, locate_files, name_slides
from wsi_pipeline.slides.sheet import read_sheet, show_names
from wsi_pipeline.slides.tiff_pages import is_photograph
from wsi_pipeline.slides.zarr_folder import find_image_file

logger = logging.getLogger(__name__)

SHEET_SUFFIX = ".csv"
SIDECAR_SUFFIXES = frozenset(
    {".annotations", ".csv", ".dat", ".geojson", ".json", ".md", ".sqlite", ".xml"}
    | {".yaml", ".yml"}
)
"""Files beside slides (annotations, tables, MIRAX data) that are ignored in a folder."""

SIDE_SUFFIXES = frozenset(
    {
        *(
            ".ets",
            ".ndpa",
            ".ndpis",
            ".md5",
            ".sha1",
            ".sha256",
            ".sha512",
            ".txt",
            ".log",
            ".qpdata",
        ),
        *(".partial", ".part", ".crdownload", ".download", ".tmp", ".bak", ".lock", ".ini", ".lnk"),
    }
)
SIDE_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
"""Files that scanners, viewers, downloads and systems leave beside slides; they are counted."""

LABEL_IMAGE = re.compile(
    r"(?P<name>.+)[_. -](labels?|masks?)(\.ome)?\.(png|tiff?|jpe?g|bmp)", re.IGNORECASE
)
"""Names of label images and masks, which are no slides where the slide lies among the others."""
SEPARATORS = ("_", "-", ".", " ")

SHARD = re.compile(r"\.\d+-of-\d+(?=\.\w+$)")
HEAD_BYTES = 256
"""Of a manifest; the tool that made it stands in its first lines."""
MAPPING_CSV, MAPPING_COLUMNS = "mapping.csv", ("kind", "name", "pseudonym", "path")
"""The table that marks a folder of links under pseudonyms; its slides belong to other folders."""
LINKS_SUFFIX = ".links"
"""Of such folders of earlier versions, which lie beside their key."""


class NoSlides(ConfigError):
    """The places exist, and hold no slides."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One share of a divided run: every `count`-th slide from number `number`, counted from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"shard {self.number}/{self.count} is impossible; give I/N with I from 1 to N"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that `I/N` means. Raises ConfigError."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text.strip())):
            raise ConfigError(f"shard {text!r} is not of the form I/N, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    def take(self, slides: Sequence[FoundSlide]) -> list[FoundSlide]:
        """Return this share's slides; all shares together are all slides, each once."""
        return list(slides[self.number - 1 :: self.count])

    @property
    def suffix(self) -> str:
        """Suffix of this share's tables."""
        return f".{self.number}-of-{self.count}"


class Listing(NamedTuple):
    """The files that a run finds: its slides, and those that it leaves out."""

    slides: list[FoundSlide]
    passed: list[Path]
    """Side files of scanners and systems."""
    images: tuple[Path, ...] = ()
    """Label images and masks of the slides."""


def find_slides(
    places: Sequence[Path | str] = (), *, recursive: bool = False, sheet: Path | None = None
) -> list[FoundSlide]:
    """Return the slides among files, folders and patterns (`scans/*.svs`), or of a sample sheet.

    A `.csv` among `places` is a sample sheet too. Each `slide_id` is the file's stem where that is
    unique and safe as a file name, else stem and a hash of the path. The files of a DICOM series
    are one slide, as are those of an OME-Zarr image. `recursive` includes folders within folders;
    the folder of such a slide is found anyway. Files written by wsi are taken only where they are
    named, and side files, which are counted in a warning. Raises ConfigError where a place does not
    exist or nothing is found, and EnvironmentFault where a folder may not be entered.
    """
    listing = list_slides(places, recursive=recursive, sheet=sheet)
    if listing.passed:
        logger.warning("passed over: %s", describe_passed(listing.passed))
    if images := [path.name for path in listing.images]:
        shown = ", ".join(images[:5]) + (", …" if images[5:] else "")
        logger.warning("left out as label images or masks (%d): %s", len(images), shown)
    return listing.slides


def find_one(place: Path) -> Path:
    """Return the file of the slide that a path means: itself, or the only one of a folder.

    Raises ConfigError where the folder holds several.
    """
    if not place.is_dir():
        return place
    slides = list_slides([place]).slides
    if len(slides) > 1:
        names = show_names(str(slide.path.relative_to(place)) for slide in slides)
        raise ConfigError(f"{place}: holds {len(slides)} slides ({names}); name one")
    return slides[0].path


def describe_passed(paths: Sequence[Path]) -> str:
    """Return how many side files of each kind there are, as text."""
    kinds = Counter(
        path.name if path.name.lower() in SIDE_NAMES else path.suffix.lower() for path in paths
    )
    what = "file that is no slide" if len(paths) == 1 else "files that are no slides"
    of_kinds = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
    return f"{len(paths):,} {what} ({of_kinds})"


def list_slides(
    places: Sequence[Path | str] = (), *, recursive: bool = False, sheet: Path | None = None
) -> Listing:
    """Return the slides as `find_slides`, and the side files that were passed over."""
    sheets = [Path(place) for place in places if str(place).lower().endswith(SHEET_SUFFIX)]
    if sheets and len(places) > 1:
        raise ConfigError(
            f"{sheets[0]}: a sample sheet names all slides of a run; give nothing beside it"
        )
    if sheet or sheets:
        return Listing([row.slide for row in read_sheet(sheet or sheets[0])], [])
    found, passed = [], []
    for place in places:
        listed = _list_place(place, recursive)
        is_named = listed == [Path(place)]
        passed += [path for path in listed if _is_side(path.name) and not is_named]
        found += [path for path in listed if is_named or not _is_side(path.name)]
    images = dict.fromkeys(find_label_images(found))
    found = [path for path in found if path not in images]
    once: dict[tuple[str, str], Path] = {}
    for path, entry in zip(found, locate_files(found), strict=True):
        once.setdefault(entry, path)
    if not once:
        where = ", ".join(map(str, places))
        beside = f" ({describe_passed(passed)})" if passed else ""
        raise NoSlides(f"{where}: no slide files{beside}; name a folder that holds some")
    named = {path: _named_as(path, name) for path, name in merge_series([*once.values()]).items()}
    names = name_slides(list(named.values()))
    slides = [FoundSlide(name, path) for name, path in zip(names, named, strict=True)]
    return Listing(slides, passed, tuple(images))


def _named_as(path: Path, name: Path) -> Path:
    """Return the path by whose stem a slide is named: an OME-Zarr image by its folder."""
    return path.parent if find_image_file(path.parent) == path else name


def find_label_images(paths: Sequence[Path]) -> list[Path]:
    """Return the label images and masks of slides among the paths, by their names.

    Where the name is only the beginning of a slide's, or a slide's only the beginning of the name
    (`X_tissue_mask.tif`), a file that is compressed as photographs are is a slide itself: no label
    survives that. Upper and lower case make no difference.
    """
    matches = {path: LABEL_IMAGE.fullmatch(path.name) for path in paths}
    named = {path: match["name"].casefold() for path, match in matches.items() if match}
    slides = _list_names(path for path in paths if path not in named)
    images = {path for path, name in named.items() if _is_image_of_any(path, name, slides)}
    # A slide may itself be called as label images are, and have one.
    slides |= _list_names(path for path in named if path not in images)
    return [path for path, name in named.items() if path in images or name in slides]


def _list_names(paths: Iterable[Path]) -> set[str]:
    return {name.casefold() for path in paths for name in (path.name, path.stem)}


def _is_image_of_any(path: Path, name: str, slides: Collection[str]) -> bool:
    """Return whether a file of that name, without `_mask`, is a label image of any slide."""
    if name in slides:
        return True
    beginnings = tuple(name + separator for separator in SEPARATORS)
    ends = (place for place, letter in enumerate(name) if letter in SEPARATORS)
    is_near = any(name[:end] in slides for end in ends)
    is_near = is_near or any(slide.startswith(beginnings) for slide in slides)
    return is_near and not is_photograph(path)


def _list_place(place: Path | str, recursive: bool) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        return _list_folder(path, recursive)
    if path.exists() or path.is_symlink():
        return [path]
    # Not Path.glob: patterns may be absolute.
    matching = sorted(map(Path, glob.glob(str(place), recursive=recursive)))  # noqa: PTH207
    if not matching:
        raise ConfigError(f"{place}: no such file or folder, and no pattern that anything matches")
    parents = {parent for match in matching for parent in match.parents}
    products = set(filter(is_work_of_wsi, parents))
    found: list[Path] = []
    for match in matching:
        if match.is_dir() and products.isdisjoint(match.parents):
            found += _list_folder(match, recursive)
        elif products.isdisjoint(match.parents) and not is_written(match.name):
            found.append(match)
    return found


def _list_folder(folder: Path, recursive: bool) -> list[Path]:
    """Return every file of a folder that may be a slide, sorted.

    These are visible files, without sidecars and files written by wsi, but with side files;
    `recursive` includes the folders within. Raises EnvironmentFault where a folder may not be
    entered.
    """
    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=_refuse):
        if is_work_of_wsi(Path(where)) or _holds_pseudonyms(Path(where), folder):
            folders.clear()
            continue
        if image := find_image_file(Path(where)):
            found.append(image)
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if _may_be_entered(name, files) and (recursive or _holds_slide(Path(where, name)))
        ]
        found += [Path(where, name) for name in files if _may_be_slide(name)]
    return sorted(found)


def _holds_slide(folder: Path) -> bool:
    """Return whether a folder holds one slide in many files."""
    return holds_series(folder) or find_image_file(folder) is not None


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder deleted meanwhile is empty
        raise machine_fault(error.filename, error) or error


def _may_be_entered(name: str, files: Sequence[str]) -> bool:
    """Return whether a folder beside `files` may hold slides other than pseudonyms' links."""
    are_links = name.endswith(LINKS_SUFFIX) and name.removesuffix(LINKS_SUFFIX) in files
    return not (name.startswith(".") or name in SYSTEM_FOLDERS or are_links)


def _holds_pseudonyms(folder: Path, top: Path) -> bool:
    """Return True for a folder of `wsi pseudonymize` below `top`, whose slides are elsewhere."""
    header = ",".join(MAPPING_COLUMNS).encode()
    try:
        with (folder / MAPPING_CSV).open("rb") as stream:
            return folder != top and stream.read(len(header)) == header
    except OSError:
        return False


def _may_be_slide(name: str) -> bool:
    is_sidecar = Path(name).suffix.lower() in SIDECAR_SUFFIXES
    return not (name.startswith(".") or is_sidecar or is_written(name))


def _is_side(name: str) -> bool:
    return name.lower() in SIDE_NAMES or Path(name).suffix.lower() in SIDE_SUFFIXES


def is_written(name: str) -> bool:
    """Return whether wsi writes files of that name beside its products."""
    return (
        name.endswith((MASK_SUFFIX, LABELS_SUFFIX, PREVIEW_SUFFIX))
        or SHARD.sub("", name) in WRITTEN
    )


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
