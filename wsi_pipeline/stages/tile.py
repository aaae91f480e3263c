"""Jobs that end in a patch store: tile a slide, ingest a patient's patches.

Before that it is settled which label file each slide of a run has.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_pipeline.core.choices import LABELS_SUFFIX, MASK_SUFFIX, STORE_SUFFIX
from wsi_pipeline.core.errors import LabelError, SlideError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.outcome import SlideOutcome, state_of
from wsi_pipeline.core.slide import PatchSource, PatchTable
from wsi_pipeline.labels.annotation import describe_oddities
from wsi_pipeline.labels.discovery import find_beside, list_label_files, match_labels
from wsi_pipeline.labels.user_mask import match_mask
from wsi_pipeline.outputs.previews import write_label_preview, write_mask_preview
from wsi_pipeline.slides import open_slide
from wsi_pipeline.slides.base import SlideReader, UserScale
from wsi_pipeline.slides.discovery import FoundSlide
from wsi_pipeline.stages import ingest, patch_plan
from wsi_pipeline.stages.ingest_layouts import PatchEntry, PatientPatches
from wsi_pipeline.stages.plan import (
    BlockReport,
    SlidePlan,
    finished_plan,
    open_patches,
    open_plan,
    refuse_changed,
    refuse_unreadable,
    staged_table,
)
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.store.commit import Staging, check_finished, find_finished
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.patches import (
    KIND,
    PatchStore,
    finish_patch_store,
    prepare_patch_store,
    write_patch_block,
)
from wsi_pipeline.store.zarr_io import AS_THEY_ARE, read_attributes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TileJob:
    """Cut one slide into a patch store."""

    slide: FoundSlide
    out: Path
    config: patch_plan.TileConfig
    force: bool = False
    codec: PixelCodec = AS_THEY_ARE
    masks: tuple[Path, ...] = ()
    """The user's masks, one of them this slide's; empty where tissue is found here."""

    @property
    def target(self) -> Path:
        """Path of the store."""
        return self.out / f"{self.slide.slide_id}{STORE_SUFFIX}"

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Bytes of a patch where pixels are stored as they are; 0 where they are compressed."""
        return {self.out: _pixel_bytes(self.config.spec) if self.codec == AS_THEY_ARE else 0}

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return hold_lock(self.target)

    def prepare(self) -> SlidePlan:
        """Open the slide, choose its patches, lay out the store."""
        slide, mask = self.slide, self._mask
        with self._open() as reader:
            staging = self._stage(reader)
            if manifest := find_finished(staging, KIND, self.force, [slide.path, slide.label_file]):
                return finished_plan(staging, manifest)
            if not staging.is_prepared:
                table, record = patch_plan.plan_patches(
                    reader, self.config, slide.label_file, slide.patient_id, mask
                )
                record |= {"slide_label": slide.slide_label}
                prepare_patch_store(staging, table, record, self.codec)
        return open_plan(staging, staged_table(staging.product), slide.path)

    def is_finished(self) -> bool:
        """Return whether an earlier run made this very store, without changing anything.

        Raises StoreError where another recipe made the store that exists.
        """
        with self._open() as reader:
            found = check_finished(
                self._stage(reader), KIND, self.force, [self.slide.path, self.slide.label_file]
            )
        return found is not None

    def _open(self) -> closing[SlideReader]:
        return closing(
            open_slide(self.slide.path, self.slide.slide_id, self._scale, self.config.reader)
        )

    def _stage(self, reader: SlideReader) -> Staging:
        recipe = patch_plan.tile_recipe(
            reader.info, self.config, self.slide.label_file, self.slide.patient_id, self._mask
        )
        return Staging(self.target, recipe | {"codec": self.codec.to_json()})

    @property
    def _mask(self) -> Path | None:
        return match_mask(self.slide.path.stem, self.masks) if self.masks else None

    @property
    def _slide_mpp(self) -> float | None:
        """µm per level-0 pixel as given by the user."""
        return self.slide.slide_mpp or self.config.slide_mpp

    @property
    def _scale(self) -> UserScale | None:
        if self.slide.slide_mpp is not None:
            return UserScale(self.slide.slide_mpp, self.slide.mpp_source)
        return None if self.config.slide_mpp is None else UserScale(self.config.slide_mpp)

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Cut and store one block."""
        table = staged_table(plan.staging.product)
        return store_block(self.open_patches(plan), table, plan.staging, block)

    def open_patches(self, plan: SlidePlan) -> PatchSource:
        """Return the slide's patches, which stay open between blocks."""
        return open_patches(self.slide, self._slide_mpp, plan.staging.product, self.config.reader)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Commit the store, and draw its patches, and its labels where it has any."""
        refuse_changed(self.slide.path, plan)
        fallbacks = count_fallbacks(plan)
        outcome = _finish_store(plan, self.slide.slide_id, self.slide.path)
        store = PatchStore(self.target)
        for path, write in self._previews().items():
            if not (plan.is_finished and path.exists()):
                write(store.table, path)
        message = outcome.message + (
            f", {fallbacks} regions read by OpenSlide after a fault" if fallbacks else ""
        )
        message += f", lossy (JPEG quality {self.codec.quality})" if self.codec.is_lossy else ""
        if self.slide.label_file is not None:
            message += describe_oddities(store.attributes["labels"])
        return replace(outcome, message=message + describe_flags(store.table))

    def draw_missing(self) -> None:
        """Draw the missing previews of a store whose run was killed before it drew them."""
        for path, write in self._previews().items():
            if not path.exists():
                write(PatchStore(self.target).table, path)

    def _previews(self) -> dict[Path, Callable[[PatchTable, Path], None]]:
        writers = {MASK_SUFFIX: write_mask_preview}
        if self.slide.label_file is not None:
            writers[LABELS_SUFFIX] = write_label_preview
        return {
            self.out / f"{self.slide.slide_id}{suffix}": write for suffix, write in writers.items()
        }


def count_fallbacks(plan: SlidePlan) -> int:
    """Return how many regions another reader read because of a fault, in all runs so far."""
    return (
        0
        if plan.is_finished
        else sum(
            int(report.get("fallbacks", 0)) for report in plan.staging.block_reports().values()
        )
    )


def _pixel_bytes(spec: PatchSpec) -> int:
    return spec.side_px**2 * 3


def describe_flags(table: PatchTable) -> str:
    """Return how many patches are flagged, as text; "" where none is."""
    counts = table.count_flags().items()
    return "".join(f", {count} flagged {name}" for name, count in counts if count)


@dataclass(frozen=True, slots=True)
class IngestJob:
    """Copy one patient's patches into a store."""

    patient: PatientPatches
    store_name: str
    """The patient's name, safe as a file name."""
    out: Path
    spec: PatchSpec
    force: bool = False

    @property
    def source(self) -> str:
        """The folder of its files, as recorded."""
        return str(self.patient.folder)

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return hold_lock(self.target)

    @property
    def target(self) -> Path:
        """Path of the store."""
        return self.out / f"{self.store_name}{STORE_SUFFIX}"

    @property
    def patch_bytes(self) -> dict[Path, int]:
        """Bytes of a patch's pixels."""
        return {self.out: _pixel_bytes(self.spec)}

    def prepare(self) -> SlidePlan:
        """Open the files, lay out the store."""
        recipe = ingest.ingest_recipe(self.patient, self.spec)
        staging = Staging(self.target, recipe)
        if manifest := find_finished(staging, KIND, self.force, [self.patient.folder]):
            return finished_plan(staging, manifest)
        if not staging.is_prepared:
            files, left_out = ingest.sort_files(self.patient, self.spec)
            if not files:
                reason = f"{left_out[0].file}: {left_out[0].reason}" if left_out else "it has none"
                raise SlideError(
                    f"{self.patient.patient_id}: none of its {len(left_out)} files is a whole patch"
                    f" ({reason})"
                )
            table = ingest.plan_ingestion(self.patient, files, recipe["slide"], self.spec)
            table = replace(
                table, slide=replace(table.slide, slide_id=self.store_name, path=self.source)
            )
            prepare_patch_store(
                staging,
                table,
                ingest.describe_ingestion(files, left_out),
            )
        return open_plan(staging, staged_table(staging.product))

    def run_block(self, plan: SlidePlan, block: int) -> BlockReport:
        """Read and store one block."""
        table = staged_table(plan.staging.product)
        entries = [PatchEntry(*entry) for entry in read_attributes(plan.staging.product)["files"]]
        source = ingest.PatchFiles(table, self.patient.folder, entries)
        return store_block(source, table, plan.staging, block)

    def finish(self, plan: SlidePlan, reports: Sequence[BlockReport]) -> SlideOutcome:
        """Commit the store."""
        return _finish_store(plan, self.store_name, Path(self.source))


