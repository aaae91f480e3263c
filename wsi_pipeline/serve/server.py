"""The application with its routes, error handlers and guard; the socket and uvicorn that run it."""

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from wsi_pipeline.core.errors import EnvironmentFault, WsiError
from wsi_pipeline.core.recipe import tool_version
from wsi_pipeline.serve import (
    annotation_routes,
    page_routes,
    picture_routes,
    review_routes,
    slide_routes,
    table_routes,
    training_routes,
    work_routes,
)
from wsi_pipeline.serve.auth import Guard
from wsi_pipeline.serve.connections import limited_connection
from wsi_pipeline.serve.errors import JsonAnswer, Refusal, answer_fault
from wsi_pipeline.serve.services import Services, Unchanged, open_services
from wsi_pipeline.serve.settings import ServeSettings

KEEP_ALIVE_S = 15
SHUTDOWN_S = 5
MAX_HEAD_BYTES = 32 * 1024
BACKLOG = 128

Announce = Callable[[Services], None]
"""Called when the server's address is known, before it answers."""
DESCRIPTION = (
    "Slides with their probability maps, and the model that made them. For research, not for"
    " diagnosis. Every request shows the token that was printed at the start: `Authorization:"
    " Bearer …`."
)
MAX_NAMED_FIELDS = 5
API_ROUTES = (
    *(slide_routes, picture_routes, annotation_routes, review_routes),
    *(training_routes, work_routes, table_routes),
)
"""Modules with the routes of the REST API, in the order of its documentation."""


def run_server(settings: ServeSettings, announce: Announce) -> None:
    """Serve until interrupted.

    Raises EnvironmentFault where the address is taken, ModelError for a bad model.
    """
    with bind(settings) as listener:
        bound = replace(settings, port=listener.getsockname()[1])
        with open_services(bound) as services:
            server = uvicorn.Server(configure(services))
            announce(services)
            with suppress(KeyboardInterrupt):  # uvicorn has closed every connection by then
                server.run(sockets=[listener])


def configure(services: Services) -> uvicorn.Config:
    """Return uvicorn's settings.

    There is no access log (URLs may hold a token) and no header that names the software, and
    everything is bounded.
    """
    return uvicorn.Config(
        build_app(services),
        http=limited_connection(services.settings.limits),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def bind(settings: ServeSettings) -> socket.socket:
    """Return a listening socket. Raises EnvironmentFault where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns off Nagle's delay, 40 ms an answer, only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise EnvironmentFault(
            f"{settings.host}:{settings.port}: cannot be had ({reason}); give another --host or"
            " --port"
        ) from error
    return listener


def base_url(settings: ServeSettings) -> str:
    """Return the URL of the server for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{settings.port}{settings.root_path}"


def log_to_stderr() -> None:
    """Log errors with their ids to stderr; no request line and no token is ever logged."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("wsi_pipeline", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)


def build_app(services: Services) -> ASGIApp:
    """Return the application around its services."""
    app = FastAPIOffline(
        title="wsi serve",
        version=tool_version(),
        description=DESCRIPTION,
        docs_url=None,  # a page of our own shows them, under the same content policy as the rest
        redoc_url=None,
        static_url=page_routes.DOCS_FILES,
        default_response_class=JsonAnswer,
        redirect_slashes=False,  # its redirects would name the host and the scheme behind a proxy
    )
    app.state.services = services
    bearer = HTTPBearer(auto_error=False, description="The token printed at the start.")
    for routes in API_ROUTES:
        app.include_router(routes.router, prefix="/api/v1", dependencies=[Depends(bearer)])
    app.include_router(page_routes.router)
    _answer_faults(app)
    inner: ASGIApp = app
    if services.settings.cors_origins:
        inner = CORSMiddleware(
            app,
            allow_origins=services.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization"],
        )
    return Guard(inner, services.settings, services.auth, services.metrics.count_request)


def _answer_faults(app: FastAPI) -> None:
    async def tell(_request: Request, error: Exception) -> JsonAnswer:
        return answer_fault(error)

    async def tell_invalid(_request: Request, error: Exception) -> JsonAnswer:
        assert isinstance(error, RequestValidationError)
        named = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors()[:MAX_NAMED_FIELDS]
        )
        return answer_fault(Refusal(422, f"the request is not as it should be: {named}"))

    async def tell_unchanged(_request: Request, error: Exception) -> Response:
        return Response(status_code=304, headers={"ETag": str(error)})

    app.add_exception_handler(Unchanged, tell_unchanged)
    for kind in (HTTPException, WsiError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(RequestValidationError, tell_invalid)
