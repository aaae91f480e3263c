"""The browser, and a server whose every number is known."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browsing import CHROMIUM, Watched, known_map, watch_list
from tests.served import TOKEN, replace_probabilities, run_server
from wsi_pipeline.serve.services import Services
from wsi_pipeline.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(
    served_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Services]]:
    root = tmp_path_factory.mktemp("browser") / "served"
    shutil.copytree(served_root, root)
    replace_probabilities(root / "results", "one", known_map())
    replace_probabilities(root / "other", "one", np.full((10, 12), 0.8, dtype=np.float32))
    settings = ServeSettings(
        results=(root / "results", root / "other"), slides=root / "slides", token=TOKEN, decoders=1
    )
    with run_server(settings) as running:
        yield running


@pytest.fixture
def watched(browser: Browser, server: tuple[str, Services]) -> Iterator[Watched]:
    with watch_list(browser, server[0], accept_downloads=True) as watched:
        yield watched
