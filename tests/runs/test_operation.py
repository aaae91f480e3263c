"""What an operator sees: pace, the log of events, dry runs, status, doctor."""

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.infer import describe_bytes
from tests.builders import SMALL, make_checkpoint, paint, write_model, write_slide
from tests.commands import PLAIN, infer, plain_options, run
from wsi_pipeline.core.choices import EVENTS_JSONL, RUN_JSON
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.options import InferOptions
from wsi_pipeline.core.patch_table import PatchBlock
from wsi_pipeline.core.progress import describe_duration
from wsi_pipeline.evaluation.page import read_sources
from wsi_pipeline.models.choice import EngineRequest, Gpu
from wsi_pipeline.models.opening import resolve_engine
from wsi_pipeline.outputs import View
from wsi_pipeline.runs import doctor
from wsi_pipeline.runs.batch import Pace
from wsi_pipeline.runs.checks import (
    Check,
    Verdict,
    check_cpu,
    check_gpu,
    check_inodes,
    check_load,
    check_open_files,
    check_space,
    judge,
)
from wsi_pipeline.runs.doctor import Speed, examine_safely
from wsi_pipeline.runs.dry_run import preview_run
from wsi_pipeline.runs.events import EventLog, hide_path, log_events, read_events, to_plain
from wsi_pipeline.runs.reading_speed import measure_reading
from wsi_pipeline.runs.status import read_status
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.slides.patches import SlidePatches
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.plan import PreviewState
from wsi_pipeline.store.lock import hold_lock


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_pace(slides: int) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(slides, clock=clock), clock


def test_rate_shares_and_time_left_by_hand() -> None:
    pace, clock = make_pace(2)
    pace.open_slide(0, 1000)
    pace.open_slide(1, 500)
    clock.now += 10
    pace.add_block(600, read_s=6, compute_s=3, write_s=1)
    assert pace.rate == 60
    assert pace.shares == {"read": 0.6, "compute": 0.3, "write": 0.1}
    assert pace.seconds_left == 15  # 900 patches at 60 a second
    assert (
        pace.describe() == "0 of 2 slides, 60 patches/s, read 60% compute 30% write 10%, 15 s left"
    )


def test_slides_not_opened_are_taken_for_the_mean_of_the_others() -> None:
    pace, clock = make_pace(4)
    pace.open_slide(0, 1000)
    pace.open_slide(1, 500)
    clock.now += 10
    pace.add_block(500, 1, 1, 0)
    assert pace.patches_expected == 3000  # 1,500 known, two more slides of 750
    assert pace.seconds_left == 50
    assert pace.describe().endswith("about 50 s left")


def test_slides_done_before_say_nothing_of_those_to_come() -> None:
    pace, clock = make_pace(4)
    for slide in (0, 1):
        pace.open_slide(slide, 0)
        pace.end_slide(slide, is_done_before=True)
    assert pace.patches_expected is None
    pace.open_slide(2, 800)
    clock.now += 4
    pace.add_block(400, 1, 1, 1)
    assert pace.patches_expected == 1600


def test_slides_that_could_not_be_opened_count_as_opened() -> None:
    pace, _ = make_pace(3)
    pace.end_slide(0, is_done_before=False)
    pace.open_slide(1, 600)
    assert pace.patches_expected == 900  # of two slides one had 600 patches: 300 for the third
    assert pace.slides_done == 1


def test_nothing_is_said_before_it_is_known() -> None:
    pace, _ = make_pace(3)
    assert pace.describe() == "0 of 3 slides"
    assert (pace.rate, pace.shares, pace.seconds_left) == (None, None, None)


def test_the_rate_is_that_of_the_last_five_minutes() -> None:
    pace, clock = make_pace(1)
    pace.open_slide(0, 10_000)
    clock.now += 10
    pace.add_block(3000, 1, 1, 1)
    clock.now += 600
    pace.add_block(600, 1, 1, 1)
    assert pace.rate == 2  # 600 in 300 s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB"), (2.5e15, "2500 TB")],
)
def test_bytes_as_a_person_says_them(count: float, text: str) -> None:
    assert describe_bytes(count) == text


