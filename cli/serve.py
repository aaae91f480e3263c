"""`wsi serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .main import printable
from .options import (
    build,
    device_option,
    mode_option,
    positive_class_option,
    slide_mpp_option,
    trust_option,
    worker_options,
)

if TYPE_CHECKING:
    from wsi_pipeline.serve.settings import ServeSettings

READABLE = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--results",
    type=READABLE,
    multiple=True,
    metavar="DIR",
    help="Results of `wsi infer`; two of them can be compared.",
)
@click.option(
    "--slides",
    type=READABLE,
    metavar="DIR",
    help="Where the slides are. [default: where the results say]",
)
@click.option(
    "--model",
    "-m",
    type=click.Path(path_type=Path),
    help="A model.safetensors: predicts for images that are sent, and for jobs.",
)
@trust_option
@positive_class_option
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on; this machine only unless said otherwise.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    help="Port to listen on; 0: any free one.",
)
@click.option(
    "--token/--no-token",
    "has_token",
    default=True,
    help="Ask for the random token that is printed; without: this machine only.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A further host name by which the server may be called.",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="URL",
    help="Origin of another page that may call the REST endpoint.",
)
@click.option("--cache-mb", type=click.IntRange(1), default=256, help="Memory for tiles, in MiB.")
@click.option(
    "--decoders", type=click.IntRange(1), help="Processes that read slides. [default: one per core]"
)
@click.option(
    "--max-upload-mb",
    type=click.IntRange(1),
    default=32,
    help="Largest request that is taken, in MiB.",
)
@slide_mpp_option
@device_option
@worker_options
@mode_option
def serve(
    results: tuple[Path, ...],
    slides: Path | None,
    model: Path | None,
    trust_model: str | None,
    positive_class: str | None,
    host: str,
    port: int,
    has_token: bool,
    allow_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    cache_mb: int,
    decoders: int | None,
    max_upload_mb: int,
    slide_mpp: float | None,
    device: str,
    **workers: Any,
) -> None:
    """Show slides and heatmaps in the browser, and answer REST requests.

    Pages and /api/v1 (described at /docs) need the token that is printed at the start. With
    --model, images that are sent are predicted; with --slides and --results too, slides are
    inferred on request into the first results folder.
    """
    from wsi_pipeline.models.loading import ExternalModelTerms
    from wsi_pipeline.runs import WorkerOptions
    from wsi_pipeline.serve.server import log_to_stderr, run_server
    from wsi_pipeline.serve.settings import MIB, Limits, ServeSettings

    optional: dict[str, Any] = {} if has_token else {"token": None}
    optional |= {} if decoders is None else {"decoders": decoders}
    settings = ServeSettings(
        results=results,
        slides=slides,
        model=model,
        terms=ExternalModelTerms(trust_model, positive_class),
        host=host,
        port=port,
        allowed_hosts=allow_host,
        cors_origins=cors_origin,
        slide_mpp=slide_mpp,
        device=device,
        workers=build(WorkerOptions, workers).choose_workers(device) if model else None,
        limits=Limits(cache_bytes=cache_mb * MIB, upload_bytes=max_upload_mb * MIB),
        **optional,
    )
    log_to_stderr()
    run_server(settings, lambda services: announce(services.settings))
    click.echo("stopped", err=True)


def announce(settings: "ServeSettings") -> None:
    """Say where the server is and, this once, its token."""
    from wsi_pipeline.serve.server import base_url

    click.echo(f"→  {base_url(settings)}/" + (f"?token={settings.token}" if settings.token else ""))
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
