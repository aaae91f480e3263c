"""Tissue: a mask on a thumbnail, and the share of each patch that it covers.

Two detectors: `local`, in `local_tissue`, is relative to the slide's own glass. `otsu` has one
threshold for the whole slide: median filter, Otsu's threshold on HSV saturation, morphological
closing, then removal of small objects and filling of small holes, with scikit-image. Glass is grey
and unsaturated however bright the lamp; haematoxylin and eosin are not. Fat is as clear as glass,
but its cells have stained walls: closing joins them, so that fatty tissue counts as tissue.

To `otsu` a scan without any colour has no saturation: there tissue is darker than the glass, also
by Otsu's threshold, and black was not scanned.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.choices import AREAS, LOCAL, OTSU, TISSUE_DETECTORS
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid
from wsi_pipeline.core.slide import Thumbnail

if TYPE_CHECKING:
    from wsi_pipeline.slides.local_tissue import FoundTissue

STRIP_PX = 256
"""Rows of a thumbnail, or of a grid, whose intermediate values are in memory at a time."""
GREY_THRESHOLDS = (0.06, 0.2)
"""Limits of Otsu's threshold in scans without colour: darkness relative to glass, of white."""
GLASS_PERCENTILE, DARKEST_GLASS = 99, 200
"""Glass is as bright as the brightest hundredth of what was scanned, and never darker than this."""
BLACK = 8
"""Up to this value (of 255) a grey pixel is outside the scan: no stain is as dark."""

OF_OTSU = ("median_radius_px", "min_saturation", "max_saturation")
OF_LOCAL = ("min_width_um", "sure_density")
"""Parameters that one detector alone has."""
MAX_REACH_UM = 1000.0


@dataclass(frozen=True, slots=True)
class TissueParameters:
    """Parameters of the separation of tissue from glass."""

    detector: str = LOCAL
    """One of `TISSUE_DETECTORS`."""
    mask_mpp: float = 8.0
    """µm per mask pixel."""
    median_radius_px: int = 1
    min_saturation: float = 0.03
    max_saturation: float = 0.08
    """Limits of Otsu's threshold: alone it would find noise on glass, the darker half in tissue."""
    min_width_um: float = 32.0
    """Half of the least width of tissue that has no colour; narrower is a line or a hair."""
    sure_density: float = 0.12
    """From this optical density on anything is tissue; paler, it needs a colour or a texture."""
    closing_radius_um: float = 48.0
    """Gaps up to about twice this wide are closed: a fat cell is 50 to 100 µm across."""
    min_object_um2: float = 20_000.0
    """Smaller specks are dust."""
    max_hole_um2: float = 20_000.0
    """Smaller holes belong to the tissue."""
    min_tissue: float = 0.5
    """Keep a patch if at least this fraction of it is tissue, 0 to 1."""

    def __post_init__(self) -> None:
        if self.detector not in TISSUE_DETECTORS:
            known = ", ".join(TISSUE_DETECTORS)
            raise ConfigError(f"there is no tissue detector {self.detector!r}; give one of {known}")
        if not 0 <= self.min_tissue <= 1:
            raise ConfigError(f"min_tissue is {self.min_tissue}; it must lie between 0 and 1")
        if not 0.5 <= self.mask_mpp <= 64:
            raise ConfigError(f"mask_mpp is {self.mask_mpp} µm/px; it must lie between 0.5 and 64")
        areas = {"min_object_um2": self.min_object_um2, "max_hole_um2": self.max_hole_um2}
        for name, area in areas.items():
            if not 0 <= area < float("inf"):
                raise ConfigError(f"{name} is {area}; it must be an area of 0 µm² or more")
        for name in ("closing_radius_um", "min_width_um"):
            if not 0 <= getattr(self, name) <= MAX_REACH_UM:
                what = f"{name} is {getattr(self, name)} µm"
                raise ConfigError(f"{what}; it must lie between 0 and {MAX_REACH_UM:g}")
        if not 0 < self.sure_density < float("inf"):
            raise ConfigError(f"sure_density is {self.sure_density}; it must be above 0")

    @property
    def of_local(self) -> dict[str, Any]:
        """Return the parameters that only `local` has."""
        return {name: getattr(self, name) for name in OF_LOCAL}

    def to_json(self) -> dict[str, Any]:
        """Return the detector's parameters as they are recorded in stores and recipes."""
        others = OF_LOCAL if self.detector == OTSU else OF_OTSU
        return {name: value for name, value in asdict(self).items() if name not in others}