def test_where_the_output_is_no_terminal_a_line_comes_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_cli.progress.PLAIN_INTERVAL_S", 0)
    write_slide(tmp_path / "one.tiff", paint(300, 200))
    result = run(
        "tile", tmp_path / "one.tiff", "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 0
    )
    assert re.search(
        r"^0 of 1 slides, [\d,]+ patches/s, read \d+% compute 0% write \d+%, 0 s left$",
        result.stderr,
        flags=re.MULTILINE,
    )


# --- the log of events


SIMPLE = plain_options()
"""As `infer` of these tests runs."""


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A slide of 24 patches and a file that is none."""
    write_slide(tmp_path / "Jane Doe" / "one.tiff", paint(300, 200))
    (tmp_path / "Jane Doe" / "two.svs").write_text("nothing")
    return tmp_path / "Jane Doe"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model" / "m.safetensors")


def test_a_run_leaves_its_events(slides: Path, model: Path, tmp_path: Path) -> None:
    infer(slides, model, tmp_path / "results")
    events = read_events(tmp_path / "results")
    assert [event["event"] for event in events] == [
        "run begun",
        "slide prepared",
        "slide ended",
        "slide ended",
        "run ended",
    ]
    begun, prepared, one, two, ended = events
    assert (begun["command"], begun["slides"], begun["parameters"]["batch_size"]) == (
        "infer",
        2,
        "auto",
    )
    assert (prepared["slide"], prepared["patches"], prepared["missing_blocks"]) == ("one", 24, 1)
    assert (one["slide"], one["state"], one["patches"], one["already_done"]) == (
        "one",
        "ok",
        24,
        False,
    )
    assert set(one["seconds"]) == {"total", "read", "compute", "write"}
    assert (two["slide"], two["state"], two["seconds"]) == ("two", "failed", {})
    assert (ended["account"], ended["exit_code"]) == (
        "in 2 = ok 1 + zero 0 + damaged 0 + failed 1",
        3,
    )
    assert ended["slides"] == {"in": 2, "ok": 1, "zero": 0, "damaged": 0, "failed": 1}
    assert len({event["run"] for event in events}) == 1


def test_no_folder_that_slides_lie_in_stands_in_the_events(
    slides: Path, model: Path, tmp_path: Path
) -> None:
    infer(slides, model, tmp_path / "results", view=View())
    assert "Jane" not in (tmp_path / "results" / EVENTS_JSONL).read_text()
    assert (
        hide_path("/x/Jane Doe/a.svs: no; see /y/Jane/b.png", "/x/Jane Doe/a.svs", "a")
        == "a: no; see …/b.png"
    )


def test_tile_leaves_its_events(slides: Path, tmp_path: Path) -> None:
    assert (
        run(
            "tile",
            slides,
            "--out",
            tmp_path / "stores",
            "--mpp",
            0.5,
            "--workers",
            0,
            "--shard",
            "1/2",
        ).exit_code
        == 0
    )
    lines = (tmp_path / "stores" / "events.1-of-2.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "run begun",
        "slide prepared",
        "slide ended",
        "run ended",
    ]
    assert json.loads(lines[0])["command"] == "tile"


def test_a_run_that_is_broken_off_says_by_what(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), log_events(tmp_path, "infer", 1, {}):
        raise KeyboardInterrupt
    assert [(event["event"], event.get("reason")) for event in read_events(tmp_path)] == [
        ("run begun", None),
        ("run stopped", "KeyboardInterrupt"),
    ]


def test_events_are_ascii_lines_of_finite_numbers(tmp_path: Path) -> None:
    EventLog(tmp_path / EVENTS_JSONL).write(
        "x", slide="a\x1b[2J\n\udcffµ", rate=float("nan"), list=(float("inf"), 0.5), path=Path("p")
    )
    content = (tmp_path / EVENTS_JSONL).read_bytes()
    assert content.isascii()
    assert content.count(b"\n") == 1
    assert b"\x1b" not in content
    event = json.loads(content, parse_constant=pytest.fail)
    assert (event["slide"], event["rate"], event["list"], event["path"]) == (
        "a\x1b[2J\n\\udcffµ",
        None,
        [None, 0.5],
        "p",
    )


def test_a_full_disk_stops_no_run(
    slides: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(log: EventLog, path: Path, line: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventLog, "_append", fail)
    assert infer(slides, model, tmp_path / "results").exit_code == 3
    assert (tmp_path / "results" / "one" / "summary.json").is_file()


def test_half_a_line_of_a_killed_run_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / EVENTS_JSONL).write_text('{"time": "2026-01-01", "run": "a", "ev')
    EventLog(tmp_path / EVENTS_JSONL).write("begun")
    assert [event["event"] for event in read_events(tmp_path)] == ["begun"]


def test_events_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / EVENTS_JSONL).symlink_to(tmp_path / "mine")
    EventLog(tmp_path / EVENTS_JSONL).write("begun")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.timeout(30)
def test_events_wait_for_nobody_at_the_other_end_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / EVENTS_JSONL)
    EventLog(tmp_path / EVENTS_JSONL).write("begun")
    assert read_events(tmp_path) == []


def test_brackets_without_end_are_no_event(tmp_path: Path) -> None:
    (tmp_path / EVENTS_JSONL).write_text("[" * 200_000 + "\n")
    EventLog(tmp_path / EVENTS_JSONL).write("begun")
    assert [event["event"] for event in read_events(tmp_path)] == ["begun"]


def test_values_of_any_kind_become_plain() -> None:
    assert to_plain({"a": (1, True, None, 0.1234567891), Path("k"): {"b"}}) == {
        "a": [1, True, None, 0.123457],
        "k": "{'b'}",
    }


# --- dry runs


def test_a_dry_run_writes_nothing_at_all(slides: Path, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    places = (
        "--slides",
        slides,
        "--model",
        model,
        "-o",
        tmp_path / "results",
        "--keep-patches",
        tmp_path / "kept",
    )
    result = run("infer", *places, "--dry-run", *PLAIN)
    assert sorted(tmp_path.rglob("*")) == before
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert lines[1].startswith("one: new: ")
    assert "300 × 200 px at 0.5 µm/px; 24 patches, predictions " in lines[1]
    assert "patches to keep 180 kB" in lines[1]  # 24 · 50 · 50 · 3
    assert lines[2].startswith("two: cannot be run: ")
    assert lines[3] == "2 slides: 1 new, 1 failed"
    assert lines[4].startswith("to predict: 24 patches")


def test_a_dry_run_leaves_the_gpu_to_a_worker(
    slides: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker:
        def call(self, function: object, path: Path, request: EngineRequest, terms: object) -> Any:
            assert request.device == "cuda"
            return resolve_engine(path, EngineRequest("cpu", "torch", "fp32"))

    @contextmanager
    def start(workers: Workers) -> Iterator[Worker]:
        assert (workers.gpus, workers.processes) == (("0",), 1)
        yield Worker()

    found = [Gpu("0", "GPU-aa"), Gpu("1", "GPU-bb")]
    monkeypatch.setattr("wsi_pipeline.models.gpus.ask_gpus", lambda: found)
    monkeypatch.setattr("wsi_pipeline.runs.dry_run.open_workers", start)
    options = InferOptions(device="cuda")
    preview = preview_run(find_slides([slides]), model, tmp_path / "results", options)
    assert preview.count(PreviewState.NEW) > 0


def test_a_dry_run_of_nothing_that_opens_is_exit_code_4(
    slides: Path, model: Path, tmp_path: Path
) -> None:
    assert (
        run(
            "infer",
            "--slides",
            slides / "two.svs",
            "--model",
            model,
            "-o",
            tmp_path / "r",
            "--dry-run",
            *PLAIN,
        ).exit_code
        == 4
    )


def test_a_dry_run_reckons_the_bytes_that_a_run_writes(
    slides: Path, model: Path, tmp_path: Path
) -> None:
    found = find_slides([slides / "one.tiff"])
    reckoned = preview_run(
        found, model, tmp_path / "results", replace(SIMPLE, keep_patches=tmp_path / "kept")
    ).slides[0]
    infer(slides / "one.tiff", model, tmp_path / "results", keep_patches=tmp_path / "kept")
    chunks = [
        path
        for path in (tmp_path / "results" / "one" / "predictions.zarr").rglob("c/**/*")
        if path.is_file()
    ]
    arrays = sum(
        path.stat().st_size
        for path in [*chunks, *(tmp_path / "results/one/predictions.zarr").glob("*/c")]
        if path.is_file()
    )
    assert reckoned.prediction_bytes == arrays
    pixels = sum(
        path.stat().st_size
        for path in (tmp_path / "kept/one.patches.zarr/patches/c").rglob("*")
        if path.is_file()
    )
    assert reckoned.patch_bytes == pixels - 4  # the checksum of its one chunk


def state(slides: Path, model: Path, results: Path, **options: Any) -> dict[str, PreviewState]:
    return {
        slide.slide_id: slide.state
        for slide in preview_run(
            find_slides([slides]), model, results, plain_options(**options)
        ).slides
    }


def test_a_dry_run_tells_what_earlier_runs_left(slides: Path, model: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    infer(slides, model, results)
    assert state(slides, model, results) == {"one": PreviewState.DONE, "two": PreviewState.FAILED}
    assert (
        state(slides, model, results, view=View(formats=("summary", "csv")))["one"]
        is PreviewState.PREDICTED
    )
    assert (
        state(slides, model, results, keep_patches=tmp_path / "kept")["one"]
        is PreviewState.PATCHES_MISSING
    )
    assert state(slides, model, results, force=True)["one"] is PreviewState.NEW
    other = write_model(tmp_path / "other" / "m.safetensors", make_checkpoint(seed=1))
    assert state(slides, other, results)["one"] is PreviewState.FAILED


def break_off(
    slides: Path, model: Path, results: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """A run that is interrupted when so many blocks are done."""
    from wsi_pipeline.stages import infer as inference
    from wsi_pipeline.stages.predict import predict_block

    real, calls = predict_block, []

    def predict(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "predict_block", predict)
    with pytest.raises(KeyboardInterrupt):
        infer(slides, model, results)
    monkeypatch.undo()


@pytest.fixture
def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A slide of 30 × 40 = 1,200 patches in two blocks of which one is done."""
    slide = write_slide(tmp_path / "slides" / "big.tiff", paint(1000, 750))
    model = write_model(tmp_path / "small" / "m.safetensors", make_checkpoint(side_px=25))
    break_off(slide, model, tmp_path / "results", monkeypatch, after=1)
    return slide, model, tmp_path / "results"


