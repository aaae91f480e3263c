"""Options of commands, made from the fields that `core/options.py` declares."""

import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin

import rich_click as click

from wsi_pipeline.core.choices import PRESET_NAMES
from wsi_pipeline.core.options import PANELS

Command = TypeVar("Command", bound=Callable[..., Any])
Options = TypeVar("Options")

EXISTING = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
RESULTS = click.Path(exists=True, file_okay=False, path_type=Path)
DEFAULT_STORES, DEFAULT_MODEL, DEFAULT_RESULTS = Path("stores"), Path("model"), Path("results")
"""Folders in which `wsi tile`, `wsi train` and `wsi infer` write unless told otherwise."""
PATHS = {
    "any": EXISTING,
    "file": click.Path(exists=True, dir_okay=False, path_type=Path),
    "folder": RESULTS,
    "made": FOLDER,
    "no folder": click.Path(dir_okay=False, path_type=Path),
    "unchecked": click.Path(path_type=Path),
}
"""By the fact `path` of a field."""
RANGES: dict[Any, Any] = {int: click.IntRange, float: click.FloatRange}


def options_of(kind: type, *names: str) -> Callable[[Command], Command]:
    """Return one decorator that adds the options of a class, or those `names`, panel by panel.

    In each panel the class's own come first.
    """
    declared = {field.name: field for field in fields(kind)}
    own_first = dict.fromkeys(name for base in kind.__mro__ for name in get_annotations(base))
    chosen = [declared[name] for name in names or own_first]
    chosen.sort(key=lambda field: PANELS.index(field.metadata["panel"]))

    def add(command: Command) -> Command:
        for field in reversed(chosen):
            command = _make_option(field)(command)
        return command

    return add


def build(kind: type[Options], settings: dict[str, Any]) -> Options:
    """Return the options object of a command. Raises UsageError for a contradiction."""
    from wsi_pipeline.core.errors import ConfigError

    try:
        return kind(**settings)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _make_option(field: "Field[Any]") -> Callable[[Command], Command]:
    facts = field.metadata
    flag = facts.get("flag", f"--{field.name.replace('_', '-')}")
    settings: dict[str, Any] = {name: facts.get(name) for name in ("panel", "help", "metavar")}
    settings |= PARSERS[facts["parse"]] if "parse" in facts else _read_type(field.type, facts)
    default = facts.get("typed", field.default)
    if default is MISSING:
        settings["required"] = True
    elif default not in (None, ()):
        settings["default"] = default
    names = (f"{flag}/--no-{flag[2:]}" if default is True else flag, *facts.get("flags", ()))
    return click.option(*names, field.name, **settings)


def _read_type(annotation: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of click for the type of a field; of a union its first part counts."""
    kind = get_args(annotation)[0] if isinstance(annotation, UnionType) else annotation
    if get_origin(kind) is Sequence:
        return _read_type(get_args(kind)[0], facts) | {"multiple": True}
    if get_origin(kind) is tuple:
        return {"nargs": len(get_args(kind))}
    if kind is bool:
        return {"is_flag": True}
    if kind is Path:
        return {"type": PATHS[facts.get("path", "any")]}
    if "choices" in facts:
        return {"type": click.Choice(facts["choices"])}
    if "low" in facts:
        return {"type": RANGES[kind](facts["low"], facts.get("high"))}
    return {"type": kind}


class Bytes(click.ParamType[int]):
    """An amount of bytes, such as 500MB, 2.5GB or 0."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", value.strip())
        if match is None:
            self.fail(f"{value!r} is no amount of bytes; give one such as 500MB or 2GB", param, ctx)
        amount = float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")
        if not math.isfinite(amount):
            said = f"{value[:20]!r}… is more than any disk has"
            self.fail(f"{said}; give an amount such as 500MB or 2GB", param, ctx)
        return int(amount)


def _read_batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """Return a whole number of patches from 1 on; None for "auto"."""
    return None if value == "auto" else int(click.IntRange(1)(value, parameter, context))


def _read_threshold(context: click.Context, parameter: click.Parameter, value: str) -> float | str:
    """Return a number from 0 to 1, or the name of one of the model's thresholds."""
    if value in ("count", "detect"):
        return value
    return float(click.FloatRange(0, 1)(value, parameter, context))


