"""Taking in ready-cut patches: the layout of the public IDC set (Case Western Reserve, Kaggle).

Files are called `<patient>_idx5_x<X>_y<Y>_class<C>.png`; X is the column and Y the row of the patch's top-left pixel, counted from 1
in the reduced scan that the patches were cut from. One patient becomes one patch store, with every patch in its place.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError, SlideError
from wsi_pipeline.geometry import Grid, PatchSpec, block_slice, choose_block_size
from wsi_pipeline.provenance import describe_tool
from wsi_pipeline.slides.image_reader import read_rgb, read_size
from wsi_pipeline.sources import PatchBlock, PatchTable, SlideInfo, Thumbnail

IDC_NAME = re.compile(r"(?P<patient>[^_]+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])\.png", re.IGNORECASE)
IDC_CLASS_NAMES = ("non_idc", "idc")

MAX_CELLS_PER_SIDE = 20_000
"""Coordinates beyond this many patches are no place on a slide."""

MAX_THUMBNAIL_PX = 1500


@dataclass(frozen=True, slots=True)
class PatientPatches:
    """The patch files of one patient, not looked into yet."""

    patient_id: str
    folder: Path
    """What the file names below are relative to."""
    files: tuple[str, ...]


class LeftOut(NamedTuple):
    """A file that did not become a patch, and why."""

    file: str
    reason: str


class PatchFile(NamedTuple):
    """A file that becomes a patch."""

    file: str
    row: int
    col: int
    label: int


def find_patients(folder: Path) -> list[PatientPatches]:
    """Every patient below `folder`, sorted by name. Raises ConfigError where no file has the IDC set's kind of name."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the one that holds the patients' folders")
    by_patient: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if match := IDC_NAME.fullmatch(path.name):
            by_patient[match["patient"]].append(path.relative_to(folder).as_posix())
    if not by_patient:
        raise ConfigError(f"{folder}: no files called <patient>_idx5_x<X>_y<Y>_class<0|1>.png below it; give the data set's folder")
    return [PatientPatches(patient, folder, tuple(files)) for patient, files in sorted(by_patient.items())]


def ingest_recipe(patient: PatientPatches, spec: PatchSpec) -> dict[str, Any]:
    """Everything that decides a patient's store."""
    return {"slide": fingerprint_patches(patient), "patch": {"side_px": spec.side_px, "stride_px": spec.stride_px, "mpp": spec.mpp}}


def fingerprint_patches(patient: PatientPatches) -> str:
    """SHA-256 over the names and contents of a patient's files."""
    digest = hashlib.sha256()
    for name in patient.files:
        digest.update(f"{name}\0".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256((patient.folder / name).read_bytes()).digest())
    return digest.hexdigest()


def sort_files(patient: PatientPatches, spec: PatchSpec) -> tuple[list[PatchFile], list[LeftOut]]:
    """The files that are whole patches on the grid, in raster order, and the others with the reason."""
    taken: dict[tuple[int, int], PatchFile] = {}
    left_out: list[LeftOut] = []
    for name in patient.files:
        found = _place_file(patient.folder, name, spec)
        if isinstance(found, LeftOut):
            left_out.append(found)
        elif (earlier := taken.setdefault((found.row, found.col), found)) is not found:
            left_out.append(LeftOut(name, f"lies where {earlier.file} lies"))
    return [taken[cell] for cell in sorted(taken)], left_out


def _place_file(folder: Path, name: str, spec: PatchSpec) -> PatchFile | LeftOut:
    match = IDC_NAME.fullmatch(Path(name).name)
    if match is None:
        return LeftOut(name, "its name is not one of the IDC set")
    try:
        width, height = read_size(folder / name)
    except SlideError:
        return LeftOut(name, "cannot be decoded")
    if (width, height) != (spec.side_px, spec.side_px):
        return LeftOut(name, f"{width} × {height} px instead of {spec.side_px} × {spec.side_px}")
    x, y = int(match["x"]) - 1, int(match["y"]) - 1
    if x < 0 or y < 0 or x % spec.stride_px or y % spec.stride_px:
        return LeftOut(name, f"x and y are not 1 plus a multiple of {spec.stride_px}")
    row, col = y // spec.stride_px, x // spec.stride_px
    if max(row, col) >= MAX_CELLS_PER_SIDE:
        return LeftOut(name, "lies beyond any slide")
    return PatchFile(name, row, col, int(match["label"]))


