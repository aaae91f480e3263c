"""The viewer's tool that runs the model where a person draws, in a real browser."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import IN_BROWSER, Watched, open_viewer, viewport, wait_for, watch_list
from tests.serve.test_drawn_areas import areas_on_disk, drawn_path, make_half
from tests.serve.test_viewer import CONTRASTS, NAMELESS
from tests.served import run_server, serve_all
from wsi_pipeline.serve import job_queue

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_half(tmp_path_factory.mktemp("drawn-page"))


@pytest.fixture
def desk(browser: Browser, made: Path, tmp_path: Path) -> Iterator[tuple[Watched, Path]]:
    root = tmp_path / "served"
    shutil.copytree(made, root)
    with (
        run_server(serve_all(root, ("results",))) as (origin, _),
        watch_list(browser, origin, has_touch=True) as watched,
    ):
        yield watched, root


def drag_box(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    places = page.evaluate(
        """(corners) => { const box = byId('first').getBoundingClientRect();
        return corners.map((corner) => { const [x, y] = viewer.views[0].toScreen(...corner);
          return [box.x + x, box.y + y]; }); }""",
        [(x0, y0), (x1, y1)],
    )
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=20)
    page.mouse.up()


def value_at(page: Page, x: float, y: float) -> float | None:
    """The probability that the map shows at a place; None where nothing was assessed."""
    value: float | None = page.evaluate(
        """([x, y]) => { const cell = viewer.map?.cellAt(x, y);
        const value = cell ? viewer.map.valueAt(cell) : NaN;
        return Number.isNaN(value) ? null : value; }""",
        [x, y],
    )
    return value


def test_a_box_is_drawn_inferred_and_shown_where_the_view_stood(
    desk: tuple[Watched, Path],
) -> None:
    page = open_viewer(desk[0], "/slides/half")
    page.evaluate("viewer.viewport.set(420, 180, 1.5)")
    before = viewport(page)
    assert (value_at(page, 425, 125), value_at(page, 525, 125)) == (None, None)
    known = value_at(page, 125, 125)
    page.keyboard.press("M")
    expect(page.locator("#run-here")).to_have_attribute("aria-pressed", "true")
    drag_box(page, 400, 100, 500, 200)
    expect(page.locator("#job")).to_contain_text("done")
    expect(page.locator("#count")).to_contain_text("of 64")
    assert value_at(page, 425, 125) is not None
    assert value_at(page, 525, 125) is None
    assert value_at(page, 125, 125) == known
    assert viewport(page) == before
    expect(page.locator("#drawn-areas li")).to_have_count(1)
    (area,) = areas_on_disk(drawn_path(desk[1]))
    assert area == pytest.approx(10_000, rel=0.25)  # a drag begins some pixels from its start


def test_a_slide_without_results_has_a_map_after_its_first_area(
    desk: tuple[Watched, Path],
) -> None:
    page = open_viewer(desk[0], "/slides/bare")
    expect(page.locator("#note")).to_contain_text("No results for this slide yet.")
    page.click("#run-here")
    drag_box(page, 90, 90, 210, 210)
    expect(page.locator("#map-controls")).to_be_visible()
    expect(page.locator("#count")).to_contain_text("of 4")
    assert value_at(page, 125, 125) is not None
    threshold = page.evaluate("viewer.display.threshold")
    assert threshold == page.evaluate("viewer.body.results[0].threshold")


def test_a_polygon_needs_no_pointer(desk: tuple[Watched, Path]) -> None:
    """A triangle with sides of 150 px: 11,250 px²."""
    page = open_viewer(desk[0], "/slides/half")
    page.keyboard.press("M")
    for x, y in ((350, 100), (500, 100), (350, 250)):
        page.evaluate("([x, y]) => viewer.viewport.set(x, y, 1.2)", [x, y])
        page.keyboard.press("Enter")
    page.keyboard.press("f")
    expect(page.locator("#job")).to_contain_text("done")
    assert areas_on_disk(drawn_path(desk[1])) == [pytest.approx(11_250)]


def test_a_polygon_is_closed_by_touch(desk: tuple[Watched, Path]) -> None:
    page = open_viewer(desk[0], "/slides/half")
    page.evaluate("viewer.viewport.set(425, 175, 1.2)")
    page.locator("#run-here").tap()
    expect(page.locator("#close-line")).to_be_disabled()
    for x, y in ((350, 100), (500, 100), (350, 250)):
        place = page.evaluate("([x, y]) => viewer.views[0].toScreen(x, y)", [x, y])
        page.locator("#first").tap(position={"x": place[0], "y": place[1]})
    page.locator("#close-line").tap()
    expect(page.locator("#job")).to_contain_text("done")
    assert areas_on_disk(drawn_path(desk[1])) == [pytest.approx(11_250, rel=0.02)]


def test_a_job_is_cancelled_and_one_that_fails_says_so(
    desk: tuple[Watched, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()
    jobs: list[Any] = []

    def wait(*_: Any, listener: Any, **__: Any) -> None:
        jobs.append(listener)
        for done in range(600):
            listener.progress("", done, 600)
            started.wait(0.05)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a key")

    page = open_viewer(desk[0], "/slides/half")
    with monkeypatch.context() as patch:
        patch.setattr(job_queue, "infer_slides", wait)
        page.keyboard.press("M")
        drag_box(page, 400, 100, 500, 200)
        expect(page.locator("#job-count")).to_contain_text("of 600 patches")
        expect(page.locator("#run-here")).to_be_disabled()
        page.reload()  # what is under way is found again
        page.wait_for_selector("body[data-ready=yes]")
        expect(page.locator("#job-count")).to_contain_text("of 600 patches")
        page.click("#cancel-job")
        expect(page.locator("#job")).to_contain_text("cancelled")
        expect(page.locator("#cancel-job")).to_be_hidden()
        patch.setattr(job_queue, "infer_slides", fail)
        page.keyboard.press("M")
        drag_box(page, 400, 300, 500, 400)
        expect(page.locator("#job")).to_contain_text("the server's log has the reason")
    expect(page.locator("#drawn-areas li")).to_have_count(1)
    page.locator("#drawn-areas button", has_text="run again").click()
    expect(page.locator("#count")).to_contain_text("of 64")
    page.locator("#drawn-areas button", has_text="remove").click()
    expect(page.locator("#drawn-areas li")).to_have_count(0)
    assert not drawn_path(desk[1]).exists()


def test_the_tool_is_offered_only_where_jobs_run(
    browser: Browser, made: Path, tmp_path: Path
) -> None:
    from wsi_pipeline.serve.settings import ServeSettings

    shutil.copytree(made, tmp_path / "served")
    root = tmp_path / "served"
    settings = ServeSettings(results=(root / "results",), token="token-of-the-tests", decoders=1)
    with run_server(settings) as (origin, _), watch_list(browser, origin) as watched:
        page = open_viewer(watched, "/slides/half")
        expect(page.locator("#drawn-section")).to_be_hidden()
        page.keyboard.press("M")
        assert page.evaluate("viewer.tool") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tool_stands_out_and_has_names(desk: tuple[Watched, Path], scheme: Any) -> None:
    watched, _ = desk
    watched.page.emulate_media(color_scheme=scheme)
    page = open_viewer(watched, "/slides/half")
    page.keyboard.press("M")
    drag_box(page, 400, 100, 500, 200)
    expect(page.locator("#job")).to_contain_text("done")
    page.keyboard.press("M")
    wait_for(page, "viewer.tool !== null")
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate(NAMELESS) == []
