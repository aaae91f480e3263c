"""The viewer in a real browser: colours, angle, measuring, touch, themes, contrast, keyboard."""

from collections.abc import Iterator
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
from wsi_pipeline.core.choices import COLORMAPS
from wsi_pipeline.outputs.colormaps import FAINTEST, colour_table
from wsi_pipeline.serve.services import Services

pytestmark = IN_BROWSER

BELOW, ABOVE = [425, 425], [325, 325]
"""Places on cells of 0.1 and of 0.9."""
CELL_09 = int(np.float32(0.9) * 256)


def colour_at(page: Page, place: list[int]) -> list[int]:
    """RGB that the screen shows over a level-0 place."""
    picture_of(page)
    found: list[int] = page.evaluate(
        """([x, y]) => { const view = viewer.views[0];
        const [px, py] = view.toScreen(x, y).map(Math.floor);
        return [...view.canvas.getContext('2d').getImageData(px, py, 1, 1).data].slice(0, 3); }""",
        place,
    )
    return found


def open_quiet(watched: Watched) -> Page:
    """The viewer with all tiles loaded and without outlines."""
    page = open_viewer(watched, "/slides/one#l=showMap")
    wait_for(page, "viewer.tiles.isIdle")
    return page


def test_below_the_threshold_tissue_is_as_it_is_and_above_it_is_tinted(watched: Watched) -> None:
    page = open_quiet(watched)
    shown = [colour_at(page, place) for place in (BELOW, ABOVE)]
    page.keyboard.press("Space")
    bare = [colour_at(page, place) for place in (BELOW, ABOVE)]
    assert shown[0] == bare[0]
    share = 0.5 * (FAINTEST + (1 - FAINTEST) * (CELL_09 / 256 - 0.5) / 0.5)
    mixed = share * colour_table()[CELL_09] + (1 - share) * np.array(bare[1])
    assert np.abs(np.array(shown[1]) - mixed).max() <= 3


def test_everything_shows_the_cells_below_the_threshold_too(watched: Watched) -> None:
    page = open_quiet(watched)
    before = colour_at(page, BELOW)
    page.select_option("#mode", "everything")
    assert colour_at(page, BELOW) != before
    page.select_option("#mode", "positive")
    assert colour_at(page, BELOW) == before


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_white_is_where_the_threshold_is(watched: Watched, threshold: float) -> None:
    page = open_quiet(watched)
    page.select_option("#colormap", "blue-white-red")
    page.select_option("#mode", "everything")
    set_slider(page, "opacity", 1)
    set_slider(page, "threshold", threshold)
    table = colour_table("blue-white-red", threshold)
    for place, value in ((BELOW, 0.1), (ABOVE, 0.9)):
        wanted = table[int(np.float32(value) * 256)].astype(int)
        assert np.abs(colour_at(page, place) - wanted).max() <= 1


def test_every_colormap_is_chosen_in_the_list_or_by_key(watched: Watched) -> None:
    page = open_quiet(watched)
    assert page.locator("#colormap option").all_text_contents() == list(COLORMAPS)
    set_slider(page, "opacity", 1)
    page.keyboard.press("c")
    expect(page.locator("#colormap")).to_have_value(COLORMAPS[1])
    page.select_option("#colormap", "viridis")
    page.select_option("#mode", "positive")
    assert colour_at(page, ABOVE) == colour_table("viridis")[CELL_09].tolist()
    link = page.url.removeprefix(watched.origin)
    page.goto("about:blank")
    open_viewer(watched, link)
    expect(page.locator("#colormap")).to_have_value("viridis")


def test_the_space_bar_hides_everything_and_shows_it_again(watched: Watched) -> None:
    page = open_viewer(watched, "/slides/one#p=6.6")
    wait_for(page, "viewer.tiles.isIdle")
    page.click("#show-tissue")  # a click leaves the keyboard to the slide
    shown = picture_of(page)
    page.keyboard.press("Space")
    expect(page.locator("#bare")).to_have_attribute("aria-pressed", "true")
    hidden = picture_of(page)
    page.keyboard.press("Space")
    assert picture_of(page) == shown
    for name in ("h", "r", "m"):
        page.keyboard.press(name)
    page.evaluate("viewer.views[0].selected = null; viewer.redraw()")
    drawn = picture_of(page)
    page.keyboard.press("Space")
    assert picture_of(page) == drawn  # nothing was left to hide
    assert hidden != shown


