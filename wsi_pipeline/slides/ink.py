"""Pen ink on a thumbnail, and the tissue under it, by optical density.

A stroke is smooth: its density varies from pixel to pixel by a few hundredths of itself, that of
tissue by a tenth or more. A stroke either has a colour that no usual stain has, or is nearly black,
or is a violet ribbon far denser than the tissue of the slide. Its paler rim, where it is out of
focus or runs out, has the same colour and is ink too.

Under a transparent stroke tissue adds its own colour, so that the density's direction differs from
the stroke's.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.slides.glass import Density, Picture
from wsi_pipeline.slides.masks import (
    COARSE,
    SQUARE,
    Mask,
    Plane,
    box,
    drop_small,
    enlarge,
    parts_of,
    ribbon_length,
    widen,
)

LEAST_INK_UM2 = 40_000.0
"""Smaller specks are pigment or dust."""
LEAST_INK = 0.25
"""Length of the OD vector from which on colour tells ink."""
ROUGHNESS = 0.04
"""Deviation of OD within 5 × 5 pixels as a share of OD: strokes are smoother, tissue is not."""
GRAIN, BLACK_GRAIN = 0.02, 0.05
"""The same without slopes, which blurred strokes are full of."""
LEAST_BLACK = 0.65
"""OD of black ink in every channel."""
LEAST_RIBBON, RIBBON_ROUGHNESS, RIBBON_LENGTH = 0.35, 0.025, 4.0
"""Of a stroke in a stain's colour: its OD, its roughness, and its length in widths."""
RIBBON_EXCESS = 1.8
"""Such a stroke is so many times as dense as half of the slide's tissue."""
RIM_UM, RIM_COSINE = 120.0, 0.96
"""Reach of a stroke's rim, and the likeness of its colour to the stroke's."""
PALEST = 40
"""Percentile of a stroke's density up to which its colour is looked at."""
LEAST_HUE = 0.3
"""Of a stroke with a colour: its channels lie so far apart, as a share of the largest."""
OTHER_COLOR, OTHER_SHARE = 0.06, 0.12
"""OD, and share of OD, across the stroke's own direction from which on tissue lies under it."""
LEAST_UNDER_UM2 = 8_000.0


FULL = 0.95
"""Share of a picture from which on it shows no glass."""


class Ink(NamedTuple):
    """Pen strokes."""

    mask: Mask
    strokes: list[NDArray[np.float32]]
    """OD (3,) of each colour and density."""
    rough: Plane
    """Deviation of OD close by as a share of OD, of every pixel."""


def find_ink(picture: Picture, density: Density, free: Mask, mpp: float) -> Ink:
    """Return the strokes among `free` pixels."""
    od = density.od
    size = np.sqrt(np.square(od[0]) + np.square(od[1]) + np.square(od[2])) + np.float32(1e-6)
    rough = picture.texture * 0.434 / np.maximum(picture.grey, 4) / size
    red, green, blue = (channel / size for channel in od)
    colored = ((red - green > 0.14) & (red > 0.6) & (blue < 0.45)) | ((red < 0.17) & (blue > 0.57))
    colored |= green < np.minimum(red, blue) - 0.1
    black = (density.strongest - density.chroma > LEAST_BLACK) & (
        density.chroma < 0.3 * density.strongest
    )
    ink, strokes = np.zeros_like(free), []
    like_a_stain = _dense_and_smooth(size, rough) & (blue < np.minimum(red, green))
    kinds = (
        ((size > LEAST_INK) & colored & free, ROUGHNESS, GRAIN, 0.0),
        (black & free, ROUGHNESS, BLACK_GRAIN, 0.0),
        (like_a_stain & free, RIBBON_ROUGHNESS, GRAIN, RIBBON_LENGTH),
    )
    for candidates, most_rough, most_grain, least_length in kinds:
        opened = ndimage.binary_opening(candidates, SQUARE)
        for place, part in parts_of(drop_small(opened, LEAST_INK_UM2 / mpp**2)):
            grain = _measure_grain(picture.grey[place], size[place])
            is_smooth = np.median(rough[place][part]) < most_rough
            if not (is_smooth or np.median(grain[part]) < most_grain):
                continue
            if least_length and ribbon_length(part) < least_length:
                continue
            ink[place] |= part
            strokes.append(_color_of(od[:, *place], size[place], part))
    strokes = _distinct(strokes)
    return Ink(_with_rims(ink, strokes, density, size, free, mpp), strokes, rough)


def _color_of(od: NDArray[np.float32], size: Plane, part: Mask) -> NDArray[np.float32]:
    """Return a stroke's OD (3,) where it is palest but at its edges: tissue may lie under it."""
    core = ndimage.binary_erosion(part, iterations=2)
    core = core if core.any() else part
    pale = core & (size <= np.percentile(size[core], PALEST))
    return np.asarray(np.median(od[:, pale], axis=1), dtype=np.float32)


