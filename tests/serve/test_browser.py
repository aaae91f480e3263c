"""The pages in a real browser: what a person does, and that nothing is fetched from elsewhere and
nothing fails.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browsing import (
    CHROMIUM,
    IN_BROWSER,
    PATIENCE_MS,
    Watched,
    open_viewer,
    picture_of,
    set_slider,
    viewport,
    wait_for,
    watch_list,
)
from tests.runs.test_unlike_slides import infer_with_domain
from tests.served import TOKEN, replace_probabilities, run_server, wait_until
from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.counting.context import average_context
from wsi_pipeline.counting.review_file import read_review, review_path
from wsi_pipeline.counting.training_calls import list_training_calls
from wsi_pipeline.outputs.heatmap import build_heatmap
from wsi_pipeline.outputs.report_html import write_report
from wsi_pipeline.outputs.result import SlideResult
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.serve.services import Services
from wsi_pipeline.serve.settings import ServeSettings
from wsi_pipeline.store.slide_results import open_result

pytestmark = IN_BROWSER


def test_from_the_list_to_a_restored_view(watched: Watched) -> None:
    page = watched.page
    expect(page.locator("#rows tr")).to_have_count(2)
    page.click("#rows a:text-is('one')")
    page.wait_for_selector("body[data-ready=yes]")
    expect(page.locator("#count")).to_have_text("8 of 119 patches positive (6.7 %)")
    expect(page.locator("#area")).to_have_text(
        "0.005 of 0.0744 mm² assessed"
    )  # 8 and 119 times 0.025²
    scale = viewport(page)[2]
    page.mouse.move(400, 400)
    page.mouse.wheel(0, -400)
    wait_for(page, f"viewer.viewport.scale > {1.5 * scale}")
    set_slider(page, "threshold", 0.7)
    expect(page.locator("#count")).to_have_text("4 of 119 patches positive (3.4 %)")
    expect(page.locator("#region-count")).to_have_text("2 regions at 0.700, strongest first")
    page.click("#next")
    assert viewport(page)[:2] == [325, 325]  # columns 5 to 7, row 6, cells of 50 px
    page.click("#next")
    assert viewport(page)[:2] == [575, 475]
    expect(page.locator("#patch-text")).to_contain_text(
        "row 9, column 11: probability 0.9500, positive"
    )
    link = page.url
    place = viewport(page)
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("body[data-ready=yes]")
    assert viewport(page) == pytest.approx(place, rel=1e-4)
    expect(page.locator("#threshold-value")).to_have_text("0.700")
    expect(page.locator("#count")).to_have_text("4 of 119 patches positive (3.4 %)")
    expect(page.locator("#patch-text")).to_contain_text("row 9, column 11")


def test_the_pointer_tells_probability_and_place(watched: Watched) -> None:
    page = open_viewer(watched)
    x, y = page.evaluate("""(() => { const box = byId('first').getBoundingClientRect();
        const [x, y] = viewer.views[0].toScreen(325, 330);
        return [box.x + x, box.y + y]; })()""")
    page.mouse.move(x, y)
    expect(page.locator("#place")).to_have_text(
        re.compile(r"probability 0\.900 · x 16[23] µm, y 16[45] µm")
    )
    page.mouse.click(x, y)
    expect(page.locator("#patch-text")).to_contain_text(
        "row 6, column 6: probability 0.9000, positive; 50 px at 0.5 µm/px"
    )
    wait_for(page, "byId('patch').naturalWidth === 50")


def test_keys_switch_every_layer_and_move(watched: Watched) -> None:
    page = open_viewer(watched)
    wait_for(page, "viewer.tiles.isIdle")
    before = picture_of(page)
    for key, box in (
        ("h", "show-map"),
        ("r", "show-regions"),
        ("m", "show-tissue"),
    ):
        was = page.locator(f"#{box}").is_checked()
        page.keyboard.press(key)
        expect(page.locator(f"#{box}")).to_be_checked(checked=not was)
        assert picture_of(page) != before, box
        page.keyboard.press(key)
        assert picture_of(page) == before, box
    x, y, scale = viewport(page)
    page.keyboard.press("ArrowRight")
    assert viewport(page)[0] > x
    page.keyboard.press("+")
    assert viewport(page)[2] == pytest.approx(1.5 * scale)
    page.keyboard.press("0")
    assert viewport(page) == pytest.approx([x, y, scale])
    page.keyboard.press("g")
    assert viewport(page)[:2] == [325, 325]
    page.keyboard.press(".")
    expect(page.locator("#threshold-value")).to_have_text("0.510")
    page.keyboard.press("t")
    expect(page.locator("#threshold-value")).to_have_text("0.500")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()


def test_the_map_lies_where_its_cells_are(watched: Watched) -> None:
    page = open_viewer(watched)
    set_slider(page, "opacity", 1)
    page.select_option("#mode", "everything")
    page.keyboard.press("r")
    wait_for(page, "viewer.tiles.isIdle")
    picture_of(page)
    colours = page.evaluate("""[[325, 325], [75, 75], [575, 475], [425, 425]].map(([x, y]) => {
            const [px, py] = viewer.views[0].toScreen(x, y);
            return [...viewer.views[0].canvas.getContext('2d').getImageData(px, py, 1,
            1).data].slice(0, 3);
        })""")
    from wsi_pipeline.outputs.colormaps import colour_table

    wanted = [
        colour_table()[int(np.float32(value) * 256)].tolist() for value in (0.9, 0.6, 0.95, 0.1)
    ]
    assert colours == wanted


def test_tiles_are_drawn_where_the_slide_has_them(
    watched: Watched, server: tuple[str, Services]
) -> None:
    from tests.served import read_level0

    page = open_viewer(watched)
    page.keyboard.press("h")
    page.keyboard.press("r")
    page.keyboard.press("1")
    wait_for(
        page, "viewer.viewport.scale === 1 && viewer.tiles.isIdle && viewer.tiles.loaded.size > 3"
    )
    picture_of(page)
    shown = np.array(
        page.evaluate(
            """(() => { const [px, py] = viewer.views[0].toScreen(200, 210).map(Math.round);
            const context = viewer.views[0].canvas.getContext('2d');
            return [...context.getImageData(px, py, 60, 60).data]; })()"""
        )
    ).reshape(60, 60, 4)[..., :3]
    pixels = read_level0(server[1].settings.slides / "one.tiff").astype(int)  # type: ignore[operator]
    errors = [
        np.abs(shown - pixels[210 + dy : 270 + dy, 200 + dx : 260 + dx]).mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    assert min(errors) < 8


def test_two_results_stand_side_by_side_and_move_together(watched: Watched) -> None:
    page = open_viewer(watched, "/slides/one#p=6.6")
    width, scale = page.evaluate("[viewer.views[0].width, viewer.viewport.scale]")
    page.select_option("#with", label="other")
    expect(page.locator("#second")).to_be_visible()
    expect(page.locator("#patch-text")).to_contain_text("results: probability 0.9000, positive")
    expect(page.locator("#patch-text")).to_contain_text("other: probability 0.8000, positive")
    wait_for(
        page, f"Math.abs(viewer.viewport.scale / {scale} - viewer.views[0].width / {width}) < 1e-6"
    )  # what was in sight still is
    set_slider(page, "threshold", 0.7)
    page.click("#reset-second")
    expect(page.locator("#threshold-value")).to_have_text("0.500")
    both = (
        "results: 8 of 119 patches positive (6.7 %)\nother: 120 of 120 patches positive (100.0 %)"
    )
    expect(page.locator("#count")).to_have_text(both)
    assert page.evaluate("viewer.views[0].viewport === viewer.views[1].viewport")
    assert page.evaluate("viewer.views.every((view) => view.width > 300)")
    link = page.url
    page.goto("about:blank")
    open_viewer(watched, link.removeprefix(watched.origin))
    expect(page.locator("#second")).to_be_visible()


def test_small_groups_do_not_count_here_either(
    watched: Watched, server: tuple[str, Services]
) -> None:
    results = server[1].settings.results[0]
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[1:3, 1:3] = 0.6
    probability[9, 11] = 0.95  # a cell of 0.000625 mm² by itself
    replace_probabilities(results, "two", probability, min_region_mm2=0.0012)
    summary = read_summary(results / "two")
    assert (summary.positives, summary.positive_regions, summary.positives_left_out) == (4, 1, 1)
    page = open_viewer(watched, "/slides/two#p=9.11")
    expect(page.locator("#count")).to_have_text("4 of 120 patches positive (3.3 %)")
    expect(page.locator("#area")).to_have_text(
        "0.0025 of 0.075 mm² assessed; 1 more in groups below 0.0012 mm² do not count"
    )
    expect(page.locator("#region-count")).to_have_text("1 region at 0.500, strongest first")
    expect(page.locator("#patch-text")).to_contain_text(
        "probability 0.9500, at the threshold, but in a group too small to count"
    )
    set_slider(page, "threshold", 0.7)
    expect(page.locator("#count")).to_have_text("0 of 120 patches positive (0.0 %)")
    expect(page.locator("#region-count")).to_have_text("no region reaches the threshold")


def test_the_patch_shows_its_probability_alone_beside_that_with_context(
    watched: Watched, server: tuple[str, Services]
) -> None:
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[5, 5] = 0.9
    replace_probabilities(server[1].settings.results[0], "two", probability, context_um=25.0)
    logits = average_context(Calibration().undo(probability), 1.0)
    shown = float(Calibration().apply(logits)[5, 5])
    assert shown < 0.3
    page = open_viewer(watched, "/slides/two#p=5.5")
    wanted = f"probability {shown:.4f}, alone 0.9000, negative"
    expect(page.locator("#patch-text")).to_contain_text(wanted)


def test_the_view_is_saved_as_png(watched: Watched, tmp_path: Path) -> None:
    page = open_viewer(watched)
    with page.expect_download() as started:
        page.click("#save")
    started.value.save_as(tmp_path / "view.png")
    with Image.open(tmp_path / "view.png") as image:
        assert image.format == "PNG"
        assert image.size[0] == page.evaluate("viewer.views[0].canvas.width")


def test_results_that_change_on_disk_are_shown(
    watched: Watched, server: tuple[str, Services]
) -> None:
    results = server[1].settings.results[0]
    page = open_viewer(watched, "/slides/two")
    changed = np.full((10, 12), 0.3, dtype=np.float32)
    changed[4, 4:9] = 0.9
    replace_probabilities(results, "two", changed)
    expect(page.locator("#count")).to_have_text("5 of 120 patches positive (4.2 %)")


def test_the_list_is_searched_filtered_and_sorted(watched: Watched) -> None:
    page = watched.page
    expect(page.locator("#rows tr")).to_have_count(2)
    page.fill("#search", "TW")
    expect(page.locator("#rows a")).to_have_text(["two"])
    page.fill("#search", "")
    page.select_option("#state", "zero")
    expect(page.locator("#empty")).to_be_visible()
    page.select_option("#state", "")
    page.click("th button:text-is('slide')")
    expect(page.locator("#rows a")).to_have_text(["one", "two"])
    page.click("th button:text-is('slide')")
    expect(page.locator("#rows a")).to_have_text(["two", "one"])
    wait_for(page, "[...document.images].every((image) => image.naturalWidth > 20)")


@pytest.mark.parametrize("width", [1280, 1920])
def test_nothing_is_cut_off(watched: Watched, width: int) -> None:
    watched.page.set_viewport_size({"width": width, "height": 800 if width == 1280 else 1080})
    page = open_viewer(watched)
    assert page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth &&"
        " document.documentElement.scrollHeight <= innerHeight"
    )
    assert page.evaluate("byId('first').clientWidth") > 0.7 * width


def test_the_rest_page_opens_without_a_network(watched: Watched) -> None:
    watched.page.goto(watched.origin + "/docs")
    expect(watched.page.get_by_text("/api/v1/predict").first).to_be_visible()


def test_the_report_opens_from_a_file_and_counts(
    browser: Browser, server: tuple[str, Services], tmp_path: Path
) -> None:
    folder = server[1].settings.results[0] / "one"
    predictions = open_result(folder)
    write_report(
        SlideResult(predictions.table, build_heatmap(predictions), read_summary(folder)), tmp_path
    )
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    watched = Watched(page, "file:").watch()
    page.goto((tmp_path / "report.html").as_uri())
    expect(page.locator("#count")).to_have_text("8 of 119 patches positive (6.7 %)")
    set_slider(page, "threshold", 0.92)
    expect(page.locator("#count")).to_have_text("1 of 119 patches positive (0.8 %)")
    page.click("#next")
    expect(page.locator("#region")).to_have_text("1 of 3: 0.00187 mm², mean 0.90, highest 0.90")
    assert page.evaluate("[reportPort.x, reportPort.y]") == [325, 325]
    page.close()
    assert watched.faults == []


def test_view_opens_the_browser_and_lets_it_in(served_root: Path, tmp_path: Path) -> None:
    # The browser that BROWSER names keeps whoever starts it waiting until it has ended, as some do.
    shutil.copytree(served_root / "results", tmp_path / "results")
    browser, seen = tmp_path / "browser", tmp_path / "seen.html"
    options = (
        f'--headless --no-sandbox --disable-gpu --user-data-dir="{tmp_path}/profile"'
        " --virtual-time-budget=5000 --dump-dom"
    )
    browser.write_text(
        f'#!/bin/sh\n"{CHROMIUM}" {options} "$1" > "{seen}.part" && mv "{seen}.part" "{seen}"\n'
    )
    browser.chmod(0o755)
    command = [
        sys.executable,
        "-c",
        "from wsi_cli.main import wsi; wsi()",
        "view",
        str(tmp_path / "results"),
    ]
    with subprocess.Popen(
        command,
        env=os.environ | {"BROWSER": str(browser)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as view:
        try:
            wait_until(seen.exists, PATIENCE_MS / 1000)
        finally:
            view.send_signal(signal.SIGINT)
        told = view.communicate(timeout=30)[1]
    assert '<a class="name" href="/slides/one">one</a>' in seen.read_text()
    assert (view.returncode, b"Traceback" in told) == (0, False)
    assert told.endswith(b"\nstopped\n")


@pytest.fixture
def reviewed(browser: Browser, served_root: Path, tmp_path: Path) -> Iterator[tuple[Watched, Path]]:
    """The list of slides of one reviewer, and the results under it; rows 5 to 9 look positive."""
    root = tmp_path / "served"
    shutil.copytree(served_root, root)
    rising = np.linspace(0.01, 0.99, 120, dtype=np.float32).reshape(10, 12)
    replace_probabilities(root / "results", "one", rising)
    settings = ServeSettings(
        results=(root / "results",), token=TOKEN, decoders=1, reviewer="ann", review_patches=10
    )
    with run_server(settings) as (origin, _), watch_list(browser, origin) as watched:
        yield watched, root / "results"


def shown_place(page: Page) -> tuple[int, int]:
    """Row and column of the patch that is shown, by the address of its image."""
    address = page.locator("#patch").get_attribute("src") or ""
    match = re.search(r"/patches/(\d+)/(\d+)\.jpg", address)
    assert match is not None
    return int(match[1]), int(match[2])


def test_a_slide_is_reviewed_by_keys_alone(reviewed: tuple[Watched, Path]) -> None:
    watched, results = reviewed
    page = watched.page
    page.focus(".review-link")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready=yes]")
    expect(page.locator("#progress")).to_have_text("0 of 10")
    expect(page.locator("#question")).to_have_text("Is the outlined patch positive?")
    expect(page.locator("#estimate")).to_have_text("after a few answers more")
    called: dict[int, bool] = {}
    keys = {True: ("1", "p", "ArrowRight"), False: ("0", "n", "ArrowLeft")}
    for done in range(10):
        row, col = shown_place(page)
        wait_for(page, "byId('patch').complete && byId('patch').naturalWidth === 250")
        called[12 * row + col] = row >= 5
        page.keyboard.press(keys[row >= 5][done % 3])
        expect(page.locator("#progress")).to_have_text(f"{done + 1} of 10")
    expect(page.locator("#done")).to_have_text("All 10 patches are called. Press m for more.")
    file = review_path(results, "one")
    review = read_review(file)
    assert review.calls_of("ann") == called
    found = review.estimate
    assert found is not None
    expect(page.locator("#estimate")).to_have_text(
        f"about {found.estimate:.0f} patches ({found.low:.0f} to {found.high:.0f}) of 120"
    )
    needed = f"± 20 % needs about {review.patches_needed()} more"
    expect(page.locator("#needed")).to_have_text(needed)
    page.keyboard.press("Backspace")
    expect(page.locator("#progress")).to_have_text("9 of 10")
    assert 12 * shown_place(page)[0] + shown_place(page)[1] == list(called)[-1]
    assert list(read_review(file).calls_of("ann")) == list(called)[:-1]
    page.keyboard.press("m")
    expect(page.locator("#last")).to_have_text("more patches were drawn")
    assert read_review(file).wanted > 10


def test_two_tabs_of_a_reviewer_go_on_from_each_other(reviewed: tuple[Watched, Path]) -> None:
    watched, results = reviewed
    one, other = watched.page, watched.page.context.new_page()
    for page in (one, other):
        page.goto(f"{watched.origin}/review/r0/one")
        page.wait_for_selector("body[data-ready=yes]")
    place = shown_place(one)
    assert shown_place(other) == place
    one.keyboard.press("1")
    expect(one.locator("#progress")).to_have_text("1 of 10")
    other.keyboard.press("0")  # of the patch that the first tab has called
    expect(other.locator("#message")).to_contain_text("has called this patch otherwise")
    expect(other.locator("#progress")).to_have_text("1 of 10")
    assert shown_place(other) == shown_place(one)
    calls = read_review(review_path(results, "one")).calls_of("ann")
    assert calls == {12 * place[0] + place[1]: True}


def test_reviewing_says_what_it_does_to_a_screen_reader(reviewed: tuple[Watched, Path]) -> None:
    watched, _ = reviewed
    page = watched.page
    page.goto(f"{watched.origin}/review/r0/one")
    page.wait_for_selector("body[data-ready=yes]")
    row, col = shown_place(page)
    expect(page.get_by_role("img")).to_have_accessible_name(
        f"The outlined patch of 25 µm, row {row}, column {col}, among its neighbours"
    )
    page.keyboard.press("p")
    expect(page.locator("#last")).to_have_text(f"called positive: row {row}, column {col}")
    assert page.locator("#last").get_attribute("aria-live") == "polite"
    page.get_by_role("button", name="undo").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#last")).to_have_text(f"undone: row {row}, column {col}")


def test_the_viewer_marks_a_slide_unlike_the_training_patches(
    browser: Browser, tmp_path: Path
) -> None:
    infer_with_domain(tmp_path, ("--outputs", "summary"))
    settings = ServeSettings(
        results=(tmp_path / "results",), slides=tmp_path / "slides", token=TOKEN, decoders=1
    )
    with run_server(settings) as (origin, _):
        context = browser.new_context()
        page = context.new_page()
        watched = Watched(page, origin).watch()
        page.goto(f"{origin}/?token={TOKEN}")
        expect(page.locator("tr", has_text="negative")).to_contain_text("colour and features")
        for slide, words, is_marked in (
            ("negative", "unlike the training patches: colour", True),
            ("like", "within the limits of the training patches: colour", False),
        ):
            page.goto(f"{origin}/slides/{slide}")
            expect(page.locator("#distance")).to_contain_text(words)
            marked = page.locator("#distance").evaluate("one => one.classList.contains('warning')")
            assert marked == is_marked
        context.close()
    assert watched.faults == []


def test_the_second_queue_trains_and_counts_nothing(reviewed: tuple[Watched, Path]) -> None:
    watched, results = reviewed
    page = watched.page
    page.goto(f"{watched.origin}/review/r0/one")
    page.wait_for_selector("body[data-ready=yes]")
    page.keyboard.press("q")
    expect(page.locator("#for-training")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#why")).to_have_text("This patch is one of the most probable patches.")
    assert shown_place(page) == (9, 11)
    page.keyboard.press("0")
    expect(page.locator("#progress")).to_have_text("1 called")
    expect(page.locator("#hard")).to_have_text("0 positive, 1 negative; 1 hard negative")
    expect(page.locator("#spent")).to_have_text(re.compile(r"1 patch in \d\.\d min"))
    expect(page.locator("#train-lines")).to_contain_text("wsi label stores --reviews results")
    (calls,) = list_training_calls(results)
    assert calls.labels == {119: False}
    assert not review_path(results, "one").exists()
    page.keyboard.press("u")
    expect(page.locator("#progress")).to_have_text("0 called")
    page.keyboard.press("q")
    expect(page.locator("#progress")).to_have_text("0 of 10")
