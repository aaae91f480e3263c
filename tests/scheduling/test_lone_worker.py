"""What libraries and people do to a lone worker: exits, panics, Ctrl-Z, scripts without a file."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.scheduling import Deadlines, Workers, open_workers

pytestmark = pytest.mark.system


class Panic(BaseException):
    """As libraries written in Rust raise it."""


class Unspeakable(Exception):
    """An error that cannot even say what it is."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first, second)

    def __reduce__(self) -> Any:
        raise ValueError("not to be pickled")

    def __str__(self) -> str:
        raise ValueError("not to be said")


class Unpackable:
    """A result over which the thread that packs it breaks off."""

    def __reduce__(self) -> Any:
        raise Panic


def leave() -> None:
    sys.exit("a library gave up")


def panic() -> None:
    raise Panic("called `unwrap()` on a `None` value")


def be_unspeakable() -> None:
    raise Unspeakable("one", "two")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (leave, "SystemExit: a library gave up"),
        (panic, "Panic: called `unwrap"),
        (be_unspeakable, "Unspeakable"),
    ],
)
@pytest.mark.timeout(60)
def test_what_would_end_a_program_ends_its_step(fault: Any, message: str) -> None:
    with open_workers(Workers(count=1)) as pool:
        worker = pool.call(os.getpid)
        with pytest.raises(RuntimeError, match=message):
            pool.call(fault)
        assert pool.call(os.getpid) == worker


@pytest.mark.timeout(60)
def test_a_step_that_can_be_answered_by_nothing_fails() -> None:
    with (
        open_workers(Workers(count=1)) as pool,
        pytest.raises(EnvironmentFault, match="a worker process died over it"),
    ):
        pool.call(Unpackable)


@pytest.mark.timeout(60)
def test_a_large_step_that_a_stopped_worker_does_not_take_is_done_by_another() -> None:
    with open_workers(Workers(count=1, deadlines=Deadlines(silence_s=1))) as pool:
        os.kill(pool.call(os.getpid), signal.SIGSTOP)
        assert pool.call(len, bytes(10_000_000)) == 10_000_000


CALLS = """
import os, sys, time
from wsi_pipeline.scheduling import Deadlines, Workers, open_workers
if __name__ == "__main__":
    with open_workers(Workers(count=1, deadlines=Deadlines(silence_s=2))) as pool:
        print("worker", pool.call(os.getpid), flush=True)
        pool.call(time.sleep, 1.5)
        print("worker", pool.call(os.getpid), flush=True)
"""


def start_script(*source: Path | str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, source)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        text=True,
        **options,
    )


@pytest.mark.timeout(60)
def test_a_worker_that_was_stopped_with_its_run_goes_on_with_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CALLS)
    with start_script(tmp_path / "script.py", stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        first = run.stdout.readline()
        worker = int(first.split()[1])
        for process in (worker, run.pid):
            os.kill(process, signal.SIGSTOP)
        time.sleep(2.5)  # longer than a worker may be silent
        os.kill(run.pid, signal.SIGCONT)
        time.sleep(0.2)
        os.kill(worker, signal.SIGCONT)
        assert run.stdout.readline() == first


@pytest.mark.timeout(60)
def test_a_script_that_comes_by_standard_input_has_a_worker() -> None:
    with start_script(
        "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        said, faults = run.communicate(CALLS, timeout=30)
    assert re.fullmatch(r"worker \d+\nworker \d+\n", said)
    assert faults == ""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_a_worker_without_standard_streams_ends_in_silence(closed: str, tmp_path: Path) -> None:
    silent = CALLS.replace('print("worker", ', "(").replace(", flush=True", "")
    (tmp_path / "script.py").write_text(silent)
    line = f"exec {sys.executable} {tmp_path / 'script.py'} {closed}"
    ended = subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        stderr=subprocess.PIPE,
        timeout=30,
        check=True,
    )
    assert ended.stderr == b""
