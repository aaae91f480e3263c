"""Access to the server: host names, the token, origins, sizes of bodies; headers of every answer.

Plain ASGI around everything else, so that nothing is parsed or looked up before it is allowed.
"""

import asyncio
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

from fastapi.security import HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsi_pipeline.serve.errors import Refusal, answer_fault
from wsi_pipeline.serve.root_path import place_under_root, redirect, root_of, route_of, shows_root
from wsi_pipeline.serve.settings import ServeSettings

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
FRAMES = "x-frame-options"
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    FRAMES: "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
FRAME_HEADERS = {
    "content-security-policy": CONTENT_POLICY.replace("; frame-ancestors 'none'", ""),
    **{name: HEADERS[name] for name in HEADERS if name not in ("content-security-policy", FRAMES)},
}
"""Of pages that may be in frames."""
HEADERS_BY_STATUS = {401: {"www-authenticate": "Bearer"}}
HEALTH_PATH = "/healthz"
OPEN_PATHS = (HEALTH_PATH, "/enter")
OPEN_FOLDERS = ("/static/",)
READING = ("GET", "HEAD", "OPTIONS")
BEARER = HTTPBearer(auto_error=False)
METHODS = (*READING, "POST", "DELETE", "PUT", "PATCH")

CountRequest = Callable[[str, str, int, float], None]
"""Counts a request by route, method and status; the last argument is the seconds it took."""


class TokenAuth:
    """The server's token, and a ticket that opens once.

    The ticket is for the browser's command line, which other users of the machine can read.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._token = settings.token
        self.cookie_name = f"wsi_{settings.port}"
        self.ticket = secrets.token_urlsafe(24)
        self._is_ticket_used = False

    def accepts(self, *shown: str | None) -> bool:
        """Return True where one is the token, compared in constant time, or none is needed."""
        if self._token is None:
            return True
        token = self._token.encode()
        return any(hmac.compare_digest(text.encode(), token) for text in shown if text is not None)

    def use_ticket(self, ticket: str) -> bool:
        """Return True the first time that the ticket is shown."""
        if self._is_ticket_used or not hmac.compare_digest(ticket.encode(), self.ticket.encode()):
            return False
        self._is_ticket_used = True
        return True

    def let_in(self, request: Request, place: str) -> Response:
        """Return the redirect that lets a browser in, to a place below the root.

        No script can read its cookie, no page of another site can send it, and servers beside this
        one, below other roots of the same proxy, never see it.
        """
        path = root_of(request) or "/"
        cookie = f"{self.cookie_name}={self._token or ''}; Path={path}; HttpOnly; SameSite=Strict"
        return redirect(request, place, {"set-cookie": cookie})


@dataclass(frozen=True)
class Guard:
    """Refuses what is not allowed, hands on the rest, and adds the headers of every answer."""

    app: ASGIApp
    settings: ServeSettings
    auth: TokenAuth
    count: CountRequest
    under_way: Counter[str] = field(default_factory=Counter)
    """Requests that are being answered, by the name of the limit that they count to."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, limits = Request(scope), self.settings.limits
        is_known = await self._shows_token(request)
        body_s = limits.body_s if is_known else limits.head_s  # the one form is short
        body = _Body(receive, limits.upload_bytes, body_s, has_body(request))
        answer = _Answer(send, body, FRAME_HEADERS if self.settings.is_embedded else HEADERS)
        started = time.perf_counter()
        try:
            request = Request(scope := place_under_root(scope, self.settings))
            if (response := self._check(request, is_known)) is not None:
                await response(scope, body, answer)
                return
            with self._take_place(request, is_known):
                await self.app(scope, body, answer)
        except Refusal as refusal:
            if not answer.status:  # else the answer is under way; the connection ends here
                response = answer_fault(refusal)
                response.headers.update(HEADERS_BY_STATUS.get(refusal.status_code, {}))
                await response(scope, receive, answer)
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.count(route, method, answer.status, time.perf_counter() - started)

    async def _shows_token(self, request: Request) -> bool:
        if self.settings.is_embedded and shows_root(request, self.settings):
            return True
        bearer = await BEARER(request)
        shown = bearer.credentials.strip() if bearer else None
        return self.auth.accepts(shown, request.cookies.get(self.auth.cookie_name))

    def _check(self, request: Request, is_known: bool) -> Response | None:
        """Return the answer where the request goes no further, else None. Raises Refusal."""
        # Starlette's TrustedHostMiddleware would answer 400, in plain text.
        # A page under another name cannot know the path that is a secret.
        is_named = _host_name(request.headers.get("host", "")) in self.settings.host_names
        if not is_named and not (self.settings.is_embedded and is_known):
            raise Refusal(421, "this server does not go by that name; allow it with --allow-host")
        if not has_one_length(request):
            raise Refusal(400, "the request states more than one length of its body")
        most = self.settings.limits.upload_bytes
        if not is_length(request.headers.get("content-length", "0"), most):
            raise Refusal(413, f"a body of more than {most:,} bytes")
        self._check_origin(request)
        return None if is_known or needs_no_token(request) else self._let_in(request)

    @contextmanager
    def _take_place(self, request: Request, is_known: bool) -> Iterator[None]:
        """Count a request while it is answered. Raises Refusal where there are too many."""
        if route_of(request) == HEALTH_PATH:
            yield
            return
        name = "connections" if is_known else "visits"
        if self.under_way[name] >= getattr(self.settings.limits, name):
            raise Refusal(503, "too many requests at a time; try again in a moment")
        self.under_way[name] += 1
        try:
            yield
        finally:
            self.under_way[name] -= 1

    def _check_origin(self, request: Request) -> None:
        """Refuse pages of other origins that would change something with the user's cookie."""
        if request.method in READING:
            return
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        allowed = {f"http://{host}", f"https://{host}", *self.settings.cors_origins}
        if origin is not None and origin not in allowed:
            raise Refusal(403, "this page may not do that; allow its origin with --cors-origin")
        has_bearer = "authorization" in request.headers
        if origin is None and not has_bearer and request.cookies.get(self.auth.cookie_name):
            raise Refusal(403, "a cookie is not enough; send the token as Authorization: Bearer")

    def _let_in(self, request: Request) -> Response:
        """Return the way in for a browser without the token. Raises Refusal for others."""
        if request.method == "GET" and (place := self._place_without_token(request)) is not None:
            return self.auth.let_in(request, place)
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return redirect(request, "/enter")
        raise Refusal(401, "a token is needed, as printed at the start: Authorization: Bearer …")

    def _place_without_token(self, request: Request) -> str | None:
        """Return where to continue after `?token=…` was right: without it, so no history has it."""
        query = request.query_params.multi_items()
        tokens = [value for name, value in query if name == "token"]
        if len(tokens) != 1 or not self.auth.accepts(tokens[0]):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        raw: bytes = request.scope["raw_path"]
        return raw.decode("latin-1") + (f"?{rest}" if rest else "")


