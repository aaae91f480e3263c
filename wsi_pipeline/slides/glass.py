"""The glass of a slide: its colour, its unevenness, and optical density (OD) over it.

OD is log10 of the light through bare glass over the light through the pixel, per channel: 0 is
glass, 0.3 lets half of the light pass. It does not depend on lamp or tint, and layers add up.

The glass is the brightest common value among smooth pixels. A quadratic surface follows it over the
slide (vignetting, a tilted lamp), fitted from the commonest value outwards.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.slides.masks import Mask, Plane, box

GREY = (0.3, 0.5, 0.2)
DARKEST_GLASS, DARKEST_GREY_GLASS = 140, 200
"""Grey levels; darker is no glass, and in a picture without any colour, stained tissue."""
USUAL_GLASS = 244.0
"""Grey level of the glass where a slide shows none: it is full of tissue."""
STRONGEST_TINT = 1.35
"""Of glass, its largest channel over its smallest."""
PINKEST = 0.89
"""Of glass, green over the smaller of red and blue; pinker is pale eosin, unless all round."""
SURROUNDING = 0.7
"""Share of the picture's edge."""
MODE_HALF_WIDTH = 7
"""Grey levels around the glass's commonest value that are the glass's own."""
COARSE_MPP = 12.0
"""µm/px from which on a stroke is only some pixels wide."""
SURFACE_SAMPLES = 40_000
TOP_OD = 0.012
"""Pixels so near to the brightest colour are glass where hardly any colour is common."""
COMMON, LEAST_GROWN = 0.03, 0.4
"""Shares of smooth pixels: glass of less must have grown to that on the fitted surface."""
DARKEST_LAMP = 0.2
"""OD to which the lamp may fall off over the slide."""


class Picture(NamedTuple):
    """A thumbnail and its simplest measures."""

    rgb: NDArray[np.uint8]
    least: NDArray[np.uint8]
    most: NDArray[np.uint8]
    """The smallest and the largest channel."""
    grey: Plane
    """0 to 255."""
    texture: Plane
    """Standard deviation of grey within `near_px` squared pixels."""
    near_px: int
    """Side of what counts as close by: 5 pixels, 3 where they are coarse."""


@dataclass(frozen=True, slots=True)
class Density:
    """Optical density of a thumbnail over its glass."""

    od: NDArray[np.float32]
    """(3, h, w)"""
    strongest: Plane
    """The largest of the three channels."""
    chroma: Plane
    """The largest less the smallest channel."""
    glass: NDArray[np.float64]
    """(3,) RGB of the glass."""
    noise: float
    """OD: standard deviation on glass."""
    grain: float
    """Texture of the glass, in grey levels."""


def look_at(rgb: NDArray[np.uint8], mpp: float) -> Picture:
    """Return a thumbnail (h, w, 3) at `mpp` µm/px with grey and texture."""
    near_px = 5 if mpp < COARSE_MPP else 3
    grey = np.zeros(rgb.shape[:2], dtype=np.float32)
    for channel, weight in enumerate(GREY):
        grey += rgb[..., channel] * np.float32(weight)
    centred = grey - 128
    variance = box(np.square(centred), near_px)
    variance -= np.square(box(centred, near_px))
    np.maximum(variance, 0, out=variance)
    red, green, blue = (rgb[..., channel] for channel in range(3))
    least, most = (extreme(extreme(red, green), blue) for extreme in (np.minimum, np.maximum))
    return Picture(rgb, least, most, grey, np.sqrt(variance, out=variance), near_px)


def measure_density(picture: Picture, usable: Mask) -> Density:
    """Return the optical density over the glass that is looked for among `usable` pixels."""
    usable = usable if usable.any() else np.ones_like(usable)
    rgb, grey, texture = picture.rgb, picture.grey, picture.texture
    side = picture.near_px - 2  # 3, or none
    logs = np.stack([np.log10(box(rgb[..., channel], side) + 1) for channel in range(3)])
    smooth = usable & (texture < np.clip(2 * np.percentile(texture[usable], 20), 1.5, 4))
    is_coloured = bool((picture.most != picture.least).any())
    darkest = DARKEST_GLASS if is_coloured else DARKEST_GREY_GLASS
    glass, is_glass = _find_glass(logs, grey, smooth, usable, darkest)
    od = (glass[:, None, None] - logs).astype(np.float32)
    if is_glass.any():
        od += _fit_surface(logs, is_glass, smooth, glass)
    strongest = od.max(0)
    bare = smooth & (strongest < 0.02)
    faint = strongest[bare] if bare.sum() >= 50 else np.array((0, 0.002, 0.004), np.float32)
    noise = 1.48 * float(np.median(np.abs(faint - np.median(faint)))) + 0.001
    grain = float(np.median(texture[bare])) if bare.any() else 1.0
    return Density(od, strongest, strongest - od.min(0), 10**glass - 1, noise, grain)


