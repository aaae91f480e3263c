"""A real browser for the tests of pages: what a person does on them, and what should not be."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.served import TOKEN, wait_until

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
IN_BROWSER = [
    pytest.mark.system,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine; apt install chromium"
    ),
]
"""Marks of a module whose tests need it."""
PATIENCE_MS = 60_000


def known_map() -> np.ndarray:
    """12 × 10 cells of 0.025 mm: eight at or above 0.5, four at or above 0.7, one at or above 0.92;
    one not assessed.
    """
    probability = np.full((10, 12), 0.1, dtype=np.float32)
    probability[1:3, 1:3] = 0.6  # mean · area 2.4
    probability[6, 5:8] = 0.9  # 2.7: the strongest region
    probability[9, 11] = 0.95  # 0.95
    probability[0, 11] = np.nan
    return probability


@dataclass
class Watched:
    """A page, and everything on it that should not have been."""

    page: Page
    origin: str
    faults: list[str] = field(default_factory=list)

    def watch(self) -> "Watched":
        allowed = (self.origin, "data:", "blob:")

        def blame(is_fault: bool, words: str) -> None:
            if is_fault:
                self.faults.append(words)

        self.page.on(
            "request",
            lambda request: blame(not request.url.startswith(allowed), f"external: {request.url}"),
        )
        self.page.on(
            "response", lambda answer: blame(answer.status >= 400, f"{answer.status}: {answer.url}")
        )
        self.page.on("pageerror", lambda error: blame(True, f"script: {error}"))
        self.page.on(
            "console", lambda message: blame(message.type == "error", f"console: {message.text}")
        )
        return self


@contextmanager
def watch_list(browser: Browser, origin: str, **options: Any) -> Iterator[Watched]:
    """The list of slides in a window of its own, in which nothing may fail; `options` are of
    Playwright's contexts.
    """
    settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}} | options
    context = browser.new_context(**settings)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    watched = Watched(context.new_page(), origin).watch()
    watched.page.goto(f"{origin}/?token={TOKEN}")
    yield watched
    context.close()
    assert watched.faults == []


def open_viewer(watched: Watched, address: str = "/slides/one") -> Page:
    watched.page.goto(watched.origin + address)
    watched.page.wait_for_selector("body[data-ready=yes]")
    return watched.page


def set_slider(page: Page, name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def wait_for(page: Page, expression: str) -> None:
    """Wait until a script's expression is true; Playwright's own way polls with eval, which the
    content policy forbids.
    """
    wait_until(lambda: page.evaluate(expression), PATIENCE_MS / 1000)


def viewport(page: Page) -> list[float]:
    place: list[float] = page.evaluate(
        "[viewer.viewport.x, viewer.viewport.y, viewer.viewport.scale]"
    )
    return place


def picture_of(page: Page) -> Any:
    return page.evaluate(
        "(async () => { await nextFrame(); await nextFrame(); return"
        " viewer.views[0].canvas.toDataURL(); })()"
    )