def _read_context(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> float | None:
    """Return µm from 0 on; None where the option is not given."""
    if value is None:
        return None
    return 0.0 if value == "none" else float(click.FloatRange(0)(value, parameter, context))


def _read_patients(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Return the patients of a comma-separated list, or of a file with one or more a line."""
    if value is None:
        return ()
    try:
        text = Path(value).read_text(encoding="utf-8-sig") if _is_file(value) else value
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value}: not a readable list in UTF-8 ({error})") from error
    names = (name.strip() for line in text.splitlines() for name in re.split("[,;\t]", line))
    return tuple(filter(None, names))


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # longer than any file's name
        return False


PARSERS: dict[str, dict[str, Any]] = {
    "bytes": {"type": Bytes()},
    "batch size": {"callback": _read_batch_size},
    "patients": {"callback": _read_patients},
    "threshold": {"callback": _read_threshold},
    "context": {"callback": _read_context},
}
"""Settings of click for options that are more than a value of their type."""


def _set_permissions(context: click.Context, parameter: click.Parameter, value: str) -> None:
    """Set them for this process and those that it starts, until the command ends."""
    mode = int(value, 8) if re.fullmatch(r"0?[0-7]{3}", value) else 0
    if mode & ~0o666 or mode & 0o600 != 0o600:
        said = f"{value!r} is none that files can have here; give 600, 640, 660, 644 or 664"
        raise click.BadParameter(said, context, parameter)
    old = os.umask(0o777 & ~(mode | (mode & 0o444) >> 2))
    context.call_on_close(lambda: os.umask(old))


def make_out_option(default: Path | None, *synonyms: str) -> Callable[[Command], Command]:
    """Return --out with its default; it must be given where that is None."""
    return click.option(
        *("--out", "-o", *synonyms, "out"),
        panel="Output",
        type=FOLDER,
        required=default is None,
        default=default,
        help="Folder to write to.",
    )


out_option = make_out_option(None)


def _take_results(
    _context: click.Context, parameter: click.Parameter, value: Any
) -> Path | tuple[Path, ...]:
    """Return the named folders, or ./results."""
    if value:
        return cast("Path | tuple[Path, ...]", value)
    if not DEFAULT_RESULTS.is_dir():
        raise click.UsageError(
            "no RESULTS given, and there is no ./results; `wsi infer --slides DIR` makes it"
        )
    say_taken(str(DEFAULT_RESULTS))
    return (DEFAULT_RESULTS,) if parameter.nargs == -1 else DEFAULT_RESULTS


def results_argument(nargs: int = 1) -> Callable[[Command], Command]:
    """Return the argument RESULTS, which is ./results where it is not given."""
    return click.argument(
        "results", type=RESULTS, nargs=nargs, required=False, callback=_take_results
    )


def _take_stores(
    _context: click.Context, _parameter: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Return the named stores, or ./stores."""
    if value:
        return value
    if not DEFAULT_STORES.is_dir():
        raise click.UsageError(
            "no stores given, and there is no ./stores; `wsi tile SLIDE` or `wsi ingest DIR` makes"
            " it"
        )
    return (DEFAULT_STORES,)


stores_argument = click.argument(
    "stores", nargs=-1, type=EXISTING, metavar="[STORE_OR_FOLDER…]", callback=_take_stores
)


def describe_taken(taken: str, written: Path | None = None) -> str:
    """Return what a command takes and where it writes."""
    return f"taking {taken}" + ("" if written is None else f", writing {written}")


def say_taken(taken: str, written: Path | None = None) -> None:
    """Say what a command takes and where it writes, before its bar is shown."""
    from .main import printable

    with suppress(OSError):  # a stderr that cannot be written stops no run
        click.echo(printable(describe_taken(taken, written)), err=True)


def say_next(line: str, *words: object) -> None:
    """Say the next command to type."""
    from .main import printable

    with suppress(OSError):
        quoted = map(shlex.quote, map(str, words))
        click.echo(printable(" ".join(["next:", line, *quoted])), err=True)


def unless_default(folder: Path, default: Path) -> tuple[Path, ...]:
    """Return the folder as a word for `say_next`; none where the command takes it by itself."""
    return () if folder == default else (folder,)


def count_slides(found: Sequence[object], watched: Sequence[object] = ()) -> str:
    """Return the number of slides in words, or the watched places.

    Names of slides may be patients'.
    """
    if watched:
        return f"what comes into {list_words(watched)}"
    return f"{len(found):,} slide{'' if len(found) == 1 else 's'}"


def list_words(places: Sequence[object]) -> str:
    """Return some places as words, the first three of them."""
    shown = " ".join(str(place) for place in places[:3])
    return shown if len(places) <= 3 else f"{shown} … ({len(places)})"


watch_option = click.option(
    "--watch",
    panel="Operation",
    is_flag=True,
    help=(
        "Go on looking for new slides in the folders, and run those that have not changed for a"
        " minute, until Ctrl+C."
    ),
)


def check_watch(watch: bool, **others: object) -> None:
    """Raise UsageError where --watch and any of the `others`, named as their options, is given."""
    given = [name for name, value in others.items() if value]
    if watch and given:
        flag = f"--{given[0].replace('_', '-')}"
        raise click.UsageError(f"--watch looks into folders again and again; leave {flag} out")


slides_option = click.option("--slides", type=RESULTS, metavar="DIR", help="As in `wsi serve`.")
port_option = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on this machine. [default: any free one]",
    show_default=False,
)
labels_option = click.option(
    "--labels",
    panel="Labels",
    type=EXISTING,
    multiple=True,
    metavar="FILE|DIR",
    help=(
        "What is known of the slides: files of QuPath and other programs, label images, or folders"
        " of them, matched by name; see docs/guides/labels.md."
    ),
)


def _apply_preset(context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    """Make the preset's values the defaults of this call."""
    from wsi_pipeline.core.training_options import apply_preset

    context.default_map = apply_preset(name, context.default_map or {})


preset_option = click.option(
    "--preset",
    panel="Training",
    type=click.Choice(PRESET_NAMES),
    expose_value=False,
    is_eager=True,
    callback=_apply_preset,
    help="Take the settings of a published recipe for options that are not given.",
)
mode_option = click.option(
    "--mode",
    panel="Output",
    metavar="OCTAL",
    default="600",
    expose_value=False,
    callback=_set_permissions,
    help="Permissions of the files that are made; readers may also enter the folders.",
)
