"""`--watch`: slides are run as they come, each when it is still."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import make_checkpoint, tissue, write_model, write_slide
from tests.commands import PLAIN, run
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.outcome import RunAccount, SlideOutcome, SlideState
from wsi_pipeline.runs.watch import LOCK, Watched, read_names
from wsi_pipeline.store.lock import hold_lock

OLD = (1_000_000_000, 1_000_000_000)
"""Times of a file that was written long ago."""


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def put(folder: Path, name: str, seed: int = 0, *, is_old: bool = False) -> Path:
    path = write_slide(folder / f"{name}.tiff", tissue(300, 200, seed), mpp=4.0)
    if is_old:
        os.utime(path, OLD)
    return path


def watch(folder: Path) -> tuple[Watched, Clock]:
    folder.mkdir(exist_ok=True)
    clock = Clock()
    return Watched([folder], clock=clock), clock


def look(watched: Watched) -> list[str]:
    return [slide.slide_id for slide in watched.take_still()]


def end(watched: Watched, state: SlideState, *, by_machine: bool = False) -> list[str]:
    """Take what is still and say how it ended; return the names."""
    slides = watched.take_still()
    outcomes = (
        SlideOutcome(
            *(slide.slide_id, str(slide.path.absolute()), state, ""),
            is_environment_fault=by_machine,
        )
        for slide in slides
    )
    watched.note(slides, RunAccount(tuple(outcomes)))
    return [slide.slide_id for slide in slides]


def test_old_slides_are_run_at_once_and_young_ones_after_a_minute(tmp_path: Path) -> None:
    put(tmp_path / "in", "old", is_old=True)
    put(tmp_path / "in", "young")
    watched, clock = watch(tmp_path / "in")
    assert end(watched, SlideState.OK) == ["old"]
    clock.now += 30
    assert end(watched, SlideState.OK) == []
    clock.now += 31
    assert end(watched, SlideState.OK) == ["young"]


def test_a_new_slide_waits_a_minute_whatever_its_file_says(tmp_path: Path) -> None:
    watched, clock = watch(tmp_path / "in")
    assert look(watched) == []
    put(tmp_path / "in", "moved", is_old=True)
    assert look(watched) == []
    clock.now += 59
    assert look(watched) == []
    clock.now += 1
    assert look(watched) == ["moved"]


def test_a_slide_that_grows_begins_its_minute_again(tmp_path: Path) -> None:
    watched, clock = watch(tmp_path / "in")
    look(watched)
    path = put(tmp_path / "in", "grows")
    look(watched)
    clock.now += 50
    with path.open("ab") as stream:
        stream.write(b"more")
    assert look(watched) == []
    clock.now += 50
    assert look(watched) == []
    clock.now += 10
    assert look(watched) == ["grows"]


def test_every_file_of_a_slide_must_be_still(tmp_path: Path) -> None:
    watched, clock = watch(tmp_path / "in")
    look(watched)
    (tmp_path / "in" / "a").mkdir()
    (tmp_path / "in" / "a.mrxs").write_text("a")
    look(watched)
    clock.now += 59
    (tmp_path / "in" / "a" / "Data0001.dat").write_text("more")
    assert look(watched) == []
    clock.now += 59
    assert look(watched) == []
    clock.now += 1
    assert look(watched) == ["a"]


def test_a_failed_slide_is_tried_again_when_its_file_changes(tmp_path: Path) -> None:
    path = put(tmp_path / "in", "broken", is_old=True)
    watched, clock = watch(tmp_path / "in")
    assert end(watched, SlideState.FAILED) == ["broken"]
    clock.now += 1000
    assert end(watched, SlideState.FAILED) == []
    os.utime(path, (1, 1))
    assert end(watched, SlideState.FAILED) == []
    clock.now += 60
    assert end(watched, SlideState.OK) == ["broken"]


def test_a_slide_that_failed_by_the_machine_is_tried_again_after_ten_minutes(
    tmp_path: Path,
) -> None:
    put(tmp_path / "in", "one", is_old=True)
    watched, clock = watch(tmp_path / "in")
    assert end(watched, SlideState.FAILED, by_machine=True) == ["one"]
    clock.now += 599
    assert look(watched) == []
    clock.now += 1
    assert look(watched) == []  # it is seen again, and must be still
    clock.now += 60
    assert look(watched) == ["one"]


def test_a_failed_slide_is_tried_again_when_it_was_away(tmp_path: Path) -> None:
    path = put(tmp_path / "in", "one", is_old=True)
    watched, clock = watch(tmp_path / "in")
    assert end(watched, SlideState.FAILED) == ["one"]
    path.rename(tmp_path / "away.tiff")
    assert look(watched) == []
    (tmp_path / "away.tiff").rename(path)
    assert look(watched) == []
    clock.now += 60
    assert look(watched) == ["one"]


def test_a_slide_that_was_away_when_it_failed_is_tried_again(tmp_path: Path) -> None:
    path = put(tmp_path / "in", "one", is_old=True)
    watched, clock = watch(tmp_path / "in")
    slides = watched.take_still()
    path.rename(tmp_path / "away.tiff")
    failed = SlideOutcome("one", str(path), SlideState.FAILED, "no such file")
    watched.note(slides, RunAccount((failed,)))
    (tmp_path / "away.tiff").rename(path)
    assert look(watched) == []
    clock.now += 60
    assert look(watched) == ["one"]


def test_a_finished_slide_that_is_replaced_is_run_once_more(tmp_path: Path) -> None:
    path = put(tmp_path / "in", "one", is_old=True)
    watched, clock = watch(tmp_path / "in")
    assert end(watched, SlideState.OK) == ["one"]
    os.utime(path, (2, 2))
    assert look(watched) == []
    clock.now += 60
    assert end(watched, SlideState.FAILED) == ["one"]
    clock.now += 1000
    assert look(watched) == []


def test_a_slide_keeps_its_name_when_another_of_that_name_comes(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a", "one", is_old=True)
    clock = Clock()
    watched = Watched([tmp_path / "in"], recursive=True, clock=clock)
    assert end(watched, SlideState.FAILED) == ["one"]
    other = put(tmp_path / "in" / "b", "one", 1)
    os.utime(tmp_path / "in" / "a" / "one.tiff", (2, 2))
    look(watched)
    clock.now += 60
    first, second = look(watched)
    assert (first, second[:4], len(second)) == ("one", "one-", 12)
    other.unlink()
    assert look(watched) == ["one"]


def test_a_watch_that_begins_again_goes_on_with_the_names_of_its_results(tmp_path: Path) -> None:
    first = put(tmp_path / "in" / "a", "one", is_old=True)
    out = tmp_path / "out"
    assert run("tile", first, "-o", out, "--mpp", 4, "--workers", 0).exit_code == 0
    put(tmp_path / "in" / "b", "one", 1, is_old=True)
    watched = Watched([tmp_path / "in"], recursive=True, names=read_names(out), clock=Clock())
    assert look(watched)[0] == "one"
    (tmp_path / "in").rename(tmp_path / "moved")
    first.parent.parent.mkdir()
    (tmp_path / "moved" / "a").rename(tmp_path / "in" / "c")
    moved = Watched([tmp_path / "in"], recursive=True, names=read_names(out), clock=Clock())
    assert look(moved) == ["one"]


def test_a_folder_that_is_away_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched, _ = watch(tmp_path / "in")
    look(watched)
    for _ in range(2):
        (tmp_path / "in").rename(tmp_path / "away")
        look(watched)
        look(watched)
        (tmp_path / "away").rename(tmp_path / "in")
        look(watched)
    assert caplog.text.count("it is looked for again") == 2


def test_a_folder_that_is_away_for_a_while_is_looked_for_again(tmp_path: Path) -> None:
    put(tmp_path / "in", "one", is_old=True)
    watched, clock = watch(tmp_path / "in")
    assert end(watched, SlideState.OK) == ["one"]
    (tmp_path / "in").rename(tmp_path / "away")
    assert look(watched) == []
    (tmp_path / "away").rename(tmp_path / "in")
    put(tmp_path / "in", "two")
    assert look(watched) == []
    clock.now += 60
    assert look(watched) == ["two"]


def test_a_folder_that_is_not_there_at_first_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        Watched([tmp_path / "nowhere"]).take_still()


@pytest.mark.parametrize(
    ("others", "flag"),
    [(("--dry-run",), "--dry-run"), (("--shard", "1/2"), "--shard")],
)
@pytest.mark.parametrize("command", ["infer", "tile"])
def test_what_makes_no_sense_with_a_watch_is_refused(
    command: str, others: tuple[str, ...], flag: str, tmp_path: Path
) -> None:
    ended = run(command, tmp_path, "-o", tmp_path / "out", "--watch", *others)
    assert (ended.exit_code, f"leave {flag} out" in ended.output) == (2, True)


def test_a_sheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_text("wsi\n")
    ended = run("infer", "--sheet", tmp_path / "sheet.csv", "--watch")
    assert (ended.exit_code, "leave --sheet out" in ended.output) == (2, True)


def test_a_second_watch_is_refused_by_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(mpp=4.0))
    put(tmp_path / "in", "one")
    out = tmp_path / "out"
    with hold_lock(out / LOCK):
        ended = run("infer", tmp_path / "in", "-m", model, "-o", out, "--watch", *PLAIN)
        assert ended.exit_code == 5
        assert f"{out}: another --watch writes there (process {os.getpid()} on" in ended.output
        assert [path.name for path in out.iterdir()] == [".wsi"]


def test_a_watch_is_no_slide_under_way(tmp_path: Path) -> None:
    put(tmp_path / "in", "one")
    where = ("tile", tmp_path / "in", "-o", tmp_path / "out", "--mpp", 4, "--workers", 0)
    assert run(*where).exit_code == 0
    with hold_lock(tmp_path / "out" / LOCK):
        assert "under way: 0" in run("status", tmp_path / "out").output


# --- processes

QUICK = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " from wsi_pipeline.runs import watch; watch.STILL_S, watch.LOOK_S = 2.0, 0.2;"
    " from wsi_cli.main import wsi; wsi()"
)
"""The command with a short patience."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder / "model.safetensors", make_checkpoint(mpp=4.0))


