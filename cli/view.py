"""`wsi view`."""

import getpass
import os
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .main import printable
from .options import mode_option, port_option, results_argument, slides_option
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.serve.services import Services
    from wsi_pipeline.serve.settings import ServeSettings

NICENESS = 10
"""Of the server beside a run, which comes first."""
END_S = 10.0
TICK_S = 0.2
ALONGSIDE = f"from {__package__}.view import serve_alongside; serve_alongside()"


@click.command(cls=ConfigCommand)
@results_argument(nargs=-1)
@slides_option
@port_option
@click.option(
    "--open/--no-open",
    "is_opened",
    default=True,
    help="Serve and open the browser; else only write RESULTS/index.html.",
)
@mode_option
def view(results: tuple[Path, ...], slides: Path | None, port: int, is_opened: bool) -> None:
    """Show RESULTS in the browser: heatmaps at any zoom; two results are shown side by side.

    The server runs until Ctrl+C, for this machine and the browser that it opened.
    RESULTS/index.html, a page with every heatmap that needs no server, is written in any case.
    """
    from wsi_pipeline.outputs.run_files import write_index

    pages = [write_index(folder).resolve() for folder in results]
    if not is_opened:
        for page in pages:
            click.echo(f"→  {page}")
        return
    from wsi_pipeline.serve.settings import ServeSettings

    show_in_browser(ServeSettings(results=results, slides=slides, port=port, reviewer=login_name()))
    click.echo("stopped", err=True)


def login_name() -> str:
    """Return the user's name, under which reviews are written; "reviewer" where there is none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no name
        return "reviewer"


def show_in_browser(
    settings: "ServeSettings", is_opened: bool = True, is_alongside: bool = False
) -> None:
    """Serve until Ctrl+C, and open the browser on the server's first page.

    Alongside a run, only the address is said.
    """
    from wsi_pipeline.serve.server import base_url, log_to_stderr, run_server

    from .serve import announce, say_address

    def open_browser(services: "Services") -> None:
        (say_address if is_alongside else announce)(services.settings)
        if not is_opened:
            return
        # A ticket that works once: command lines of browsers can be read by every user of the
        # machine.
        address = f"{base_url(services.settings)}/enter?ticket={services.auth.ticket}"
        # In a thread: some browsers keep the program that starts them waiting, and their page is
        # this server's answer.
        threading.Thread(target=show_page, args=(address,), daemon=True).start()

    log_to_stderr()
    run_server(settings, open_browser)


def show_page(address: str) -> None:
    """Open the browser: the one that BROWSER names, else the desktop's."""
    if not webbrowser.open(address):
        click.echo("no browser could be started; open the address above", err=True)


class SideViewer:
    """A server beside a run, in a process of its own, so that it neither slows nor fails it."""

    def __init__(self, results: Path | None) -> None:
        self._results = results
        self._server: subprocess.Popen[str] | None = None

    def start(self, tell: Callable[[str], None]) -> None:
        """Start the server, which opens the browser; `tell` takes what it says, when it does."""
        if self._results is None:
            return
        from wsi_pipeline.store.files import make_folder

        make_folder(self._results)
        try:
            # Ctrl-C does not reach a session of its own: the run ends first, and then its server.
            self._server = subprocess.Popen(
                [sys.executable, "-c", ALONGSIDE, str(self._results)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            tell(f"nothing can be shown ({error.strerror}); the run goes on")
            return
        self._reader = threading.Thread(
            target=self._pass_on, args=(self._server, tell), daemon=True
        )
        self._reader.start()

    @staticmethod
    def _pass_on(server: "subprocess.Popen[str]", tell: Callable[[str], None]) -> None:
        assert server.stdout is not None
        with server.stdout as lines:
            for line in lines:
                tell(printable(line.rstrip("\n")))

    @property
    def is_running(self) -> bool:
        """True while the server can be looked at."""
        return self._server is not None and self._server.poll() is None

    def wait(self) -> None:
        """Go on serving until Ctrl+C, or until the server ends."""
        click.echo("the results are still shown; stop with Ctrl+C", err=True)
        with suppress(KeyboardInterrupt):
            while self.is_running:
                time.sleep(TICK_S)
        click.echo("stopped", err=True)

    def end(self) -> None:
        """End the server, if there is one."""
        if self._server is None or self._server.stdin is None:
            return
        with suppress(OSError):
            self._server.stdin.close()
        try:
            self._server.wait(END_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._reader.join(END_S)


@contextmanager
def view_alongside(results: Path | None) -> Iterator[SideViewer]:
    """Make a server for results that a run is writing, and end it after the block; None: none."""
    viewer = SideViewer(results)
    try:
        yield viewer
    finally:
        viewer.end()


def serve_alongside() -> None:
    """Serve the folder that the last argument names until the process that asked has ended."""
    from wsi_pipeline.core.errors import EnvironmentFault, WsiError
    from wsi_pipeline.serve.settings import ServeSettings

    os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings = ServeSettings(results=(Path(sys.argv[-1]),), reviewer=login_name())
    try:
        try:
            show_in_browser(settings, is_alongside=True)
        except EnvironmentFault:  # the usual port is taken
            show_in_browser(replace(settings, port=0), is_alongside=True)
    except WsiError as error:
        click.echo(f"nothing can be shown: {error}; the run goes on")


def _end_with_parent() -> None:
    """Wait until the other end of stdin is closed, which it is however that process ends."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)
