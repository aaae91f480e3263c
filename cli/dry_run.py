"""What `wsi infer --dry-run` prints."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .main import printable

if TYPE_CHECKING:
    from wsi_pipeline.runs.dry_run import RunPreview
    from wsi_pipeline.runs.infer import InferConfig
    from wsi_pipeline.stages.preview import SlidePreview

UNITS = ("B", "kB", "MB", "GB", "TB")
STEP = 1000


def describe_bytes(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in UNITS:
        if count < STEP or unit == UNITS[-1]:
            break
        count /= STEP
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def describe_preview(slide: "SlidePreview") -> str:
    """One slide in one line."""
    from wsi_pipeline.stages.preview import Standing

    if slide.standing is Standing.FAILED:
        return printable(f"{slide.slide_id}: cannot be run: {slide.reason}")
    width, height = slide.size_l0
    parts = [
        f"{describe_bytes(slide.file_bytes)}, {width} × {height} px at {slide.mpp:g} µm/px",
        f"{slide.patches:,} patches, predictions {describe_bytes(slide.prediction_bytes)}",
    ]
    if slide.patch_bytes:
        parts.append(f"patches to keep {describe_bytes(slide.patch_bytes)}")
    progress = f", {slide.blocks_done} of {slide.blocks} blocks done" if slide.standing is Standing.BEGUN else ""
    return printable(f"{slide.slide_id}: {slide.standing.value}{progress}: {'; '.join(parts)}")


def print_preview(preview: "RunPreview", results: Path, config: "InferConfig") -> None:
    """Every slide, what it comes to, and whether there is room for it."""
    from wsi_pipeline.runs.dry_run import free_bytes
    from wsi_pipeline.stages.preview import Standing

    for slide in preview.slides:
        click.echo(describe_preview(slide))
    counts = " + ".join(f"{standing.value} {count}" for standing in Standing if (count := preview.count(standing)))
    click.echo(f"in {len(preview.slides)} = {counts}")
    click.echo(
        f"to predict: {preview.missing_patches:,} patches, predictions of about {describe_bytes(preview.prediction_bytes)}; "
        f"{describe_bytes(free_bytes(results))} are free at {printable(str(results))}"
    )
    if (keep_patches := config.keep_patches) is not None:
        free = describe_bytes(free_bytes(keep_patches))
        click.echo(f"to keep: patches of about {describe_bytes(preview.patch_bytes)}; {free} are free at {printable(str(keep_patches))}")
    click.echo("nothing was written" if config.pseudonyms is None else "nothing was written but pseudonyms, beside their key")
    click.get_current_context().exit(preview.account.exit_code)
