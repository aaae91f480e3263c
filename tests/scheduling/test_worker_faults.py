"""Workers that die, hang, stop or lose their scheduler: what they had is done elsewhere, and
nothing is lost, doubled or moved.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests import ROOT
from tests.builders import folder_bytes, paint_coordinates, write_model, write_slide
from tests.commands import PLAIN
from tests.counting_jobs import CountJob, CountPlan, Notes
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.scheduling import Deadlines, Workers, run_jobs

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class TroubleJob(CountJob):
    """Does something to its own process, or to another, in block 1."""

    trouble: str = ""
    pid: int = 0

    def run_block(self, plan: CountPlan, block: int) -> int:
        first_time = not (self.folder / "began").exists()
        if block == 1:
            (self.folder / "began").touch()
            if self.trouble == "hang":
                time.sleep(3600)
            if self.trouble == "stop" and first_time:
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.trouble == "kill the scheduler":
                os.kill(self.pid, signal.SIGKILL)
        return super().run_block(plan, block)


def make_jobs(tmp_path: Path, trouble: str, pid: int = 0) -> list[TroubleJob]:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    return [
        TroubleJob(folder, 4, trouble=trouble if folder.name == "b" else "", pid=pid)
        for folder in folders
    ]


@pytest.mark.timeout(180)
def test_a_block_that_hangs_is_stopped_and_fails_its_own_job_only(tmp_path: Path) -> None:
    results = run_jobs(
        make_jobs(tmp_path, "hang"),
        Workers(count=2, deadlines=Deadlines(floor_s=2, first_s=3)),
        Notes(),
    )
    assert re.search(r"still at work after [23] s, also when it ran alone", str(results[1]))
    assert [results[0], results[2]] == [6, 6]


@pytest.mark.timeout(180)
def test_what_a_stopped_worker_had_is_done_by_another(tmp_path: Path) -> None:
    assert run_jobs(
        make_jobs(tmp_path, "stop"), Workers(count=2, deadlines=Deadlines(silence_s=10)), Notes()
    ) == [6, 6, 6]


@contextmanager
def running_cluster(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A scheduler and a worker of their own; the file with its address, and the scheduler's
    process.
    """
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    scheduler = subprocess.Popen(
        [
            *dask,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(file),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    worker = subprocess.Popen(
        [
            *dask,
            "worker",
            "--scheduler-file",
            str(file),
            "--host",
            "127.0.0.1",
            "--nthreads",
            "2",
            "--no-dashboard",
        ],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not file.exists():
            time.sleep(0.1)
        yield str(file), scheduler.pid
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


@pytest.mark.timeout(180)
def test_a_running_cluster_does_the_work(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as (file, _):
        assert run_jobs(make_jobs(tmp_path, ""), Workers(scheduler=file), Notes()) == [6, 6, 6]


@pytest.mark.timeout(180)
def test_a_scheduler_that_is_killed_is_the_machines_fault_and_the_rest_is_done_by_the_same_line(
    tmp_path: Path,
) -> None:
    with (
        running_cluster(tmp_path) as (file, pid),
        pytest.raises(EnvironmentFault, match=r"cluster was lost.*run the same line again"),
    ):
        run_jobs(make_jobs(tmp_path, "kill the scheduler", pid), Workers(scheduler=file), Notes())
    assert not list(tmp_path.glob("*/lock"))


SLIDES = 40
KILL_EVERY_S = 2.0
MOST_KILLS = 8
"""A process takes several seconds to start, so that kills without end would leave nobody to work.
"""


def infer(slides: Path, model: Path, results: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        "from wsi_cli.main import wsi; wsi()",
        "infer",
        "--slides",
        str(slides),
        "--model",
        str(model),
    ]
    options = [
        "--results-dir",
        str(results),
        "--workers",
        str(workers),
        *PLAIN,
        "--outputs",
        "csv,summary",
    ]
    return subprocess.Popen(command + options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers_of(run: psutil.Process) -> Sequence[psutil.Process]:
    return [
        child for child in run.children() if any("spawn_main" in word for word in child.cmdline())
    ]


def kill_a_worker(run: psutil.Process, chance: random.Random) -> int:
    """The oldest or any other; returns how many were killed."""
    try:
        workers = workers_of(run)
        victim = chance.choice(workers) if workers else None
    except psutil.NoSuchProcess:
        return 0
    if victim is None:
        return 0
    victim.kill()
    return 1


@pytest.mark.timeout(600)
def test_forty_slides_survive_a_worker_killed_every_two_seconds(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors")
    for index in range(SLIDES):
        pixels = paint_coordinates(1000, 600)
        pixels[..., 2] = 100 + index
        write_slide(tmp_path / "slides" / f"s{index:02}.tiff", pixels)
    assert infer(tmp_path / "slides", model, tmp_path / "quiet", workers=0).wait() == 0
    run = infer(tmp_path / "slides", model, tmp_path / "chaos", workers=4)
    kills, chance = 0, random.Random(0)
    while run.poll() is None and not (tmp_path / "chaos" / ".wsi").exists():
        time.sleep(0.1)  # a cluster that cannot even start is the machine's fault
    while run.poll() is None:
        time.sleep(KILL_EVERY_S)
        kills += (
            kill_a_worker(psutil.Process(run.pid), chance)
            if run.poll() is None and kills < MOST_KILLS
            else 0
        )
    assert run.returncode == 0
    assert kills >= 3
    quiet, chaos = (
        {
            name: content
            for name, content in folder_bytes(tmp_path / place).items()
            if name.startswith("s") and "/" in name
        }
        for place in ("quiet", "chaos")
    )
    assert len({name.split("/")[0] for name in quiet}) == SLIDES
    assert chaos == quiet