def test_a_dry_run_counts_the_blocks_that_are_done(broken_off: tuple[Path, Path, Path]) -> None:
    slide, model, results = broken_off
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    preview = preview_run(find_slides([slide]), model, results, SIMPLE).slides[0]
    assert (preview.state, preview.blocks_done, preview.blocks, preview.missing_patches) == (
        PreviewState.STARTED,
        1,
        2,
        176,
    )
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


# --- status


def test_status_of_a_finished_run(slides: Path, model: Path, tmp_path: Path) -> None:
    infer(slides, model, tmp_path / "results")
    lines = run("status", tmp_path / "results").stdout.splitlines()
    assert lines[0] == "one: ok: 24 patches"
    assert lines[1].startswith("two: failed in the last run: ")
    assert lines[2] == "finished 1 slide: 1 ok; under way: 0"
    assert lines[3].endswith("(wsi infer) ended: 2 slides: 1 ok, 1 failed")


def test_status_goes_by_manifests_and_not_by_existence(
    slides: Path, model: Path, tmp_path: Path
) -> None:
    infer(slides, model, tmp_path / "results", view=View(formats=("summary", "overlay")))
    (tmp_path / "results" / "one" / "overlay.png").unlink()
    (tmp_path / "results" / "copied by hand").mkdir()
    finished = read_status(tmp_path / "results").finished
    assert [(slide.slide_id, slide.state.value) for slide in finished] == [("one", "failed")]
    assert "overlay.png is missing" in finished[0].fault


