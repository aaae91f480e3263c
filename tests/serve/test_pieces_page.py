"""Pieces of tissue in a real browser: numbers at them, figures of each, ways to go there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import (
    IN_BROWSER,
    Watched,
    open_viewer,
    picture_of,
    set_slider,
    viewport,
    wait_for,
    watch_list,
)
from tests.builders import PINK, make_checkpoint, paint, write_model, write_png, write_slide
from tests.commands import PLAIN, run
from tests.serve.test_viewer import CONTRASTS, NAMELESS
from tests.served import TOKEN, connect, replace_probabilities, run_server
from wsi_pipeline.serve.settings import ServeSettings

pytestmark = IN_BROWSER

PIECES = ((100, 100, 300, 300), (500, 100, 800, 300), (100, 500, 500, 800))
"""x0, y0, x1, y1 in pixels of 2 µm: 0.16, 0.24 and 0.48 mm² of 16, 24 and 48 patches."""
SPECKS = ((700, 500, 800, 600), (700, 700, 800, 800))
"""0.04 mm² and four patches each."""
ROWS = [
    ["1", "0.16", "16", "4", "25.0 %"],
    ["2", "0.24", "24", "0", "0.0 %"],
    ["3", "0.48", "48", "48", "100.0 %"],
    ["rest", "0.08", "8", "2", "25.0 %"],
]


def glass_map() -> np.ndarray:
    """Patches of 50 px on `PIECES` and `SPECKS`: the first column of piece 1, all of piece 3 and
    half of a speck are positive.
    """
    probability = np.full((18, 18), np.nan, dtype=np.float32)
    for x0, y0, x1, y1 in (*PIECES, *SPECKS):
        probability[y0 // 50 : y1 // 50, x0 // 50 : x1 // 50] = 0.1
    probability[2:6, 2] = probability[10:16, 2:10] = probability[10:12, 14] = 0.9
    return probability


def mask_of(boxes: tuple[tuple[int, int, int, int], ...]) -> np.ndarray:
    mask = np.zeros((900, 900), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 255
    return mask


@pytest.fixture(scope="module")
def glass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the slides `glass`, of three pieces and specks; `single`, of the first piece;
    and `old`, which holds no mask.
    """
    root = tmp_path_factory.mktemp("glass")
    boxes = {"glass": (*PIECES, *SPECKS), "single": PIECES[:1], "old": PIECES}
    for name, drawn in boxes.items():
        mask = mask_of(drawn)
        pixels = paint(900, 900, (244, 244, 244))
        pixels[mask > 0] = PINK
        write_slide(root / "slides" / f"{name}.tiff", pixels, mpp=2.0)
        write_png(root / "masks" / f"{name}.png", mask)
    model = write_model(root / "model.safetensors", make_checkpoint(mpp=2.0))
    made = run(
        *("infer", root / "slides", "--model", model, "--out", root / "results", *PLAIN),
        *("--mask", root / "masks", "--outputs", "summary", "--workers", 0),
    )
    assert made.exit_code == 0, made.output
    replace_probabilities(root / "results", "glass", glass_map())
    replace_probabilities(root / "results", "old", glass_map(), has_tissue=False)
    settings = ServeSettings(
        results=(root / "results",), slides=root / "slides", token=TOKEN, decoders=1
    )
    with run_server(settings) as (origin, _):
        yield origin


@pytest.fixture
def seen(browser: Browser, glass: str) -> Iterator[Watched]:
    with watch_list(browser, glass) as watched:
        yield watched


@pytest.fixture
def page(seen: Watched) -> Page:
    return open_viewer(seen, "/slides/glass")


def shown_rows(page: Page) -> list[list[str]]:
    return [row.locator("th, td").all_text_contents() for row in page.locator("#pieces tr").all()]


def numbers_on_the_slide(page: Page) -> dict[int, list[float]]:
    """Level-0 place under each number that is drawn."""
    picture_of(page)
    found: list[dict[str, float]] = page.evaluate(
        """(() => { const [view] = viewer.views;
        const context = view.canvas.getContext('2d');
        context.font = PIECE_FONT;
        return view.display.showPieces ? viewer.piecesPanel.layers[0].placeLabels(context, view)
          .map(({ number, x, y }) => ({ number, place: view.toSlide(x, y + LABEL_HIGH_PX) })) : [];
        })()"""
    )
    return {int(each["number"]): each["place"] for each in found}  # type: ignore[misc]


def middle(number: int) -> list[float]:
    x0, y0, x1, y1 = PIECES[number - 1]
    return [(x0 + x1) / 2, (y0 + y1) / 2]


def test_the_table_has_the_figures_of_each_piece_and_the_rest_together(page: Page) -> None:
    assert shown_rows(page) == ROWS


def test_the_table_counts_the_patches_that_the_share_is_of(page: Page) -> None:
    figures = page.evaluate(
        """(() => { const [piece] = viewer.piecesPanel.pieces;
        const row = viewer.piecesPanel._drawRow({ ...piece, patches: 40, assessed: 16 });
        return [...row.cells].map((cell) => cell.textContent); })()"""
    )
    assert figures == ROWS[0]  # as of an estimate, where patches around the drawn ones do not count


def test_figures_follow_the_threshold(page: Page) -> None:
    set_slider(page, "threshold", 0.95)
    expect(page.locator("#pieces tr").nth(2).locator("td").last).to_have_text("0.0 %")
    assert [row[3] for row in shown_rows(page)] == ["0", "0", "0", "0"]


