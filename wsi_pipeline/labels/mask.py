"""Label images: a value or a colour per pixel over the slide, and what each of them means."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.core.geometry import Grid, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels.assignment import PatchLabels, decide
from wsi_pipeline.labels.label_image import LabelImage, read_label_image
from wsi_pipeline.labels.rules import HOLE, IGNORE, NEGATIVE, POSITIVE, LabelRules

COLOUR = re.compile(r"#([0-9a-fA-F]{6})")
CHANNELS = re.compile(r"(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})")
NUMBER = re.compile(r"\d{1,5}")
GREY = 0x010101
"""A grey value times this is its colour."""
COLUMNS_AT_ONCE = 256
"""Of a band whose pixels are added up: few, so that they stay in the processor's cache."""
MAX_KEYS = 256
"""Values that mean nothing and are told apart; the rest is counted together."""
SHOWN_KEYS = 8

Meanings = dict[str, NDArray[np.uint32]]
"""The keys of a label image that have a meaning."""


def assign_mask(
    path: Path, slide: SlideInfo, grid: Grid, positions: NDArray[np.int32], rules: LabelRules
) -> PatchLabels:
    """Label positions (n, 2) by the share of each class's pixels under them.

    Raises LabelError where the image does not fit the slide, or none of its pixels has a value that
    means something although some have a value.
    """
    image = read_label_image(path)
    scale = register_image(path, image.size, image.mpp, slide)
    meanings = read_meanings(image, rules)
    cover = Cover.over(positions_to_boxes_l0(positions, grid) / scale, image.size)
    numbers = _count(image, meanings, cover)
    _check_values(path, image, meanings, numbers)
    negative, positive, hole = (cover.share(name) for name in (*rules.class_names, HOLE))
    if rules.outside == "negative":
        negative = np.clip(1 - positive - hole, 0, 1)
    labels, fraction = decide((negative, positive), rules)
    return PatchLabels(labels, fraction, _describe(image, meanings, numbers, rules))


def read_meanings(image: LabelImage, rules: LabelRules) -> Meanings:
    """Return the keys of an image by what they mean.

    Those are the numbers and colours in the label map, else the two values of the rules. A colour
    of a palette stands for every value that has it, and a grey value for its colour in a colour
    image. Raises ConfigError where one value has two meanings.
    """
    named = {name: _find_keys(image, name) for name in rules.meanings}
    if not any(map(_is_value, named)):
        values = {
            rules.class_names[NEGATIVE]: rules.mask_values.negative,
            rules.class_names[POSITIVE]: rules.mask_values.positive,
        }
        return {name: _find_keys(image, str(value)) for name, value in values.items()}
    found: dict[str, list[int]] = {}
    first: dict[int, str] = {}
    for name, keys in named.items():
        for key in keys.tolist():
            other = first.setdefault(key, name)
            if rules.meanings[other] != rules.meanings[name]:
                raise ConfigError(
                    f"{other} and {name} are one value of a label image, and the label map gives"
                    " them two meanings; keep one"
                )
        found.setdefault(rules.meanings[name], []).extend(keys.tolist())
    return {meaning: np.unique(np.array(keys, np.uint32)) for meaning, keys in found.items()}


def _is_value(name: str) -> bool:
    return any(form.fullmatch(name.strip()) for form in (COLOUR, CHANNELS, NUMBER))


