"""`wsi review`: what it refuses, what it opens, and what it says at the end."""

import getpass
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.commands import run
from wsi_pipeline.counting.review import Review, add_answer
from wsi_pipeline.counting.review_file import read_review, review_path, write_review
from wsi_pipeline.serve import server
from wsi_pipeline.serve.settings import ServeSettings


@pytest.fixture
def results(served_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(served_root / "results", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """The settings of every server that a command would have run."""
    seen: list[ServeSettings] = []
    monkeypatch.setattr(server, "run_server", lambda settings, announce: seen.append(settings))
    return seen


def review_all(results: Path, is_positive: Callable[[int], bool]) -> Review:
    """A review of every patch of `one`, as a reviewer leaves it."""
    from tests.served import TOKEN
    from wsi_pipeline.serve.services import open_services

    settings = ServeSettings(
        results=(results,), token=TOKEN, decoders=1, reviewer="ann", review_patches=1000
    )
    with open_services(settings) as services:
        entry = services.catalogue.find("one")
        assert entry is not None
        assert services.reviews is not None
        review = services.reviews.read(services.results.load(entry.results["r0"]))
    while following := review.list_open("ann"):
        review = add_answer(review, "ann", following[0], is_positive(following[0]))
    write_review(review_path(results, "one"), review)
    return review


def test_it_serves_this_machine_under_the_login_name(
    results: Path, served: list[ServeSettings]
) -> None:
    assert run("review", results, "--patches", 7).exit_code == 0
    (settings,) = served
    assert (settings.host, settings.reviewer, settings.review_patches, settings.start_page) == (
        "127.0.0.1",
        getpass.getuser(),
        7,
        "/",
    )
    assert settings.token


def test_a_named_slide_is_opened_itself(results: Path, served: list[ServeSettings]) -> None:
    assert run("review", results, "one", "--reviewer", "Ann M").exit_code == 0
    assert (served[0].start_page, served[0].reviewer) == ("/review/r0/one", "Ann M")


@pytest.mark.parametrize("name", ["three", "../results/one", "one/predictions.zarr"])
def test_a_slide_without_results_is_refused(
    name: str, results: Path, served: list[ServeSettings]
) -> None:
    refused = run("review", results, name)
    assert (refused.exit_code, served) == (1, [])
    assert f"has no slide '{name}'; name one of its folders" in refused.stderr


def test_a_reviewer_has_a_printable_name(results: Path, served: list[ServeSettings]) -> None:
    refused = run("review", results, "--reviewer", "a\x1b[2J")
    assert (refused.exit_code, served) == (1, [])
    assert "has a control character; give another --reviewer" in refused.stderr


def test_the_end_says_what_each_review_comes_to(results: Path, served: list[ServeSettings]) -> None:
    review = review_all(results, lambda number: number < 30)
    ended = run("review", results)
    assert ended.stdout == (
        f"one: about 30 of {review.patches} patches positive (30 to 30), {review.patches} reviewed"
        " by ann\n"
    )
    assert f"next: wsi label STORES --reviews {results}" in ended.stderr


def test_a_damaged_review_is_named_at_the_end(results: Path, served: list[ServeSettings]) -> None:
    path = review_path(results, "one")
    path.parent.mkdir()
    path.write_text(json.dumps({"kind": "wsi review", "format_version": 1}))
    ended = run("review", results)
    assert ended.exit_code == 1
    assert f"{path}: damaged" in ended.stderr


@pytest.mark.system
def test_answers_of_a_real_run_are_said_after_ctrl_c(results: Path) -> None:
    command = [sys.executable, "-c", "from wsi_cli.main import wsi; wsi()", "review"]
    with subprocess.Popen(
        [*command, str(results), "--no-open", "--reviewer", "ann", "--patches", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            address = re.fullmatch(r"→  (http://127\.0\.0\.1:\d+)/\?token=(.+)\n", said)
            assert address is not None
            headers = {"Authorization": f"Bearer {address[2]}"}
            with httpx.Client(base_url=address[1], headers=headers) as client:
                api = "/api/v1/reviews/r0/one"
                place = client.get(api).json()["upcoming"][0]
                answer = client.post(f"{api}/answers", json=place | {"is_positive": True})
            assert answer.json()["answered"] == 1
        finally:
            process.send_signal(signal.SIGINT)
        output, told = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in told) == (0, False)
    assert output == "one: 1 patches reviewed, too few for an estimate\n"
    assert len(read_review(review_path(results, "one")).answers["ann"]) == 1
