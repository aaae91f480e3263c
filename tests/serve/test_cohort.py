"""The list of slides in a real browser: the run as a whole, while it goes on and afterwards."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import IN_BROWSER, PATIENCE_MS, Watched
from tests.builders import tissue, write_slide
from tests.commands import infer
from tests.readable import find_cut, find_pale
from tests.served import TOKEN, connect, replace_probabilities, run_server, wait_until
from wsi_pipeline.core.outcome import SlideOutcome
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.serve.settings import ServeSettings

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def root(served_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides: 8 patches of 120 positive, of them 4 near the threshold; none; 60; one failed.

    A patch has 0.000625 mm².
    """
    root = tmp_path_factory.mktemp("cohort") / "served"
    shutil.copytree(served_root, root)
    write_slide(root / "slides" / "three.tiff", tissue(600, 500, seed=3))
    (root / "slides" / "broken.svs").write_bytes(b"no slide")
    places = (root / "slides", root / "results.safetensors", root / "results")
    infer(*places, engine="auto", precision="auto")  # as the results that are there already
    some = np.full((10, 12), 0.1, dtype=np.float32)
    some[1:3, 1:3], some[6, 5:9] = 0.55, 0.9
    replace_probabilities(root / "results", "one", some)
    replace_probabilities(root / "results", "two", np.full((10, 12), 0.1, dtype=np.float32))
    half = np.full((10, 12), 0.1, dtype=np.float32)
    half[:5] = 0.9
    replace_probabilities(root / "results", "three", half)
    return root


@pytest.fixture(scope="module")
def origin(root: Path) -> Iterator[str]:
    settings = ServeSettings(results=(root / "results",), token=TOKEN, decoders=1)
    with run_server(settings) as (origin, _):
        yield origin


def open_list(browser: Browser, address: str, **options: Any) -> Watched:
    """The list at an address, watched; 1,280 px wide unless `options` say otherwise."""
    settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}} | options
    context = browser.new_context(accept_downloads=True, **settings)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    origin = "/".join(address.split("/")[:3])
    watched = Watched(context.new_page(), origin).watch()
    watched.page.goto(f"{address}{'&' if '?' in address else '?'}token={TOKEN}")
    return watched


@pytest.fixture
def page(browser: Browser, origin: str) -> Iterator[Page]:
    watched = open_list(browser, f"{origin}/")
    expect(watched.page.locator("#rows tr")).to_have_count(4)
    yield watched.page
    watched.page.context.close()
    assert watched.faults == []


def names_of(page: Page) -> list[str]:
    names: list[str] = page.locator("#rows .name").all_inner_texts()
    return names


def test_the_distribution_counts_slides_by_positive_area(page: Page) -> None:
    labels = [bar.get_attribute("aria-label") for bar in page.locator("#bins button").all()]
    assert [label for label in labels if not (label or "").endswith(": 0 slides")] == [
        "0 mm² positive: 1 slide",
        "0.005 to 0.01 mm² positive: 1 slide",  # 8 × 0.000625
        "0.035 to 0.04 mm² positive: 1 slide",  # 60 × 0.000625 = 0.0375
    ]


def test_slides_to_look_at_first_are_named_with_the_reason(page: Page) -> None:
    expect(page.locator("#first li")).to_have_count(2)
    expect(page.locator("#first li").nth(0)).to_contain_text("broken failed")
    expect(page.locator("#first li").nth(0)).to_contain_text("not a slide")
    expect(page.locator("#first li").nth(1)).to_have_text(
        "one near the threshold 4 patches within 0.1 of the threshold, 8 positive"
    )


def test_filters_stay_in_the_link(page: Page, browser: Browser) -> None:
    page.fill("#search", "o")
    page.select_option("#look", "near")
    page.click("#bins button[aria-label^='0.005 to']")
    page.click("th button:text-is('slide')")
    page.click("th button:text-is('slide')")
    expect(page.locator("#rows .name")).to_have_text(["one"])
    link = page.url
    assert link.partition("?")[2] == "q=o&look=near&sort=slide&order=falling&min=0.005&max=0.01"
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#rows .name")).to_have_text(["one"])
    expect(page.locator("#look")).to_have_value("near")
    expect(page.locator("#bins button[aria-pressed=true]")).to_have_count(1)
    expect(page.locator("th[aria-sort=descending]")).to_have_text("slide")
    page.click("#bins button[aria-pressed=true]")
    page.select_option("#look", "")
    page.fill("#search", "")
    expect(page.locator("#rows .name")).to_have_text(["two", "three", "one", "broken"])


def test_what_is_shown_is_saved_as_csv(page: Page, tmp_path: Path) -> None:
    page.select_option("#state", "ok")
    page.click("#bins button[aria-label^='0.035 to']")
    expect(page.locator("#rows tr")).to_have_count(1)
    with page.expect_download() as started:
        page.click("#csv")
    assert started.value.suggested_filename == "results.csv"
    started.value.save_as(tmp_path / "t.csv")
    content = (tmp_path / "t.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert [(row["slide_id"], row["positives"], row["positive_mm2"]) for row in rows] == [
        ("three", "60", "0.0375")
    ]