def find_tissue(rgb: NDArray[np.uint8], mpp: float, parameters: TissueParameters) -> "FoundTissue":
    """Return what every pixel of a thumbnail (h, w, 3) at `mpp` µm/px is.

    Detector otsu tells tissue from everything else only, and finds no faults.
    """
    # Here, because scipy takes a fifth of a second, and a run with nothing to do needs none.
    from wsi_pipeline.slides.local_tissue import FoundTissue, Limits, find_local_tissue

    if parameters.detector == OTSU:
        mask = find_saturated(rgb, mpp, parameters)
        return FoundTissue(mask, mask.astype(np.uint8) * np.uint8(AREAS.index("tissue")), {})
    limits = Limits(*(getattr(parameters, name) for name in Limits._fields))
    return find_local_tissue(rgb, mpp, limits)


def find_saturated(
    rgb: NDArray[np.uint8], mpp: float, parameters: TissueParameters
) -> NDArray[np.bool_]:
    """Return the mask (h, w) of what is more saturated than Otsu's threshold."""
    from skimage.filters import median
    from skimage.morphology import disk, remove_small_holes, remove_small_objects

    if any((rgb[..., 0] != rgb[..., channel]).any() for channel in (1, 2)):
        stain, limits = _saturation(rgb), (parameters.min_saturation, parameters.max_saturation)
    else:
        stain, limits = _darkness(rgb[..., 0]), GREY_THRESHOLDS
    smooth = median(stain, disk(parameters.median_radius_px), mode="nearest")
    mask = smooth > 255 * _threshold(smooth, *limits)
    mask = close_gaps(mask, round(parameters.closing_radius_um / mpp))
    smallest, largest = (
        int(um2 / (mpp * mpp)) for um2 in (parameters.min_object_um2, parameters.max_hole_um2)
    )
    mask = remove_small_objects(mask, max_size=smallest)
    return np.asarray(remove_small_holes(mask, max_size=largest))