def _find_glass(
    logs: NDArray[np.float32], grey: Plane, smooth: Mask, usable: Mask, darkest: int
) -> tuple[NDArray[np.float64], Mask]:
    """Return log10 of the glass's colour (3,), and where pixels have it; it is not darker."""
    counts = np.bincount(grey[smooth].astype(np.intp), minlength=256).astype(np.float64)
    counts = ndimage.gaussian_filter1d(counts, 2)
    mass = ndimage.uniform_filter1d(counts, 13, mode="constant") * 13
    is_peak = (counts == ndimage.maximum_filter1d(counts, 9)) & (np.arange(256) >= darkest)
    is_peak &= mass > max(0.004 * usable.sum(), 0.03 * mass.max())
    brightest = np.flatnonzero(is_peak).max(initial=-99)
    near = smooth & (np.abs(grey - brightest) < MODE_HALF_WIDTH)
    nowhere, usual = np.zeros_like(near), np.full(3, np.log10(USUAL_GLASS))
    if not near.any():
        return usual, nowhere
    glass = np.array([np.median(channel[near]) for channel in logs], dtype=np.float64)
    if near.sum() < 0.4 * usable.sum():  # hardly any: what is brightest may be all the glass
        some = logs[:, usable][:, :: 1 + int(usable.sum()) // 50_000]
        top = np.percentile(some, 99.7, axis=1)
        if (10**top).mean() > (10**glass).mean() + 10:
            glass = top.astype(np.float64)
            near = smooth & (np.abs(logs - glass[:, None, None]) < TOP_OD).all(0)
    red, green, blue = 10**glass
    edge = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]])
    is_pink = green < PINKEST * min(red, blue) and edge.mean() < SURROUNDING
    if is_pink or max(red, green, blue) > STRONGEST_TINT * min(red, green, blue):
        return usual, nowhere
    return glass, near


def _fit_surface(
    logs: NDArray[np.float32], is_glass: Mask, smooth: Mask, glass: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return by how much the glass differs from its commonest colour, (3, h, w) in OD."""
    height, width = is_glass.shape
    step = max(1, int(np.sqrt(height * width / SURFACE_SAMPLES)))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    terms = (np.ones((1, 1), np.float32), y, x, y * y, x * x, x * y)
    shape = is_glass[::step, ::step].shape
    design = np.stack(
        [
            np.broadcast_to(term, (height, width))[::step, ::step].reshape(shape[0] * shape[1])
            for term in terms
        ],
        axis=1,
    )
    values = logs[:, ::step, ::step].reshape(3, -1).T - glass
    can, taken = smooth[::step, ::step].ravel(), is_glass[::step, ::step].ravel()
    weights, is_common = np.zeros((6, 3)), taken.sum() > COMMON * can.sum()
    for _ in range(15):  # from the commonest colour outwards
        part, wanted = design[taken], values[taken]
        stiffness = np.diag([0.0, 1, 1, 1, 1, 1]) * 0.003 * len(part)
        weights = np.linalg.lstsq(part.T @ part + stiffness, part.T @ wanted, rcond=None)[0]
        off = values - design @ weights
        before, taken = taken, can & (off > -0.014).all(axis=1) & (off < 0.03).all(axis=1)
        if np.array_equal(before, taken):
            break
    if taken.sum() < max(50, 0 if is_common else LEAST_GROWN * can.sum()):
        return np.zeros((3, 1, 1), dtype=np.float32)
    surface = np.zeros((3, height, width), dtype=np.float32)
    for term, weight in zip(terms, weights.astype(np.float32), strict=True):
        surface += term * weight[:, None, None]
    return np.clip(surface, -DARKEST_LAMP, 0.03, out=surface)
