"""Free disk space, checked before a slide starts and before every block; permissions of files."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError, EnvironmentFault
from wsi_pipeline.core.options import DEFAULT_MIN_FREE
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.stages.plan import BlockReport, SlideJob, SlidePlan, WrappedJob
from wsi_pipeline.store.manifest import is_product

MIN_FREE_FILES = 1_000
"""A slide's results are some 40 files, and a store has one per 4,096 patches."""
GB = 1e9


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Disk space that stays free on every file system that is written to."""

    min_free_bytes: int = DEFAULT_MIN_FREE

    def __post_init__(self) -> None:
        if self.min_free_bytes < 0:
            raise ConfigError(f"{self.min_free_bytes} bytes cannot be kept free; give 0 or more")

    def check(self, folder: Path, needed_bytes: int = 0) -> None:
        """Raise EnvironmentFault where so many more bytes leave too little, or files run out."""
        system = os.statvfs(find_existing(folder))
        free = system.f_bavail * system.f_frsize
        if free < self.min_free_bytes + needed_bytes:
            wanted = (
                f" and this slide needs {needed_bytes / GB:,.2f} GB more" if needed_bytes else ""
            )
            raise EnvironmentFault(
                f"{folder}: {free / GB:,.2f} GB free, of which --min-free keeps"
                f" {self.min_free_bytes / GB:,.2f} GB{wanted}; make room and run the same line"
                " again"
            )
        if self.min_free_bytes and system.f_files and system.f_favail < MIN_FREE_FILES:
            raise EnvironmentFault(
                f"{folder}: room for {system.f_favail:,} more files only (df -i); remove small"
                " files and run the same line again"
            )


def find_existing(folder: Path) -> Path:
    """Return the folder, or the one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@dataclass(frozen=True, slots=True)
class SpaceCheckedJob(WrappedJob):
    """A job that stops where disk space runs out, and whose files get the permissions asked for.

    Both hold in every process that runs a step of it.
    """

    job: SlideJob
    disk_space: DiskSpace
    umask: int

    def hold(self) -> AbstractContextManager[None]:
        """Hold the locks of the job."""
        return self.job.hold()

    def prepare(self) -> SlidePlan:
        """Prepare, and check that there is space for everything that is missing."""
        os.umask(self.umask)
        if not is_product(self.target):  # else there may be nothing to do, which needs no space
            self._look()
        plan = self.job.prepare()
        if plan.missing_patches:
            for folder, size in self.patch_bytes.items():
                self.disk_space.check(folder, size * plan.missing_patches)
        return plan

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Run one block, if there is space."""
        self._look()
        return self.job.run_block(plan, block)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Finish the job; a slide that was done before needs no space."""
        os.umask(self.umask)
        return self.job.finish(plan, reports)

    def _look(self) -> None:
        os.umask(self.umask)
        for folder in self.patch_bytes:
            self.disk_space.check(folder)


def current_umask() -> int:
    """Return the permissions that this process takes from files it makes."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
