"""What a slide is to the stages, and where patches come from."""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.geometry import Grid


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """All that ever leaves a slide file besides pixels: nothing of a patient, nothing of the scanner's log."""

    slide_id: str
    path: str
    size_l0: tuple[int, int]
    """(width, height) of the scan in pixels."""
    mpp: float
    """µm per level-0 pixel."""
    mpp_source: str
    """Who says so: "property" (the slide's own), "TIFF tag", "image header" or "user"."""
    level_downsamples: tuple[Fraction, ...]
    """Level-0 pixels per pixel of each pyramid level, finest first."""
    bounds_l0: tuple[int, int, int, int]
    """(x, y, width, height) of the scanned area."""
    fingerprint: str
    """Names the file's content; equal for copies, different after any edit that matters."""
    magnification: float | None = None
    """Objective power as written in the file; shown to people, never computed with."""
    vendor: str | None = None


class PatchBlock(NamedTuple):
    """The pixels of consecutive patches, and which of them could be read."""

    pixels: NDArray[np.uint8]
    """RGB, (b, side, side, 3); a patch that could not be read is white."""
    readable: NDArray[np.bool_]
    """(b,)"""
    fallbacks: int = 0
    """Regions that were read by another reader than the slide's own, because of a fault. It changes no pixel."""


class PatchQuality(NamedTuple):
    """What was measured of patches besides their tissue."""

    pen_fraction: NDArray[np.float32]
    """(n,) share of the patch that is pen ink, 0 to 1."""
    sharpness: NDArray[np.float32]
    """(n,) variance of the Laplacian; NaN where it was not measured."""
    flags: NDArray[np.uint8]
    """(n,) 1 pen, 2 blur, added up."""


class Thumbnail(NamedTuple):
    """A small picture of the whole slide, kept so that nobody reads the slide again to draw."""

    pixels: NDArray[np.uint8]
    """RGB, (height, width, 3)."""
    downsample: Fraction
    """Level-0 pixels per thumbnail pixel."""
    origin_xy_l0: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PatchTable:
    """Everything known of a slide's patches but their pixels: patch stores and predictions both carry it."""

    slide: SlideInfo
    grid: Grid
    positions: NDArray[np.int32]
    """(n, 2) row, col of each patch, in storing order."""
    labels: NDArray[np.int8]
    """(n,) index into `class_names`, -1 unknown."""
    label_fraction: NDArray[np.float32]
    """(n,) share of the patch that has its label's class, 0 to 1; NaN where nobody looked."""
    tissue_fraction: NDArray[np.float32]
    """(n,) 0 to 1, NaN where nobody looked."""
    thumbnail: Thumbnail
    block_size: int
    patient_id: str
    """Whom the tissue is from; patients, never patches, are divided between training and validation."""
    class_names: tuple[str, str]
    """(negative, positive)"""
    quality: PatchQuality | None = None
    """None where nobody looked."""
    tissue: NDArray[np.bool_] | None = None
    """(height, width) of the thumbnail's pixels: what counted as tissue when the cells were chosen, be it found or the user's mask; None
    where nobody looked."""

    @property
    def patches(self) -> int:
        """Number of patches."""
        return len(self.positions)


class PatchSource(Protocol):
    """Patches of one slide in a fixed order, read block by block: a patch store, or the slide itself."""

    @property
    def slide(self) -> SlideInfo: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def positions(self) -> NDArray[np.int32]:
        """(n, 2) row, col."""
        ...

    @property
    def block_size(self) -> int: ...

    def read_block(self, block: int) -> PatchBlock: ...