def store_block(
    source: PatchSource, table: PatchTable, staging: Staging, block: int
) -> BlockReport:
    """Read one block and write it to the store."""
    started = time.perf_counter()
    patches = source.read_block(block)
    was_read = time.perf_counter()
    unreadable = write_patch_block(staging, table, block, patches)
    return BlockReport(
        patches=len(patches.readable),
        unreadable=unreadable,
        seconds_read=was_read - started,
        seconds_write=time.perf_counter() - was_read,
        fallbacks=patches.fallbacks,
    )


def _finish_store(plan: SlidePlan, slide_id: str, path: Path) -> SlideOutcome:
    if plan.is_finished:
        manifest = read_manifest(plan.staging.target)
    else:
        refuse_unreadable(path, plan)
        manifest = finish_patch_store(plan.staging, staged_table(plan.staging.product))
    counts = manifest.counts
    unreadable = f", {counts['unreadable']} unreadable" if counts["unreadable"] else ""
    labelled = f", {counts['labelled']} labelled" if counts["labelled"] else ""
    return SlideOutcome(
        slide_id=slide_id,
        path=str(path),
        state=state_of(counts["patches"], counts["unreadable"]),
        message=(
            f"{counts['patches']} patches{labelled}{unreadable}"
            if counts["patches"]
            else "no tissue, no patches"
        ),
        patches=counts["patches"],
        is_resumed_whole=plan.is_finished,
    )


def add_labels(
    slides: Sequence[FoundSlide],
    labels: Sequence[Path] | None,
) -> list[FoundSlide]:
    """Return the slides with their label files, matched by name; None takes those beside a slide.

    Raises LabelError where one file could belong to several slides.
    """
    files = list_label_files(labels) if labels else []
    found = [
        find_beside(slide.path) if labels is None else match_labels(slide.path.stem, files)
        for slide in slides
    ]
    for path, count in Counter(found).items():
        if path is not None and count > 1:
            names = ", ".join(
                str(slide.path) for slide, file in zip(slides, found, strict=True) if file == path
            )
            raise LabelError(
                f"{path}: could be the labels of {count} slides ({names}); say which in a sample"
                " sheet, with --sheet"
            )
    without = [slide.slide_id for slide, file in zip(slides, found, strict=True) if file is None]
    if without and (labels is None or labels):
        shown = ", ".join(without[:5])
        logger.warning("no label file for %d of %d slides: %s", len(without), len(slides), shown)
    return [replace(slide, label_file=file) for slide, file in zip(slides, found, strict=True)]
