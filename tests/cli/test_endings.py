"""How the program ends where nobody can see it, and when it is told to, as the system sees it: real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import make_checkpoint, paint, write_model, write_slide
from wsi_pipeline.runs.status import read_status
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import find_damage

pytestmark = pytest.mark.system

WSI = "from wsi_cli.main import wsi; wsi()"
EAGER = "import wsi_cli.progress; wsi_cli.progress.PLAIN_INTERVAL_S = 0; " + WSI
"""With a line of progress at every step."""


def start(*arguments: object, code: str = WSI, **options: object) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(line, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two slides, and a file that is none, which has a warning's and a failure's lines."""
    for name in ("one", "two"):
        write_slide(tmp_path / "slides" / f"{name}.tiff", paint(300, 200))
    (tmp_path / "slides" / "three.svs").write_text("nothing")
    return tmp_path / "slides"


@contextmanager
def full_disk() -> Iterator[int]:
    handle = os.open("/dev/full", os.O_WRONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def closed_pipe() -> Iterator[int]:
    """A pipe whose reader is gone, as after `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@pytest.mark.parametrize("broken", [full_disk, closed_pipe])
def test_a_run_goes_on_where_its_progress_cannot_be_shown(
    broken: Callable[[], Iterator[int]], slides: Path, tmp_path: Path
) -> None:
    arguments = ("tile", slides, "--out", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    with broken() as handle:  # type: ignore[attr-defined]
        process = start(*arguments, code=EAGER, stdout=subprocess.PIPE, stderr=handle)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert b"3 slides: 2 ok, 1 failed" in printed
    assert [find_damage(tmp_path / "out" / f"{name}.patches.zarr") for name in ("one", "two")] == [
        [],
        [],
    ]


def test_a_run_whose_output_nobody_reads_ends_as_any_other(slides: Path, tmp_path: Path) -> None:
    arguments = ("tile", slides, "--out", tmp_path / "out", "--mpp", 0.5, "--workers", 0)
    with closed_pipe() as handle:
        assert start(*arguments, code=EAGER, stdout=handle, stderr=handle).wait(120) == 3
    account = read_status(tmp_path / "out").last_run
    assert account is not None
    assert account.ending == "ended"


@pytest.mark.parametrize("broken", [full_disk, closed_pipe])
def test_an_error_that_cannot_be_shown_keeps_its_exit_code(
    broken: Callable[[], Iterator[int]], tmp_path: Path
) -> None:
    (tmp_path / ".wsi" / "locks").mkdir(parents=True)
    (tmp_path / ".wsi" / "locks" / "s.lock").symlink_to(tmp_path / "mine")
    with broken() as handle:  # type: ignore[attr-defined]
        assert start("unlock", tmp_path, stdout=subprocess.DEVNULL, stderr=handle).wait(60) == 5


def test_a_result_that_cannot_be_printed_is_the_machines_fault(slides: Path) -> None:
    with full_disk() as handle:
        assert (
            start("info", slides / "one.tiff", stdout=handle, stderr=subprocess.DEVNULL).wait(60)
            == 5
        )


@pytest.fixture
def long_run(tmp_path: Path) -> tuple[object, ...]:
    """The words of a run of many blocks."""
    write_slide(tmp_path / "slides" / "s.tiff", paint(4000, 3000))
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(side_px=25))
    return (
        "infer",
        "--slides",
        tmp_path / "slides",
        "--model",
        model,
        "--results-dir",
        tmp_path / "results",
    )


def wait_for_work(process: "subprocess.Popen[bytes]", results: Path) -> None:
    """Until the slide is prepared, so that blocks are under way."""
    deadline = time.monotonic() + 120
    while not list(results.glob(".wsi/staging/*/prepared")):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_terminating_again_and_again_breaks_nothing_off(
    long_run: tuple[object, ...], tmp_path: Path
) -> None:
    process = start(*long_run, "--workers", 2, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_work(process, tmp_path / "results")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


def test_a_terminal_that_goes_ends_a_run_in_order(
    long_run: tuple[object, ...], tmp_path: Path
) -> None:
    process = start(
        *(*long_run, "--workers", 0),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        ),  # the tests may themselves run under nohup
    )
    wait_for_work(process, tmp_path / "results")
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 129
    assert (
        errors.splitlines()[-1]
        == b"wsi: the terminal has gone; nothing finished is lost, run the same line again to go on"
    )
    assert not list((tmp_path / "results").glob(".wsi/locks/*"))
    with hold_lock(tmp_path / "results" / "s"):
        pass


def test_a_run_under_nohup_outlives_its_terminal(slides: Path, tmp_path: Path) -> None:
    (slides / "three.svs").unlink()
    write_slide(slides / "large.tiff", paint(4000, 3000))
    process = start(
        *("tile", slides, "--out", tmp_path / "out", "--mpp", 0.5, "--workers", 0),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.returncode == 0