def test_outlines_are_thin_far_away_and_stronger_near(watched: Watched) -> None:
    page = open_viewer(watched)
    widths = []
    for scale in (0.02, 1, 8):
        page.evaluate("(scale) => viewer.viewport.set(300, 250, scale)", scale)
        widths.append(page.evaluate("viewer.views[0].lineWidth"))
    assert widths == [1, 2.5, 3]  # patches of 50 px: a twentieth of their side, 1 to 3


def test_a_turned_view_shows_every_cell_in_its_place(watched: Watched) -> None:
    page = open_quiet(watched)
    page.select_option("#mode", "everything")
    set_slider(page, "opacity", 1)
    wanted = [colour_table()[int(np.float32(value) * 256)].tolist() for value in (0.9, 0.1)]
    for _ in range(2):
        page.keyboard.press("w")
    assert page.evaluate("viewer.viewport.angle") == 30
    assert [colour_at(page, ABOVE), colour_at(page, BELOW)] == wanted
    for _ in range(4):
        page.click("#turn-right")
    x, y = page.evaluate("viewer.views[0].toScreen(viewer.viewport.x + 10, viewer.viewport.y)")
    middle = page.evaluate("[viewer.views[0].width / 2, viewer.views[0].height / 2]")
    assert x == pytest.approx(middle[0])  # what was to the right is below
    assert y == pytest.approx(middle[1] + 10 * viewport(page)[2])
    assert [colour_at(page, ABOVE), colour_at(page, BELOW)] == wanted
    before = viewport(page)
    page.keyboard.press("ArrowDown")
    assert viewport(page)[0] > before[0]
    assert "a=90" in page.url
    page.keyboard.press("u")
    assert page.evaluate("viewer.viewport.angle") == 0


def click_at(page: Page, x: float, y: float) -> None:
    px, py = page.evaluate(
        """([x, y]) => { const box = byId('first').getBoundingClientRect();
        const [px, py] = viewer.views[0].toScreen(x, y);
        return [box.x + px, box.y + py]; }""",
        [x, y],
    )
    page.mouse.click(px, py)


def test_lengths_and_areas_are_measured(watched: Watched) -> None:
    """On a slide of 0.5 µm/px: 200 px are 100 µm, 200 × 100 px are 0.005 mm²."""
    page = open_viewer(watched)
    page.evaluate("viewer.viewport.set(300, 250, 2)")
    page.keyboard.press("d")
    click_at(page, 200, 200)
    click_at(page, 400, 200)
    expect(page.locator("#place")).to_have_text("length 100 µm")
    click_at(page, 400, 300)
    click_at(page, 200, 300)
    expect(page.locator("#place")).to_have_text("length 250 µm · area 0.005 mm²")
    page.keyboard.press("Backspace")
    expect(page.locator("#place")).to_have_text("length 150 µm · area 0.0025 mm²")
    page.keyboard.press("Escape")
    expect(page.locator("#measure")).to_have_attribute("aria-pressed", "false")


def test_measuring_needs_no_pointer(watched: Watched) -> None:
    page = open_viewer(watched)
    page.evaluate("viewer.viewport.set(300, 250, 2)")
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")  # 120 screen pixels are 60 px are 30 µm
    page.keyboard.press("Enter")
    expect(page.locator("#place")).to_have_text("length 30 µm")


def test_the_scale_is_said_as_um_per_pixel_and_as_magnification(watched: Watched) -> None:
    page = open_viewer(watched)
    words = page.evaluate("[0.5, 0.25, 8.1, 1 / 3].map(describeMagnification)")
    assert words == ["0.5 µm/px · 20x", "0.25 µm/px · 40x", "8.1 µm/px · 1.2x", "0.333 µm/px · 30x"]


