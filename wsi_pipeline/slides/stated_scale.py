"""The scale that a TIFF states in words: OME-XML, ImageJ, and what stands there instead of one.

OME-XML has `PhysicalSizeX` and a unit (OME schema 2016-06, µm where none is given). ImageJ writes
the pixels per unit as the resolution, and the unit in its description.
"""

import math
import re
from collections.abc import Mapping

from wsi_pipeline.slides.base import DeclaredScale
from wsi_pipeline.slides.tiff_structure import TiffFacts

# Possessive, and within one tag: a hostile description of megabytes is gone through once.
OME_PIXELS = re.compile(r"<(?:\w++:)?+Pixels\b[^<>]*+>")
OME_OBJECTIVE = re.compile(r"<(?:\w++:)?+Objective\b[^<>]*+>")
ATTRIBUTE = re.compile(r"\b(\w++)\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)')")
IMAGEJ = "ImageJ="
UM_PER_UNIT = {
    "Å": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "inch": 25_400.0,
    "inches": 25_400.0,
    "nanometer": 1e-3,
    "millimeter": 1e3,
}
MICRO = str.maketrans({"\u03bc": "\u00b5", "\ufffd": "\u00b5"})
"""The Greek letter for the sign, and what an undecodable byte became."""
UM_PER_PX_AT_1X = 10.0
"""Most scanners call 0.25 µm/px 40x and 0.5 µm/px 20x."""


def read_description(text: str, resolution: tuple[str, str]) -> DeclaredScale | None:
    """Return the scale that a TIFF's description states; None where it states none in a known unit.

    `resolution` are the pixels per unit in x and y, as the tags have them.
    """
    if "<OME" in text or ":OME" in text:
        return _read_ome(text)
    return _read_imagej(text, resolution) if text.startswith(IMAGEJ) else None


def scale_of(facts: TiffFacts) -> DeclaredScale:
    """Return the scale that a TIFF's description or tags state."""
    if stated := read_description(facts.description, facts.resolution):
        return stated
    um = {2: UM_PER_UNIT["in"], 3: UM_PER_UNIT["cm"]}.get(facts.unit)
    per_unit = [_positive(text) for text in facts.resolution]
    mpp_x, mpp_y = (f"{um / number:.10g}" if um and number else None for number in per_unit)
    magnification = read_magnification(facts.description)
    instead = describe_instead(magnification, None, "" if um else facts.resolution[0])
    return DeclaredScale("TIFF tag", mpp_x, mpp_y, instead)


def _read_ome(text: str) -> DeclaredScale | None:
    found = OME_PIXELS.search(text)  # of the first image, which level 0 is
    attributes = _attributes(found[0]) if found else {}
    mpp_x, mpp_y = (_to_um(attributes, f"PhysicalSize{axis}") for axis in "XY")
    return DeclaredScale("OME-XML", mpp_x, mpp_y) if mpp_x and mpp_y else None


def _attributes(tag: str) -> dict[str, str]:
    return {name: one or other for name, one, other in ATTRIBUTE.findall(tag)}


def _to_um(attributes: Mapping[str, str], name: str) -> str | None:
    """Return a length in µm as text; None where there is none, or in an unknown unit."""
    unit = attributes.get(f"{name}Unit", "µm").replace("&#181;", "µ").replace("&#xB5;", "µ")
    return _convert(attributes.get(name, ""), unit)


def _convert(text: str, unit: str) -> str | None:
    um = UM_PER_UNIT.get(unit.strip().translate(MICRO))
    try:
        length = float(text) * (um or math.nan)
    except ValueError:
        return None
    return f"{length:.10g}" if length > 0 else None


def _read_imagej(text: str, resolution: tuple[str, str]) -> DeclaredScale | None:
    lines = dict(line.partition("=")[::2] for line in text.splitlines())
    unit = lines.get("unit", "").replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    try:
        lengths = [str(1 / float(per_unit)) for per_unit in resolution]
    except (ValueError, ZeroDivisionError):
        return None
    mpp_x, mpp_y = (_convert(length, unit) for length in lengths)
    return DeclaredScale("ImageJ", mpp_x, mpp_y) if mpp_x and mpp_y else None


def describe_instead(magnification: float | None, mpp: str | None, resolution: str) -> str:
    """Return what a file states instead of a scale, as the end of a sentence; "" where nothing.

    `mpp` is what it gives as µm per pixel, and `resolution` the pixels per unknown unit.
    """
    if mpp is not None:
        return f", but {mpp!r}, which is not a number"
    if magnification:
        guess = f"{UM_PER_PX_AT_1X / magnification:g} µm/px with most scanners"
        return f", only a magnification of {magnification:g}x ({guess})"
    per_unit = _positive(resolution)
    if per_unit is not None and per_unit != 1:
        return f", only {per_unit:g} pixels per unit, without the unit"
    return ""


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def read_magnification(text: str) -> float | None:
    """Return the objective's magnification by OME-XML; None where it states none."""
    found = OME_OBJECTIVE.search(text)
    return _positive(_attributes(found[0]).get("NominalMagnification", "")) if found else None
