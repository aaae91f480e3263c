"""Slides of every kind behind one interface."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_pipeline.core.choices import AUTO, RAW, SRGB
from wsi_pipeline.core.errors import ConfigError, SlideError
from wsi_pipeline.slides import (
    codec_reader,
    fastslide_reader,
    images,
    openslide_reader,
    tiff_reader,
)
from wsi_pipeline.slides.base import SlideReader, UnsupportedKind, UserScale
from wsi_pipeline.slides.checks import check_slide_file
from wsi_pipeline.slides.found_slide import FoundSlide


@dataclass(frozen=True, slots=True)
class ReaderKind:
    """One way to read slides."""

    recognises: Callable[[Path], bool]
    open: Callable[[Path, str, UserScale | None], SlideReader]


READERS: dict[str, ReaderKind] = {
    "imagecodecs": ReaderKind(codec_reader.recognises, codec_reader.CodecReader),
    "tiff": ReaderKind(tiff_reader.recognises, tiff_reader.TiffReader),
    "openslide": ReaderKind(openslide_reader.recognises, openslide_reader.OpenSlideReader),
    "image": ReaderKind(images.recognises, images.ImageReader),
    "fastslide": ReaderKind(fastslide_reader.recognises, fastslide_reader.FastSlideReader),
}
"""Asked in this order; the first that recognises a file and can read its kind reads it."""
LEAVE_TO_AUTO = "leave the choice to --reader auto"


def open_slide(
    path: Path,
    slide_id: str | None = None,
    slide_mpp: float | UserScale | None = None,
    reader: str = AUTO,
    icc: str = RAW,
) -> SlideReader:
    """Open a slide file with the first reader that recognises it, or with the named one.

    `slide_mpp`, µm per level-0 pixel, overrules the file; with `icc` "srgb" its colour profile
    is applied. Raises SlideError, naming the file and the remedy.
    """
    check_slide_file(path)
    if reader not in (AUTO, *READERS):
        raise ConfigError(f"reader is {reader!r}; it must be one of {', '.join((AUTO, *READERS))}")
    scale = UserScale(slide_mpp) if isinstance(slide_mpp, int | float) else slide_mpp
    unsupported: UnsupportedKind | None = None
    for name, kind in READERS.items():
        if reader in (AUTO, name) and kind.recognises(path):
            try:
                opened = kind.open(path, slide_id if slide_id is not None else path.stem, scale)
            except UnsupportedKind as error:
                unsupported = error
                continue
            if icc == SRGB:
                opened.use_srgb()
            return _check_direct(path, opened) if reader == "tiff" else opened
    if unsupported is not None:
        raise unsupported
    if reader != AUTO:
        raise SlideError(f"{path}: the reader {reader!r} does not know this kind; {LEAVE_TO_AUTO}")
    raise SlideError(
        f"{path}: not a slide or image that any reader knows; move it out of the folder or"
        " convert it"
    )


def open_found(
    slide: FoundSlide, scale: float | UserScale | None, reader: str = AUTO, icc: str = RAW
) -> SlideReader:
    """Open a slide of a run, from its copy if it has one; `info` names the slide.

    Raises SlideError.
    """
    opened = open_slide(slide.copy or slide.path, slide.slide_id, scale, reader, icc)
    opened.info = replace(opened.info, path=str(slide.path))
    return opened


def _check_direct(path: Path, reader: SlideReader) -> SlideReader:
    """Raise SlideError where the direct reader was named, but leaves level 0 to OpenSlide."""
    if isinstance(reader, tiff_reader.TiffReader) and 0 not in reader.direct_levels:
        reader.close()
        raise SlideError(
            f"{path}: its tiles cannot be decoded as OpenSlide decodes them; {LEAVE_TO_AUTO}"
        )
    return reader


def describe_reader(reader: SlideReader) -> str:
    """Return the readers of a slide's levels, as text."""
    if reader.info.reader_note:
        return reader.info.reader_note
    if not isinstance(reader, tiff_reader.TiffReader):
        return next(name for name, kind in READERS.items() if kind.open is type(reader))
    levels: dict[str, list[str]] = {"tiff": [], "openslide": []}
    for level in reader.levels:
        name = "tiff" if level.number in reader.direct_levels else "openslide"
        levels[name].append(str(level.number))
    return " and ".join(f"{name} (level {', '.join(of)})" for name, of in levels.items() if of)