def test_status_of_a_run_that_was_broken_off(broken_off: tuple[Path, Path, Path]) -> None:
    work = read_status(broken_off[2]).under_way[0]
    assert (work.slide_id, work.blocks_done, work.blocks, work.owner) == ("big", 1, 2, None)
    output = run("status", broken_off[2]).stdout
    assert (
        "big: under way: 1 of 2 blocks done, no process works on it; run the same line again"
        in output
    )
    assert "was stopped (KeyboardInterrupt) after 0 of 1 slides" in output


def test_status_names_who_works_and_whether_he_lives(broken_off: tuple[Path, Path, Path]) -> None:
    results = broken_off[2]
    with hold_lock(results / "big"):
        work = read_status(results).under_way[0]
        assert (work.owner, work.is_alive) == (
            f"process {os.getpid()} on {socket.gethostname()}",
            True,
        )
    lock = results / ".wsi" / "locks" / "big.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    for owner, is_alive in (
        (f"process 4194305 on {socket.gethostname()}", False),
        ("process 1 on elsewhere", None),
    ):
        lock.write_text(owner)
        work = read_status(results).under_way[0]
        assert (work.owner, work.is_alive) == (owner, is_alive)


def test_looking_takes_no_lock(broken_off: tuple[Path, Path, Path]) -> None:
    with hold_lock(broken_off[2] / "big"):
        before = {path: path.stat().st_mtime_ns for path in broken_off[2].rglob("*")}
        read_status(broken_off[2])
        assert {path: path.stat().st_mtime_ns for path in broken_off[2].rglob("*")} == before