def plan_ingestion(patient: PatientPatches, files: Sequence[PatchFile], fingerprint: str, spec: PatchSpec) -> PatchTable:
    """The patch table of one patient; the slide is the reduced scan, as far as the patches reach."""
    cells = np.array([(file.row, file.col) for file in files], dtype=np.int32).reshape(-1, 2)
    rows, cols = (int(extent) for extent in cells.max(axis=0, initial=-1) + 1)
    grid = Grid(spec=spec, rows=rows, cols=cols, downsample=Fraction(1))
    size = (max(cols - 1, 0) * spec.stride_px + spec.side_px, max(rows - 1, 0) * spec.stride_px + spec.side_px)
    slide = SlideInfo(
        slide_id=patient.patient_id,
        path=str(patient.folder),
        size_l0=size,
        mpp=spec.mpp,
        mpp_source="user",
        level_downsamples=(Fraction(1),),
        bounds_l0=(0, 0, *size),
        fingerprint=fingerprint,
    )
    return PatchTable(
        slide=slide,
        grid=grid,
        cells=cells,
        labels=np.array([file.label for file in files], dtype=np.int8),
        tissue_fraction=np.full(len(files), np.nan, dtype=np.float32),
        thumbnail=_draw_thumbnail(patient.folder, files, grid),
        block_size=choose_block_size(len(files)),
        patient_id=patient.patient_id,
        class_names=IDC_CLASS_NAMES,
    )


def describe_ingestion(files: Sequence[PatchFile], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """What the store records about where its patches came from."""
    return {
        "files": [file.file for file in files],
        "left_out": [list(entry) for entry in left_out],
        "provenance": describe_tool(),
    }


class PatchFiles:
    """Patch files as a patch source, in the order of a store's table."""

    def __init__(self, table: PatchTable, folder: Path, files: Sequence[str]) -> None:
        self._folder = folder
        self._files = files
        self.slide = table.slide
        self.grid = table.grid
        self.cells = table.cells
        self.block_size = table.block_size

    def read_block(self, block: int) -> PatchBlock:
        """The pixels of one block; a file that went bad since the table was made is unreadable."""
        files = self._files[block_slice(block, self.block_size, len(self._files))]
        side = self.grid.spec.side_px
        pixels = np.full((len(files), side, side, 3), 255, dtype=np.uint8)
        readable = np.ones(len(files), dtype=np.bool_)
        for index, patch in enumerate(_read_patches(self._folder, files, side)):
            if patch is None:
                readable[index] = False
            else:
                pixels[index] = patch
        return PatchBlock(pixels, readable)


def _read_patches(folder: Path, files: Sequence[str], side: int) -> Iterator[NDArray[np.uint8] | None]:
    for name in files:
        try:
            patch = read_rgb(folder / name)
        except SlideError:
            yield None
        else:
            yield patch if patch.shape == (side, side, 3) else None


def _draw_thumbnail(folder: Path, files: Sequence[PatchFile], grid: Grid) -> Thumbnail:
    """The patches in their places, white between them, each reduced by a divisor of its side."""
    side = grid.spec.side_px
    extent = max(grid.rows, grid.cols, 1)
    factors = [factor for factor in range(1, side + 1) if side % factor == 0]
    factor = next((f for f in factors if extent * side // f <= MAX_THUMBNAIL_PX), side)
    small = side // factor
    picture = np.full((max(grid.rows, 1) * small, max(grid.cols, 1) * small, 3), 255, dtype=np.uint8)
    if grid.spec.stride_px != side:  # overlapping or scattered patches make no picture
        return Thumbnail(picture, Fraction(factor), (0, 0))
    for file, patch in zip(files, _read_patches(folder, [file.file for file in files], side), strict=True):
        if patch is not None:
            reduced = patch.reshape(small, factor, small, factor, 3).mean(axis=(1, 3))
            picture[file.row * small : (file.row + 1) * small, file.col * small : (file.col + 1) * small] = reduced.round()
    return Thumbnail(picture, Fraction(factor), (0, 0))