def test_the_overview_map_moves_the_view(watched: Watched) -> None:
    page = open_viewer(watched)
    page.keyboard.press("+")
    box = page.locator("#overview").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert viewport(page)[:2] == pytest.approx([150, 250], abs=4)  # of 600 × 500 px
    page.keyboard.press("v")
    expect(page.locator("#overview")).to_be_hidden()


@pytest.fixture
def phone(browser: Browser, server: tuple[str, Services]) -> Iterator[Watched]:
    options: dict[str, Any] = {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
        "color_scheme": "dark",
    }
    with watch_list(browser, server[0], **options) as watched:
        yield watched


def test_on_a_phone_the_panel_is_below_and_nothing_is_cut(phone: Watched) -> None:
    page = open_viewer(phone)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    slide, panel = (page.locator(name).bounding_box() for name in ("#first", ".panel"))
    assert slide is not None
    assert panel is not None
    assert slide["width"] >= 385
    assert slide["height"] > 300
    assert panel["y"] >= slide["y"] + slide["height"]
    assert panel["y"] + panel["height"] <= 844
    small = page.evaluate(
        """[...document.querySelectorAll('.tools button, .panel button')]
        .filter((each) => each.offsetHeight && each.offsetHeight < 40 && !each.closest('li'))
        .map((each) => each.id)"""
    )
    assert small == []


def test_two_fingers_zoom_and_one_moves(phone: Watched) -> None:
    page = open_viewer(phone)
    before = viewport(page)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[int, int]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (180, 300))
    touch("touchStart", (180, 300), (220, 300))
    touch("touchMove", (160, 300), (240, 300))
    touch("touchEnd")
    wait_for(page, f"Math.abs(viewer.viewport.scale / {before[2]} - 2) < 0.05")
    at = viewport(page)
    touch("touchStart", (200, 300))
    touch("touchMove", (150, 300))
    touch("touchMove", (140, 300))
    touch("touchEnd")
    wait_for(page, f"viewer.viewport.x > {at[0]}")
    assert viewport(page)[2] == at[2]


CONTRASTS = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const mix = (top, under) => under.map((each, i) => each + ((top[3] ?? 1)) * (top[i] - each));
  const ground = (element) => {
    const chain = [];
    for (let each = element; each; each = each.parentElement)
      chain.push(numbers(getComputedStyle(each).backgroundColor));
    return chain.reverse().reduce((under, top) => mix(top, under), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.disabled) continue;
    const under = ground(element);
    const [one, other] = [mix(numbers(getComputedStyle(element).color), under), under].map(light);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName} ${element.textContent.trim()}: ${ratio}`);
  }
  return poor;
}"""
"""Texts whose contrast with their ground is below 4.5, by WCAG 2 (AA)."""

NAMELESS = """() => [...document.querySelectorAll('button, a, input, select, canvas, img')]
  .filter((each) => each.checkVisibility() && !each.ariaHidden)
  .filter((each) => !(each.ariaLabel || each.textContent.trim() || each.labels?.length
    || each.hasAttribute('alt') || each.title)).map((each) => each.outerHTML)"""
"""Controls and images that a screen reader could not name."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["/", "/slides/one#p=6.6", "/enter"])
def test_texts_stand_out_and_controls_have_names(
    watched: Watched, scheme: Any, address: str
) -> None:
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    if address.startswith("/slides"):
        open_viewer(watched, address)
        page.keyboard.press("?")
    else:
        page.goto(watched.origin + address)
        page.wait_for_load_state("networkidle")
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate(NAMELESS) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 23, 27)") == (scheme == "dark")


@pytest.mark.parametrize("address", ["/", "/slides/one#p=6.6"])
def test_axe_finds_nothing_against_wcag(watched: Watched, address: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    if address != "/":
        open_viewer(watched, address)
    watched.page.wait_for_load_state("networkidle")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.run(watched.page, options=rules).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def test_the_keyboard_reaches_every_control(watched: Watched) -> None:
    page = open_viewer(watched)
    page.keyboard.press("u")
    wanted = set(
        page.evaluate(
            """[...document.querySelectorAll('button, a, input, select')]
            .filter((each) => each.checkVisibility() && !each.disabled && each.id)
            .map((each) => each.id)"""
        )
    )
    reached = set()
    for _ in range(len(wanted) + 20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert wanted <= reached