def _find_keys(image: LabelImage, name: str) -> NDArray[np.uint32]:
    """Return the keys that a number (`2`) or a colour (`#ff0000`, `255,0,0`) names in an image."""
    text = name.strip()
    if NUMBER.fullmatch(text):
        value = int(text)
        if image.is_colour:
            return np.array([value * GREY] if value <= 255 else [], np.uint32)
        return np.array([value], np.uint32)
    if hexadecimal := COLOUR.fullmatch(text):
        colour = int(hexadecimal[1], 16)
    elif channels := CHANNELS.fullmatch(text):
        red, green, blue = map(int, channels.groups())
        colour = red << 16 | green << 8 | blue
    else:
        return np.array([], np.uint32)
    if image.is_colour:
        return np.array([colour], np.uint32)
    if image.palette:
        return np.flatnonzero(np.array(image.palette) == colour).astype(np.uint32)
    return np.array([colour // GREY] if colour % GREY == 0 else [], np.uint32)


class Cover:
    """Pixels of each meaning under each box, added up band by band."""

    def __init__(self, corners: NDArray[np.int64], area: NDArray[np.int64]) -> None:
        self._corners, self._area = corners, area
        """(n, 4: x0, y0, x1, y1) within the image; (n,) pixels of the whole box."""
        self._pixels: dict[str, NDArray[np.int64]] = {}

    @classmethod
    def over(cls, boxes: NDArray[np.float64], size: tuple[int, int]) -> Self:
        """Return the cover of boxes (n, 4: x, y, width, height in pixels of the image).

        Edges are rounded to the nearest pixel.
        """
        (x0, x1), (y0, y1) = (
            _nearest_pixels(boxes[:, axis], boxes[:, axis + 2]) for axis in (0, 1)
        )
        corners = np.stack([x0, y0, x1, y1], axis=1)
        area = (x1 - x0) * (y1 - y0)  # what lies beyond the image belongs to no class
        return cls(np.clip(corners, 0, np.tile(size, 2)), area)

    def add(self, meaning: str, top: int, is_meant: NDArray[np.bool_]) -> None:
        """Add a band of whole rows (rows, width), of which the first is row `top`."""
        pixels = self._pixels.setdefault(meaning, np.zeros(len(self._area), np.int64))
        x0, y0, x1, y1 = self._corners.T
        in_band = np.flatnonzero((y1 > top) & (y0 < top + len(is_meant)))
        for left in range(0, is_meant.shape[1], COLUMNS_AT_ONCE):
            part = is_meant[:, left : left + COLUMNS_AT_ONCE]
            if not part.any():
                continue
            rows, cols = part.shape
            members = in_band[(x1[in_band] > left) & (x0[in_band] < left + cols)]
            sums = np.pad(part.cumsum(axis=0, dtype=np.int32).cumsum(axis=1), ((1, 0), (1, 0)))
            a, c = (np.clip(each[members] - left, 0, cols) for each in (x0, x1))
            b, d = (np.clip(each[members] - top, 0, rows) for each in (y0, y1))
            pixels[members] += sums[d, c] - sums[b, c] - sums[d, a] + sums[b, a]

    def share(self, meaning: str) -> NDArray[np.float64]:
        """Return the share of each box that has a meaning, (n,) 0 to 1."""
        none = np.zeros(len(self._area), np.int64)
        return np.asarray(self._pixels.get(meaning, none) / self._area)


def _count(image: LabelImage, meanings: Meanings, cover: Cover) -> Counter[int]:
    """Add every band to the cover; return the number of pixels by key."""
    numbers: Counter[int] = Counter()
    for top, keys in image.bands():
        is_known = keys == 0
        numbers[0] += int(np.count_nonzero(is_known))
        for meaning, known in meanings.items():
            is_meant = np.zeros(keys.shape, np.bool_)
            for key in known.tolist():
                is_key = keys == key
                numbers[key] += int(np.count_nonzero(is_key)) if key else 0
                is_meant |= is_key
            cover.add(meaning, top, is_meant)
            is_known |= is_meant
        if not is_known.all():
            for key, number in zip(*np.unique(keys[~is_known], return_counts=True), strict=True):
                is_told = key in numbers or len(numbers) < MAX_KEYS
                numbers[int(key) if is_told else OTHERS] += int(number)
    return numbers


OTHERS = -1
"""Key under which values are counted that are too many to be told apart."""


def _check_values(path: Path, image: LabelImage, meanings: Meanings, numbers: Counter[int]) -> None:
    """Raise LabelError where pixels are drawn, and none of them with a value that has a meaning."""
    known = {int(key) for keys in meanings.values() for key in keys}
    drawn = [key for key, number in numbers.items() if number and key]
    if not drawn or known & set(drawn):
        return
    told = [_name_key(image, key) for key in sorted({0, *drawn} if numbers[0] else drawn)]
    more = " and others" if len(told) > SHOWN_KEYS else ""
    wanted = " and ".join(_name_key(image, key) for key in sorted(known)) or "none of this image"
    example = _name_key(image, drawn[0]).partition(" ")[0]
    raise LabelError(
        f"{path}: no pixel has a value that means something ({wanted}); its values are"
        f" {', '.join(told[:SHOWN_KEYS])}{more}: say what they mean with --map '{example}=…', a"
        " label map, or --positive-value and --negative-value"
    )


def _name_key(image: LabelImage, key: int) -> str:
    if key == OTHERS:
        return "many more"
    if image.is_colour:
        return f"#{key:06x}"
    return f"{key} (#{image.palette[key]:06x})" if key < len(image.palette) else str(key)


def _describe(
    image: LabelImage, meanings: Meanings, numbers: Counter[int], rules: LabelRules
) -> dict[str, Any]:
    """Return the record of a label image: its pixels by value, by meaning, and without one."""
    by_value = {
        _name_key(image, int(key)): numbers[int(key)] for keys in meanings.values() for key in keys
    }
    by_meaning = {name: sum(numbers[int(key)] for key in keys) for name, keys in meanings.items()}
    known = {0, *(int(key) for keys in meanings.values() for key in keys)}
    others = {key: number for key, number in numbers.items() if key not in known}
    told = dict(sorted(others.items(), key=lambda item: -item[1])[:SHOWN_KEYS])
    rest = sum(others.values()) - sum(told.values())
    passed = {_name_key(image, key): number for key, number in told.items()}
    return {
        "mask_pixels": by_value,
        "meant_pixels": {rules.class_names[POSITIVE]: 0} | by_meaning,
        "other_pixels": passed | ({"others": rest} if rest else {}),
    }


def describe_pixels(description: Mapping[str, Any]) -> str:
    """Return what was read of a label image as text, by the record that was made of it.

    Such as `400 px tumour, 90 px benign; 12 px of 37 mean nothing`.
    """
    if "meant_pixels" not in description:  # a store of an earlier version
        by_value = description["mask_pixels"].items()
        return ", ".join(f"{number:,} px of {value}" for value, number in by_value)
    meant, others = description["meant_pixels"], description["other_pixels"]
    if not (any(meant.values()) or others):
        return "nothing drawn"
    text = ", ".join(f"{number:,} px {MEANT.get(name, name)}" for name, number in meant.items())
    passed = ", ".join(f"{number:,} px of {name}" for name, number in others.items())
    return text + (f"; {passed} mean nothing" if passed else "")


MEANT = {IGNORE: "ignored", HOLE: "cut out"}


def register_image(path: Path, size: tuple[int, int], mpp: float | None, slide: SlideInfo) -> float:
    """Return level-0 pixels per pixel of an image of (width, height).

    The image shows the whole slide, or states its own µm per pixel. Raises LabelError otherwise.
    """
    (width, height), (width_l0, height_l0) = size, slide.size_l0
    scale: float = width_l0 / width
    if scale >= 1 and abs(height_l0 / scale - height) <= 1:
        return scale
    stated = (mpp or 0.0) / slide.mpp
    if stated >= 0.5 and (width - 1) * stated <= width_l0 and (height - 1) * stated <= height_l0:
        return stated
    raise LabelError(
        f"{path}: an image of {width} × {height} px does not lie over a slide of {width_l0} ×"
        f" {height_l0} px; it must show the whole slide, not enlarged, or state its µm per pixel"
    )


def _nearest_pixels(
    start: NDArray[np.float64], extent: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first pixel and the one after the last.

    Where both edges are rounded to the same place, the pixel that holds their middle.
    """
    first, behind = np.floor(start + 0.5), np.floor(start + extent + 0.5)
    first = np.where(behind > first, first, np.floor(start + extent / 2))
    return first.astype(np.int64), np.maximum(behind, first + 1).astype(np.int64)
