"""Progress on the terminal: one line with rate and time left, and a line for every slide that ends."""

import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from wsi_pipeline.core.choices import LOG
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState
from wsi_pipeline.runs.pace import Pace
from wsi_pipeline.store.files import make_folder, open_to_append

from .main import printable

PLAIN_INTERVAL_S = 30.0
"""Where the output is no terminal, a line of progress this often."""


class Unfailing:
    """A stream of text of which what cannot be written is lost: a full disk, or a reader that is gone, must not end a run of days."""

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


def open_console() -> Console:
    """The terminal behind stderr; printing on it never fails."""
    return Console(
        file=cast("IO[str]", Unfailing(sys.stderr or io.StringIO()))
    )  # there is no stderr after `2>&-`


class RateColumn(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        rate = task.finished_speed or task.speed
        return Text("–" if rate is None else f"{rate:,.0f} {self._unit}/s")


def make_bar(console: Console, unit: str) -> Progress:
    """A bar with amount, rate and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}"),
        RateColumn(unit),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def describe_pace(pace: Pace) -> str:
    """The figures of a run in one line."""
    parts = [f"{pace.slides_done} of {pace.slides} slides"]
    if pace.rate is not None:
        parts.append(f"{pace.rate:,.0f} patches/s")
    if pace.shares is not None:
        parts.append(" ".join(f"{stage} {share:.0%}" for stage, share in pace.shares.items()))
    if pace.seconds_left is not None:
        parts.append(
            f"{'about ' if pace.has_unopened else ''}{describe_duration(pace.seconds_left)} left"
        )
    return ", ".join(parts)


def describe_duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class RunProgress:
    """The progress of a run over slides; use it with `show_progress`."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self._last_line = time.monotonic()

    def begin(self, slides: int) -> None:
        """So many slides are to be gone through."""
        self._last_line = time.monotonic()
        self._bar.reset(self._task, total=None, description=f"0 of {slides} slides")

    def add_patches(self, missing: int) -> None:
        """All figures come by `show`."""

    def advance(self, patches: int) -> None:
        """All figures come by `show`."""

    def show(self, pace: Pace) -> None:
        """Redraw the line; where the output is no terminal, say it now and then."""
        line = describe_pace(pace)
        self._bar.update(
            self._task,
            description=line,
            completed=pace.patches_done,
            total=pace.patches_expected or None,
        )
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            click.echo(line, file=self._console.file)

    def end_slide(self, outcome: SlideOutcome) -> None:
        """A slide is done, well or not."""
        resumed = " (already done)" if outcome.is_resumed_whole else ""
        line = (
            f"{printable(outcome.slide_id)}: {outcome.state.word}:"
            f" {printable(outcome.message)}{resumed}"
        )
        self._console.print(
            line,
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
            style="red" if outcome.state is SlideState.FAILED else None,
        )


@contextmanager
def show_progress() -> Iterator[RunProgress]:
    """Progress on stderr while the block runs."""
    console = open_console()
    with Progress(
        BarColumn(bar_width=16), TextColumn("{task.description}"), console=console, transient=True
    ) as bar:
        yield RunProgress(console, bar)


def close_run(account: RunAccount, where: Path) -> None:
    """Print the line that adds up, say where the products are, and leave with the account's exit code."""
    already = sum(outcome.is_resumed_whole for outcome in account.outcomes)
    with suppress(BrokenPipeError):  # as with `| head -1`: the run is done all the same
        if already == len(account.outcomes):
            click.echo("nothing to do: every slide was already done by an earlier run")
        elif already:
            click.echo(f"{already} slides were already done by an earlier run")
        click.echo(f"{account.sentence}  →  {where}")
    click.get_current_context().exit(account.exit_code)


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


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Tracebacks of slides that fail go to wsi.log in `folder`, warnings also to stderr."""
    make_folder(folder)
    log = LogFile(folder / LOG, delay=True, encoding="utf-8", errors="backslashreplace")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    warnings = logging.StreamHandler()
    warnings.addFilter(lambda record: record.levelno == logging.WARNING)
    warnings.setFormatter(logging.Formatter("wsi: %(message)s"))
    logger = logging.getLogger("wsi_pipeline")
    for handler in (log, warnings):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (log, warnings):
            logger.removeHandler(handler)
            handler.close()
