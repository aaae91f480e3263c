"""`wsi`: the command group, and what every command shares: exit codes and one-line errors."""

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

GO_ON = "nothing finished is lost, run the same line again to go on"
INTERRUPTED = 130
SERVERS = ("review", "serve", "view")
"""Commands that Ctrl-C ends as a matter of course."""


def _say_interrupted(command: str | None) -> str:
    return "stopped" if command in SERVERS else f"interrupted; {GO_ON}"


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or end at once while a command imports its modules.

    Nothing is held then, and an exception within an import is lost, or printed with a traceback,
    by some of the modules.
    """
    outermost = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            outermost = frame.f_back
        frame = frame.f_back
    while outermost is not None and outermost.f_globals.get("__name__") == "importlib":
        outermost = outermost.f_back
    name = "" if outermost is None else str(outermost.f_globals.get("__name__"))
    if name != "__main__" and name.partition(".")[0] != __package__:
        raise KeyboardInterrupt
    line = f"wsi: {_say_interrupted(next(iter(sys.argv[1:]), None))}\n"
    cursor = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""  # a bar may have hidden it
    os.write(2, f"{cursor}{line}".encode())
    os._exit(INTERRUPTED)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Before the imports below, which Ctrl-C may interrupt too.
    signal.signal(signal.SIGINT, _interrupt)

# ruff: noqa: E402
import difflib
import importlib
import io
import logging
import shutil
from contextlib import suppress

import click
import rich_click

from wsi_pipeline.core.errors import WsiError, gpu_fault, machine_fault, memory_fault

COMMANDS = (
    *(
        "aggregate",
        "calibrate",
        "clean",
        "demo",
        "doctor",
        "evaluate",
        "export",
        "infer",
        "info",
        "ingest",
    ),
    *("label", "lr-find", "model", "pseudonymize", "review", "serve", "status", "store", "tile"),
    *("train", "unlock", "verify", "view"),
)
"""Each is a module of this package with a command of the same name, - written _."""

GOODBYES = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal has gone"}
"""Signals that end a run in order, with their message; the exit code is 128 + its number."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP (its number), raised so that locks and workers are released."""


class WsiGroup(rich_click.RichGroup):
    """Loads a command when it is called; every error is one line and an exit code."""

    main = click.Group.main
    """Errors stay plain lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"{__package__}.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named; a name that is none is compared with the others."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from error

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the words; Ctrl-C here says the same as later."""
        # On narrow terminals, examples and tables still keep their lines.
        width = options.get("terminal_width") or shutil.get_terminal_size().columns
        try:
            return super().make_context(*args, **options | {"terminal_width": max(width, 80)})
        except KeyboardInterrupt:
            _stop(_say_interrupted(None), INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit codes as in docs/reference/commands.md."""
        _listen()
        try:
            return super().invoke(ctx)
        except WsiError as error:
            _stop(f"{error}", error.exit_code)
        except KeyboardInterrupt:
            _stop(_say_interrupted(ctx.invoked_subcommand), INTERRUPTED)
        except Terminated as end:
            number = signal.Signals(end.args[0])
            _stop(f"{GOODBYES[number]}; {GO_ON}", 128 + number)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            fault = memory_fault(error) or machine_fault(error.filename or "disk", error)
            _stop(str(fault or error), (fault or WsiError).exit_code)
        except Exception as error:
            if ctx.params["is_debugging"]:
                raise
            if (fault := memory_fault(error) or gpu_fault(error)) is not None:
                _stop(str(fault), fault.exit_code)
            logging.getLogger("wsi_pipeline").exception("internal error")
            _stop(
                f"internal error: {type(error).__name__}: {error}; `wsi --debug …` shows where",
                WsiError.exit_code,
            )


def _listen() -> None:
    """End in order when told to; `nohup` has SIGHUP ignored, which stays so."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _raise_terminated)


def _raise_terminated(number: int, _frame: FrameType | None) -> NoReturn:
    for each in GOODBYES:
        # A second signal would break off the release of locks and workers.
        signal.signal(each, signal.SIG_IGN)
    raise Terminated(number)


def _stop(message: str, exit_code: int) -> NoReturn:
    with suppress(OSError):  # a stderr that cannot be written is no other exit code
        click.echo(f"wsi: {printable(message)}", err=True)
    sys.exit(exit_code)


def leave(exit_code: int) -> NoReturn:
    """End the command with an exit code.

    Not by the context's own exit, which closes it, and with it the permissions of files, at once.
    """
    raise click.exceptions.Exit(exit_code)


def printable(text: str) -> str:
    """Return one line that cannot move the cursor: control characters are escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


@click.group(
    cls=WsiGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "auto_envvar_prefix": "WSI",
        "max_content_width": 120,
    },
)
@click.version_option(package_name="wsi-pipeline", prog_name="wsi")
@click.option(
    "--debug", "is_debugging", is_flag=True, help="Show where an internal error came from."
)
def wsi(is_debugging: bool) -> None:
    """Tile, train, infer and view whole-slide images.

    \b
    wsi demo                          the whole chain, on slides that it draws
    wsi tile slide.svs                cut a slide into 50×50 patches at 0.25 µm/px, into ./stores
    wsi train                         train on the labelled ones, split by patient, into ./model
    wsi infer --slides dir/           run the model over slides, into ./results
    wsi view                          slides with heatmaps in the browser
    wsi review                        call drawn patches by one key, count what is positive
    wsi serve                         the same over the network, with REST

    Exit codes: 0 all done · 1 this run could not go on · 2 usage · 3 some slides failed or are
    damaged, the others are done · 4 no slide succeeded · 5 disk, lock or cluster: safe to run again
    · 129, 130, 143 interrupted: safe to run again.
    """  # noqa: D301 - click takes the character itself for "keep the lines"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal without → or µ is no reason to fail
    # Without a handler, logging prints records of libraries and tracebacks of slides to the
    # terminal by itself.
    logging.getLogger().addHandler(logging.NullHandler())
