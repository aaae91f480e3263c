"""Rules from annotated regions to labels of patches: meaning of classes, and priority."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wsi_pipeline.core.choices import DEFAULT_CLASS_NAMES, ORIGINS, OUTSIDE, PRIORITIES
from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.core.options import LabelOptions
from wsi_pipeline.labels.annotation import read_text

UNKNOWN = -1
NEGATIVE = 0
POSITIVE = 1

IGNORE = "ignore"
"""Meaning of regions that are passed over."""
HOLE = "hole"
"""Meaning of regions that are cut out of all others: their area is unknown."""

SPELLINGS = (("our", "or"), ("aem", "em"), ("oed", "ed"), ("oes", "es"), ("ise", "ize"))
"""British and American spellings, which name the same class."""
ALIASES = {"tumor": POSITIVE, "normal": NEGATIVE, "benign": NEGATIVE}
"""Classes that are known where the two classes have no names of their own."""
MAP_KEYS = {"classes", "map", "outside", "priority"}


@dataclass(frozen=True, slots=True)
class MaskValues:
    """Pixel values of a label image, by class; every other value means unknown."""

    negative: int = 100
    positive: int = 200

    def __post_init__(self) -> None:
        low, high = sorted((self.negative, self.positive))
        if not 0 <= low < high <= 255:
            raise ConfigError(
                f"mask values {self.negative} and {self.positive} are not two different values;"
                " give two numbers from 0 to 255"
            )


@dataclass(frozen=True, slots=True)
class LabelRules:
    """Rules that turn regions into labels."""

    class_names: tuple[str, str] = DEFAULT_CLASS_NAMES
    """(negative, positive)"""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """Annotated class → one of `class_names` (default: itself), "ignore" or "hole"."""
    outside: str = "unknown"
    """Meaning of tissue without annotation: "unknown" or "negative"."""
    priority: str = "positive"
    """Class that wins where both are annotated: "positive" or "negative"."""
    min_area: float = 0.5
    """A patch has a class if at least this share of its area has it, above 0 to 1."""
    mask_values: MaskValues = field(default_factory=MaskValues)
    origin: str = "auto"
    """Origin of coordinates: the slide's corner, the scanned area's, or as the format has it."""
    is_strict: bool = False
    """Refuse invalid polygons instead of repairing them."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise ConfigError(f"min_label_area is {self.min_area}; it must be above 0, at most 1")
        for name, value, choices in (
            ("outside", self.outside, OUTSIDE),
            ("priority", self.priority, PRIORITIES),
            ("origin", self.origin, ORIGINS),
        ):
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        if self.class_names[0] == self.class_names[1]:
            raise ConfigError(f"both classes are called {self.class_names[0]!r}; give two names")
        if OUTSIDE[0] in map(str.casefold, self.class_names):
            raise ConfigError(
                f"no class can be called {OUTSIDE[0]!r}, as patches without a label are; give it"
                " another name"
            )
        possible = (*self.class_names, IGNORE, HOLE)
        for drawn, meaning in self.meanings.items():
            if meaning not in possible:
                raise ConfigError(
                    f"class {drawn!r} is mapped to {meaning!r}; it must be one of"
                    f" {', '.join(possible)}"
                )

    def meaning_of(self, path: Path, drawn: str, groups: Sequence[str] = ()) -> str:
        """Return the meaning of an annotated class, else of the groups that it lies in.

        Raises LabelError for an unmapped class.
        """
        for name in (drawn, *groups):
            if name in self.meanings:
                return self.meanings[name]
            if (meaning := self._folded.get(fold_name(name))) is not None:
                return meaning
        line = shlex.quote(f"{drawn}={self.class_names[0]}")
        raise LabelError(
            f"{path}: class {drawn!r} is unknown; add --map {line} or another meaning of"
            f" {', '.join((*self.class_names, IGNORE, HOLE))}, or to the label map the lines"
            f" `map:` and, indented, `{drawn}: {self.class_names[0]}`"
        )

    @property
    def _folded(self) -> dict[str, str]:
        """Meanings by folded names: what is mapped, the classes' own names, and the aliases."""
        aliases = ALIASES if self.class_names == DEFAULT_CLASS_NAMES else {}
        return {
            **{alias: self.class_names[number] for alias, number in aliases.items()},
            **{fold_name(name): name for name in self.class_names},
            **{fold_name(name): meaning for name, meaning in self.meanings.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """Return the rules as they are recorded in recipes."""
        lists = {"class_names": list(self.class_names), "meanings": dict(self.meanings)}
        return asdict(self) | lists


def fold_name(name: str) -> str:
    """Return a class's name without its case and without British spelling."""
    folded = name.strip().casefold()
    for british, american in SPELLINGS:
        folded = folded.replace(british, american)
    return folded


def read_label_map(path: Path) -> dict[str, Any]:
    """Return the entries of a label map as keyword arguments of LabelRules.

    The map is a YAML file with `classes: [negative, positive]` and `map: {drawn class: meaning}`;
    `outside` and `priority` may be set too. Raises LabelError naming the wrong entry.
    """
    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise LabelError(
            f"{path}: not YAML ({' '.join(str(error).split())[:120]}); see docs/guides/labels.md"
        ) from error
    if not isinstance(value, dict) or not set(value) <= MAP_KEYS:
        raise LabelError(
            f"{path}: a label map has the entries {', '.join(sorted(MAP_KEYS))} and no others"
        )
    found: dict[str, Any] = {
        key: _read_word(path, value[key]) for key in ("outside", "priority") if key in value
    }
    if "classes" in value:
        classes = value["classes"]
        if not (isinstance(classes, list) and len(classes) == 2):
            raise LabelError(f"{path}: `classes` must be a list of two names, the negative first")
        found["class_names"] = (_read_word(path, classes[0]), _read_word(path, classes[1]))
    if "map" in value:
        if not isinstance(value["map"], dict):
            raise LabelError(f"{path}: `map` must hold lines of `drawn class: meaning`")
        found["meanings"] = {
            _read_word(path, drawn): _read_word(path, meaning)
            for drawn, meaning in value["map"].items()
        }
    return found


def _read_word(path: Path, value: Any) -> str:
    """Return a name or number as text. Raises LabelError for lists, which YAML can make endless."""
    if not isinstance(value, str | int | float):
        raise LabelError(f"{path}: a list or table in place of a name; see docs/guides/labels.md")
    return str(value)


def _read_pairs(lines: Sequence[str]) -> dict[str, str]:
    """Return the meanings in texts such as `Tumor=tumour`. Raises ConfigError."""
    pairs = {}
    for line in lines:
        drawn, equals, meaning = line.rpartition("=")
        if not (drawn and equals and meaning):
            raise ConfigError(f"--map {line}: give the drawn class, = and its meaning")
        pairs[drawn] = meaning
    return pairs


def read_rules(options: LabelOptions, class_names: tuple[str, str] | None = None) -> LabelRules:
    """Return the rules: an option overrules the label map, which overrules `class_names`."""
    settings: dict[str, Any] = {} if class_names is None else {"class_names": class_names}
    settings |= read_label_map(options.label_map) if options.label_map else {}
    settings["meanings"] = settings.get("meanings", {}) | _read_pairs(options.map_classes)
    chosen = {
        "outside": options.outside,
        "priority": options.priority,
        "class_names": options.class_names and tuple(options.class_names),
    }
    return LabelRules(
        **settings | {name: value for name, value in chosen.items() if value},
        min_area=options.min_label_area,
        mask_values=MaskValues(options.negative_value, options.positive_value),
        origin=options.label_origin,
        is_strict=options.strict,
    )
