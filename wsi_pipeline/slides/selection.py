"""Which slides a run takes: folders and patterns gone through, one share of an array job, scales from a table."""

import csv
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.slides.discovery import (
    FoundSlide,
    is_work_of_wsi,
    is_written,
    list_folder,
    list_found,
)
from wsi_pipeline.slides.sheet import check_header, parse_mpp, read_sheet

SHEET_SUFFIX = ".csv"


@dataclass(frozen=True, slots=True)
class Shard:
    """One share of a run that is divided among array jobs: every `count`-th slide, from the `number`-th on, counted from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"shard {self.number}/{self.count} cannot be; give I/N with I from 1 to N"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that `I/N` means. Raises ConfigError."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text.strip())):
            raise ConfigError(f"shard {text!r} is not of the form I/N, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    def take(self, slides: Sequence[FoundSlide]) -> list[FoundSlide]:
        """This share's slides; all shares together are all slides, each once."""
        return list(slides[self.number - 1 :: self.count])

    @property
    def suffix(self) -> str:
        """What tells this share's tables from those of the others."""
        return f".{self.number}-of-{self.count}"


def find_slides(
    places: Sequence[Path | str] = (), *, recursive: bool = False, sheet: Path | None = None
) -> list[FoundSlide]:
    """Return the slides among files, folders and patterns such as `scans/*.svs`, or those of a sample sheet.

    A `.csv` among `places` is a sample sheet too. Each `slide_id` is the file's stem where that is
    unique and safe as a file name, else stem and a hash of the path. `recursive` goes into folders
    within folders. Files that wsi wrote are taken only where they are named.
    Raises ConfigError where a place does not exist or nothing is found, and EnvironmentFault where
    a folder may not be entered.
    """
    sheets = [Path(place) for place in places if str(place).lower().endswith(SHEET_SUFFIX)]
    if sheets and len(places) > 1:
        raise ConfigError(
            f"{sheets[0]}: a sample sheet names all slides of a run; give nothing beside it"
        )
    if sheet or sheets:
        return [row.slide for row in read_sheet(sheet or sheets[0])]
    return list_found(places, (path for place in places for path in _list_place(place, recursive)))


def _list_place(place: Path | str, recursive: bool) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        return list_folder(path, recursive)
    if path.exists() or path.is_symlink():
        return [path]
    matching = sorted(Path(match) for match in glob.glob(str(place), recursive=recursive))  # noqa: PTH207 - patterns may be absolute
    if not matching:
        raise ConfigError(
            f"{place}: no such file or folder, and no pattern that anything matches; check the path"
        )
    products = {
        folder
        for folder in {parent for match in matching for parent in match.parents}
        if is_work_of_wsi(folder)
    }
    others = [match for match in matching if products.isdisjoint(match.parents)]
    return [found for match in others for found in _list_match(match, recursive)]


def _list_match(match: Path, recursive: bool) -> list[Path]:
    if match.is_dir():
        return list_folder(match, recursive)
    return [] if is_written(match.name) else [match]


def read_mpp_csv(path: Path) -> dict[str, float]:
    """µm per pixel by slide, from a table with the columns wsi and mpp. Raises ConfigError naming the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            lines = [(reader.line_num, line) for line in reader if any(line.values())]
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path}: not a readable CSV file ({error}); save it as CSV in UTF-8"
        ) from error
    if not {"wsi", "mpp"} <= set(header):
        raise ConfigError(
            f"{path}: line 1: the columns are {', '.join(header) or 'none'}; wsi and mpp must be"
            " among them"
        )
    check_header(path, header)
    scales: dict[str, float] = {}
    for number, line in lines:
        name, mpp = (line["wsi"] or "").strip(), parse_mpp(path, number, line["mpp"] or "")
        if not name or mpp is None:
            raise ConfigError(
                f"{path}: line {number}: names no slide or no mpp; fill in both or remove the line"
            )
        if scales.setdefault(Path(name).name, mpp) != mpp:
            raise ConfigError(
                f"{path}: line {number}: {name} was given another mpp above; keep one line"
            )
    return scales


def scale_slides(slides: Sequence[FoundSlide], path: Path) -> list[FoundSlide]:
    """The slides with the scales of a table, found by file name, or by name without suffix; a sample sheet's word stands above it."""
    scales = read_mpp_csv(path)
    source = f"user ({path.name})"
    scaled = []
    for slide in slides:
        mpp = scales.get(slide.path.name, scales.get(slide.path.stem))
        scaled.append(
            slide
            if mpp is None or slide.slide_mpp is not None
            else replace(slide, slide_mpp=mpp, mpp_source=source)
        )
    return scaled
