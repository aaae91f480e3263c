"""Ingest: copy a patient's ready-cut patches into a store; the job, and its patches as a source."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import STORE_SUFFIX
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.core.geometry import Grid, PatchSpec, choose_block_size
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.core.patch_table import PatchBlock, PatchTable
from wsi_pipeline.core.recipe import describe_tool
from wsi_pipeline.core.slide import SlideInfo, Thumbnail
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.images import read_rgb, read_size
from wsi_pipeline.stages.ingest_layouts import (
    ELSEWHERE,
    LeftOut,
    PatchEntry,
    PatientPatches,
    open_images,
    stack_shape,
)
from wsi_pipeline.stages.plan import BlockReport, SlidePlan, staged_table
from wsi_pipeline.stages.tile import finish_store, store_block
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.patches import KIND, prepare_patch_store
from wsi_pipeline.store.zarr_io import read_attributes

MAX_POSITIONS_PER_SIDE = 20_000
"""Coordinates beyond this many patches cannot lie on a slide."""

MAX_THUMBNAIL_PX = 1500


class PatchFile(NamedTuple):
    """An entry that becomes a patch, and its position."""

    entry: PatchEntry
    row: int
    col: int


@dataclass(frozen=True, slots=True)
class IngestJob:
    """Copy one patient's patches into a store."""

    patient: PatientPatches
    store_name: str
    """The patient's name, safe as a file name."""
    out: Path
    spec: PatchSpec
    force: bool = False

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return hold_lock(self.target)

    @property
    def target(self) -> Path:
        """Path of the store."""
        return self.out / f"{self.store_name}{STORE_SUFFIX}"

    @property
    def slide(self) -> FoundSlide:
        """The patient, in the place of a slide."""
        return FoundSlide(self.store_name, self.patient.folder, columns=self.patient.columns)

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Bytes of a patch's pixels."""
        return {self.out: self.spec.side_px**2 * 3}

    def prepare(self) -> SlidePlan:
        """Open the files, lay out the store."""
        patient, spec = self.patient, self.spec
        fingerprint = fingerprint_patches(patient)
        classes = list(patient.class_names)
        recipe = {"slide": fingerprint, "patch": spec.to_json(), "class_names": classes}
        staging = Staging(self.target, recipe | self.slide.columns_entry)
        if manifest := find_finished(staging, KIND, self.force, [patient.folder]):
            return SlidePlan.of_finished(staging, manifest)
        if not staging.is_prepared:
            files, left_out = sort_files(patient, spec)
            if not files:
                reason = f"{left_out[0].file}: {left_out[0].reason}" if left_out else "it has none"
                what = f"none of its {len(left_out)} files is a whole patch"
                raise SlideError(f"{patient.patient_id}: {what} ({reason})")
            table = plan_ingestion(patient, files, self.store_name, fingerprint, spec)
            record = {
                "files": [list(file.entry) for file in files],
                "left_out": [list(entry) for entry in left_out],
                "provenance": describe_tool(),
            }
            prepare_patch_store(staging, table, record)
        return SlidePlan.of_staged(staging, staged_table(staging.product))

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Read and store one block."""
        product = plan.staging.product
        table = staged_table(product)
        entries = [PatchEntry(*entry) for entry in read_attributes(product)["files"]]
        source = PatchFiles(table, self.patient.folder, entries)
        return store_block(source, table, plan.staging, block)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Commit the store."""
        return finish_store(plan, self.store_name, self.patient.folder)


def fingerprint_patches(patient: PatientPatches) -> str:
    """Return the SHA-256 of a patient's patches: names, places, labels, content of every file."""
    digest = hashlib.sha256()
    names = {entry.file for entry in patient.entries}
    contents = {name: _content_digest(patient.folder / name) for name in names}
    for entry in patient.entries:
        digest.update(f"{entry}\0".encode(errors="surrogateescape") + contents[entry.file])
    return digest.hexdigest()


def _content_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b"unreadable"  # it will be left out, with the reason


def sort_files(patient: PatientPatches, spec: PatchSpec) -> tuple[list[PatchFile], list[LeftOut]]:
    """Return the patches that are whole and on the grid, in raster order, and the files left out.

    Where places are unknown, the patches fill a square in their order.
    """
    taken: dict[tuple[int, int], PatchFile] = {}
    left_out: list[LeftOut] = []
    columns = max(1, math.isqrt(max(len(patient.entries) - 1, 0)) + 1)
    for number, entry in enumerate(patient.entries):
        place = divmod(number, columns)
        if reason := _find_fault(patient.folder, entry, spec):
            left_out.append(LeftOut(_name(entry), reason))
            continue
        if entry.x is not None and entry.y is not None:
            place = entry.y // spec.stride_px, entry.x // spec.stride_px
        found = PatchFile(entry, *place)
        if (earlier := taken.setdefault(place, found)) is not found:
            left_out.append(LeftOut(_name(entry), f"{ELSEWHERE}{_name(earlier.entry)} lies"))
    return [taken[position] for position in sorted(taken)], left_out


