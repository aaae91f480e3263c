"""Results in a notebook: tables, the viewer in a frame, or the report."""

import html
import importlib.machinery
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import wsi_pipeline as wsi
from tests.written_results import CASES, write_result
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.results import Slide
from wsi_pipeline.serve import notebook
from wsi_pipeline.serve.notebook import find_prefix

HUB = {"JUPYTERHUB_SERVICE_PREFIX": "/user/jo/"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("of-patient-Smith") / "results"
    for name in ("one", "two & three"):
        write_result(folder / name, CASES["mixed"], view=View(("summary",)))
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel on the browser's machine."""
    for name in (notebook.HUB_PREFIX, *notebook.REMOTE):
        monkeypatch.delenv(name, raising=False)


def address_of(frame: notebook.Frame) -> str:
    shown = frame._repr_html_()
    assert shown.startswith('<iframe src="')
    return html.unescape(shown.split('"')[1])


def test_a_slide_is_found_by_name_and_by_number(results: Path) -> None:
    found = wsi.open_results(results)
    assert [found["one"], found["two & three"]] == [found[0], found[1]] == found[:2]


def test_a_name_that_is_not_there_is_told_with_those_that_are(results: Path) -> None:
    with pytest.raises(KeyError, match="three: no such slide; there are one, two & three"):
        wsi.open_results(results)["three"]


def test_results_are_a_table_without_paths(results: Path) -> None:
    table = wsi.open_results(results)._repr_html_()
    assert table.count("<tr>") == 1 + 2
    assert "<td>two &amp; three</td>" in table
    assert "Smith" not in table


def test_names_in_a_table_are_escaped(results: Path) -> None:
    slide = wsi.open_results(results)[0]
    hostile = Slide(slide.folder, replace(slide.summary, slide_id="<script>alert(1)</script>"))
    assert "<script>" not in hostile._repr_html_()


@pytest.mark.usefixtures("here")
def test_the_viewer_is_in_a_frame_that_needs_no_cookie(results: Path) -> None:
    address = address_of(wsi.open_results(results)["two & three"].show())
    answer = httpx.get(address)
    assert (answer.status_code, 'data-slide="two &amp; three"' in answer.text) == (200, True)
    assert "x-frame-options" not in answer.headers
    assert "frame-ancestors" not in answer.headers["content-security-policy"]
    root = address.partition("/slides/")[0]
    assert httpx.get(f"{root}/api/v1/slides").status_code == 200


@pytest.mark.usefixtures("here")
def test_without_the_secret_nothing_is_shown(results: Path) -> None:
    address = address_of(wsi.open_results(results)["one"].show())
    origin = "/".join(address.split("/")[:3])
    assert httpx.get(f"{origin}/api/v1/slides").status_code == 401
    assert httpx.get(f"{origin}/{'x' * 32}/api/v1/slides").status_code == 401
    elsewhere = {"Host": "evil.example"}
    assert httpx.get(f"{origin}/slides/one", headers=elsewhere).status_code == 421


@pytest.mark.usefixtures("here")
def test_one_server_shows_every_slide_of_a_folder(results: Path) -> None:
    found = wsi.open_results(results)
    first, second = (address_of(slide.show()).partition("/slides/")[0] for slide in found)
    assert first == second


@pytest.mark.usefixtures("here")
def test_the_report_is_shown_where_no_server_is_reached(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    shown = wsi.open_results(results)["one"].show(height=300)._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts" srcdoc="&lt;!doctype html&gt;')
    assert 'height="300"' in shown
    assert "Smith" not in shown


@pytest.mark.usefixtures("here")
def test_report_or_viewer_can_be_asked_for(results: Path) -> None:
    slide = wsi.open_results(results)["one"]
    assert "srcdoc" in slide.show(is_served=False)._repr_html_()
    assert "srcdoc" not in slide.show(is_served=True)._repr_html_()


def test_behind_a_hub_the_frame_is_below_the_users_path(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("jupyter_server_proxy", None)
    monkeypatch.setattr(notebook, "find_spec", {"jupyter_server_proxy": spec}.get)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/jo/")
    address = address_of(wsi.open_results(results)["one"].show())
    assert address.startswith("/user/jo/proxy/absolute/")
    port = address.split("/")[5]
    answer = httpx.get(f"http://127.0.0.1:{port}{address}", headers={"Host": "hub.example.org"})
    assert (answer.status_code, 'data-root="/user/jo/' in answer.text) == (200, True)


@pytest.mark.parametrize(
    ("environment", "has_proxy", "prefix"),
    [
        ({}, False, ""),
        (HUB, True, "/user/jo/proxy/absolute"),
        (HUB, False, None),
        ({"SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}, False, None),
    ],
)
def test_where_a_browser_finds_a_port(
    environment: dict[str, str],
    has_proxy: bool,
    prefix: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notebook, "find_spec", lambda _: object() if has_proxy else None)
    assert find_prefix(environment) == prefix
