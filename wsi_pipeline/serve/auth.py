"""Who may ask for what: host names, the token, origins, sizes of bodies; and the headers of every answer.

Plain ASGI, around everything else, so that nothing is parsed or looked up before it is allowed.
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.serve.errors import Refusal, resolve_fault
from wsi_pipeline.serve.metrics import Metrics
from wsi_pipeline.serve.settings import ServeSettings

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
OPEN_PATHS = ("/healthz", "/enter")
OPEN_FOLDERS = ("/static/",)
READING = ("GET", "HEAD", "OPTIONS")


class Door:
    """Knows the token: compares what a request shows with it in constant time, and lets a ticket pass once."""

    def __init__(self, settings: ServeSettings) -> None:
        self._token = settings.token
        self.cookie_name = f"wsi_{settings.port}"
        self._ticket = secrets.token_urlsafe(24)
        self._is_ticket_used = False

    @property
    def cookie(self) -> str:
        """The Set-Cookie header that lets a browser in: no script can read it, no other site's page can send it."""
        return f"{self.cookie_name}={self._token or ''}; Path=/; HttpOnly; SameSite=Strict"

    @property
    def is_open(self) -> bool:
        """Whether no token is asked for."""
        return self._token is None

    def accepts(self, shown: str) -> bool:
        """Whether this is the token."""
        return self._token is None or hmac.compare_digest(shown.encode(), self._token.encode())

    def issue_ticket(self) -> str:
        """A word that opens once: for the browser's command line, which other users of the machine can read."""
        return self._ticket

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket is the one issued and was never used; now it is used."""
        if self._is_ticket_used or not hmac.compare_digest(ticket.encode(), self._ticket.encode()):
            return False
        self._is_ticket_used = True
        return True


class Guard:
    """Answers what is not allowed itself; hands on the rest, with every answer's headers and figures."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, door: Door, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._door = door
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        started = time.perf_counter()
        try:
            if not await self._refuse(scope, answer):
                body = _Body(
                    receive, self._settings.limits.upload_bytes, self._settings.limits.body_s
                )
                await self._app(scope, body, answer)
        except Refusal as refusal:
            await _reply(answer, refusal)
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "none")
            method = (
                scope["method"]
                if scope["method"] in (*READING, "POST", "DELETE", "PUT", "PATCH")
                else "other"
            )
            self._metrics.count_request(route, method, answer.status, time.perf_counter() - started)

    async def _refuse(self, scope: Scope, answer: "_Answer") -> bool:
        """Answer here what goes no further."""
        headers = _read_headers(scope)
        if _host_name(headers.get("host", "")) not in self._settings.host_names:
            raise Refusal(421, "this server does not go by that name; allow it with --allow-host")
        length = headers.get("content-length", "0")
        if (
            not (length.isascii() and length.isdigit())
            or len(length) > 18
            or int(length) > self._settings.limits.upload_bytes
        ):
            raise Refusal(413, f"a body of more than {self._settings.limits.upload_bytes:,} bytes")
        self._check_origin(scope, headers)
        if (
            scope["path"] in OPEN_PATHS
            or scope["path"].startswith(OPEN_FOLDERS)
            or _is_preflight(scope, headers)
        ):
            return False
        return await self._ask_token(scope, headers, answer)

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        """Pages of other origins must not change anything with the user's cookie."""
        if scope["method"] in READING:
            return
        origin = headers.get("origin")
        allowed = {
            f"http://{headers.get('host', '')}",
            f"https://{headers.get('host', '')}",
            *self._settings.cors_origins,
        }
        if origin is not None and origin not in allowed:
            raise Refusal(
                403, "this page may not do that here; allow its origin with --cors-origin"
            )
        if origin is None and "authorization" not in headers and self._cookie(headers) is not None:
            raise Refusal(
                403,
                "a cookie alone is not enough for this; send the token as Authorization: Bearer",
            )

    async def _ask_token(self, scope: Scope, headers: dict[str, str], answer: "_Answer") -> bool:
        if self._door.is_open:
            return False
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._door.accepts(shown.strip()):
            return False
        cookie = self._cookie(headers)
        if cookie is not None and self._door.accepts(cookie):
            return False
        if scope["method"] == "GET" and (place := self._place_without_token(scope)) is not None:
            await _redirect(answer, place, self._door.cookie)
            return True
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            await _redirect(answer, "/enter")
            return True
        raise Refusal(
            401,
            "a token is needed: Authorization: Bearer …; it was printed when the server started",
        )

    def _cookie(self, headers: dict[str, str]) -> str | None:
        try:
            cookies: dict[str, Any] = dict(SimpleCookie(headers.get("cookie", "")))
        except CookieError:
            return None
        return (
            str(cookies[self._door.cookie_name].value)
            if self._door.cookie_name in cookies
            else None
        )

    def _place_without_token(self, scope: Scope) -> str | None:
        """Where to go on after `?token=…` was right: the same place without it, so that it stays in no history."""
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
        except ValueError:
            return None
        tokens = query.pop("token", [])
        if len(tokens) != 1 or not self._door.accepts(tokens[0]):
            return None
        rest = urlencode(query, doseq=True)
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1").replace(
            "\\", "%5C"
        )  # browsers take a backslash for a slash, and two slashes for another host
        return "/" + path.lstrip("/") + (f"?{rest}" if rest else "")


class _Answer:
    """Adds the headers, remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name.lower() for name, _ in message["headers"]}
            added = [
                (name.encode(), value.encode())
                for name, value in HEADERS.items()
                if name.encode() not in present
            ]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)


class _Body:
    """Receives a request's body up to a size and a time."""

    def __init__(self, receive: Receive, max_bytes: int, max_s: float) -> None:
        self._receive = receive
        self._left = max_bytes
        self._deadline = time.monotonic() + max_s
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(
                self._receive(), max(0.0, self._deadline - time.monotonic())
            )
        except TimeoutError as error:
            raise Refusal(408, "the body took too long") from error
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise Refusal(413, "the body is larger than allowed")
        self._is_whole = not message.get("more_body", False)
        return message


async def _redirect(send: Send, place: str, cookie: str | None = None) -> None:
    headers: list[tuple[bytes, bytes]] = [(b"location", place.encode("latin-1", "replace"))]
    if cookie is not None:
        headers.append((b"set-cookie", cookie.encode()))
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _reply(answer: _Answer, refusal: Refusal) -> None:
    if answer.status:
        return  # the answer is under way already; the connection ends here
    reply = resolve_fault(refusal)
    headers = [(b"content-type", b"application/json")]
    if reply.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if reply.status in (408, 413):
        headers.append((b"connection", b"close"))
    await answer({"type": "http.response.start", "status": reply.status, "headers": headers})
    await answer({"type": "http.response.body", "body": format_json(reply.to_json()).encode()})


def _read_headers(scope: Scope) -> dict[str, str]:
    pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_preflight(scope: Scope, headers: dict[str, str]) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers
