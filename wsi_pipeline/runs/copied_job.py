"""Jobs that read their slides from copies on a local disk."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.runs.local_copies import (
    FILES,
    IN_PLACE,
    LocalCopies,
    NoRoom,
    name_copy,
    remove_copy,
)
from wsi_pipeline.slides.slide_files import Stamp
from wsi_pipeline.stages.infer import InferJob
from wsi_pipeline.stages.part import is_part
from wsi_pipeline.stages.plan import BlockReport, SlideJob, SlidePlan, WrappedJob
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.store.files import make_folder
from wsi_pipeline.store.lock import LockHeld, hold_lock
from wsi_pipeline.store.manifest import is_product, read_manifest

logger = logging.getLogger(__name__)


@contextmanager
def lend_copies(
    jobs: Sequence[InferJob | TileJob], copies: LocalCopies
) -> Iterator[Sequence[SlideJob]]:
    """Give the jobs as they read copies; no copy is left after the block.

    Whole copies of a killed run are kept for the slides of these jobs. Raises EnvironmentFault.
    """
    if copies.folder is None:
        yield jobs
        return
    make_folder(copies.folder)
    with suppress(LockHeld), hold_lock(copies.folder / "copies"):
        copies.clean({name_copy(job.slide) for job in jobs})
    try:
        yield [CopiedJob(job, copies) for job in jobs]
    finally:
        copies.clean()


@dataclass
class CopiedJob(WrappedJob):
    """A job that reads its slide from a copy, or where it is if there is no room for a copy."""

    job: InferJob | TileJob
    copies: LocalCopies
    folder: Path | None = None
    """Folder of the slide's files; None: the slide is not copied."""
    own: str = ""
    """Name of the slide's own file in that folder."""
    stamp: Stamp = (0, 0)
    """Size and time of change that this file had before it was copied."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the locks of the job, and the copy where pixels will be read. Raises NotYet."""
        with self.job.hold(), ExitStack() as held:
            if not _has_products(self.job):
                files = held.enter_context(self.copies.hold(self.slide))
                if files is not None:
                    self.folder, self.own = files.folder, files.own
                    self.stamp = files.stamps[files.own]
            yield

    def prepare(self) -> SlidePlan:
        """Copy the slide, then prepare the job."""
        name = name_copy(self.slide)
        if self.folder is not None and self.copies.place(name, "copying").is_dir():
            try:
                self.copies.fill(name, self.slide.path)
            except NoRoom as fault:
                logger.warning("%s: was not copied (%s); %s", self.slide.path, fault, IN_PLACE)
                remove_copy(self.copies.place(name, "copying"))
        with self._reading() as job:
            plan = job.prepare()
        return plan.with_stamp(self.stamp) if job.slide.copy else plan

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Run one block."""
        with self._reading() as job:
            return job.run_block(plan, block)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Finish the job, after which its copy is not read any more."""
        with self._reading() as job:
            outcome = job.finish(plan, reports)
        if self.folder is not None:
            remove_copy(self.copies.place(name_copy(self.slide), "copy"), is_read=False)
        return outcome

    @contextmanager
    def _reading(self) -> Iterator[InferJob | TileJob]:
        """Give the job that reads the copy, if there is one; errors in the block name the slide."""
        files = self.copies.place(name_copy(self.slide), "copy") / FILES
        if self.folder is None or not (files / self.own).is_file():
            yield self.job
            return
        try:
            yield _read_from(self.job, files / self.own)
        except Exception as error:
            error.args = tuple(
                text.replace(str(files), str(self.folder)) if isinstance(text, str) else text
                for text in error.args
            )
            raise


def _has_products(job: InferJob | TileJob) -> bool:
    """Return whether all products are there and stay, so that no pixels are read.

    Results of a part of the slide are no such product: more patches may be asked for.
    """
    if job.force or not is_product(job.target):
        return False
    if isinstance(job, TileJob):
        return True
    is_kept = job.keep is None or is_product(job.keep.target)
    return is_kept and not is_part(read_manifest(job.target).recipe)


def _read_from(job: InferJob | TileJob, copy: Path) -> InferJob | TileJob:
    """Return the job that reads this copy of its slide."""
    slide = replace(job.slide, copy=copy)
    if isinstance(job, TileJob):
        return replace(job, slide=slide)
    keep = job.keep and replace(job.keep, slide=replace(job.keep.slide, copy=copy))
    return replace(job, slide=slide, keep=keep)