def _find_fault(folder: Path, entry: PatchEntry, spec: PatchSpec) -> str | None:
    """Return the reason why an entry cannot become a patch; None where it can."""
    path, side = folder / entry.file, spec.side_px
    try:
        size = read_size(path) if entry.stack_index < 0 else (stack_shape(path) or ())[2:0:-1]
    except (SlideError, ConfigError):
        size = ()
    if not size:
        return _explain(path)
    if size != (side, side):
        return f"{size[0]} × {size[1]} px instead of {side} × {side}"
    if entry.x is None or entry.y is None:
        return None
    if entry.x < 0 or entry.y < 0 or entry.x % spec.stride_px or entry.y % spec.stride_px:
        return f"its place {entry.x},{entry.y} (from 0) is no multiple of {spec.stride_px}"
    if max(entry.x, entry.y) // spec.stride_px >= MAX_POSITIONS_PER_SIDE:
        return "lies beyond any slide"
    return None


def _explain(path: Path) -> str:
    """Return why nothing can be decoded of a file."""
    try:
        return "is empty" if path.stat().st_size == 0 else "cannot be decoded"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _name(entry: PatchEntry) -> str:
    return entry.file if entry.stack_index < 0 else f"{entry.file}#{entry.stack_index}"


def plan_ingestion(
    patient: PatientPatches,
    files: Sequence[PatchFile],
    slide_id: str,
    fingerprint: str,
    spec: PatchSpec,
) -> PatchTable:
    """Return the patch table of one patient, whose slide is the area that the patches cover."""
    positions = np.array([(file.row, file.col) for file in files], dtype=np.int32)
    rows, cols = (int(extent) for extent in positions.max(axis=0) + 1)
    width, height = ((extent - 1) * spec.stride_px + spec.side_px for extent in (cols, rows))
    grid = Grid(spec, rows, cols, downsample=Fraction(1))
    slide = SlideInfo(
        slide_id=slide_id,
        path=str(patient.folder),
        size_l0=(width, height),
        mpp=spec.mpp,
        mpp_source="user",
        level_downsamples=(Fraction(1),),
        bounds_l0=(0, 0, width, height),
        fingerprint=fingerprint,
    )
    return PatchTable(
        slide,
        grid,
        positions,
        labels=np.array([file.entry.label for file in files], dtype=np.int8),
        label_fraction=np.ones(len(files), dtype=np.float32),
        tissue_fraction=np.full(len(files), np.nan, dtype=np.float32),
        thumbnail=_draw_thumbnail(patient.folder, files, grid),
        block_size=choose_block_size(len(files), spec.side_px),
        patient_id=patient.patient_id,
        class_names=patient.class_names,
        columns=dict(patient.columns),
    )


class PatchFiles:
    """Patch files as a patch source, in the order of a store's table."""

    def __init__(self, table: PatchTable, folder: Path, entries: Sequence[PatchEntry]) -> None:
        self._table = table
        self._folder = folder
        self._entries = entries

    def read_block(self, block: int) -> PatchBlock:
        """Return the pixels of one block; a file that was damaged since planning is unreadable."""
        entries = self._entries[self._table.block_slice(block)]
        side = self._table.grid.spec.side_px
        pixels = np.full((len(entries), side, side, 3), 255, dtype=np.uint8)
        readable = np.ones(len(entries), dtype=np.bool_)
        for index, entry in enumerate(entries):
            patch = _read_patch(self._folder, entry, side)
            if patch is None:
                readable[index] = False
            else:
                pixels[index] = patch
        return PatchBlock(pixels, readable)


def _read_patch(folder: Path, entry: PatchEntry, side: int) -> NDArray[np.uint8] | None:
    """Return the pixels (side, side, 3) of a patch; None where it cannot be read any more."""
    path = folder / entry.file
    try:
        if entry.stack_index < 0:
            patch = read_rgb(path)
        elif (images := open_images(path)) is not None:
            patch = np.asarray(images[entry.stack_index])
        else:
            return None
    except (SlideError, ConfigError):
        return None
    return patch if patch.shape == (side, side, 3) else None


def _draw_thumbnail(folder: Path, files: Sequence[PatchFile], grid: Grid) -> Thumbnail:
    """Return the patches in their places on white, each reduced by a divisor of its side."""
    side, extent = grid.spec.side_px, max(grid.rows, grid.cols)
    factors = [factor for factor in range(1, side + 1) if side % factor == 0]
    factor = next((f for f in factors if extent * side // f <= MAX_THUMBNAIL_PX), side)
    small = side // factor
    image = np.full((grid.rows * small, grid.cols * small, 3), 255, dtype=np.uint8)
    if grid.spec.stride_px == side:  # overlapping or scattered patches make no image
        for entry, row, col in files:
            patch = _read_patch(folder, entry, side)
            if patch is not None:
                reduced = patch.reshape(small, factor, small, factor, 3).mean(axis=(1, 3)).round()
                place = slice(row * small, (row + 1) * small), slice(col * small, (col + 1) * small)
                image[place] = reduced
    return Thumbnail(image, Fraction(factor), (0, 0))
