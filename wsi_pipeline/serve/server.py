"""Running the server: a socket, uvicorn, what is printed at the start."""

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import uvicorn

from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.serve.app import build_app
from wsi_pipeline.serve.services import Services, open_services
from wsi_pipeline.serve.settings import ServeSettings

KEEP_ALIVE_S = 15
SHUTDOWN_S = 5
MAX_HEAD_BYTES = 32 * 1024
BACKLOG = 128

Announce = Callable[[Services], None]
"""Is called when the server's address is certain, before it answers."""


def run_server(settings: ServeSettings, announce: Announce) -> None:
    """Serve until interrupted. Raises EnvironmentFault where the address is taken, ModelError for a bad model."""
    with bind(settings) as listener:
        bound = replace(settings, port=listener.getsockname()[1])
        with open_services(bound) as services:
            server = uvicorn.Server(configure(services))
            announce(services)
            with suppress(KeyboardInterrupt):  # Ctrl+C is how a server ends; uvicorn has closed every connection by then
                server.run(sockets=[listener])


def configure(services: Services) -> uvicorn.Config:
    """Uvicorn's settings: no access log (addresses may hold a token), no headers that say what runs here, bounded everything."""
    return uvicorn.Config(
        build_app(services),
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        limit_concurrency=services.settings.limits.connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def bind(settings: ServeSettings) -> socket.socket:
    """A listening socket. Raises EnvironmentFault where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named because asyncio turns off Nagle's delay, 40 ms an answer, only where it is.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise EnvironmentFault(f"{settings.host}:{settings.port}: cannot be had ({reason}); give another --host or --port") from error
    return listener


def base_url(settings: ServeSettings) -> str:
    """Where a browser on this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Faults with their ids on stderr; no request line, no token ever gets there."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("wsi_pipeline", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