def test_a_killed_run_is_told_from_one_under_way(tmp_path: Path) -> None:
    events = EventLog(tmp_path / EVENTS_JSONL)
    for process, ending in ((os.getpid(), "under way"), (4194305, "killed")):
        events.write(
            "run begun", command="infer", process=process, host=socket.gethostname(), slides=3
        )
        last = read_status(tmp_path).last_run
        assert last is not None
        assert last.ending == ending


def test_status_for_machines(slides: Path, model: Path, tmp_path: Path) -> None:
    infer(slides, model, tmp_path / "results")
    told = json.loads(
        run("status", tmp_path / "results", "--json").stdout, parse_constant=pytest.fail
    )
    assert told["counts"] == {"ok": 1, "zero": 0, "damaged": 0, "failed": 0}
    assert told["finished"][0] == {
        "slide_id": "one",
        "state": "ok",
        "patches": 24,
        "unreadable": 0,
        "fault": "",
    }
    assert told["last_run"]["account"].startswith("in 2 = ")


def test_status_understands_stores(slides: Path, tmp_path: Path) -> None:
    run("tile", slides, "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 0)
    finished = read_status(tmp_path / "stores").finished
    assert [(slide.slide_id, slide.state.value, slide.patches) for slide in finished] == [
        ("one", "ok", 24)
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [EVENTS_JSONL, "failures.csv", "run.json"])
def test_status_waits_for_no_pipe(name: str, slides: Path, tmp_path: Path) -> None:
    run("tile", slides / "one.tiff", "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 0)
    for old in ("events.jsonl", name):  # without events, run.json is read
        (tmp_path / "stores" / old).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "stores" / name)
    assert [slide.slide_id for slide in read_status(tmp_path / "stores").finished] == ["one"]


def test_brackets_without_end_are_no_record_of_a_run(slides: Path, tmp_path: Path) -> None:
    run("tile", slides / "one.tiff", "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 0)
    (tmp_path / "stores" / EVENTS_JSONL).unlink()
    (tmp_path / "stores" / "run.json").write_text("[" * 200_000)
    assert read_status(tmp_path / "stores").last_run is None


def test_a_run_that_does_not_tell_its_slides_in_numbers_has_none(tmp_path: Path) -> None:
    EventLog(tmp_path / EVENTS_JSONL).write("run begun", command="infer", slides="many")
    last = read_status(tmp_path).last_run
    assert last is not None
    assert last.slides == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("content", [None, "[" * 200_000])
def test_sources_are_read_from_no_pipe_and_no_brackets_without_end(
    content: str | None, tmp_path: Path
) -> None:
    if content is None:
        os.mkfifo(tmp_path / "run.json")
    else:
        (tmp_path / "run.json").write_text(content)
    assert read_sources(tmp_path / RUN_JSON) == {}


def test_status_of_any_folder_is_one_line(tmp_path: Path) -> None:
    result = run("status", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


# --- doctor


def test_doctor_says_what_is_to_be_expected(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run("doctor", "--out", tmp_path / "new" / "results", "--seconds", 0.4)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(line[:5].strip() in ("ok", "warn", "bad") for line in result.stdout.splitlines())
    for name in (
        "OpenSlide",
        "torch",
        "zarr",
        "dask",
        "GPU",
        "CPU",
        "disk",
        "inodes",
        "shared memory",
        "open files",
        "reading",
        "model",
    ):
        assert any(line[5:].startswith(name) for line in result.stdout.splitlines()), name
    assert "idc_cnn, 50 px: " in result.stdout
    assert "the bottleneck is " in result.stdout
    assert result.exit_code in (0, 5)


def test_doctor_measures_the_model_that_is_named(model: Path, tmp_path: Path) -> None:
    assert (
        f"{SMALL}, 50 px: "
        in run("doctor", "--model", model, "--out", tmp_path, "--seconds", 0.2).stdout
    )
    refused = run(
        "doctor", "--model", tmp_path / "no.safetensors", "--out", tmp_path, "--seconds", 0.2
    )
    assert (refused.exit_code, "no such model file" in refused.stderr) == (1, True)


def test_doctor_measures_what_a_worker_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the threads of one worker of several, through the slide's reader and the cutter."""
    found = [Gpu(str(index), "") for index in range(4)]
    asked: list[int] = []

    def read(spec: PatchSpec, threads: int, seconds: float) -> float:
        asked.append(threads)
        return 900.0

    monkeypatch.setattr(doctor, "choose_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(doctor, "list_gpus", lambda: found)
    monkeypatch.setattr(doctor, "available_cores", lambda: 16)
    monkeypatch.setattr(doctor, "measure_reading", read)
    monkeypatch.setattr(doctor, "measure_model", lambda *given: 5000.0)
    lines = [check.line for check in doctor._measure(make_checkpoint(), 0.1)]
    assert asked == [4]
    assert "900 patches/s from JPEG tiles by the 4 threads of one worker" in lines[0]
    assert "about 900 patches/s on each of 4 GPUs of slides" in lines[2]
    assert lines[2].endswith("the bottleneck is reading the slides")


def test_the_drawn_slide_is_read_as_a_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    real = SlidePatches.read_block

    def note(source: SlidePatches, block: int) -> PatchBlock:
        patches = real(source, block)
        read.append(patches.pixels.shape)
        assert patches.readable.all()
        return patches

    monkeypatch.setattr(SlidePatches, "read_block", note)
    assert measure_reading(PatchSpec(200, 200, 0.5), 2, 0.01) > 0
    assert read == [(400, 200, 200, 3)] * 3  # 20 × 20 of them in 4,096 px; one to make ready


def test_a_folder_that_cannot_be_written_is_bad() -> None:
    result = run("doctor", "--out", "/proc/results", "--seconds", 0.2)
    assert result.exit_code == 5
    assert "bad  writing" in result.stdout


def test_what_is_expected_by_hand() -> None:
    shared, apart = Speed(6000, 3000, shares_cores=True), Speed(6000, 3000, shares_cores=False)
    assert shared.expected == pytest.approx(2000)
    assert apart.expected == 3000
    assert (shared.bottleneck, Speed(10, 30, shares_cores=False).bottleneck) == (
        "the model",
        "reading the slides",
    )


@pytest.mark.parametrize(
    ("amount", "verdict"), [(30, Verdict.OK), (5, Verdict.WARN), (0.5, Verdict.BAD)]
)
def test_amounts_are_judged(amount: float, verdict: Verdict) -> None:
    assert judge(amount, low=20, very_low=1) is verdict


def test_checks_name_a_remedy(tmp_path: Path) -> None:
    assert check_open_files(128).verdict is Verdict.BAD
    assert "ulimit -n" in check_open_files(1024).line
    assert "make room" in check_space(tmp_path, "disk", low_gb=1e9, very_low_gb=0).line
    assert (
        check_inodes(os.statvfs_result((4096, 4096, 0, 0, 0, 1_000_000, 50, 50, 0, 255))).verdict
        is Verdict.BAD
    )
    assert (
        check_inodes(os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))).found
        == "not limited"
    )


def test_a_busy_machine_is_not_measured_without_saying_so() -> None:
    assert check_load(2, load=2.5).verdict is Verdict.OK
    assert "too low; measure again when" in check_load(2, load=9.3).line


def test_units_of_the_cpu_are_named() -> None:
    assert check_cpu(frozenset({"avx512f", "amx_bf16", "avx2"}), 2).found.endswith(
        "AMX, AVX512, AVX2"
    )
    assert "no units for bf16" in check_cpu(frozenset({"avx2"}), 2).found


@pytest.fixture
def tell_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives nvidia-smi a word to say."""

    def tell(*lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tell


H100 = "0, NVIDIA H100, 81559 MiB, 80996 MiB, Default, Disabled, 550.54"


def test_a_gpu_that_torch_cannot_use_is_a_warning(tell_gpus: Callable[[str], None]) -> None:
    tell_gpus(H100)
    check = check_gpu(0, None)
    assert check.verdict is Verdict.WARN
    assert check.line.endswith(
        "0: NVIDIA H100, 81559 MiB, 80996 MiB free, compute mode Default, MIG Disabled, driver"
        " 550.54, but torch cannot use it; install a torch that is built for CUDA"
    )
    assert check_gpu(1, "12.4").verdict is Verdict.OK


@pytest.mark.parametrize(
    ("line", "verdict", "said"),
    [
        (H100.replace("80996", "812"), Verdict.WARN, "less than 2048 MiB are free; end what holds"),
        (H100.replace("Default", "Prohibited"), Verdict.BAD, "nothing may compute there"),
        (H100.replace("Default", "Exclusive_Process"), Verdict.OK, "mode Exclusive_Process"),
        (H100.replace("Disabled", "[N/A]"), Verdict.OK, "compute mode Default, driver"),
        ("what is this", Verdict.OK, "not told by nvidia-smi (1 usable, CUDA 13.0)"),
        ("", Verdict.OK, "not told by nvidia-smi"),
    ],
)
def test_what_hinders_a_gpu_is_told(
    line: str, verdict: Verdict, said: str, tell_gpus: Callable[[str], None]
) -> None:
    tell_gpus(line)
    check = check_gpu(1, "13.0")
    assert check.verdict is verdict
    assert said in check.line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (RuntimeError("CUDA error: unknown error\nmore lines"), "the GPU failed"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_an_examination_that_fails_is_a_check_that_says_so(error: Exception, said: str) -> None:
    def fail() -> Check:
        raise error

    (check,) = examine_safely("GPU", fail)
    assert (check.name, check.verdict) == ("GPU", Verdict.BAD)
    assert said in check.line
    assert "\n" not in check.line
