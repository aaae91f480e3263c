"""The path below which a proxy shows the server: `--root-path`, or a proxy's X-Forwarded-Prefix.

A proxy may hand on the path whole or without the root; both are the same page.
"""

import ipaddress
from urllib.parse import unquote

from starlette.requests import Request
from starlette.types import Scope

from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.settings import ServeSettings, check_root_path

PREFIX_HEADER = "x-forwarded-prefix"
ROOT_URL = "wsi_root_url"
"""Key of a scope: the root as it stands in addresses and cookies. Its `root_path` is decoded."""


def place_under_root(scope: Scope, settings: ServeSettings) -> Scope:
    """Return the scope of a request with its root, and with a path that begins with the root.

    A slash at the end of the path is dropped, so that nothing redirects there. Raises Refusal for
    a prefix that cannot be one.
    """
    root_url = _find_root(Request(scope), settings)
    root = unquote(root_url)
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or path.encode()
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
        raw = b"/" + b"/".join(raw.split(b"/")[1 + root_url.count("/") :])
    rest = path.rstrip("/") or "/"
    return {**scope, "root_path": root, "path": root + rest, "raw_path": raw, ROOT_URL: root_url}


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
