"""Plans and reports of a slide's blocks, previews of a run, and slides that stay open.

A job has one plan per slide. A preview is found out without writing anything.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from wsi_pipeline.core.choices import AUTO, MASK_SUFFIX, PREDICTIONS, ROLES, ZARR_JSON
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.outcome import SlideOutcome, SlideState, state_of
from wsi_pipeline.core.patch_table import PatchSource, PatchTable
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.scheduling import Job
from wsi_pipeline.slides import open_found
from wsi_pipeline.slides.base import UserScale
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.store.codecs import CHECKSUM_BYTES
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import Manifest
from wsi_pipeline.store.patches import PatchStore
from wsi_pipeline.store.predictions import name_arrays
from wsi_pipeline.store.schema import read_table
from wsi_pipeline.store.zarr_io import read_attributes

OPEN_SOURCES = 4
"""Slides or stores that one process keeps open."""
CHANGED = "changed while it was read; run the same line again when it is complete"
LEAST_SEEN = 0.01
"""Share of the picture from which on a slide without patches names what is there instead."""


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """Blocks of one slide that are still to be done."""

    staging: Staging
    patches: int
    blocks: tuple[int, ...] = ()
    """Those that are missing."""
    block_size: int = 1
    is_finished: bool = False
    """An earlier run committed this very product."""
    is_predicted: bool = False
    """An earlier run made these very predictions; only other outputs are asked for."""
    slide_stamp: tuple[int, int] | None = None
    """Size and time of change of the slide's file when it was opened."""
    store: "SlidePlan | None" = None
    """The plan of the patch store that is made along with predictions, if one is kept."""
    stored_only: frozenset[int] = frozenset()
    """Missing blocks of that store whose predictions are there."""

    @classmethod
    def of_finished(cls, staging: Staging, manifest: Manifest) -> Self:
        """Return the plan where nothing is left to do."""
        return cls(staging, int(manifest.counts["patches"]), is_finished=True)

    @classmethod
    def of_staged(cls, staging: Staging, table: PatchTable, slide: Path | None = None) -> Self:
        """Return the plan of a product in staging, cut from a slide or from files."""
        done = staging.block_reports()
        missing = tuple(block for block in range(table.blocks) if block not in done)
        stamp = None if slide is None else stamp_file(slide)
        return cls(staging, table.patches, missing, table.block_size, slide_stamp=stamp)

    @property
    def missing_patches(self) -> int:
        """Patches in the missing blocks."""
        return sum(min(self.block_size, self.patches - b * self.block_size) for b in self.blocks)

    def with_stamp(self, stamp: tuple[int, int]) -> Self:
        """Return the plan with the stamp that the slide's file had when it was copied."""
        store = None if self.store is None else self.store.with_stamp(stamp)
        return replace(self, store=store, slide_stamp=self.slide_stamp and stamp)

    def refuse_changed(self, path: Path) -> None:
        """Raise SlideError, and discard the product, where the slide changed while it was read."""
        if self.slide_stamp is not None and stamp_file(path) != self.slide_stamp:
            self.staging.discard()
            raise SlideError(f"{path}: {CHANGED}")

    def refuse_unreadable(self, path: Path) -> None:
        """Raise SlideError, and discard the product, where no patch could be read."""
        counts = [report["unreadable"] for report in self.staging.block_reports().values()]
        unreadable = sum(count if isinstance(count, int) else len(count) for count in counts)
        if state_of(self.patches, unreadable) is SlideState.FAILED:
            self.staging.discard()
            what = f"none of its {self.patches} patches can be decoded"
            raise SlideError(f"{path}: {what}; scan or copy it again")


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Counts and seconds of one block, as its staging records them."""

    patches: int
    unreadable: int
    seconds_read: float = 0.0
    seconds_compute: float = 0.0
    seconds_write: float = 0.0
    fallbacks: int = 0
    """Regions that another reader read because of a fault."""
    predicted: int = 0
    """Number of patches that the model computed; 0 where they were only stored."""
    compared: tuple[tuple[float, ...], ...] = ()
    """Rows of number, nine stains and feature distance, of patches compared with training ones."""


class SlideJob(Job[SlidePlan, BlockReport, SlideOutcome], Protocol):
    """A job that ends in a product."""

    @property
    def slide(self) -> FoundSlide:
        """The slide, or the patient whose patches are taken in."""

    @property
    def target(self) -> Path:
        """Folder of the product."""

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Folders that are written to → bytes per patch, 0 where they are not known beforehand."""


class WrappedJob:
    """A job around another one, `job`, of the same slide and product."""

    __slots__ = ()
    job: SlideJob

    @property
    def slide(self) -> FoundSlide:
        """The slide of the job."""
        return self.job.slide

    @property
    def target(self) -> Path:
        """Folder of the product."""
        return self.job.target

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Bytes per patch of the job."""
        return self.job.patch_bytes


def stamp_file(path: Path) -> tuple[int, int]:
    """Return the size and time of change of a file, which change when it is written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


_opening = threading.Lock()
"""Held while a slide is opened: several steps run side by side, and each slide is opened once."""


def staged_table(folder: Path) -> PatchTable:
    """Return the patch table of a product in staging, read again only if it is begun again."""
    with _opening:
        return _read_staged_table(folder, stamp_file(folder / ZARR_JSON))