@contextmanager
def watching(*words: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", QUICK, *map(str, words), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(is_so: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.05)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def infer_words(tmp_path: Path, model: Path) -> tuple[object, ...]:
    outputs = ("--outputs", "summary,csv", *PLAIN)
    return ("infer", tmp_path / "in", "-m", model, "-o", tmp_path / "out", *outputs)


@pytest.mark.system
def test_a_watch_from_its_first_slide_to_ctrl_c(
    shared_data: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    first, second = ("idc_8863_mosaic", "idc_8865_mosaic")
    content = {n: (shared_data / "slides" / f"{n}.tiff").read_bytes() for n in (first, second)}
    (tmp_path / "in" / f"{first}.tiff").write_bytes(content[first])
    os.utime(tmp_path / "in" / f"{first}.tiff", OLD)
    table, failures = tmp_path / "out" / "slides.csv", tmp_path / "out" / "failures.csv"
    disk = ("--stage", tmp_path / "disk")
    with watching(*infer_words(tmp_path, model), *disk) as process:
        wait_until(lambda: first in read(table))
        # Written slowly: in pieces, for longer than a slide must be still.
        with (tmp_path / "in" / f"{second}.tiff").open("wb") as stream:
            for start in range(0, len(content[second]), 1_000_000):
                stream.write(content[second][start : start + 1_000_000])
                stream.flush()
                time.sleep(0.8)
        (tmp_path / "in" / "bad.svs").write_text("nothing")
        wait_until(lambda: second in read(table) and "bad" in read(failures))
        time.sleep(3)  # longer than it takes to try again
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "3 slides: 2 ok, 1 failed" in said
    assert [said.count(f"\n{name}: ok") for name in (first, second)] == [1, 1]
    assert (said.count("\nfailed: "), said.count("model wide_resnet")) == (1, 1)
    assert "truncated" not in said
    assert not (tmp_path / "out" / ".wsi").exists()
    assert list((tmp_path / "disk").iterdir()) == []
    plain = run(*infer_words(tmp_path, model)[:-6], "-o", tmp_path / "plain", *PLAIN)
    assert plain.exit_code == 3
    assert read(tmp_path / "plain" / "slides.csv") == read(table)
    assert read(tmp_path / "plain" / "failures.csv") == read(failures)


@pytest.mark.system
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)]
)
def test_ended_while_a_slide_runs(number: int, model: Path, tmp_path: Path) -> None:
    put(tmp_path / "in", "one", is_old=True)
    write_slide(tmp_path / "in" / "two.tiff", tissue(5000, 4000), mpp=4.0)
    os.utime(tmp_path / "in" / "two.tiff", OLD)
    with watching(*infer_words(tmp_path, model)) as process:
        wait_until(lambda: "slide ended" in read(tmp_path / "out" / "events.jsonl"))
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    assert (process.returncode, "1 slide: 1 ok" in said) == (0, True)
    assert "one,one,ok" in read(tmp_path / "out" / "slides.csv")
    with watching(*infer_words(tmp_path, model)) as process:
        wait_until(lambda: "two,two,ok" in read(tmp_path / "out" / "slides.csv"))
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    assert (process.returncode, "2 slides: 2 ok" in said) == (0, True)


