"""Known labels, errors and corrections in a real browser, up to a training with them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import (
    IN_BROWSER,
    Watched,
    known_map,
    open_viewer,
    picture_of,
    set_slider,
    viewport,
    wait_for,
    watch_list,
)
from tests.commands import run
from tests.serve.test_annotations import box, write_labels
from tests.serve.test_viewer import CONTRASTS, NAMELESS
from tests.served import TOKEN, replace_probabilities, run_server
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.store.patches import PatchStore

pytestmark = IN_BROWSER


@pytest.fixture
def desk(browser: Browser, served_root: Path, tmp_path: Path) -> Iterator[tuple[Watched, Path]]:
    """A person's own server over `known_map`; known: rows 0 to 4 are positive, 5 to 9 negative.

    Of 60 cells above, one was not assessed and 4 are called; of 60 below, 4 are called: 3 that
    touch (row 6) and one (row 9).
    """
    root = tmp_path / "served"
    shutil.copytree(served_root, root)
    replace_probabilities(root / "results", "one", known_map())
    write_labels(
        root / "slides" / "one.geojson",
        positive=box(0, 0, 600, 250),
        negative=box(0, 250, 600, 500),
    )
    settings = ServeSettings(
        results=(root / "results",),
        slides=root / "slides",
        token=TOKEN,
        decoders=1,
        reviewer="ann",
    )
    with run_server(settings) as (origin, _), watch_list(browser, origin) as watched:
        yield watched, root


def test_errors_are_visited_by_key(desk: tuple[Watched, Path]) -> None:
    page = open_viewer(desk[0])
    expect(page.locator("#outcomes li")).to_have_text(
        [
            " true positive: 4",
            " false positive: 4",
            " false negative: 55",
            " true negative: 56",
        ]
    )
    page.keyboard.press("e")
    expect(page.locator("#error")).to_have_text("error 1 of 3: 55 patches, false negative (missed)")
    page.keyboard.press("e")
    expect(page.locator("#error")).to_have_text(
        "error 2 of 3: 3 patches, false positive (called positive, but it is not)"
    )
    assert viewport(page)[:2] == [325, 325]  # columns 5 to 7, row 6, cells of 50 px
    expect(page.locator("#patch-text")).to_contain_text("row 6, column 5")
    page.keyboard.press("E")
    page.keyboard.press("E")
    expect(page.locator("#error")).to_contain_text("error 3 of 3: 1 patch")
    assert viewport(page)[:2] == [575, 475]
    set_slider(page, "threshold", 0.92)
    expect(page.locator("#outcomes li").nth(1)).to_have_text(" false positive: 1")


GREYS = """([x, y]) => { const view = viewer.views[0];
  const [px, py] = view.toScreen(x, y).map(Math.round);
  const { data } = view.canvas.getContext('2d').getImageData(px, py, 16, 16);
  return Array.from({ length: 256 }, (_, i) =>
    0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]); }"""


def test_the_four_outcomes_stay_apart_without_colour(desk: tuple[Watched, Path]) -> None:
    """In grey, 16 × 16 screen pixels of each, of which two repeats of a pattern: each has its own
    lines, by how many pixels differ from those of the slide alone, and where.
    """
    page = open_viewer(desk[0], "/slides/one#l=showTruth")
    wait_for(page, "viewer.tiles.isIdle")
    places = {"TP": [75, 75], "FP": [325, 325], "FN": [325, 75], "TN": [75, 425]}

    def greys() -> dict[str, np.ndarray]:
        picture_of(page)
        return {
            name: np.array(page.evaluate(GREYS, place)).reshape(16, 16)
            for name, place in places.items()
        }

    shown = greys()
    page.keyboard.press("Space")
    bare = greys()
    changed = {name: np.abs(shown[name] - bare[name]) > 25 for name in places}
    assert 0 < changed["TN"].mean() < 0.2 < changed["TP"].mean()
    patterns = [changed[name][:8, :8] for name in ("TP", "FP", "FN")]
    for one in range(3):
        for other in range(one):
            shifts = [
                np.roll(patterns[other], (dy, dx), (0, 1)) for dy in range(8) for dx in range(8)
            ]
            assert min(np.mean(patterns[one] != each) for each in shifts) > 0.15


def drag_around(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    places = page.evaluate(
        """(corners) => { const box = byId('first').getBoundingClientRect();
        return corners.map((corner) => { const [x, y] = viewer.views[0].toScreen(...corner);
          return [box.x + x, box.y + y]; }); }""",
        corners,
    )
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def saved(root: Path) -> list[Any]:
    path = root / "results" / "corrections" / "one.geojson"
    value = json.loads(path.read_text())
    return [each["properties"]["classification"]["name"] for each in value["features"]]


def test_a_correction_is_drawn_saved_and_trained_on(desk: tuple[Watched, Path]) -> None:
    watched, root = desk
    page = open_viewer(watched, "/slides/one#l=showCorrections")
    page.keyboard.press("a")
    expect(page.locator("#draw-positive")).to_have_attribute("aria-pressed", "true")
    drag_around(page, 100, 100, 300, 300)
    expect(page.locator("#corrected")).to_have_text("negative: 0, 0 mm² · positive: 1, 0.01 mm²")
    page.keyboard.press("b")
    drag_around(page, 350, 100, 550, 400)
    expect(page.locator("#corrected-regions li")).to_have_count(2)
    assert saved(root) == ["positive", "negative"]
    page.keyboard.press("Escape")
    page.keyboard.press("z")
    expect(page.locator("#corrected-regions li")).to_have_count(1)
    page.locator("#corrected-regions button").nth(1).click()  # relabel
    expect(page.locator("#corrected")).to_contain_text("negative: 1, 0.01 mm²")
    page.keyboard.press("z")
    page.keyboard.press("b")
    drag_around(page, 350, 100, 550, 400)
    expect(page.locator("#corrected-regions li")).to_have_count(2)
    lines = page.locator("#training-lines").inner_text().splitlines()
    assert lines[0] == "wsi tile SLIDES --out stores --labels results/corrections"
    told = run(
        *("tile", root / "slides" / "one.tiff", "-o", root / "stores", "--workers", 0),
        *("--mpp", 0.5, "--min-tissue", 0, "--labels", root / "results" / "corrections"),
    )
    assert told.exit_code == 0, told.output
    counts = np.bincount(PatchStore(root / "stores" / "one.patches.zarr").labels + 1, minlength=3)
    assert counts[1] == pytest.approx(24, abs=4)  # 4 × 6 patches of 50 px
    assert counts[2] == pytest.approx(16, abs=4)
    told = run(
        *(
            "train",
            root / "stores",
            "--out",
            root / "model",
            "--split",
            "random",
            "--i-know-this-leaks",
        ),
        *("--arch", "idc_cnn", "--epochs", 1, "--batch-size", 8, "--device", "cpu"),
    )
    assert told.exit_code == 0, told.output
    assert (root / "model" / "model.safetensors").is_file()


def test_errors_and_regions_become_corrections_by_a_click(desk: tuple[Watched, Path]) -> None:
    watched, root = desk
    page = open_viewer(watched)
    page.keyboard.press("g")  # the strongest region: three cells of row 6
    page.click("#call-negative")
    expect(page.locator("#corrected")).to_contain_text("negative: 1, 0.00187 mm²")
    page.keyboard.press("e")
    page.click("#call-positive")
    expect(page.locator("#corrected-regions li")).to_have_count(2)
    assert sorted(saved(root)) == ["negative", "positive"]


def test_corrections_start_from_the_labels_and_need_no_pointer(
    desk: tuple[Watched, Path],
) -> None:
    watched, _ = desk
    page = open_viewer(watched)
    page.click("#copy-labels")
    expect(page.locator("#corrected")).to_have_text(
        "negative: 1, 0.0375 mm² · positive: 1, 0.0375 mm²"
    )
    page.evaluate("viewer.viewport.set(200, 100, 1.2)")
    page.keyboard.press("x")
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):  # 100 px each
        page.keyboard.press("Enter")
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.keyboard.press("f")
    expect(page.locator("#corrected")).to_contain_text("positive: 1, 0.035 mm²")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["/slides/one", "/review/r0/one#training"])
def test_what_a_person_writes_with_stands_out_and_has_names(
    desk: tuple[Watched, Path], scheme: Any, address: str
) -> None:
    watched, _ = desk
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    open_viewer(watched, address)
    if address == "/slides/one":
        page.click("#copy-labels")
        expect(page.locator("#corrected-regions li")).to_have_count(2)
        page.keyboard.press("a")
    assert page.evaluate(CONTRASTS) == []
    assert page.evaluate(NAMELESS) == []