def _saturation(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return HSV saturation (h, w), 0–255."""
    return look_up(rgb, np.round(saturation_table() * 255).astype(np.uint8))


@lru_cache(1)
def saturation_table() -> NDArray[np.float64]:
    """Return the HSV saturation, 0–1, by a pixel's largest and smallest value, (256, 256)."""
    from skimage.color import rgb2hsv

    largest, smallest = np.indices((256, 256), dtype=np.uint8)
    table = rgb2hsv(np.stack([largest, smallest, smallest], axis=-1))[..., 1]
    table.setflags(write=False)
    return np.asarray(table)


def look_up(rgb: NDArray[np.uint8], table: NDArray[Any]) -> NDArray[Any]:
    """Return the entry of `table` (256, 256) for each pixel's largest and smallest value, (h, w).

    HSV itself takes eight times the memory of RGB and twenty times as long.
    """
    found = np.empty(rgb.shape[:2], dtype=table.dtype)
    for top in range(0, len(rgb), STRIP_PX):
        red, green, blue = np.moveaxis(rgb[top : top + STRIP_PX], -1, 0)
        largest = np.maximum(np.maximum(red, green), blue)
        smallest = np.minimum(np.minimum(red, green), blue)
        found[top : top + STRIP_PX] = table[largest, smallest]
    return found


def _darkness(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the darkness of every pixel relative to glass (h, w), 0–255; 0: not scanned."""
    is_scanned = grey > BLACK
    brightest = np.percentile(grey[is_scanned], GLASS_PERCENTILE) if is_scanned.any() else 0
    values = np.arange(256)
    darkness = np.clip(max(DARKEST_GLASS, brightest) - values, 0, 255)
    table = np.where(values > BLACK, darkness, 0).astype(np.uint8)
    return np.concatenate(
        [table[grey[top : top + STRIP_PX]] for top in range(0, len(grey), STRIP_PX)]
    )


def _threshold(stain: NDArray[np.uint8], lowest: float, highest: float) -> float:
    """Return Otsu's threshold as a fraction 0–1, within the plausible range."""
    from skimage.filters import threshold_otsu

    if int(stain.min()) == int(stain.max()):
        return lowest
    otsu = float(threshold_otsu(stain)) / 255
    return min(max(otsu, lowest), highest)


def close_gaps(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the morphological closing of a mask (h, w) by a disk of `radius` pixels.

    As `skimage.morphology.closing`, which takes thirty times as long: beyond the edges the mask is
    mirrored.
    """
    return ~_dilate(~_dilate(mask, radius), radius)


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return where a disk of `radius` pixels around a pixel touches the mask.

    The disk is a stack of rows; each is the next wider one's middle.
    """
    height, width = mask.shape
    padded = np.pad(mask, radius, mode="symmetric")
    rows = padded[:, radius : radius + width].copy()  # touched within `reach` to the left and right
    found, reach = np.zeros_like(mask), 0
    for offset in range(radius, -1, -1):
        wider = math.isqrt(radius**2 - offset**2)
        for step in range(reach + 1, wider + 1):
            rows |= padded[:, radius - step : radius - step + width]
            rows |= padded[:, radius + step : radius + step + width]
        reach = wider
        found |= rows[radius - offset : radius - offset + height]
        found |= rows[radius + offset : radius + offset + height]
    return found


def tissue_fraction(
    mask: NDArray[np.bool_], thumbnail: Thumbnail, grid: Grid
) -> NDArray[np.float32]:
    """Return the fraction of tissue at every position, float32 (rows, cols), by exact area."""
    scale = float(grid.downsample / thumbnail.downsample)
    lefts, tops = (
        (origin - other) / float(thumbnail.downsample)
        + scale * grid.spec.stride_px * np.arange(count)
        for origin, other, count in zip(
            grid.origin_xy_l0, thumbnail.origin_xy_l0, (grid.cols, grid.rows), strict=True
        )
    )
    return area_fractions(mask, tops, lefts, scale * grid.spec.side_px)


def area_fractions(
    mask: NDArray[np.bool_],
    tops: NDArray[np.floating[Any]],
    lefts: NDArray[np.floating[Any]],
    side: float,
) -> NDArray[np.float32]:
    """Return the share of True in squares of `side` mask pixels: (len(tops), len(lefts))."""
    dtype = np.int32 if mask.size < 2**31 else np.int64
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=dtype)
    np.cumsum(mask, axis=0, dtype=dtype, out=integral[1:, 1:])
    np.cumsum(integral, axis=1, dtype=dtype, out=integral)
    shares = np.empty((len(tops), len(lefts)), dtype=np.float32)
    for first in range(0, len(tops), STRIP_PX):
        bands = _between(integral, tops[first : first + STRIP_PX], side)
        area = _between(bands.T, lefts, side).T
        shares[first : first + STRIP_PX] = np.clip(area / (side * side), 0, 1)
    return shares


def _between(
    integral: NDArray[Any], starts: NDArray[np.floating[Any]], side: float
) -> NDArray[np.float64]:
    """Return differences of the integral along axis 0 over [start, start + side], interpolated."""
    return _at(integral, starts + side) - _at(integral, starts)


def _at(integral: NDArray[Any], places: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    places = np.clip(places, 0, len(integral) - 1)
    below = np.minimum(places.astype(np.int64), max(len(integral) - 2, 0))
    above = np.minimum(below + 1, len(integral) - 1)
    weight = (places - below)[:, None]
    return np.asarray(integral[below] * (1 - weight) + integral[above] * weight)
