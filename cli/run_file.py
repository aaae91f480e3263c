"""Run files: a command's settings in YAML, taken with --config and printed with --print-config."""

import difflib
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click as plain_click
import rich_click as click
from click.core import ParameterSource

from wsi_pipeline.core.choices import RUN_FILE

MAX_BYTES = 1024**2
WIDTH = 100
COMPLETE = (0, 3)
"""Exit codes of commands that wrote their product; 3: some slides failed."""
CONFIG, PRINT_CONFIG = "config", "print_config"
UNSET = ("", "null", "~")
"""Values of settings that are not set, as YAML writes them without quotes."""
NULL = ("tag:yaml.org,2002:null", re.compile(r"(~|null)\Z"))

config_options = (
    click.RichOption(
        ["--config"],
        panel="Operation",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="YAML",
        expose_value=False,
        help=(
            "Take settings from a file such as --print-config prints. Options and environment"
            " variables win over it."
        ),
    ),
    click.RichOption(
        ["--print-config"],
        panel="Operation",
        is_flag=True,
        expose_value=False,
        help="Print every setting as a file to edit, and do nothing else.",
    ),
)


class ConfigCommand(click.RichCommand):
    """A command whose settings can be read from a file, and are written beside its product."""

    def __init__(self, *args: Any, is_kept: bool = True, **settings: Any) -> None:
        """Make the command; `is_kept` False: its settings are not written beside its product."""
        super().__init__(*args, **settings)
        self.is_kept = is_kept

    def get_params(self, ctx: click.Context) -> list[plain_click.Parameter]:
        """Return the command's own options and those of run files."""
        own = super().get_params(ctx)
        return [*own[:-1], *config_options, own[-1]]  # the last is --help

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; those that are not given come from the environment or the file."""
        if ctx.resilient_parsing or not {"--help", "-h"}.isdisjoint(args):
            return super().parse_args(ctx, args)
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        config = config_options[0]
        path = config.process_value(ctx, config.consume_value(ctx, given)[0])
        if isinstance(path, Path):
            ctx.default_map = {**(ctx.default_map or {}), **_read(path, self.get_params(ctx))}
        if given.get(PRINT_CONFIG) is True:
            self._print(ctx, given)
        rest = super().parse_args(ctx, args)
        ctx.meta[RUN_FILE] = given
        return rest

    def _print(self, ctx: click.Context, given: Mapping[str, Any]) -> None:
        """Print the settings and end; settings that are given are checked, none is missed."""
        for parameter in sorted(self.get_params(ctx), key=lambda each: not each.is_eager):
            source = parameter.consume_value(ctx, given)[1]
            if source is not ParameterSource.DEFAULT:
                parameter.handle_parse_result(ctx, given, [])
        click.echo(self._format(ctx, given), nl=False)
        ctx.exit()

    def _format(self, ctx: click.Context, given: Mapping[str, Any]) -> str:
        """Return the run file of a call."""
        name = ctx.command_path
        parts = [
            f"# Settings of `{name}`, for `{name} --config {RUN_FILE}`. Options and environment\n"
            "# variables win over this file; what is commented out is not set.\n"
        ]
        for parameter in self.get_params(ctx):
            if parameter.name not in (CONFIG, PRINT_CONFIG, "help", "preset"):
                value = _plain(parameter.consume_value(ctx, given)[0])
                parts.append(_describe(parameter, value))
        return "\n".join(parts)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and write its settings beside what it made."""
        try:
            result = super().invoke(ctx)
        except plain_click.exceptions.Exit as end:
            if end.exit_code in COMPLETE:
                self._keep(ctx)
            raise
        self._keep(ctx)
        return result

    def _keep(self, ctx: click.Context) -> None:
        from wsi_pipeline.core.errors import EnvironmentFault
        from wsi_pipeline.store.files import write_file

        out = ctx.params.get("out")
        is_written = self.is_kept and not ctx.params.get("dry_run")
        if is_written and isinstance(out, Path) and out.is_dir():
            with suppress(OSError, EnvironmentFault):  # a disk that is full now loses no result
                write_file(out / RUN_FILE, self._format(ctx, ctx.meta[RUN_FILE]).encode())


def _read(path: Path, parameters: Iterable[plain_click.Parameter]) -> dict[str, Any]:
    """Return the settings of a run file by the parameters' names. Raises BadParameter."""
    import yaml

    from wsi_pipeline.core.json_io import read_bounded

    try:
        text = read_bounded(path.resolve(), MAX_BYTES).decode("utf-8-sig")
        # Words stay as they are typed: a patient called 012 is not the number ten.
        settings = yaml.load(text, Loader=yaml.BaseLoader)
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise click.BadParameter(f"{path}: cannot be read as YAML ({reason})") from error
    if not isinstance(settings or {}, dict):
        raise click.BadParameter(f"{path}: must hold lines such as 'out: results'")
    settable = (each for each in parameters if each.name not in (CONFIG, PRINT_CONFIG, "help"))
    known = {name: each for each in settable for name in _names(each)}
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    written = Counter(key.value for key, _ in pairs)
    quoted = {key.value for key, value in pairs if value.value and getattr(value, "style", None)}
    found: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        parameter = known.get(str(key).replace("_", "-"))
        if parameter is None:
            near = difflib.get_close_matches(str(key), known, 1)
            remedy = f"did you mean {near[0]}?" if near else "--print-config lists what there is"
            raise click.BadParameter(f"{path}: there is no setting {str(key)[:80]!r}; {remedy}")
        if value not in UNSET or key in quoted:
            if parameter.name in found or written[key] > 1:
                raise click.BadParameter(f"{path}: {_names(parameter)[0]} is set twice")
            found[parameter.name or ""] = _check(f"{path}: {key}", value, parameter)
    return found


def _check(where: str, value: Any, parameter: plain_click.Parameter) -> str | list[str]:
    """Return a value as it would be typed: words, which are converted as on the line."""
    is_list = parameter.multiple or parameter.nargs != 1
    words = [value] if isinstance(value, str) and parameter.nargs in (1, -1) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise click.BadParameter(f"{where}: must be {'a list of words' if is_list else 'one word'}")
    if is_list:
        return words
    if len(words) != 1 or words is value:
        raise click.BadParameter(f"{where}: must be one word, not a list")
    return str(words[0])


def _names(parameter: plain_click.Parameter) -> list[str]:
    """Return the names of a setting, the usual one first."""
    long = [name[2:] for name in parameter.opts if name.startswith("--")]
    return long or [(parameter.name or "").replace("_", "-")]


def _plain(value: Any) -> str | list[Any] | None:
    """Return a value as words; None where there is none."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value] or None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float | Path) else None


def _describe(parameter: plain_click.Parameter, value: Any) -> str:
    """Return the lines of one setting: its help, and its value."""
    import yaml

    text = getattr(parameter, "help", None) or f"Arguments {parameter.metavar or ''}".strip()
    lines = textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
    name = _names(parameter)[0]
    if value is None:
        return "\n".join([*lines, f"# {name}:\n"])
    # Quotes only where this module needs them: it reads every value as words.
    resolvers = {"~": [NULL], "n": [NULL]}
    dumper = type("Dumper", (yaml.SafeDumper,), {"yaml_implicit_resolvers": resolvers})
    return "\n".join(
        [*lines, yaml.dump({name: value}, None, dumper, allow_unicode=True, width=10_000)]
    )
