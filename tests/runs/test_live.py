"""Figures of a run under way: written now and then, believed while the run lives, removed after."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run
from wsi_pipeline.core.outcome import SlideOutcome, SlideState
from wsi_pipeline.runs.events import (
    ProgressFile,
    log_events,
    read_events,
    read_progress,
    remove_dead_progress,
)
from wsi_pipeline.runs.status import LiveRun, read_live

DEAD = 2**22 + 1
"""No process has this number: Linux counts to 2²² at most."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def look(folder: Path) -> LiveRun:
    live = read_live(folder, read_events(folder))
    assert live is not None
    return live


def write_figures(folder: Path, name: str = "progress.json", **others: Any) -> Path:
    """The figures of a run of this process, unless others are given."""
    who = {"run": "a", "process": os.getpid(), "host": socket.gethostname(), "at": time.time()}
    path = folder / ".wsi" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(who | others))
    return path


def test_figures_are_written_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    progress = ProgressFile(tmp_path / ".wsi" / "progress.json", "a", clock)
    for now, patches in ((0.0, 1), (0.9, 2), (1.0, 3)):
        clock.now = now
        progress.show({"patches_done": patches})
        shown = 1 if now < 1 else 3
        assert read_progress(tmp_path)[0]["patches_done"] == shown


def test_a_run_leaves_no_figures(tmp_path: Path) -> None:
    with suppress(RuntimeError), log_events(tmp_path, "infer", 3, {}):
        assert look(tmp_path).is_under_way
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
    live = look(tmp_path)
    assert (live.is_under_way, live.ending, live.slides, live.rate) == (False, "stopped", 3, None)


def test_figures_that_cannot_be_written_stop_no_run(tmp_path: Path) -> None:
    (tmp_path / ".wsi").write_text("a file in the place of the folder")
    with log_events(tmp_path, "infer", 1, {}) as events:
        events.progress.show({"slides": 1})
    assert (tmp_path / ".wsi").is_file()


def test_figures_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results" / ".wsi").symlink_to(tmp_path / "elsewhere")
    with log_events(tmp_path / "results", "infer", 1, {}):
        assert list((tmp_path / "elsewhere").iterdir()) == []


def test_failures_come_with_their_reasons_and_without_paths(tmp_path: Path) -> None:
    with log_events(tmp_path, "infer", 2, {}) as events:
        for slide, state in (("a", SlideState.OK), ("b", SlideState.FAILED)):
            path = f"/patients/mueller/{slide}.svs"
            events.slide_ended(SlideOutcome(slide, path, state, f"{path}: broken"), {})
        live = look(tmp_path)
    assert [(failure.slide_id, failure.reason) for failure in live.failures] == [("b", "broken")]
    assert (live.slides, live.slides_ended) == (2, 2)


def test_shares_of_an_array_job_are_added_up(tmp_path: Path) -> None:
    with log_events(tmp_path, "infer", 2, {}, ".1-of-2"):
        write_figures(tmp_path, "progress.1-of-2.json", slides=2, rate=100.0, seconds_left=5.0)
        write_figures(tmp_path, "progress.2-of-2.json", slides=3, rate=50.0, seconds_left=9.0)
        live = look(tmp_path)
    assert (live.slides, live.rate, live.seconds_left) == (5, 150.0, 9.0)
    assert live.patches_expected is None


@pytest.mark.parametrize(
    ("figures", "is_believed"),
    [
        ({}, True),
        ({"process": DEAD}, False),
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "at": 0.0}, False),
        ({"process": "many"}, False),
    ],
    ids=["alive", "killed", "elsewhere and new", "elsewhere and old", "no number"],
)
def test_figures_are_believed_while_their_run_lives(
    figures: dict[str, Any], is_believed: bool, tmp_path: Path
) -> None:
    write_figures(tmp_path, **figures)
    assert bool(read_progress(tmp_path)) == is_believed


@pytest.mark.parametrize("text", ["", "[1]", "{" * 2000, '{"host": NaN}'])
def test_what_is_no_record_of_figures_is_skipped(text: str, tmp_path: Path) -> None:
    write_figures(tmp_path).write_text(text)
    assert read_progress(tmp_path) == []


def test_clean_removes_the_figures_of_a_killed_run(tmp_path: Path) -> None:
    write_figures(tmp_path, process=DEAD)
    assert run("clean", tmp_path).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_figures_of_a_living_run_are_left(tmp_path: Path) -> None:
    path = write_figures(tmp_path)
    remove_dead_progress(tmp_path)
    assert path.exists()
