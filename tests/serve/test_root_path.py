"""Behind a proxy that shows the server below a prefix: pages, REST, cookie, docs, redirects."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from tests.proxied import run_proxy
from tests.served import ALLOWED, TOKEN, run_server
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.serve.server import base_url
from wsi_pipeline.serve.settings import ServeSettings, check_root_path

PREFIX = "/user/j%20d/proxy/8765"
LOCAL_ADDRESS = re.compile(r"""(?:href|src|action)="(?!#|data:|\{\{ root \}\}/)|[^(]["'`]/[a-z]""")


def settings_of(served_root: Path, **others: object) -> ServeSettings:
    folders = {"results": (served_root / "results",), "slides": served_root / "slides"}
    return ServeSettings(**folders, token=TOKEN, decoders=1, **others)  # type: ignore[arg-type]


def place_of(answer: httpx.Response) -> str:
    """The address to which an answer leads."""
    return str(answer.request.url.join(answer.headers["location"]))


@pytest.fixture(scope="module")
def server(served_root: Path) -> Iterator[str]:
    """A server with a root path, by its own address, which has the root path too."""
    with run_server(settings_of(served_root, root_path=PREFIX)) as (url, _):
        yield url


@pytest.fixture(scope="module", params=[True, False], ids=["stripped", "whole"])
def shown(server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with run_proxy(server, PREFIX, strips=request.param) as url:
        yield url


def test_the_own_address_has_the_root_path_and_works(server: str) -> None:
    assert server.endswith(PREFIX)
    assert httpx.get(f"{server}/api/v1/slides", headers=ALLOWED).status_code == 200


def test_a_browser_is_led_in_below_the_prefix(shown: str) -> None:
    origin = shown.removesuffix(PREFIX)
    with httpx.Client(headers={"Accept": "text/html", "Origin": origin}) as browser:
        assert place_of(browser.get(f"{shown}/")) == f"{shown}/enter"
        assert place_of(browser.get(f"{shown}/slides/one/")) == f"{shown}/enter"
        form = browser.get(f"{shown}/enter").text
        assert f'action="{PREFIX}/enter"' in form
        entered = browser.post(f"{shown}/enter", data={"token": TOKEN})
        assert place_of(entered) == f"{shown}/"
        assert f"Path={PREFIX};" in entered.headers["set-cookie"]
        assert browser.get(f"{shown}/slides/one").status_code == 200


def test_the_token_in_an_address_leads_to_the_same_place_below_the_prefix(shown: str) -> None:
    answer = httpx.get(f"{shown}/slides/one", params={"token": TOKEN, "a": "b"})
    assert place_of(answer) == f"{shown}/slides/one?a=b"


def test_the_root_without_its_slash_leads_below_it(server: str) -> None:
    answer = httpx.get(server, headers={"Accept": "text/html"})
    assert place_of(answer) == f"{server}/enter"


def test_every_file_that_a_page_names_is_there(shown: str) -> None:
    origin = shown.removesuffix(PREFIX)
    for page in ("/", "/slides/one", "/enter", "/docs"):
        text = httpx.get(shown + page, headers=ALLOWED).text
        named = re.findall(r'(?:href|src)="(/[^"]+)"', text)
        assert named
        for address in named:
            assert address.startswith(PREFIX), (page, address)
            assert httpx.get(origin + address, headers=ALLOWED).status_code == 200, address


def test_the_description_for_programs_names_the_prefix(shown: str) -> None:
    described = httpx.get(f"{shown}/openapi.json", headers=ALLOWED).json()
    assert described["servers"] == [{"url": "/user/j d/proxy/8765"}]
    assert "/api/v1/slides" in described["paths"]


def test_every_request_is_summarised_in_words_of_its_own(shown: str) -> None:
    paths = httpx.get(f"{shown}/openapi.json", headers=ALLOWED).json()["paths"]
    said = [each for operations in paths.values() for each in operations.values()]
    assert len({each["summary"] for each in said}) == len(said)
    for each in said:
        of_its_name = each["operationId"].partition("_api_v1")[0].replace("_", " ")
        assert each["summary"].lower() != of_its_name, each["summary"]


def test_health_needs_no_token_behind_a_proxy(shown: str) -> None:
    assert httpx.get(f"{shown}/healthz").json() == {"status": "ok"}


def test_a_slash_at_the_end_is_the_same_page_without_a_redirect(shown: str) -> None:
    for path in ("/slides/one/", "/api/v1/slides/", "/docs/"):
        assert httpx.get(shown + path, headers=ALLOWED).status_code == 200, path


def test_a_path_that_only_begins_like_the_root_is_not_below_it(server: str) -> None:
    assert httpx.get(f"{server}1/healthz").status_code == 401


def test_the_prefix_of_a_trusted_proxy_is_taken(served_root: Path) -> None:
    with (
        run_server(settings_of(served_root, trusted_proxies=("127.0.0.0/8",))) as (url, _),
        run_proxy(url, "/here", headers={"X-Forwarded-Prefix": "/here/"}) as shown,
    ):
        assert 'data-root="/here"' in httpx.get(f"{shown}/", headers=ALLOWED).text
        entered = httpx.get(f"{shown}/", params={"token": TOKEN})
        assert "Path=/here;" in entered.headers["set-cookie"]
        assert 'data-root=""' in httpx.get(f"{url}/", headers=ALLOWED).text


@pytest.mark.parametrize("prefix", ["//evil.example", "/a, /b", "/x;domain=y", "/a/../b", '/"><'])
def test_a_prefix_that_cannot_be_one_is_refused(served_root: Path, prefix: str) -> None:
    with run_server(settings_of(served_root, trusted_proxies=("127.0.0.1",))) as (url, _):
        answer = httpx.get(f"{url}/", headers=ALLOWED | {"X-Forwarded-Prefix": prefix})
        assert answer.status_code == 400
        assert "X-Forwarded-Prefix" in answer.json()["error"]


def test_the_prefix_of_anybody_else_is_not_believed(served_root: Path) -> None:
    with run_server(settings_of(served_root, trusted_proxies=("10.0.0.0/8",))) as (url, _):
        answer = httpx.get(f"{url}/", headers=ALLOWED | {"X-Forwarded-Prefix": "/evil"})
        assert "/evil" not in answer.text


@pytest.mark.parametrize("root", ["user/x", "//x", "/a//b", "/a/%2e%2e", "/a%2Fb", "/a?b", "/a b"])
def test_a_root_path_that_cannot_be_one_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="is no path of an address"):
        check_root_path(root)


def test_a_trusted_proxy_is_an_address() -> None:
    with pytest.raises(ConfigError, match="trusted proxy 'nginx'"):
        ServeSettings(results=(Path("x"),), trusted_proxies=("nginx",))


def test_without_a_root_path_nothing_is_in_front() -> None:
    assert base_url(ServeSettings(results=(Path("x"),))) == "http://127.0.0.1:8765"


def test_pages_and_scripts_build_every_address_from_the_root() -> None:
    folder = resources.files("wsi_pipeline.serve")
    for kind in ("templates", "web"):
        for file in (folder / kind).iterdir():
            code = re.sub(r"^//.*$|/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.M)
            assert not LOCAL_ADDRESS.findall(code), file.name
