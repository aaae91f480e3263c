"""`wsi view`."""

import getpass
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .options import mode_option, port_option, results_argument, slides_option
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.serve.services import Services
    from wsi_pipeline.serve.settings import ServeSettings


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


def show_in_browser(settings: "ServeSettings", is_opened: bool = True) -> None:
    """Serve until Ctrl+C, and open the browser on the server's first page."""
    from wsi_pipeline.serve.server import base_url, log_to_stderr, run_server

    from .serve import announce

    def open_browser(services: "Services") -> None:
        announce(services.settings)
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