def test_a_number_stands_above_each_piece_and_at_no_speck(page: Page) -> None:
    found = numbers_on_the_slide(page)
    assert sorted(found) == [1, 2, 3]
    for number, (x, y) in found.items():
        x0, y0, x1, _ = PIECES[number - 1]
        assert x0 - 4 <= x <= x1 + 4
        assert y0 - 40 < y <= y0


def test_numbers_stay_above_their_pieces_when_the_slide_is_turned(page: Page) -> None:
    page.evaluate("viewer.viewport.set(450, 450, 0.5, 180)")
    for number, (_, y) in numbers_on_the_slide(page).items():
        assert y >= PIECES[number - 1][3]  # what was below is above


def test_a_number_stays_in_sight_within_its_piece(page: Page) -> None:
    page.evaluate("viewer.viewport.set(300, 650, 16)")  # 60 × 45 pixels within piece 3
    assert list(numbers_on_the_slide(page)) == [3]


def test_a_click_in_the_table_goes_to_the_piece(page: Page) -> None:
    page.locator("#pieces button", has_text="3").click()
    assert viewport(page)[:2] == middle(3)
    expect(page.locator("#piece")).to_have_text("Tissue 3: 0.48 mm², 48 of 48 patches positive")
    expect(page.locator("#pieces tr.current th")).to_have_text("3")
    page.locator("#pieces button", has_text="rest").click()
    assert viewport(page)[:2] == [750, 650]


def test_pieces_are_visited_by_key_forwards_and_backwards(page: Page) -> None:
    visited = []
    for key in ("j", "j", "J", "J", "J"):
        page.keyboard.press(key)
        visited.append(viewport(page)[:2])
    assert visited == [middle(1), middle(2), middle(1), [750, 650], middle(3)]


def test_enter_in_the_table_goes_there_and_stays_in_the_table(page: Page) -> None:
    page.locator("#pieces button", has_text="2").focus()
    page.keyboard.press("Enter")
    assert viewport(page)[:2] == middle(2)
    assert page.evaluate("document.activeElement.textContent") == "2"


def test_the_key_switches_outlines_and_the_link_keeps_it(seen: Watched, page: Page) -> None:
    wait_for(page, "viewer.tiles.isIdle")
    shown = picture_of(page)
    page.keyboard.press("i")
    expect(page.locator("#show-pieces")).not_to_be_checked()
    assert picture_of(page) != shown
    hidden = page.url.removeprefix(seen.origin)
    page.click("#show-pieces")
    assert picture_of(page) == shown
    page.goto("about:blank")
    open_viewer(seen, hidden)
    expect(page.locator("#show-pieces")).not_to_be_checked()
    assert shown_rows(page) == ROWS


def test_under_the_pointer_stands_the_piece(page: Page) -> None:
    page.evaluate("viewer.viewport.set(650, 200, 1)")
    box = page.locator("#first").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#place")).to_contain_text("Tissue 2 · probability 0.100")
    page.evaluate("viewer.viewport.set(400, 400, 1)")
    page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2)
    expect(page.locator("#place")).not_to_contain_text("Tissue")


def test_a_single_piece_is_listed_but_outlined_only_when_asked_for(seen: Watched) -> None:
    page = open_viewer(seen, "/slides/single")
    assert [row[:2] for row in shown_rows(page)] == [["1", "0.16"]]
    assert numbers_on_the_slide(page) == {}
    page.keyboard.press("i")
    assert list(numbers_on_the_slide(page)) == [1]


def test_results_without_a_mask_show_no_pieces(seen: Watched) -> None:
    page = open_viewer(seen, "/slides/old")
    expect(page.locator("#pieces-section")).to_be_hidden()
    before = viewport(page)
    for key in ("j", "J", "i"):
        page.keyboard.press(key)
    assert viewport(page) == before


def test_the_report_numbers_pieces_and_switches_them(
    browser: Browser, glass: str, tmp_path: Path
) -> None:
    page = browser.new_page()
    watched = Watched(page, "file:").watch()
    for name in ("glass", "old"):
        with connect(glass) as client:
            content = client.get(f"/api/v1/slides/{name}/report.html").content
        (tmp_path / f"{name}.html").write_bytes(content)
    page.goto((tmp_path / "glass.html").as_uri())
    expect(page.locator("#show-pieces")).to_be_checked()
    areas = page.evaluate("reportView.scene.layers[0].numbered.map((one) => one.area_mm2)")
    assert areas == pytest.approx([0.16, 0.24, 0.48])
    draw = "reportView._draw(), reportView.canvas.toDataURL()"
    shown = page.evaluate(draw)
    page.click("#show-pieces")
    assert page.evaluate(draw) != shown
    page.goto((tmp_path / "old.html").as_uri())
    expect(page.locator("#pieces-choice")).to_be_hidden()
    page.close()
    assert watched.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_table_stands_out_and_its_controls_have_names(
    seen: Watched, page: Page, scheme: Any
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.keyboard.press("j")
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate(NAMELESS) == []
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.run(page, options=rules).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def test_on_a_phone_a_tap_goes_to_the_piece(browser: Browser, glass: str) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with watch_list(browser, glass, **options) as watched:
        page = open_viewer(watched, "/slides/glass")
        page.locator("#pieces button", has_text="2").tap()
        assert viewport(page)[:2] == middle(2)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("byId('pieces').scrollWidth <= byId('pieces-section').clientWidth")