def test_a_table_of_other_slides_is_refused(origin: str) -> None:
    with connect(origin) as client:
        for wanted in ({"run_id": "r9"}, {"run_id": "r0", "slide_ids": ["../one"]}):
            assert client.post("/api/v1/tables/csv", json=wanted).status_code == 404


def test_titles_sort_by_keyboard_and_keep_the_focus(page: Page) -> None:
    page.focus("th button:text-is('patches')")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_have_text("positive")
    assert names_of(page)[0] == "three"
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("positive")
    assert page.evaluate("document.activeElement.textContent") == "positive"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["wide", "phone"])
def test_nothing_is_cut_and_everything_is_readable(
    browser: Browser, origin: str, size: tuple[int, int], scheme: Any
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    watched = open_list(browser, f"{origin}/", viewport=viewport, color_scheme=scheme)
    expect(watched.page.locator("#rows tr")).to_have_count(4)
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert find_cut(watched.page) == []
    assert find_pale(watched.page) == []
    is_dark = watched.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((one) => one < 60)"
    )
    assert is_dark == (scheme == "dark")
    watched.page.context.close()


def test_on_a_phone_every_slide_is_a_card_with_titles(browser: Browser, origin: str) -> None:
    watched = open_list(browser, f"{origin}/", viewport={"width": 390, "height": 844})
    page = watched.page
    expect(page.locator("#rows tr")).to_have_count(4)
    page.select_option("#sort", "slide")
    assert names_of(page) == ["broken", "one", "three", "two"]
    page.click("#order")
    assert names_of(page) == ["two", "three", "one", "broken"]
    cell = page.locator("#rows tr").nth(1).locator("td.c-positive")
    assert cell.evaluate("one => getComputedStyle(one, '::before').content") == '"positive"'
    page.click("#rows .name:text-is('one')")
    page.wait_for_selector("body[data-ready=yes]")
    page.context.close()


def test_the_list_fills_while_a_run_goes_on(browser: Browser, root: Path, tmp_path: Path) -> None:
    """The run waits after every slide until the page has shown it."""
    results, go_on = tmp_path / "live", threading.Semaphore(0)
    ended: list[SlideOutcome] = []

    def wait(outcome: SlideOutcome) -> None:
        ended.append(outcome)
        assert go_on.acquire(timeout=120)

    results.mkdir()
    model = root / "results.safetensors"
    run = threading.Thread(
        target=infer,
        args=(root / "slides", model, results),
        kwargs={"listener": Listener(slide_ended=wait)},
    )
    with run_server(ServeSettings(results=(results,), token=TOKEN, decoders=1)) as (origin, _):
        watched = open_list(browser, f"{origin}/")
        expect(watched.page.locator("#empty")).to_be_visible()
        run.start()
        for number in range(1, 5):
            wait_until(lambda wanted=number: len(ended) == wanted, 60)
            shown = watched.page.locator("#rows tr", has_text="ok").or_(
                watched.page.locator("#rows tr", has_text="failed")
            )
            expect(shown).to_have_count(number)
            has_failed = any(outcome.state == "failed" for outcome in ended)
            expect(watched.page.locator("#failures li")).to_have_count(int(has_failed))
            expect(watched.page.locator("#live-text")).to_contain_text(f"{number} of 4 slides")
            go_on.release()
        run.join(60)
        expect(watched.page.locator("#live")).to_be_hidden()
        watched.page.context.close()
    assert watched.faults == []
    assert not (results / ".wsi").exists()


def test_infer_opens_the_list_and_ends_with_ctrl_c(
    browser: Browser, root: Path, tmp_path: Path
) -> None:
    opener, opened = tmp_path / "opener", tmp_path / "opened"
    opener.write_text(f'#!/bin/sh\necho "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    opener.chmod(0o755)
    line = ["infer", root / "slides", "--model", root / "results.safetensors", "--workers", "0"]
    line += ["--results-dir", tmp_path / "shown", "--outputs", "summary", "--view"]
    with subprocess.Popen(
        [sys.executable, "-c", "from wsi_cli.main import wsi; wsi()", *map(str, line)],
        env=os.environ | {"BROWSER": str(opener), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        try:
            wait_until(opened.exists, PATIENCE_MS / 1000)
            context = browser.new_context()
            page = context.new_page()
            page.goto(opened.read_text().strip())
            expect(page.locator("#rows tr")).to_have_count(4, timeout=PATIENCE_MS)
            wait_until(lambda: (tmp_path / "shown" / "index.html").exists(), 60)
            page.reload()
            expect(page.locator("#rows tr", has_text="failed")).to_have_count(1)
            context.close()
        finally:
            run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert run.returncode == 3, told.decode()  # one slide failed
    assert b"stopped" in told
    assert b"Traceback" not in told


def test_a_server_that_cannot_start_costs_the_run_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wsi_cli.view

    from tests.commands import PLAIN, run

    monkeypatch.setattr(wsi_cli.view, "ALONGSIDE", "raise SystemExit(1)")
    line = ("--workers", 0, "--results-dir", tmp_path / "r", "--outputs", "summary", "--view")
    answer = run(
        "infer",
        root / "slides" / "one.tiff",
        "--model",
        root / "results.safetensors",
        *line,
        *PLAIN,
    )
    assert answer.exit_code == 0
    assert (tmp_path / "r" / "one" / "summary.json").is_file()
