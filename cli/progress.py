"""Progress on the terminal: one line with rate and time left, below the lines of what has ended."""

import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from wsi_pipeline.core.choices import LOG
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.store.files import open_to_append

from .main import leave, printable
from .options import say_next

PLAIN_INTERVAL_S = 30.0
"""Seconds between lines of progress if the output is not a terminal."""
PATIENCE_S = 2.0
"""There, work without figures is named when it has taken so long."""


class Unfailing:
    """A text stream that loses what cannot be written, so that a full disk ends no run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write it if that can be done."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if that can be done."""
        with suppress(OSError):
            self._stream.flush()


class TerminalListener(Listener):
    """Shows a run on the terminal: a bar on stderr, and lines above it."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self._last_line = time.monotonic()
        self._patience: threading.Timer | None = None

    def working_on(self, what: str) -> None:
        """Name the work: on a terminal at once, elsewhere when it has taken a while."""
        self._lose_patience()
        if self._console.is_terminal:
            self._bar.reset(self._task, total=None, description=f"{what} …")
            return
        self._patience = threading.Timer(PATIENCE_S, self.warn, [f"{what} …"])
        self._patience.daemon = True
        self._patience.start()

    def _lose_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = None

    def say(self, line: str) -> None:
        """Print lines on stdout, above the bar where both are one terminal."""
        text = "\n".join(map(printable, line.split("\n")))
        if self._console.is_terminal and sys.stdout.isatty():
            self.warn(text)
            return
        with suppress(BrokenPipeError):  # as with `| head -1`: the run goes on all the same
            click.echo(text)

    def warn(self, line: str, style: str | None = None) -> None:
        """Print a line on stderr, above the bar."""
        self._console.print(Text(line), style=style, soft_wrap=True)

    def progress(self, line: str, done: float, total: float | None) -> None:
        """Redraw the line; where the output is no terminal, print it now and then."""
        self._lose_patience()
        self._bar.update(self._task, description=line, completed=done, total=total or None)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            click.echo(line, file=self._console.file)

    def slide_ended(self, outcome: SlideOutcome) -> None:
        """Print the outcome of a slide."""
        resumed = " (already done)" if outcome.is_resumed_whole else ""
        style = "red" if outcome.state is SlideState.FAILED else None
        self.warn(f"{printable(outcome.line)}{resumed}", style)

    def close(self) -> None:
        """Say nothing more."""
        self._lose_patience()


@contextmanager
def show_progress(log: Path | None = None) -> Iterator[TerminalListener]:
    """Show progress on stderr while the block runs.

    Tracebacks of slides that fail go to wsi.log in the folder `log`, warnings also to stderr.
    """
    # There is no stderr after `2>&-`.
    console = Console(file=cast("IO[str]", Unfailing(sys.stderr or io.StringIO())))
    bar = Progress(
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    with bar if console.is_terminal else nullcontext():
        listener = TerminalListener(console, bar)
        with _log_to(log, listener):
            try:
                yield listener
            finally:
                listener.close()


def close_run(account: RunAccount, where: Path) -> int:
    """Print how the run ended and where its products are; return its exit code."""
    already = sum(outcome.is_resumed_whole for outcome in account.outcomes)
    with suppress(BrokenPipeError):  # as with `| head -1`: the run is done all the same
        if 0 < already == len(account.outcomes):
            click.echo(f"nothing to do: every {account.noun} was already done by an earlier run")
        elif already:
            click.echo(f"{already} {account.noun}s were already done by an earlier run")
        click.echo(f"{account.sentence}  →  {where}")
    return account.exit_code


def end_run(account: RunAccount, where: Path, line: str, *words: object) -> NoReturn:
    """Print how a run ended and, where any slide is done, the next command; end with its code."""
    code = close_run(account, where)
    if any(outcome.state is not SlideState.FAILED for outcome in account.outcomes):
        say_next(line, *words)
    leave(code)


class LogFile(logging.FileHandler):
    """A log that stops no run: what cannot be written is lost."""

    def _open(self) -> io.TextIOWrapper:
        handle = open_to_append(Path(self.baseFilename))
        return open(handle, "a", encoding=self.encoding, errors=self.errors)  # noqa: PTH123

    def emit(self, record: logging.LogRecord) -> None:
        """Write it if that can be done."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Nothing: it is lost."""


class WarningHandler(logging.Handler):
    """Prints warnings above the bar."""

    def __init__(self, listener: TerminalListener) -> None:
        super().__init__()
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        """Print warnings; errors are the slides' own, and said with them."""
        if record.levelno == logging.WARNING:
            self._listener.warn(f"wsi: {record.getMessage()}")


@contextmanager
def _log_to(folder: Path | None, listener: TerminalListener) -> Iterator[None]:
    handlers: list[logging.Handler] = [WarningHandler(listener)]
    if folder is not None:
        log = LogFile(folder / LOG, delay=True, encoding="utf-8", errors="backslashreplace")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        handlers.append(log)
    logger = logging.getLogger("wsi_pipeline")
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