@lru_cache(OPEN_SOURCES)
def _read_staged_table(folder: Path, stamp: tuple[int, int]) -> PatchTable:
    return read_staged_table(folder)


def read_staged_table(folder: Path) -> PatchTable:
    """Return the patch table of a product in staging, without keeping it in memory."""
    return read_table(folder, read_attributes(folder))


def open_patches(
    slide: FoundSlide, scale: float | UserScale | None, folder: Path, reader: str = AUTO
) -> PatchSource:
    """Return the slide's patches for a staged product. Raises SlideError if the slide changed."""
    with _opening:
        return _open_slide_patches(slide, scale, folder, stamp_file(folder / ZARR_JSON), reader)


@lru_cache(OPEN_SOURCES)
def _open_slide_patches(
    slide: FoundSlide,
    scale: float | UserScale | None,
    folder: Path,
    stamp: tuple[int, int],
    reader: str,
) -> PatchSource:
    table = _read_staged_table(folder, stamp)
    opened = open_found(slide, scale, reader, table.grid.spec.icc)
    if opened.info.fingerprint != table.slide.fingerprint:
        opened.close()
        raise SlideError(f"{slide.path}: {CHANGED}")
    return SlidePatches(opened, table.grid, table.positions, table.block_size)


@lru_cache(OPEN_SOURCES)
def open_store(path: Path, work: str) -> PatchStore:
    """Return a finished store, which stays open while one piece of `work` reads it."""
    return PatchStore(path)


def describe_areas(table: PatchTable) -> str:
    """Return how many patches lie in drawn areas alone, to be added to a slide's line."""
    role, area = table.role, ROLES.index("area")
    count = 0 if role is None else int(np.count_nonzero(role == area))
    return f"; {count:,} patches lie in drawn areas alone" if count else ""


def describe_doubts(table: PatchTable) -> str:
    """Return what casts doubt on a slide's tissue, to be added to its line; "" where nothing does.

    That is a dark background, or, of a slide without patches, what else its picture holds.
    """
    shares = table.share_areas()
    if shares.get("dark"):
        return ", dark background (fluorescence?): no H&E can be read from it"
    seen = {name: shares.get(name, 0.0) for name in ("uncertain", "pen", "border", "fill")}
    parts = [f"{share:.0%} {name}" for name, share in seen.items() if share >= LEAST_SEEN]
    if table.patches or not parts:
        return ""
    return f" (the picture is {', '.join(parts)}; see its {MASK_SUFFIX[1:]})"


class PreviewState(StrEnum):
    """Progress of earlier runs with a slide."""

    NEW = "new"
    STARTED = "begun"
    PREDICTED = "outputs missing"
    """Its predictions are there; only other outputs are asked for."""
    PATCHES_MISSING = "patches missing"
    """Its results are there; its patches are still to be kept."""
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SlidePreview:
    """Facts about one slide before it is run."""

    slide_id: str
    state: PreviewState
    file_bytes: int = 0
    size_l0: tuple[int, int] = (0, 0)
    """(width, height) in pixels."""
    mpp: float | None = None
    """µm per level-0 pixel."""
    patches: int = 0
    missing_patches: int = 0
    """Patches that are still to be predicted."""
    blocks: int = 0
    """0 where they are all done."""
    blocks_done: int = 0
    prediction_bytes: int = 0
    """Size of the finished predictions on disk."""
    patch_bytes: int = 0
    """Size of the patch store that is still to be finished."""
    reason: str = ""
    """Reason why it cannot be run."""
    doubts: str = ""
    """Reasons to doubt its tissue, as the end of a line."""

    @classmethod
    def of_finished(
        cls, slide: FoundSlide, facts: SlideInfo, state: PreviewState, manifest: Manifest
    ) -> Self:
        """Return the preview of a slide whose predictions an earlier run finished."""
        files = manifest.files.items()
        return cls(
            slide.slide_id,
            state,
            _bytes_of(slide.path),
            facts.size_l0,
            facts.mpp,
            patches=int(manifest.counts["patches"]),
            prediction_bytes=sum(
                size for name, (size, _) in files if name.startswith(f"{PREDICTIONS}/")
            ),
        )

    @classmethod
    def of_started(
        cls, slide: FoundSlide, table: PatchTable, done: Mapping[int, Any], has_spread: bool
    ) -> Self:
        """Return the preview of a slide of which some blocks may be done.

        `has_spread`: by an ensemble.
        """
        rows = [table.block_slice(block) for block in range(table.blocks) if block not in done]
        chunk_bytes = table.block_size * np.dtype(np.float32).itemsize + CHECKSUM_BYTES
        arrays = table.to_arrays().values()
        return cls(
            slide.slide_id,
            PreviewState.STARTED if done else PreviewState.NEW,
            _bytes_of(slide.path),
            table.slide.size_l0,
            table.slide.mpp,
            patches=table.patches,
            missing_patches=sum(part.stop - part.start for part in rows),
            blocks=table.blocks,
            blocks_done=table.blocks - len(rows),
            doubts=describe_doubts(table),
            prediction_bytes=len(name_arrays(has_spread)) * table.blocks * chunk_bytes
            + sum(array.nbytes + CHECKSUM_BYTES for array in arrays),
        )


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
