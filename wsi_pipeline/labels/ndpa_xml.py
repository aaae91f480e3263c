"""Hamamatsu .ndpa: closed freehand regions, rectangles and circles; a class is a region's title.

Coordinates are nm from the centre of the glass. A slide says in its TIFF tags, or in its .vms file,
how far the centre of the scan lies from there (OpenSlide calls it XOffsetFromSlideCentre).
"""

import re
import struct
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.annotation import Affine, Annotation, AnnotationBuilder, read_xml
from wsi_pipeline.labels.imagescope_xml import inscribe_ellipse

ROOT = "annotations"
X_OFFSET_TAG, Y_OFFSET_TAG = 65422, 65423
VMS_OFFSET = re.compile(r"^([XY])OffsetFromSlideCentre=(-?\d+)\s*$", re.MULTILINE | re.IGNORECASE)
VMS_SUFFIXES = (".vms", ".vmu")
VMS_BYTES = 1 << 20
NM_PER_UM = 1000.0
UNIT = "nanometers"


def read_ndpa(path: Path, is_strict: bool) -> Annotation:
    """Return the regions of an .ndpa file, in nm from the glass's centre. Raises LabelError."""
    builder = AnnotationBuilder(path, is_strict)
    for view in read_xml(path, ROOT).iter("ndpviewstate"):
        title = (view.findtext("title") or "").strip()
        unit = (view.findtext("coordformat") or UNIT).strip()
        if unit != UNIT:
            raise LabelError(f"{path}: coordinates in {unit}; only {UNIT} are known")
        shapes = list(view.iter("annotation"))
        if not shapes:
            builder.ignored["view without a region"] += 1
        for shape in shapes:
            _add_shape(path, builder, title, shape)
    return builder.finish(place=place_nm)


def _add_shape(path: Path, builder: AnnotationBuilder, title: str, shape: Element) -> None:
    kind = shape.attrib.get("type", "").lower()
    if kind == "circle":
        x, y, radius = (_read_number(path, shape, name) for name in ("x", "y", "radius"))
        circle = inscribe_ellipse([(x - radius, y - radius), (x + radius, y + radius)])
        builder.add_polygon(title, circle)
    elif kind not in ("freehand", "rectangle"):
        builder.ignored[kind or "object without a type"] += 1
    elif (shape.findtext("closed") or "1").strip() == "0":
        builder.ignored["open line"] += 1
    else:
        points = shape.iter("point")
        corners = [tuple(_read_number(path, point, axis) for axis in "xy") for point in points]
        builder.add_polygon(title, corners)


def _read_number(path: Path, element: Element, name: str) -> float:
    text = element.findtext(name) or ""
    try:
        return float(text)
    except ValueError as error:
        raise LabelError(
            f"{path}: {name} is {text!r}, which is not a number; save the annotation again"
        ) from error


def place_nm(slide: SlideInfo) -> Affine:
    """Return the way from nm to level-0 pixels of a slide.

    Raises LabelError where the slide cannot be read or does not say where it lies on the glass.
    """
    path = Path(slide.path)
    try:
        offset = _read_vms(path) if path.suffix.lower() in VMS_SUFFIXES else _read_tags(path)
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise LabelError(
            f"{path}: cannot be read ({error}), and the coordinates of .ndpa need it; give the"
            " slide its former place"
        ) from error
    if offset is None:
        raise LabelError(
            f"{path}: does not say where it lies on the glass, from whose centre the coordinates"
            " of .ndpa count; use it with the scanner's own file"
        )
    per_nm = 1 / (NM_PER_UM * slide.mpp)
    left, top = (
        extent / 2 - each * per_nm for extent, each in zip(slide.size_l0, offset, strict=True)
    )
    return (per_nm, 0.0, 0.0, per_nm, left, top)


def _read_tags(path: Path) -> tuple[float, float] | None:
    # Here, because few label files need it.
    import tifffile

    with tifffile.TiffFile(path) as file:
        tags = [file.pages.first.tags.get(code) for code in (X_OFFSET_TAG, Y_OFFSET_TAG)]
    if not all(tags):
        return None
    # Written as unsigned by some scanners, though it may be negative.
    x, y = (int(np.array(tag.value, dtype=np.int64).astype(np.int32)) for tag in tags if tag)
    return x, y


def _read_vms(path: Path) -> tuple[float, float] | None:
    with path.open("rb") as stream:
        text = stream.read(VMS_BYTES).decode(errors="replace")
    found = {axis.upper(): int(value) for axis, value in VMS_OFFSET.findall(text)}
    return (found["X"], found["Y"]) if len(found) == 2 else None
