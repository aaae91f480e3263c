"""How the program ends where nobody can see it, and when it is told to, as the system sees it: real
processes.
"""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import (
    SMALL,
    make_checkpoint,
    make_training_stores,
    paint,
    write_model,
    write_slide,
)
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


# --- Ctrl-C


SELF_INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
from wsi_cli.main import wsi
wsi()
"""
"""A command that gets Ctrl-C as it begins to import a module."""
INTERRUPTED = b"wsi: interrupted; nothing finished is lost, run the same line again to go on\n"


@pytest.mark.parametrize("module", ["click", "rich.progress", "numpy", "zarr"])
def test_ctrl_c_while_importing_is_one_line(
    module: str, long_run: tuple[object, ...], tmp_path: Path
) -> None:
    printed, errors = interrupt_import(module, long_run)
    assert (printed, errors) == (b"", INTERRUPTED)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("module", ["torch", "torch.nn"])
def test_ctrl_c_while_importing_torch_ends_in_one_line(
    module: str, long_run: tuple[object, ...], tmp_path: Path
) -> None:
    """Without workers the command itself imports it, after saying what it takes."""
    _, errors = interrupt_import(module, (*long_run, "--workers", 0))
    assert errors.splitlines(keepends=True)[-1] == INTERRUPTED
    assert b"Traceback" not in errors
    assert not (tmp_path / "results").exists()


def interrupt_import(module: str, arguments: tuple[object, ...]) -> tuple[bytes, bytes]:
    """What a command prints that is interrupted as it imports a module; it ends with 130."""
    process = start(
        *arguments,
        code=SELF_INTERRUPTED.format(module=module),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    return printed, errors


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_while_blocks_are_under_way_is_one_line(
    workers: int, long_run: tuple[object, ...], tmp_path: Path
) -> None:
    process = start(
        *(*long_run, "--workers", workers),
        code="import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + WSI,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for_work(process, tmp_path / "results")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines(keepends=True)[-1]) == (130, INTERRUPTED)
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


def test_a_server_says_that_it_has_stopped(long_run: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    process = start(
        *("serve", "--results", tmp_path / "results", "--port", 0),
        code="import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + WSI,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # its address
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (0, b"stopped")
    assert b"Traceback" not in errors


# --- progress on a terminal


def show_on_terminal(*arguments: object) -> tuple[int, list[str]]:
    """Run a command whose output is a terminal; its exit code, and the lines that stay on the
    screen.
    """
    ours, theirs = pty.openpty()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TERM": "xterm", "COLUMNS": "300"}
    line = [sys.executable, "-c", WSI, *map(str, arguments)]
    process = subprocess.Popen(
        line, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    return process.wait(60), draw_screen(written.decode())


def draw_screen(written: str) -> list[str]:
    """The lines that a terminal without colours and of any size shows after all this was written to
    it.
    """
    screen, row, col = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            col = 0
        elif part == "\n":
            row += 1
            screen += [""] * (row + 1 - len(screen))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            screen[row] = ""
        elif not part.startswith("\x1b"):
            screen[row] = screen[row].ljust(col)[:col] + part + screen[row][col + len(part) :]
            col += len(part)
    return [line for line in screen if line.strip()]


def test_lines_of_a_training_stand_above_its_bar(tmp_path: Path) -> None:
    stores = make_training_stores(tmp_path / "stores")
    code, lines = show_on_terminal(
        *("train", stores, "--out", tmp_path / "model", "--epochs", 3),
        *("--arch", SMALL),
        *("--val-patients", "p1", "--device", "cpu"),
    )
    assert code == 0, lines
    assert lines.pop(0).startswith("taking ")
    assert lines.pop().startswith("next: ")
    assert [line.split(":")[0] for line in lines[:3]] == ["training", "validation", "to watch"]
    assert [re.fullmatch(r"epoch +\d of 3  loss .* s(  best)?", line) for line in lines[3:6]].count(
        None
    ) == 0, lines[3:6]
    assert lines[6].startswith("validation patients; "), lines
    assert not [line for line in lines if "━" in line or " left" in line]


def test_lines_of_a_run_stand_above_its_bar(
    slides: Path, long_run: tuple[object, ...], tmp_path: Path
) -> None:
    code, lines = show_on_terminal(
        *long_run, "--workers", 0, "--slides", slides, "--outputs", "csv"
    )
    assert code == 3, lines
    assert lines.pop(0).startswith("taking ")
    assert lines.pop().startswith("next: ")
    assert [line.split(" ")[0] for line in lines[:2]] == ["model", "engine"]
    assert sorted(line.split(":")[0] for line in lines[2:6]) == ["failed", "one", "s", "two"]
    assert lines[6].startswith("4 slides: 3 ok, 1 failed  →  ")
    assert len(lines) == 7, lines
