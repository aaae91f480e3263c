"""Which label file each slide of a run has."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.pseudonyms import Pseudonyms
from wsi_pipeline.labels.discovery import find_beside, list_label_files, match_labels
from wsi_pipeline.slides.discovery import FoundSlide

logger = logging.getLogger(__name__)


def add_labels(slides: Sequence[FoundSlide], labels: Sequence[Path] | None, pseudonyms: Pseudonyms | None = None) -> list[FoundSlide]:
    """The slides with their label files, by the names of the files; None: those that lie beside the slides.

    Raises LabelError where one file could belong to several slides.
    """
    files = list_label_files(labels) if labels else []
    found = [find_beside(slide.path) if labels is None else match_labels(slide.path.stem, files) for slide in slides]
    for path, count in Counter(found).items():
        if path is not None and count > 1:
            names = ", ".join(str(slide.path) for slide, file in zip(slides, found, strict=True) if file == path)
            raise LabelError(f"{path}: could be the labels of {count} slides ({names}); say which in a sample sheet, with --sheet")
    without = [slide.slide_id for slide, file in zip(slides, found, strict=True) if file is None]
    if without and (labels is None or labels):
        shown = [name if pseudonyms is None else pseudonyms.name(name) for name in without[:5]]
        logger.warning("no label file for %d of %d slides: %s", len(without), len(slides), ", ".join(shown))
    return [replace(slide, label_file=file) for slide, file in zip(slides, found, strict=True)]
