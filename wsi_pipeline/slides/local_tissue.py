"""Tissue relative to the slide's own glass, decided in each place by what lies around it.

Method: optical density over the glass (`glass`); fill, borders and ink are set aside by shape and
colour (`scan_frame`, `ink`). What is left is tissue where its density exceeds both the noise of the
glass and a fifth of what is densest close by (a strong stroke raises the threshold for its own halo
only), and where it is dense, or has a colour, or has texture; what has none of these is uncertain.
Gaps are closed, thin colourless lines are no tissue (hairs, edges of cover slips, rims of bubbles),
small parts are dust, small holes belong to the tissue.

A picture without any glass that is dark is taken for fluorescence: tissue is what glows.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.core.choices import AREAS
from wsi_pipeline.slides.artefacts import find_bubbles, find_folds, find_rims
from wsi_pipeline.slides.glass import Density, Picture, look_at, measure_density
from wsi_pipeline.slides.ink import find_ink, find_tissue_under_ink
from wsi_pipeline.slides.masks import (
    Mask,
    Plane,
    box,
    close_octagon,
    drop_small,
    open_square,
    widen,
)
from wsi_pipeline.slides.scan_frame import WHITE, find_border, find_fill

MAX_PX = 4_000_000
HALO_SHARE, GLOW_SHARE = 0.2, 0.12
"""Dense and glowing parts raise the threshold close by to this share of themselves."""
WIDE_GLOW_SHARE, JPEG_PX = 0.04, 17
"""JPEG spreads a bright part in the dark so far, and to this share of it."""
LACE_UM, LACE_WIDTH_UM = 72.0, 128.0
LACE_OD, DENSEST_LACE = 0.003, 0.12
LACE_ROUGHNESS, LACE_SHARE = 1.6, 0.6
"""Mean OD, densest pixel; texture over that of the glass, and the share of pixels that have it."""
NEARLY_WHITE = 4
"""Pixels around fill that are not looked at for the glass."""


class Limits(NamedTuple):
    """Limits of the search for tissue."""

    closing_radius_um: float = 48.0
    min_width_um: float = 32.0
    """Half of the least width of tissue without colour."""
    sure_density: float = 0.12
    """From this OD on anything is tissue; paler, it also needs a colour or a texture."""
    min_object_um2: float = 20_000.0
    max_hole_um2: float = 20_000.0


class FoundTissue(NamedTuple):
    """The areas of a thumbnail, (h, w) each."""

    tissue: Mask
    areas: NDArray[np.uint8]
    """Index into `AREAS`."""
    faults: dict[str, Mask]
    """By the names of `QUALITY_FLAGS`: pen, fold, bubble; over tissue or beside it."""


def find_local_tissue(rgb: NDArray[np.uint8], mpp: float, limits: Limits) -> FoundTissue:
    """Return what every pixel of a thumbnail (h, w, 3) at `mpp` µm/px is.

    More than `MAX_PX` pixels are looked at in squares of 2 × 2, 3 × 3, …: 100 bytes a pixel.
    """
    step = math.ceil(math.sqrt(rgb.shape[0] * rgb.shape[1] / MAX_PX))
    if step <= 1:
        return _look(rgb, mpp, limits)
    found = _look(_shrink(rgb, step), mpp * step, limits)

    def enlarge(values: NDArray[Any]) -> NDArray[Any]:
        whole = values.repeat(step, 0).repeat(step, 1)
        return whole[: rgb.shape[0], : rgb.shape[1]]

    faults = {name: enlarge(mask) for name, mask in found.faults.items()}
    return FoundTissue(enlarge(found.tissue), enlarge(found.areas), faults)


def _shrink(rgb: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Return the means of squares of `step` pixels, at the lower and right edge of what is left."""
    height, width = (-(-side // step) for side in rgb.shape[:2])
    rest = [(0, height * step - rgb.shape[0]), (0, width * step - rgb.shape[1]), (0, 0)]
    squares = np.pad(rgb, rest, mode="edge").reshape(height, step, width, step, 3)
    return np.asarray(
        (squares.sum(axis=(1, 3), dtype=np.uint32) / step**2).round().astype(np.uint8)
    )


def _look(rgb: NDArray[np.uint8], mpp: float, limits: Limits) -> FoundTissue:
    picture = look_at(rgb, mpp)
    if _is_dark(picture):
        return _find_glow(box(picture.most, 3), mpp, limits)
    fill = find_fill(picture)
    usable = ~widen(fill, 2 * NEARLY_WHITE + 1)
    if (fill & (picture.grey >= WHITE)).any():  # white is not this slide's glass
        usable &= picture.grey < WHITE
    density = measure_density(picture, usable)
    border = find_border(picture, density, fill)
    ink = find_ink(picture, density, ~(border | fill), mpp)
    free = ~(border | fill | ink.mask)
    stained = _is_stained(density, picture.near_px)
    raw = stained & _is_backed(picture, density, limits) & free
    raw |= _find_lace(picture, density, mpp) & free
    solid = open_square(_close(raw, mpp, limits), max(1, round(limits.min_width_um / mpp)))
    colored = raw & (density.chroma > np.maximum(0.015, 0.12 * density.strongest))
    wide = (solid | _close(colored, mpp, limits)) & free
    tissue = _without_specks(wide, raw, (free, free | fill), mpp, limits)
    over = find_tissue_under_ink(tissue, ink, density, mpp)
    tissue |= over & ink.mask
    areas = np.zeros(tissue.shape, dtype=np.uint8)
    marks = {"uncertain": stained, "tissue": tissue, "pen": ink.mask & ~tissue}
    for name, where in (marks | {"border": border, "fill": fill & ~tissue}).items():
        areas[where] = AREAS.index(name)
    thin = (raw & ~solid) | find_rims(density.od.min(0), tissue & ~over)
    faults = {
        "pen": ink.mask | over,
        "fold": find_folds(density.od.mean(0), tissue & ~over, mpp),
        "bubble": find_bubbles(thin, mpp),
    }
    return FoundTissue(tissue, areas, faults)


def _is_dark(picture: Picture) -> bool:
    """Return whether the background is dark, as in fluorescence: no glass, and half is dark."""
    most = picture.most
    has_glass = np.mean((picture.grey > 120) & (picture.texture < 5)) >= 0.02
    return not has_glass and bool(np.percentile(most, 5) < 40 and np.median(most) < 90)


def _is_stained(density: Density, near_px: int) -> Mask:
    """Return what is denser than the noise of the glass, and no halo of something denser."""
    least = float(np.clip(4 * density.noise, 0.014, 0.03))
    halo = HALO_SHARE * ndimage.maximum_filter(density.strongest, near_px)
    return np.asarray(density.strongest > np.maximum(least, halo))


def _is_backed(picture: Picture, density: Density, limits: Limits) -> Mask:
    """Return what is surely no shade of the glass: it is dense, has a colour or has texture."""
    least_chroma = float(np.clip(3 * density.noise, 0.01, 0.02))
    backed = density.strongest > limits.sure_density
    backed |= density.chroma > least_chroma
    backed |= box(picture.texture, picture.near_px) > 2 * density.grain + 0.5
    return np.asarray(backed)


def _find_lace(picture: Picture, density: Density, mpp: float) -> Mask:
    """Return pale tissue with thin walls: rough all over, and denser than glass on average.

    A wall of pale fat is fainter than noise; within `LACE_UM` there are many. Surroundings of dust,
    lines and strokes are rough, too, but are beside something dense.
    """
    side = max(3, round(LACE_UM / mpp) | 1)
    is_rough = picture.texture > LACE_ROUGHNESS * density.grain
    lace = (box(is_rough, side) > LACE_SHARE) & (box(density.strongest, side) > LACE_OD)
    lace &= ndimage.maximum_filter(density.strongest, side) < DENSEST_LACE
    return open_square(lace, max(1, round(LACE_WIDTH_UM / 2 / mpp)))


def _close(mask: Mask, mpp: float, limits: Limits) -> Mask:
    return close_octagon(mask, max(1, round(limits.closing_radius_um / mpp)))


def _without_specks(
    mask: Mask, raw: Mask, closable: tuple[Mask | bool, ...], mpp: float, limits: Limits
) -> Mask:
    """Return the mask without small parts and small holes; holes are what is `closable`.

    A part that closing made of scattered dust is small, too. In a picture smaller than two of the
    smallest parts the larger half counts.
    """
    least = min(limits.min_object_um2 / mpp**2, mask.size / 2)
    mask = drop_small(mask, least)
    mask = drop_small(mask, 0.15 * least, weights=raw)
    if not mask.any():
        return mask
    for where in closable:
        holes = ~mask & where
        mask |= holes & ~drop_small(holes, min(limits.max_hole_um2 / mpp**2, holes.size / 2))
    return mask


def _find_glow(most: Plane, mpp: float, limits: Limits) -> FoundTissue:
    """Return tissue as what is brighter than a dark background; `most` is the largest channel."""
    quiet = most[most < np.percentile(most, 5) + 10]
    level = float(np.percentile(quiet, 40))
    least = float(np.clip(7.4 * (level - np.percentile(quiet, 16)), 2, 10))
    glow = most - np.float32(level)
    halo = GLOW_SHARE * ndimage.maximum_filter(glow, 5)
    halo = np.maximum(halo, WIDE_GLOW_SHARE * ndimage.maximum_filter(glow, JPEG_PX))
    raw = glow > np.maximum(least, halo)
    tissue = _without_specks(_close(raw, mpp, limits), raw, (True,), mpp, limits)
    areas = np.where(tissue, AREAS.index("tissue"), AREAS.index("dark")).astype(np.uint8)
    nothing = np.zeros_like(tissue)
    return FoundTissue(tissue, areas, dict.fromkeys(("pen", "fold", "bubble"), nothing))
