"""Images for people: a picture under its title, with colour bar, scale bar and key.

They are drawn pixel by pixel: figures of matplotlib take twenty times as long.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs.lettering import Face, measure_text, set_text, wrap_text
from wsi_pipeline.outputs.map_image import Frame, color_pixels
from wsi_pipeline.slides.images import pack_png

Color = str | tuple[int, int, int]

NAME, TEXT, SMALL = Face(19, is_bold=True), Face(15), Face(13)
WHITE, BLACK, LINE = (255, 255, 255), (0, 0, 0), (90, 90, 90)
NOT_ASSESSED = (230, 230, 230)
MARGIN, GAP = 16, 10
MIN_WIDTH = 640
"""Titles of narrow slides need some room."""
BAR_WIDTH, MIN_BAR, MAX_BAR = 24, 240, 700
TICK = 6
SCALE_BARS_MM = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SMOOTH_BELOW = 3
"""A thumbnail enlarged more than so many times shows its pixels as squares."""


class ColorBar(NamedTuple):
    """The scale beside a map."""

    colors: NDArray[np.uint8]
    """(256, 3), for values from 0 to `top`."""
    label: str
    top: float = 1.0
    threshold: float | None = None


class Key(NamedTuple):
    """A colour, of areas or of lines, and its meaning."""

    color: Color
    text: str
    is_line: bool = False


class ScaleBar(NamedTuple):
    """A length on the slide."""

    length_px: int
    text: str


def show_thumbnail(table: PatchTable, frame: Frame) -> Image.Image:
    """Return the slide's thumbnail as large as the frame."""
    image = Image.fromarray(table.thumbnail.pixels)
    if frame.size_px == image.size:
        return image
    is_coarse = frame.size_px[0] > SMOOTH_BELOW * image.width
    sampling = Image.Resampling.NEAREST if is_coarse else Image.Resampling.BICUBIC
    return image.resize(frame.size_px, sampling, reducing_gap=2.0)


def cover(
    picture: Image.Image,
    numbers: NDArray[Any],
    colors: NDArray[np.uint8],
    opacity: int | NDArray[np.uint8] = 255,
) -> None:
    """Lay colours over a picture by their number from 1 on (height, width); 0 leaves it as it is.

    `opacity` is 0 to 255, of all colours or of each.
    """
    layer = Image.fromarray(color_pixels(numbers, colors, opacity))
    picture.paste(layer, mask=layer)


def find_scale_bar(frame: Frame, slide_mpp: float) -> ScaleBar:
    """Return the longest bar of at most a quarter of the frame's longer side."""
    pixel_mm = frame.pixel_xy_l0[0] * slide_mpp / 1000
    side_mm = max(frame.size_px) * pixel_mm
    length = max((bar for bar in SCALE_BARS_MM if bar <= side_mm / 4), default=SCALE_BARS_MM[0])
    text = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    return ScaleBar(max(round(length / pixel_mm), 1), text)


def compose(
    title: Sequence[str],
    picture: Image.Image,
    scale: ScaleBar,
    bar: ColorBar | None = None,
    keys: Sequence[Key] = (),
) -> Image.Image:
    """Return the picture in a thin frame, its title above, the bar beside it, the keys below."""
    height = max(picture.height, MIN_BAR if bar else 0)
    beside = Image.new("RGB", (0, height), WHITE) if bar is None else draw_bar(bar, height)
    width = max(picture.width + beside.width + 2 * MARGIN + 2, MIN_WIDTH)
    head = draw_title(title, width - 2 * MARGIN)
    foot = draw_keys(scale, keys, width - 2 * MARGIN)
    top = MARGIN + head.height + GAP
    total = top + height + GAP + foot.height + MARGIN
    image = Image.new("RGB", (width, total), WHITE)
    image.paste(head, (MARGIN, MARGIN))
    left, down = MARGIN + 1, top + (height - picture.height) // 2
    frame = (left - 1, down - 1, left + picture.width, down + picture.height)
    ImageDraw.Draw(image).rectangle(frame, outline=LINE)
    image.paste(picture, (left, down))
    image.paste(beside, (left + picture.width + 1, top))
    image.paste(foot, (MARGIN, top + height + GAP))
    return image


def put_text(
    image: Image.Image, text: str, face: Face, xy: tuple[int, int], color: Color = BLACK
) -> None:
    """Draw one line of text with its top left corner at (x, y)."""
    letters = set_text(text, face)
    image.paste(color, (*xy, xy[0] + letters.width, xy[1] + letters.height), letters)


def draw_title(title: Sequence[str], width: int) -> Image.Image:
    """Return lines of text, the first one bold; what is too long is broken."""
    faces = [NAME] + [TEXT] * (len(title) - 1)
    lines = [
        (line, face)
        for text, face in zip(title, faces, strict=True)
        for line in wrap_text(text, face, width)
    ]
    heights = [set_text(line, face).height + 3 for line, face in lines]
    image = Image.new("RGB", (width, sum(heights)), WHITE)
    top = 0
    for (line, face), height in zip(lines, heights, strict=True):
        put_text(image, line, face, (0, top))
        top += height
    return image


