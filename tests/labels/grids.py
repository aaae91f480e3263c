"""A slide of 200 × 200 px with 4 × 4 patches, and its labels by a file as rows of numbers."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from tests.builders import make_slide_info
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels import label_positions
from wsi_pipeline.labels.assignment import PatchLabels
from wsi_pipeline.labels.rules import LabelRules

SLIDE = make_slide_info(size_l0=(200, 200), mpp=0.5)
GRID = Grid(PatchSpec(50, 50, 0.5), 4, 4, Fraction(1))
SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]
"""Over the four patches in the top left corner."""
NAMES = ("benign", "tumour")


def label_all(path: Path, slide: SlideInfo = SLIDE, **rules: object) -> PatchLabels:
    chosen = LabelRules(**{"class_names": NAMES} | rules)  # type: ignore[arg-type]
    return label_positions(path, slide, GRID, all_positions(GRID), chosen)


def find_positive(path: Path, slide: SlideInfo = SLIDE, **rules: object) -> list[list[int]]:
    """(row, col) of the positive patches."""
    labels = label_all(path, slide, **rules).labels
    found: list[list[int]] = all_positions(GRID)[labels == 1].tolist()
    return found


TOP_LEFT = [[0, 0], [0, 1], [1, 0], [1, 1]]


def slide_at(path: Path) -> SlideInfo:
    return replace(SLIDE, path=str(path))
