"""`wsi serve`."""

from typing import TYPE_CHECKING, Any

import rich_click as click

from wsi_pipeline.core.serve_options import ServeOptions

from .main import printable
from .options import DEFAULT_RESULTS, build, mode_option, options_of, say_taken
from .run_file import ConfigCommand

if TYPE_CHECKING:
    from wsi_pipeline.serve.settings import ServeSettings


@click.command(cls=ConfigCommand)
@options_of(ServeOptions)
@mode_option
def serve(**options: Any) -> None:
    """Show slides and heatmaps in the browser, and answer REST requests.

    Pages and /api/v1 (described at /docs) need the token that is printed at the start. With
    --model, images that are sent are predicted; with --slides and --results too, slides are
    inferred on request into the first results folder. Without --results and --slides, ./results are
    shown.
    """
    from wsi_pipeline.serve.server import log_to_stderr, run_server
    from wsi_pipeline.serve.settings import read_settings

    if not options["results"] and options["slides"] is None and DEFAULT_RESULTS.is_dir():
        say_taken(str(DEFAULT_RESULTS))
        options["results"] = (DEFAULT_RESULTS,)
    settings = read_settings(build(ServeOptions, options))
    log_to_stderr()
    run_server(settings, lambda services: announce(services.settings))
    click.echo("stopped", err=True)


def announce(settings: "ServeSettings") -> None:
    """Say where the server is and, this once, its token."""
    say_address(settings)
    if settings.token:
        click.echo(
            "its token is said this once and is another one at the next start; scripts send it as"
            " Authorization: Bearer …",
            err=True,
        )
    else:
        click.echo("no token: every user and every program of this machine can look", err=True)
    if not settings.is_loopback:
        click.echo(
            printable(
                f"{settings.host} is reachable from elsewhere and this is plain HTTP: tokens and"
                " slides can be read on the way. "
            )
            + "Better listen on 127.0.0.1 behind a TLS proxy: docs/guides/serve.md shows one.",
            err=True,
        )
    click.echo("stop with Ctrl+C", err=True)


def say_address(settings: "ServeSettings") -> None:
    """Say where the server is, with its token."""
    from wsi_pipeline.serve.server import base_url

    click.echo(f"→  {base_url(settings)}/" + (f"?token={settings.token}" if settings.token else ""))
