"""What a writer is given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.heatmap import Heatmap
from wsi_pipeline.outcome import SlideSummary
from wsi_pipeline.sources import PatchTable


@dataclass(frozen=True, slots=True)
class SlideResult:
    """One slide's results, ready to be drawn and written."""

    table: PatchTable
    heatmap: Heatmap
    summary: SlideSummary


Writer = Callable[[SlideResult, Path], None]
"""Writes one format of a result into a folder that nobody else writes to."""