@pytest.mark.system
def test_workers_stay_between_slides(model: Path, tmp_path: Path) -> None:
    put(tmp_path / "in", "one", is_old=True)
    with watching(*infer_words(tmp_path, model)) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: "one" in read(tmp_path / "out" / "slides.csv"))
        before = children.read_text()
        put(tmp_path / "in", "two", 1)
        wait_until(lambda: "two" in read(tmp_path / "out" / "slides.csv"))
        assert (children.read_text(), before.split() != []) == (before, True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


@pytest.mark.system
def test_tile_watches_too(tmp_path: Path) -> None:
    put(tmp_path / "in", "one", is_old=True)
    where = ("tile", tmp_path / "in", "-o", tmp_path / "out", "--mpp", 4)
    with watching(*where) as process:
        wait_until(lambda: (tmp_path / "out" / "one.patches.zarr").exists())
        (tmp_path / "in" / "bad.svs").write_text("nothing")
        put(tmp_path / "in", "two", 1)
        wait_until(lambda: (tmp_path / "out" / "two.patches.zarr").exists())
        wait_until(lambda: "bad" in read(tmp_path / "out" / "failures.csv"))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert (process.returncode, "3 slides: 2 ok, 1 failed" in said) == (3, True)


@pytest.mark.system
def test_a_watch_that_saw_no_slide(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with watching(*infer_words(tmp_path, model)) as process:
        wait_until(lambda: (tmp_path / "out" / ".wsi" / "locks" / f"{LOCK}.lock").exists())
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert (process.returncode, "0 slides" in said, "nothing to do" in said) == (0, True, False)
