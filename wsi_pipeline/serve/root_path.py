"""The path below which a proxy shows the server: `--root-path`, or a proxy's X-Forwarded-Prefix.

A proxy may hand on the path whole or without the root; both are the same page.
"""

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.settings import ServeSettings, check_root_path

PREFIX_HEADER = "x-forwarded-prefix"
ROOT_URL = "wsi_root_url"
"""Key of a scope: the root as it stands in addresses and cookies. Its `root_path` is decoded."""

WAY = "wsi_way"
"""Key of a scope: the way from the address of the request to the root, such as `./../`."""


def place_under_root(scope: Scope, settings: ServeSettings) -> Scope:
    """Return the scope of a request with its root, and with a path that begins with the root.

    A slash at the end of the path is dropped, so that nothing redirects there. Raises Refusal for
    a prefix that cannot be one.
    """
    root_url = _find_root(Request(scope), settings)
    root = unquote(root_url)
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or path.encode()
    way = ""
    if path == root:  # without a slash, so that its last part stands for a file
        way = f"./{root_url.rpartition('/')[2]}/"
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
        raw = b"/" + b"/".join(raw.split(b"/")[1 + root_url.count("/") :])
    rest = path.rstrip("/") or "/"
    added = {"root_path": root, "path": root + rest, "raw_path": raw, ROOT_URL: root_url}
    return {**scope, **added, WAY: way or "./" + "../" * (raw.count(b"/") - 1)}


def shows_root(request: Request, settings: ServeSettings) -> bool:
    """Return True where the path begins with the server's root, compared in constant time."""
    root = unquote(settings.root_path).encode() + b"/"
    return hmac.compare_digest(request.scope["path"].encode()[: len(root)], root)


def redirect(request: Request, place: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the redirect to a place below the root, "/enter".

    It is relative, for some proxies put their root before an address that begins with a slash, and
    others do not.
    """
    return RedirectResponse(request.scope[WAY] + place.lstrip("/"), 303, headers)


def root_of(request: Request) -> str:
    """Return the root for addresses in an answer: "" or "/user/x/proxy/8000"."""
    root: str = request.scope[ROOT_URL]
    return root


def route_of(request: Request) -> str:
    """Return the path of a request below the root."""
    path: str = request.scope["path"]
    return path[len(request.scope["root_path"]) :]


def _find_root(request: Request, settings: ServeSettings) -> str:
    stated = request.headers.get(PREFIX_HEADER)
    if stated is None or not _is_trusted(request, settings.trusted_proxies):
        return settings.root_path
    try:
        return check_root_path(stated)
    except ValueError as error:
        raise Refusal(400, f"the proxy's X-Forwarded-Prefix: {error}") from error


def _is_trusted(request: Request, proxies: tuple[str, ...]) -> bool:
    if request.client is None:
        return False
    address = ipaddress.ip_address(request.client.host)
    return any(address in ipaddress.ip_network(proxy) for proxy in proxies)
