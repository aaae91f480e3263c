"""A slide as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import (
    MAX_MPP,
    MIN_MPP,
    read_integers,
    read_ratio,
)

MAX_LEVELS = 64
OPTIONAL = ("icc_name", "icc_digest", "blind_reader")
BLIND = "damage cannot be seen by this reader"


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """Everything that leaves a slide file besides pixels.

    No data of the patient, and of the scanner the name of its colour profile alone.
    """

    slide_id: str
    path: str
    size_l0: tuple[int, int]
    """(width, height) of the scan in pixels."""
    mpp: float
    """µm per level-0 pixel."""
    mpp_source: str
    """Source of the scale: "property" (the slide's own), "TIFF tag", "OME-XML", "ImageJ", "image
    header" or "user"."""
    level_downsamples: tuple[Fraction, ...]
    """Level-0 pixels per pixel of each pyramid level, finest first."""
    bounds_l0: tuple[int, int, int, int]
    """(x, y, width, height) of the scanned area."""
    fingerprint: str
    """Name of the file's content; equal for copies, different after any edit that matters."""
    magnification: float | None = None
    """Objective power as written in the file; shown to people, never computed with."""
    vendor: str | None = None
    icc_name: str | None = None
    """Name of its colour profile; None where it has none, as for the digest."""
    icc_digest: str | None = None
    """SHA-256 of the profile's bytes."""
    blind_reader: str | None = None
    """Name and version of a reader that cannot see damage; None: the reader looks for it."""

    @property
    def colour_profile(self) -> str | None:
        """The profile in words: its name, and the beginning of its digest."""
        return self.icc_digest and f"{self.icc_name} ({self.icc_digest[:12]})"

    @property
    def reader_note(self) -> str | None:
        """The warning about its reader in words."""
        return self.blind_reader and f"{self.blind_reader}: {BLIND}"

    def to_json(self) -> dict[str, Any]:
        """Return the slide as JSON values; what is optional and None is not mentioned."""
        value = asdict(self) | {"level_downsamples": [*map(str, self.level_downsamples)]}
        return {
            name: entry
            for name, entry in value.items()
            if entry is not None or name not in OPTIONAL
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the slide that `to_json` wrote. Raises one of `DAMAGES` for anything else."""
        exact = {
            "size_l0": read_integers(value["size_l0"], 2),
            "bounds_l0": read_integers(value["bounds_l0"], 4),
            "level_downsamples": tuple(map(read_ratio, value["level_downsamples"][:MAX_LEVELS])),
        }
        slide = cls(**{**value, **exact})
        texts = (slide.slide_id, slide.path, slide.mpp_source, slide.fingerprint)
        or_none = (slide.vendor, slide.icc_name, slide.icc_digest, slide.blind_reader)
        if not all(isinstance(text, str) for text in (*texts, *filter(None, or_none))):
            raise TypeError("a name of the slide is not a text")
        if slide.slide_id in ("", ".", "..") or set(slide.slide_id) & set("/\\\0"):
            raise ValueError(f"{slide.slide_id[:40]!r} cannot be the name of a slide")
        if "\0" in slide.path:
            raise ValueError("the slide's path has a null character")
        if slide.magnification is not None and type(slide.magnification) not in (int, float):
            raise TypeError("the slide's magnification is not a number")
        if not MIN_MPP <= slide.mpp <= 10 * MAX_MPP:  # false for NaN too
            raise ValueError(f"the slide has {slide.mpp} µm/px")
        return slide


class Thumbnail(NamedTuple):
    """A small image of the whole slide, kept so that the slide need not be read again to draw."""

    pixels: NDArray[np.uint8]
    """RGB, (height, width, 3)."""
    downsample: Fraction
    """Level-0 pixels per thumbnail pixel."""
    origin_xy_l0: tuple[int, int]