def _measure_grain(grey: Plane, size: Plane) -> Plane:
    """Return roughness without slopes: a blurred edge has none, tissue has."""
    rest = grey - box(grey, 5)
    grain = np.sqrt(np.maximum(box(np.square(rest), 5), 0)) * 0.434 / np.maximum(grey, 4) / size
    return np.asarray(grain, dtype=np.float32)


def _dense_and_smooth(size: Plane, rough: Plane) -> Mask:
    """Return where a stroke in the colour of a stain may be."""
    stained = size > 0.1
    if not stained.any():
        return stained
    tissue = size[stained & (rough > ROUGHNESS)]
    usual = float(np.median(tissue if tissue.size else size[stained]))
    return (size > max(LEAST_RIBBON, RIBBON_EXCESS * usual)) & (box(rough, 3) < ROUGHNESS)


def _with_rims(
    ink: Mask,
    strokes: list[NDArray[np.float32]],
    density: Density,
    size: Plane,
    free: Mask,
    mpp: float,
) -> Mask:
    """Return the strokes with their rims: paler, of the same colour, within `RIM_UM`."""
    if not strokes:
        return ink
    near = ndimage.binary_dilation(ink, iterations=2)
    faint = free & (density.strongest > max(0.02, 6 * density.noise))
    alike = np.zeros_like(ink)
    for stroke in strokes:
        if np.ptp(stroke) > LEAST_HUE * stroke.max():  # black is like any shade
            along = np.tensordot(stroke / np.linalg.norm(stroke), density.od, axes=1)
            alike |= along > RIM_COSINE * size
    reach = max(1, round(RIM_UM / mpp))
    grown = ndimage.binary_dilation(ink, iterations=reach, mask=(alike & faint) | ink)
    return np.asarray(((near | grown) & free & (density.strongest > 0.02)) | ink)


def _distinct(strokes: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return one stroke of each colour and density."""
    kept: list[NDArray[np.float32]] = []
    for stroke in strokes:
        if not any(np.linalg.norm(stroke - each) < 0.1 * np.linalg.norm(each) for each in kept):
            kept.append(stroke)
    return kept


def find_tissue_under_ink(tissue: Mask, ink: Ink, density: Density, mpp: float) -> Mask:
    """Return the ink (h, w) under which tissue lies.

    It lies between tissue on both sides, or adds its own colour; tissue that touches the ink and is
    at least as dense in every channel may be inked, too.
    """
    if not ink.mask.any():
        return ink.mask
    if (tissue | ink.mask).mean() > FULL:  # no glass: the tissue goes on under the ink
        return ink.mask
    over = ink.mask & widen(_between(tissue, ink.mask), 2 * COARSE + 1)
    over |= _of_other_color(ink, density, mpp)
    for stroke in ink.strokes:
        dense = (density.od > 0.75 * stroke[:, None, None]).all(0) & (tissue | ink.mask)
        joined = ndimage.binary_propagation(ink.mask & dense, mask=dense)
        if joined.sum() < 4 * ink.mask.sum():
            over |= joined & tissue
    return np.asarray(over)


def _between(tissue: Mask, ink: Mask) -> Mask:
    """Return what tissue closes over, as far as half of the widest stroke."""
    few = slice(None, None, COARSE)
    wide = ndimage.distance_transform_edt(np.pad(ink[few, few], 1)).max()
    reach = int(np.ceil(wide)) + 1
    grown = ndimage.distance_transform_edt(~np.pad(tissue[few, few], reach + 1)) <= reach
    kept = ndimage.distance_transform_edt(grown) > reach
    return np.asarray(enlarge(kept[reach + 1 : -reach - 1, reach + 1 : -reach - 1], ink.shape))


def _of_other_color(ink: Ink, density: Density, mpp: float) -> Mask:
    """Return the ink whose colour differs from every stroke's, as by a stain under it."""
    least: Plane | None = None
    for stroke in ink.strokes:
        direction = stroke / np.linalg.norm(stroke)
        along = np.tensordot(direction, density.od, axes=1)
        across = density.od - direction[:, None, None] * along
        off = np.sqrt(np.square(across).sum(0)) - OTHER_SHARE * np.abs(along)
        least = off if least is None else np.minimum(least, off)
    if least is None:
        return np.zeros_like(ink.mask)
    core = ndimage.binary_erosion(ink.mask, iterations=3)  # at rims colours are mixed
    other = core & (box(least, 5) > OTHER_COLOR)
    found = drop_small(ndimage.binary_opening(other, SQUARE), LEAST_UNDER_UM2 / mpp**2)
    for place, part in parts_of(found):  # a second stroke has another colour, too, but is smooth
        if np.median(ink.rough[place][part]) < ROUGHNESS:
            found[place] &= ~part
    return found