class _Answer:
    """Adds the headers, remembers the status.

    The connection closes after an answer to a body that was not read to its end: the rest would be
    taken for the next request, or could go on for ever.
    """

    def __init__(self, send: Send, body: "_Body", headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self._body = body
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            if not self._body.is_whole:
                headers["connection"] = "close"
        await self._send(message)


class _Body:
    """Receives a request's body up to a size and a time."""

    def __init__(self, receive: Receive, max_bytes: int, max_s: float, has_body: bool) -> None:
        self._receive = receive
        self._left = max_bytes
        self._deadline = time.monotonic() + max_s
        self.is_whole = not has_body

    async def __call__(self) -> Message:
        if self.is_whole:
            return await self._receive()
        left_s = max(0.0, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), left_s)
        except TimeoutError as error:
            raise Refusal(408, "the body took too long") from error
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise Refusal(413, "the body is larger than allowed")
        self.is_whole = not message.get("more_body", False)
        return message


def needs_no_token(request: Request) -> bool:
    """Return True for health, the form that asks for the token, scripts, and preflights."""
    path, method = route_of(request), request.method
    is_preflight = method == "OPTIONS" and "access-control-request-method" in request.headers
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or is_preflight


def has_body(request: Request) -> bool:
    """Return True where a body follows the head."""
    is_chunked = "transfer-encoding" in request.headers
    return is_chunked or request.headers.get("content-length", "0") != "0"


def has_one_length(request: Request) -> bool:
    """Return False where two readers of a request could disagree about where it ends.

    A proxy in front may go by Content-Length and h11 by the chunks, or not know chunks, which
    HTTP/1.0 does not have: the rest would be a request that the proxy has not seen. h11 itself
    refuses two different lengths.
    """
    if "transfer-encoding" not in request.headers:
        return True
    return "content-length" not in request.headers and request.scope["http_version"] == "1.1"


def is_length(text: str, most: int) -> bool:
    """Return True for a Content-Length of at most so many bytes."""
    return text.isascii() and text.isdigit() and len(text) <= 18 and int(text) <= most


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    name = host[1:].partition("]") if host.startswith("[") else host.partition(":")
    return name[0].lower()