def draw_bar(bar: ColorBar, height: int) -> Image.Image:
    """Return the bar with ticks, its label upright at the right, the threshold marked."""
    half = set_text("0", SMALL).height // 2
    length = min(height - 2 * half, MAX_BAR)
    top = (height - length) // 2
    marks = list_marks(bar, length)
    words = max(measure_text(text, SMALL) for _, text in marks)
    label = _draw_upright(bar.label, height)
    left = 2 * MARGIN
    width = left + BAR_WIDTH + TICK + 4 + words + GAP + label.width
    image = Image.new("RGB", (width, height), WHITE)
    rows = (np.arange(length)[::-1] * 256 // length).astype(np.intp)
    colors = np.repeat(bar.colors[rows][:, None], BAR_WIDTH, axis=1)
    image.paste(Image.fromarray(colors), (left, top))
    pen = ImageDraw.Draw(image)
    pen.rectangle((left - 1, top - 1, left + BAR_WIDTH, top + length), outline=LINE)
    right = left + BAR_WIDTH
    for offset, text in marks:
        down = top + offset
        pen.line((right + 1, down, right + TICK, down), fill=BLACK)
        put_text(image, text, SMALL, (right + TICK + 4, down - half))
    if bar.threshold is not None:
        down = top + _place_value(bar.threshold, bar.top, length)
        pen.rectangle((left - 4, down - 1, right + TICK, down + 1), fill=WHITE, outline=BLACK)
    image.paste(label, (width - label.width, (height - label.height) // 2))
    return image


def list_marks(bar: ColorBar, length: int) -> list[tuple[int, str]]:
    """Return places, in pixels from the top, and texts of ticks and threshold.

    Ticks that the threshold's text would cover are left out.
    """
    ticks = [(_place_value(tick, bar.top, length), text) for tick, text in list_ticks(bar.top)]
    if bar.threshold is None:
        return ticks
    place, high = _place_value(bar.threshold, bar.top, length), set_text("0", SMALL).height
    kept = [tick for tick in ticks if abs(tick[0] - place) >= high]
    return [*kept, (place, f"{bar.threshold:.2f} threshold")]


def _place_value(value: float, top: float, length: int) -> int:
    return round((1 - value / top) * (length - 1))


def list_ticks(top: float) -> list[tuple[float, str]]:
    """Return about five round values from 0 to `top`, and their texts."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= top / 5 * (1 - 1e-9))
    values = [step * number for number in range(math.floor(top / step * (1 + 1e-9)) + 1)]
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    is_plain = digits <= 4 and top < 1e6
    return [(value, f"{value:.{digits}f}" if is_plain else f"{value:.3g}") for value in values]


def _draw_upright(text: str, length: int) -> Image.Image:
    """Return a text that reads upwards, in as many columns as it needs."""
    lines = wrap_text(text, TEXT, length)
    height = set_text(lines[0], TEXT).height
    image = Image.new("RGB", (max(measure_text(line, TEXT) for line in lines), height * len(lines)))
    image.paste(WHITE, (0, 0, *image.size))
    for number, line in enumerate(lines):
        left = (image.width - measure_text(line, TEXT)) // 2
        put_text(image, line, TEXT, (left, number * height))
    return image.transpose(Image.Transpose.ROTATE_90)


def draw_keys(scale: ScaleBar, keys: Sequence[Key], width: int) -> Image.Image:
    """Return the scale bar and the keys in lines of at most so many pixels."""
    parts = [_draw_scale(scale), *(_draw_key(key, width) for key in keys)]
    high, places = parts[0].height + 4, list[tuple[int, int]]()
    left = top = 0
    for part in parts:
        if left and left + part.width > width:
            left, top = 0, top + high
        places.append((left, top))
        left += part.width + 2 * GAP
    image = Image.new("RGB", (width, top + high), WHITE)
    for part, place in zip(parts, places, strict=True):
        image.paste(part, place)
    return image


def _draw_scale(scale: ScaleBar) -> Image.Image:
    letters = set_text(scale.text, TEXT)
    width = scale.length_px + GAP + letters.width
    image = Image.new("RGB", (width, letters.height), WHITE)
    middle = letters.height // 2
    image.paste(BLACK, (0, middle - 2, scale.length_px, middle + 2))
    for end in (0, scale.length_px - 2):
        image.paste(BLACK, (end, middle - 6, end + 2, middle + 6))
    put_text(image, scale.text, TEXT, (scale.length_px + GAP, 0))
    return image


def _draw_key(key: Key, width: int) -> Image.Image:
    text = wrap_text(key.text, TEXT, width - 36)[0]
    letters = set_text(text, TEXT)
    image = Image.new("RGB", (28 + letters.width, letters.height), WHITE)
    middle = letters.height // 2
    if key.is_line:
        image.paste(key.color, (0, middle - 1, 20, middle + 1))
    else:
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, middle - 7, 19, middle + 7), fill=key.color, outline=LINE)
    put_text(image, text, TEXT, (28, 0))
    return image


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG whose bytes depend only on the image."""
    path.write_bytes(pack_png(np.asarray(image)))
