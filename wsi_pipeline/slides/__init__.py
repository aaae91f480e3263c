"""Slides of every kind behind one interface."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.errors import SlideError
from wsi_pipeline.slides import image_reader, openslide_reader
from wsi_pipeline.slides.base import SlideReader
from wsi_pipeline.slides.preflight import check_slide_file


@dataclass(frozen=True, slots=True)
class ReaderKind:
    """One way to read slides."""

    recognises: Callable[[Path], bool]
    open: Callable[[Path, str, float | None], SlideReader]


READERS: dict[str, ReaderKind] = {
    "openslide": ReaderKind(openslide_reader.recognises, openslide_reader.OpenSlideReader),
    "image": ReaderKind(image_reader.recognises, image_reader.ImageReader),
}
"""Asked in this order; the first that recognises a file reads it."""


def open_slide(path: Path, slide_id: str | None = None, slide_mpp: float | None = None) -> SlideReader:
    """Open a slide file with the first reader that recognises it.

    `slide_mpp`, µm per level-0 pixel, overrules what the file says. Raises SlideError, naming the file and the remedy.
    """
    check_slide_file(path)
    for kind in READERS.values():
        if kind.recognises(path):
            return kind.open(path, slide_id if slide_id is not None else path.stem, slide_mpp)
    raise SlideError(f"{path}: not a slide or image that any reader knows; move it out of the folder or convert it")
