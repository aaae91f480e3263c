"""The page that tunes how a slide is cut, in a real browser: it decides as `wsi tile` does."""

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import IN_BROWSER, Watched, set_slider
from tests.builders import tissue, write_slide
from tests.commands import run
from tests.readable import find_cut, find_pale
from wsi_pipeline.store.patches import PatchStore

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preview of a slide of 1,200 × 900 px at 2 µm/px with tissue, glass and a green stroke."""
    root = tmp_path_factory.mktemp("tiling")
    pixels = np.full((900, 1200, 3), 244, dtype=np.uint8)
    pixels[100:800, 150:1000] = tissue(850, 700, seed=1)
    pixels[300:380, 200:900] = (40, 150, 80)
    pixels[600:800, 700:1000] = pixels[600:800, 700:1000].mean(axis=(0, 1))  # smooth as if blurred
    write_slide(root / "my slide.tiff", pixels, mpp=2.0)
    line = ("--mpp", 2, "--stride", 25, "--workers", 0, "--tissue", "otsu", "--mask-mpp", 4)
    place = (root / "my slide.tiff", "--out", root / "o")
    answer = run("tile", *place, *line, "--dry-run", "--preview")
    assert answer.exit_code == 0, answer.output
    return root


@pytest.fixture
def page(browser: Browser, made: Path) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    watched = Watched(page, "file:").watch()
    page.goto(next((made / "o").glob("*.preview.html")).as_uri())
    expect(page.locator("#kept")).to_contain_text("kept")
    yield page
    page.close()
    assert watched.faults == []


def kept(page: Page) -> int:
    return int(page.locator("#kept").inner_text().split()[0].replace(",", ""))


def cut(page: Page, out: Path) -> int:
    """Patches in the store that the page's command line makes."""
    words = shlex.split(page.locator("#command").inner_text())
    assert words[:2] == ["wsi", "tile"]
    words[words.index("--out") + 1] = str(out)
    answer = run(*words[1:], "--workers", 0)
    assert answer.exit_code == 0, answer.output
    return PatchStore(next(out.glob("*.patches.zarr"))).table.patches


def test_as_given_the_page_says_what_tile_cuts(page: Page, made: Path, tmp_path: Path) -> None:
    assert kept(page) == cut(page, tmp_path / "o") > 100


@pytest.mark.parametrize(
    ("sliders", "dropped"),
    [
        ({"min_tissue": 0.83}, ()),
        ({"min_tissue": 0.1, "max_pen": 0.31}, ("pen",)),
        ({"min_sharpness": 20}, ("blur",)),
        ({"min_tissue": 0.05, "max_pen": 0, "min_sharpness": 10}, ("pen", "blur")),
    ],
    ids=["tissue", "pen", "blur", "all"],
)
def test_the_command_line_gives_as_many_patches_as_the_page_says(
    sliders: dict[str, float], dropped: tuple[str, ...], page: Page, tmp_path: Path
) -> None:
    before = kept(page)
    for name in dropped:
        page.check(f"#drop-{name}")
    for name, value in sliders.items():
        set_slider(page, name, value)
    assert kept(page) != before
    assert kept(page) == cut(page, tmp_path / "o")


@pytest.mark.parametrize("step", [1, 3, 5])
def test_so_do_the_steps_of_the_mask(step: int, page: Page, tmp_path: Path) -> None:
    page.locator("#step").select_option(index=step)
    assert kept(page) == cut(page, tmp_path / "o")


def test_the_funnel_adds_up(page: Page) -> None:
    page.check("#drop-pen")
    rows = [
        [cell.replace(",", "") for cell in row.locator("td").all_inner_texts()]
        for row in page.locator("#funnel tr").all()
    ]
    assert [row[0] for row in rows] == [
        "positions on the grid",
        "too little tissue",
        "pen ink",
        "kept",
    ]
    assert int(rows[0][2]) == 35 * 47  # (900 − 50) / 25 + 1 rows, (1200 − 50) / 25 + 1 columns
    assert int(rows[2][1]) > 0
    for above, row in itertools.pairwise(rows[:3]):
        assert int(above[2]) - int(row[1]) == int(row[2])
    assert int(rows[3][2]) == kept(page)


COLORS = {"kept": (0, 158, 115), "pen": (204, 121, 167), "tissue": (85, 85, 85)}


@pytest.mark.parametrize("reason", COLORS)
def test_each_patch_is_framed_in_the_colour_of_its_reason(reason: str, page: Page) -> None:
    page.check("#drop-pen")
    seen = page.evaluate(
        """(name) => {
            const patch = reasons.findIndex((one) => REASONS[one].name === name);
            const [x, y] = placeOf(patch).map(Math.round);
            const pixel = byId('picture').getContext('2d').getImageData(x, y + 8, 1, 1).data;
            return [...pixel].slice(0, 3);
        }""",
        reason,
    )
    away = {name: np.abs(np.subtract(seen, color)).sum() for name, color in COLORS.items()}
    assert min(away, key=lambda name: away[name]) == reason


def test_a_patch_under_the_pointer_says_what_was_measured(page: Page) -> None:
    page.locator("#picture").hover()
    expect(page.locator("#place")).to_contain_text("tissue")
    expect(page.locator("#place")).to_contain_text("sharpness")


def test_as_given_can_be_had_again(page: Page) -> None:
    before = (kept(page), page.locator("#command").inner_text())
    set_slider(page, "min_tissue", 0.9)
    page.locator("#step").select_option(index=1)
    page.focus("#reset")
    page.keyboard.press("Enter")
    assert (kept(page), page.locator("#command").inner_text()) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_cut_nowhere_and_readable(
    browser: Browser, made: Path, width: int, scheme: Any
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(next((made / "o").glob("*.preview.html")).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert find_cut(page) == []
    assert find_pale(page) == []
    page.close()


def test_a_dry_run_alone_writes_nothing(made: Path, tmp_path: Path) -> None:
    line = ("--mpp", 2, "--tissue", "otsu", "--out", tmp_path / "o", "--dry-run")
    answer = run("tile", made / "my slide.tiff", *line)
    assert answer.exit_code == 0, answer.output
    assert "patches\n" in answer.output
    assert answer.output.endswith("nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_preview_needs_a_dry_run(made: Path) -> None:
    assert run("tile", made / "my slide.tiff", "--preview").exit_code == 2
