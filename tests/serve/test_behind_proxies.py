"""The pages in a real browser behind a reverse proxy, and behind jupyter-server-proxy."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

import wsi_pipeline as wsi
from tests.browsing import IN_BROWSER, PATIENCE_MS, Watched, wait_for
from tests.proxied import run_proxy
from tests.served import TOKEN, run_server, wait_until
from wsi_pipeline.serve.settings import ServeSettings

pytestmark = IN_BROWSER
BASE = "/user/jo"
JUPYTER_TOKEN = "token-of-jupyter"
needs_proxy = pytest.mark.skipif(
    importlib.util.find_spec("jupyter_server_proxy") is None,
    reason="no jupyter-server-proxy here; it is in the extra test",
)


def serve(root: Path, **others: object) -> ServeSettings:
    return ServeSettings(
        results=(root / "results",),
        slides=root / "slides",
        token=TOKEN,
        decoders=1,
        reviewer="jo",
        **others,  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def open_page(browser: Browser, shown: str) -> Iterator[Watched]:
    """A page of which every request must lie below an address with its prefix."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    watched = Watched(context.new_page(), shown)
    yield watched
    context.close()
    assert watched.faults == []


def walk_through(watched: Watched) -> None:
    """Go from the form to the list, a slide, its tiles, a review and the REST page by clicks."""
    page, shown = watched.page, watched.origin
    page.goto(f"{shown}/")
    assert page.url == f"{shown}/enter"
    watched.watch()
    page.fill("input[name=token]", TOKEN)
    page.click("button")
    expect(page.locator("#rows tr")).to_have_count(2)
    page.click("#rows a:text-is('one')")
    page.wait_for_selector("body[data-ready=yes]")
    wait_for(page, "viewer.tiles.loaded.size > 0")
    page.click("#review")
    page.wait_for_selector("body.review[data-ready=yes]")
    page.click("text=← slides")
    assert page.url == f"{shown}/"
    page.click("text=REST")
    expect(page.get_by_text("/api/v1/predict").first).to_be_visible()
    try_out(page, shown)


def try_out(page: Page, shown: str) -> None:
    """Have the REST page send a request, which must go below the prefix."""
    page.click("text=All slides with their numbers")
    page.click("text=Try it out")
    with page.expect_response(lambda answer: answer.url.endswith("/api/v1/slides")) as found:
        page.click("button.execute")
    assert (found.value.url, found.value.status) == (f"{shown}/api/v1/slides", 200)


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "whole"])
def test_every_page_works_below_a_prefix(browser: Browser, served_root: Path, strips: bool) -> None:
    prefix = "/user/j%20o/proxy/8765"
    with (
        run_server(serve(served_root, root_path=prefix)) as (url, _),
        run_proxy(url, prefix, strips=strips) as shown,
        open_page(browser, shown) as watched,
    ):
        walk_through(watched)


@contextlib.contextmanager
def run_jupyter(folder: Path) -> Iterator[str]:
    """A Jupyter server with jupyter-server-proxy, as JupyterHub starts one; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "base_url": BASE,
        "port": port,
        "port_retries": 0,
        "open_browser": False,
        "allow_root": True,
        "root_dir": folder,
        "jpserver_extensions": {"jupyter_server_proxy": True},
    }
    given = [f"--ServerApp.{name}={value}" for name, value in settings.items()]
    token = f"--IdentityProvider.token={JUPYTER_TOKEN}"
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", *given, token],
        env=os.environ | {"HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "config")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}{BASE}"

    def answers() -> bool:
        assert process.poll() is None, "Jupyter ended"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/api").status_code == 200
        return False

    try:
        wait_until(answers, 60)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@needs_proxy
@pytest.mark.parametrize("by", ["root path", "absolute root path", "trusted proxy"])
def test_every_page_works_behind_jupyter_server_proxy(
    browser: Browser, served_root: Path, tmp_path: Path, by: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind = "proxy/absolute" if by.startswith("absolute") else "proxy"
    known = {"trusted_proxies": ("127.0.0.1",)}
    root = {"root_path": f"{BASE}/{kind}/{port}"}
    others = known if by == "trusted proxy" else root
    with (
        run_jupyter(tmp_path) as jupyter,
        run_server(serve(served_root, **others), port) as (url, _),
        open_page(browser, f"{jupyter}/{kind}/{port}") as watched,
    ):
        assert url.startswith(f"http://127.0.0.1:{port}")
        watched.page.goto(f"{jupyter}/api?token={JUPYTER_TOKEN}")
        walk_through(watched)


class Handler(BaseHTTPRequestHandler):
    """A page of another site that holds a frame."""

    frame = ""

    def do_GET(self) -> None:
        """Send the page."""
        content = f"<!doctype html><link rel=icon href=data:,><body>{self.frame}".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("is_served", [True, False], ids=["viewer", "report"])
def test_a_notebook_of_another_site_shows_the_slide(
    browser: Browser, served_root: Path, is_served: bool
) -> None:
    Handler.frame = (
        wsi.open_results(served_root / "results")["one"].show(is_served=is_served)._repr_html_()
    )
    page_of_cells = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=page_of_cells.serve_forever, daemon=True).start()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page = context.new_page()
    page.on(
        "console", lambda message: faults.append(message.text) if message.type == "error" else None
    )
    page.goto(f"http://localhost:{page_of_cells.server_address[1]}/")  # another site than 127.0.0.1
    frame = page.frame_locator("iframe")
    expect(frame.locator("#count")).to_contain_text("patches positive", timeout=PATIENCE_MS)
    expect(frame.locator("h1")).to_have_text("one")
    context.close()
    page_of_cells.shutdown()
    page_of_cells.server_close()
    assert faults == []
