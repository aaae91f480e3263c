"""Phantoms: synthetic slides that resemble H&E and whose tumour is known to the pixel.

Light passes stain by Beer and Lambert: intensity = lamp · exp(-(haematoxylin + eosin)), with the
stain colours of Ruifrok and Johnston (2001). Tumour is where nuclei are large, dark and crowded;
clusters of small dark lymphocytes, which are benign, keep it from being a matter of colour alone.

They are written as tiled, pyramidal TIFF that OpenSlide, QuPath and our own readers open.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.filters import gaussian
from skimage.transform import resize

from wsi_pipeline.slides.scaling import Edges, average_areas

PHANTOM_MPP = 2.0
LAMP = 243.0
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])

LABEL_NONE, LABEL_BENIGN, LABEL_TUMOUR = 0, 100, 200
"""Values of the truth image."""
TILE_PX = 256
SMALLEST_LEVEL_PX = 256
UM_PER_CM = 10_000


@dataclass(frozen=True, slots=True)
class Phantom:
    """A drawn slide."""

    pixels: NDArray[np.uint8]
    """RGB, (h, w, 3), at PHANTOM_MPP µm/px."""
    truth: NDArray[np.uint8]
    """(h, w) of LABEL_NONE, LABEL_BENIGN, LABEL_TUMOUR."""


@dataclass(frozen=True, slots=True)
class _Nuclei:
    """Look and density of the nuclei of one kind."""

    per_px: float
    radius_px: float
    darkness: float


STROMAL = _Nuclei(per_px=1 / 350, radius_px=1.3, darkness=0.6)
LYMPHOCYTE = _Nuclei(per_px=1 / 60, radius_px=1.2, darkness=0.7)
TUMOUR = _Nuclei(per_px=1 / 75, radius_px=2.2, darkness=0.9)


def draw_phantom(width: int, height: int, seed: int) -> Phantom:
    """Return a slide of that size; each seed is a patient with tissue, tumour and staining."""
    rng = np.random.default_rng(seed)
    shape = (height, width)
    broad = _smooth_noise(rng, shape, scale=height // 4)
    tissue = broad - 1.4 * _distance_from_centre(shape) > -0.85
    tumour = tissue & _top(_smooth_noise(rng, shape, scale=height // 7), share=0.35)
    lymphoid = tissue & ~tumour & _top(_smooth_noise(rng, shape, scale=height // 14), share=0.12)
    haematoxylin = (
        0.06
        + _strew(rng, tissue & ~tumour, STROMAL)
        + _strew(rng, lymphoid, LYMPHOCYTE)
        + _strew(rng, tumour, TUMOUR)
    )
    eosin = 0.32 + 0.10 * _smooth_noise(rng, shape, scale=6)
    eosin += 0.08 * _smooth_noise(rng, shape, scale=2)
    eosin *= np.where(tumour, 0.85, 1.0)
    strength = rng.uniform(0.85, 1.15, size=2)  # every laboratory stains a little differently
    soft_tissue = gaussian(tissue.astype(np.float64), sigma=1.5)[..., None]
    density = (
        strength[0] * haematoxylin[..., None] * HAEMATOXYLIN
        + strength[1] * np.clip(eosin, 0, None)[..., None] * EOSIN
    )
    rgb = LAMP * np.exp(-density * soft_tissue) + rng.normal(0, 2.0, (*shape, 3))
    truth = np.where(tumour, LABEL_TUMOUR, np.where(tissue, LABEL_BENIGN, LABEL_NONE))
    return Phantom(np.clip(rgb, 0, 255).astype(np.uint8), truth.astype(np.uint8))


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale: int
) -> NDArray[np.float64]:
    """Noise of zero mean and unit deviation whose features are about `scale` pixels wide."""
    factor = max(1, scale // 4)  # broad features are drawn small and enlarged
    noise = rng.standard_normal((shape[0] // factor + 1, shape[1] // factor + 1))
    smooth = gaussian(noise, sigma=scale / factor / 2)
    if factor > 1:
        smooth = resize(smooth, shape, order=1, mode="edge", anti_aliasing=False)
    else:
        smooth = smooth[:-1, :-1]
    standardised: NDArray[np.float64] = (smooth - smooth.mean()) / smooth.std()
    return standardised


def _distance_from_centre(shape: tuple[int, int]) -> NDArray[np.float64]:
    """0 at the centre, 1 in the middle of the nearest edges."""
    y, x = (np.abs(np.linspace(-1, 1, extent)) for extent in shape)
    return np.hypot(y[:, None], x[None, :])


def _top(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    return values > np.quantile(values, 1 - share)


def _strew(
    rng: np.random.Generator, region: NDArray[np.bool_], kind: _Nuclei
) -> NDArray[np.float64]:
    """Return the optical density of random nuclei in a region, at most `darkness`."""
    points = np.zeros(region.shape)
    hits = (rng.random(region.shape) < kind.per_px) & region
    points[hits] = rng.uniform(0.7, 1.1, size=int(hits.sum()))
    peak = 1 / (2 * np.pi * kind.radius_px**2)
    density: NDArray[np.float64] = gaussian(points, sigma=kind.radius_px) * (kind.darkness / peak)
    return density


def write_pyramid(
    path: Path, pixels: NDArray[np.uint8], mpp: float, compression: str = "deflate"
) -> None:
    """Write RGB (height, width, 3) at `mpp` µm/px as a pyramid, with the scale in its tags."""
    with tifffile.TiffWriter(path) as writer:
        level, level_mpp = pixels, mpp
        while True:
            writer.write(
                level,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression=compression,
                resolution=(UM_PER_CM / level_mpp, UM_PER_CM / level_mpp),
                resolutionunit="CENTIMETER",
                subfiletype=int(level is not pixels),
                metadata=None,
                software=False,
            )
            if min(level.shape[:2]) < 2 * SMALLEST_LEVEL_PX:
                return
            level, level_mpp = _halve(level), level_mpp * 2


def _halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    y_edges = Edges(np.arange(0, 2 * height + 1, 2, dtype=np.int64), 1)
    x_edges = Edges(np.arange(0, 2 * width + 1, 2, dtype=np.int64), 1)
    return average_areas(pixels[: 2 * height, : 2 * width], y_edges, x_edges)
