"""Text in images, in one typeface; what was set once is kept for the next image.

The typeface is DejaVu Sans, which has Latin, Greek, Cyrillic and most signs. Its file comes with
matplotlib, which itself is not imported: that takes a third of a second.
"""

import unicodedata
from bisect import bisect_right
from functools import cache, lru_cache
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

FONT_FOLDER = "mpl-data/fonts/ttf"
REGULAR, BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"
NO_GLYPH = "\U0010fffe"
"""No font has a glyph for it."""
MAX_CHARACTERS = 1000
MAX_LINES = 6
ELLIPSIS = "…"


class Face(NamedTuple):
    """Size and weight of a text."""

    size_px: int
    is_bold: bool = False


@cache
def load_font(face: Face) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font; Pillow's own, with fewer glyphs, where matplotlib has no fonts."""
    spec = find_spec("matplotlib")
    folder = Path((spec and spec.origin) or "").parent / FONT_FOLDER
    try:
        return ImageFont.truetype(folder / (BOLD if face.is_bold else REGULAR), face.size_px)
    except OSError:
        return ImageFont.load_default(face.size_px)


@lru_cache(maxsize=4096)
def _can_show(char: str, face: Face) -> bool:
    """Return whether the font has a glyph for a character that is no control character."""
    if not char.isprintable():
        return False
    font = load_font(face)
    return char == " " or bytes(font.getmask(char)) != bytes(font.getmask(NO_GLYPH))


def spell(text: str, face: Face) -> str:
    """Return the text with characters that the font lacks, and control characters, as escapes.

    So a slide of any name can be told from others. Texts beyond a thousand characters are cut.
    """
    composed = unicodedata.normalize("NFC", text[:MAX_CHARACTERS])
    return "".join(char if _can_show(char, face) else ascii(char)[1:-1] for char in composed)


def measure_text(text: str, face: Face) -> int:
    """Return the width of a text in pixels."""
    return set_text(text, face).width


@lru_cache(maxsize=1024)
def set_text(text: str, face: Face) -> Image.Image:
    """Return one line of text as its coverage, "L"; all lines of a face are of one height."""
    shown, font = spell(text, face), load_font(face)
    ascent, descent = _measure_line(face)
    image = Image.new("L", (max(round(font.getlength(shown)), 1), ascent + descent))
    ImageDraw.Draw(image).text((0, ascent), shown, fill=255, font=font, anchor="ls")
    return image


@cache
def _measure_line(face: Face) -> tuple[int, int]:
    """Return the pixels above and below the base line."""
    font = load_font(face)
    if isinstance(font, ImageFont.FreeTypeFont):
        return font.getmetrics()
    return face.size_px, face.size_px // 3


def wrap_text(text: str, face: Face, width_px: int) -> list[str]:
    """Return the text in lines of at most so many pixels, broken at spaces where there are any.

    Of more than `MAX_LINES` lines the first ones are returned, with an ellipsis.
    """
    font, rest, lines = load_font(face), spell(text, face), list[str]()
    while font.getlength(rest) > width_px:
        if len(lines) == MAX_LINES - 1:
            return [*lines, rest[: max(_count_fitting(rest, font, width_px) - 1, 0)] + ELLIPSIS]
        fitting = max(_count_fitting(rest, font, width_px), 1)
        cut = rest.rfind(" ", 1, fitting + 1)
        cut = fitting if cut < 0 else cut
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*lines, rest]


def _count_fitting(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int
) -> int:
    """Return how many of the first characters fit into a width."""
    ends = range(1, len(text) + 1)
    return bisect_right(ends, width_px, key=lambda end: ceil(font.getlength(text[:end])))
