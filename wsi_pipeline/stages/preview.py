"""What a job would come to, found out without writing anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.geometry import block_slice, count_blocks
from wsi_pipeline.core.slide import PatchTable, SlideInfo
from wsi_pipeline.slides.discovery import FoundSlide
from wsi_pipeline.store.layout import CHECKSUM_BYTES
from wsi_pipeline.store.manifest import Manifest

PROBABILITY_BYTES = 4


class PreviewState(StrEnum):
    """How far earlier runs have come with a slide."""

    NEW = "new"
    STARTED = "begun"
    PREDICTED = "outputs missing"
    """Its predictions are there; only other outputs are asked for."""
    PATCHES_MISSING = "patches missing"
    """Its results are there; its patches are to be kept, too."""
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SlidePreview:
    """What is known of one slide before it is run."""

    slide_id: str
    state: PreviewState
    file_bytes: int = 0
    size_l0: tuple[int, int] = (0, 0)
    """(width, height) in pixels."""
    mpp: float | None = None
    """µm per level-0 pixel."""
    patches: int = 0
    missing_patches: int = 0
    """Those that are still to be predicted."""
    blocks: int = 0
    """0 where they are all done."""
    blocks_done: int = 0
    prediction_bytes: int = 0
    """Of the predictions on disk when they are finished."""
    patch_bytes: int = 0
    """Of the patch store that is still to be finished."""
    reason: str = ""
    """Why it cannot be run."""


def preview_finished(
    slide: FoundSlide, facts: SlideInfo, state: PreviewState, manifest: Manifest
) -> SlidePreview:
    """A slide whose predictions an earlier run has finished."""
    return SlidePreview(
        slide.slide_id,
        state,
        file_bytes=_bytes_of(slide),
        size_l0=facts.size_l0,
        mpp=facts.mpp,
        patches=int(manifest.counts["patches"]),
        prediction_bytes=sum(
            size for name, (size, _) in manifest.files.items() if name.startswith(f"{PREDICTIONS}/")
        ),
    )


def preview_started(slide: FoundSlide, table: PatchTable, done: Mapping[int, Any]) -> SlidePreview:
    """A slide of which some blocks may be done."""
    blocks = count_blocks(table.patches, table.block_size)
    rows = [
        block_slice(block, table.block_size, table.patches)
        for block in range(blocks)
        if block not in done
    ]
    return SlidePreview(
        slide.slide_id,
        PreviewState.STARTED if done else PreviewState.NEW,
        file_bytes=_bytes_of(slide),
        size_l0=table.slide.size_l0,
        mpp=table.slide.mpp,
        patches=table.patches,
        missing_patches=sum(part.stop - part.start for part in rows),
        blocks=blocks,
        blocks_done=blocks - len(rows),
        prediction_bytes=count_table_bytes(table)
        + blocks * (table.block_size * PROBABILITY_BYTES + CHECKSUM_BYTES),
    )


def count_table_bytes(table: PatchTable) -> int:
    """Bytes of a table's arrays on disk, which predictions and patch stores both carry."""
    quality = () if table.quality is None else table.quality
    arrays = (
        table.positions,
        table.labels,
        table.label_fraction,
        table.tissue_fraction,
        table.thumbnail.pixels,
        *quality,
    )
    rows, cols = (0, 0) if table.tissue is None else table.tissue.shape
    mask = 0 if table.tissue is None else rows * -(-cols // 8) + CHECKSUM_BYTES  # a bit a pixel
    return int(mask + sum(array.nbytes + CHECKSUM_BYTES for array in arrays))


def _bytes_of(slide: FoundSlide) -> int:
    path = slide.path
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if path.is_dir()
        else path.stat().st_size
    )
