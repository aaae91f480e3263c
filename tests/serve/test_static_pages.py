"""Pages that open from a file, in a real browser: nothing is cut, everything can be read."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import IN_BROWSER, Watched
from tests.builders import make_training_stores
from tests.commands import run
from tests.outputs.test_outputs import CASES, make_result
from tests.readable import find_cut, find_pale
from wsi_pipeline.outputs.run_files import read_finished, write_index, write_slides_tables

pytestmark = IN_BROWSER
SIZES = [(1280, 800), (390, 844)]


def open_index(browser: Browser, results: Path, size: tuple[int, int], scheme: Any) -> Watched:
    for number, case in enumerate(("mixed", "nothing positive", "no patches")):
        make_result(results, f"case-with-a-long-name-{number}", CASES[case], ("summary", "overlay"))
    write_slides_tables(results, read_finished(results).summaries)
    viewport: Any = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    watched = Watched(page, "file:").watch()
    page.goto(write_index(results).as_uri())
    return watched


def names_of(page: Page) -> list[str]:
    names: list[str] = page.locator("#slides tbody tr:visible td:first-child").all_inner_texts()
    return [name[-1] for name in names]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["wide", "phone"])
def test_the_index_is_cut_nowhere_and_readable(
    browser: Browser, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    watched = open_index(browser, tmp_path, size, scheme)
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert find_cut(watched.page) == []
    assert find_pale(watched.page) == []
    assert watched.faults == []
    watched.page.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a short training; evaluation.html has the same template."""
    folder = tmp_path_factory.mktemp("trained")
    words = ("--epochs", 1, "--batch-size", 16, "--device", "cpu", "--arch", "wide_resnet_10_1")
    stores = make_training_stores(folder / "stores")
    done = run("train", stores, "--out", folder / "model", "--precision", "fp32", *words)
    assert done.exit_code == 0, done.output
    return folder / "model" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["wide", "phone"])
def test_a_report_of_figures_is_cut_nowhere_and_readable(
    browser: Browser, report: Path, size: tuple[int, int], scheme: Any
) -> None:
    viewport: Any = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert find_pale(page) == []
    page.close()


def test_the_index_sorts_and_filters_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    watched = open_index(browser, tmp_path, SIZES[0], "light")
    page = watched.page
    page.focus("th button:text-is('patches')")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert names_of(page) == ["2", "0", "1"]
    page.fill("#name", "name-1")
    assert names_of(page) == ["1"]
    expect(page.locator("th button:text-is('µm/px')")).to_be_hidden()
    page.focus("#all")
    page.keyboard.press("Space")
    expect(page.locator("th button:text-is('µm/px')")).to_be_visible()
    assert watched.faults == []
    page.close()
