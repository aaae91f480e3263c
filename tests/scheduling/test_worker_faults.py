"""Workers that die, hang, stop or lose their scheduler: what they had is done elsewhere, and
nothing is lost, doubled or moved.
"""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import ROOT
from tests.builders import folder_bytes, paint_coordinates, write_model, write_slide
from tests.commands import PLAIN
from tests.counting_jobs import CountJob, CountPlan, Notes
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, GpuLost
from wsi_pipeline.scheduling import Deadlines, Workers, open_workers, run_jobs

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
@pytest.mark.parametrize("count", [1, 2])
def test_a_block_that_hangs_is_stopped_and_fails_its_own_job_only(
    count: int, tmp_path: Path
) -> None:
    results = run_jobs(
        make_jobs(tmp_path, "hang"),
        Workers(count=count, deadlines=Deadlines(floor_s=2, first_s=3)),
        Notes(),
    )
    assert re.search(r"still at work after [23] s, also when it ran alone", str(results[1]))
    assert [results[0], results[2]] == [6, 6]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("count", [1, 2])
def test_what_a_stopped_worker_had_is_done_by_another(count: int, tmp_path: Path) -> None:
    workers = Workers(count=count, deadlines=Deadlines(silence_s=10 if count > 1 else 2))
    assert run_jobs(make_jobs(tmp_path, "stop"), workers, Notes()) == [6, 6, 6]


@dataclass(frozen=True)
class OddJob(CountJob):
    """Does something odd in block 1, or cannot travel."""

    oddity: str = ""

    def __reduce__(self) -> Any:
        rebuild = refuse if self.oddity == "cannot be read" else OddJob
        fields = (self.folder, self.blocks, self.fails_in, self.is_locked, self.oddity)
        return rebuild, fields

    def run_block(self, plan: CountPlan, block: int) -> Any:
        if block == 1 and self.oddity == "answers what cannot travel":
            return lambda: None
        if block == 1 and self.oddity == "fails with what cannot travel":
            raise TwoPartError("first", "second")
        if block == 1 and self.oddity == "loses its GPU":
            raise GpuLost("the GPU failed")
        if block == 1 and self.oddity == "loses its GPU once":
            marker = self.folder / "lost"
            if not marker.exists():
                marker.touch()
                raise GpuLost("the GPU failed")
        if block == 1 and self.oddity == "exits":
            os._exit(3)
        if self.oddity == "is slow":
            time.sleep(3600)
        return super().run_block(plan, block)


class TwoPartError(Exception):
    """An error that pickle cannot build again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def refuse(*fields: object) -> None:
    raise ValueError("made by another version")


@pytest.mark.parametrize(
    ("oddity", "message"),
    [
        ("cannot be read", "made by another version"),
        ("answers what cannot travel", "pickle"),
        ("fails with what cannot travel", "TwoPartError: first second"),
        ("exits", "a worker process died over it, also when it ran alone"),
    ],
)
def test_what_one_process_cannot_do_or_tell_fails_its_own_job_only(
    oddity: str, message: str, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    jobs = [OddJob(tmp_path / name, 4, oddity=oddity if name == "b" else "") for name in "abc"]
    results = run_jobs(jobs, Workers(count=1), Notes())
    assert message in str(results[1])
    assert [results[0], results[2]] == [6, 6]


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_process_with_a_lost_gpu_had_is_done_by_another(count: int, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    oddities = {"a": "", "b": "loses its GPU once", "c": "loses its GPU"}
    jobs = [OddJob(tmp_path / name, 4, oddity=oddity) for name, oddity in oddities.items()]
    results = run_jobs(jobs, Workers(count=count), Notes())
    assert results[:2] == [6, 6]
    assert "a worker process died over it, also when it ran alone" in str(results[2])


def test_a_lost_gpu_ends_a_plain_loop(tmp_path: Path) -> None:
    jobs = [OddJob(tmp_path, 4, oddity="loses its GPU"), OddJob(tmp_path, 4)]
    with pytest.raises(GpuLost, match="the GPU failed"):
        run_jobs(jobs, Workers(count=0), Notes())
    assert not list(tmp_path.glob("lock"))


def children() -> Sequence[psutil.Process]:
    return workers_of(psutil.Process())


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_lone_worker_that_died_between_two_runs_is_replaced(tmp_path: Path) -> None:
    with open_workers(Workers(count=1)) as pool:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            assert run_jobs([CountJob(tmp_path / name, 4)], pool, Notes()) == [6]
            (worker,) = children()
            worker.kill()
            wait_until(lambda: not children())
    assert not children()


def test_a_lone_worker_that_ends_at_each_start_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.scheduling.lone_worker.work_for", end_at_once)
    monkeypatch.setattr("wsi_pipeline.scheduling.lone_worker.PAUSE_S", 0.01)
    message = r"no worker process can be started \(ended at its start with exit code 7, 4 times"
    with pytest.raises(EnvironmentFault, match=message):
        run_jobs([CountJob(tmp_path, 4)], Workers(count=1), Notes())
    assert not list(tmp_path.glob("lock"))


def end_at_once(*settings: object) -> None:
    os._exit(7)


def test_a_lone_worker_that_cannot_be_started_for_a_moment_is_started_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_pipeline.scheduling import lone_worker

    start, refusals = lone_worker._start_child, [OSError(errno.EMFILE, "Too many open files")] * 2

    def start_later(workers: Workers) -> object:
        if refusals:
            raise refusals.pop()
        return start(workers)

    monkeypatch.setattr(lone_worker, "_start_child", start_later)
    monkeypatch.setattr(lone_worker, "PAUSE_S", 0.01)
    assert run_jobs([CountJob(tmp_path, 4)], Workers(count=1), Notes()) == [6]


def test_no_room_for_a_process_is_told_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_start(workers: Workers) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("wsi_pipeline.scheduling.lone_worker._start_child", refuse_start)
    monkeypatch.setattr("wsi_pipeline.scheduling.lone_worker.PAUSE_S", 0.01)
    with pytest.raises(
        EnvironmentFault, match=r"Resource temporarily unavailable, 4 times.*ulimit"
    ):
        run_jobs([CountJob(tmp_path, 4)], Workers(count=1), Notes())


SLOW = """
import sys
from pathlib import Path
from tests.counting_jobs import Notes
from tests.scheduling.test_worker_faults import OddJob
from wsi_pipeline.scheduling import Workers, run_jobs

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_jobs([OddJob(folder, 4, oddity="is slow")], Workers(count=1), Notes())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_lone_worker_ends_with_the_process_that_asked(how: int, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, script, tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "lock").exists)
        (worker,) = workers_of(psutil.Process(run.pid))
        run.send_signal(how)
        assert run.wait(timeout=20) != 0
        wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    finally:
        run.kill()
        run.wait()


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of seconds instead of minutes."""
    from wsi_pipeline.scheduling import clusters, dask_executor

    monkeypatch.setitem(clusters.PATIENCE_S, "local", 4.0)
    monkeypatch.setattr(dask_executor, "LOOK_S", 0.5)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("is_mended", [True, False])
def test_where_no_worker_can_be_started_again_the_run_ends_or_starts_others(
    is_mended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    async def fail(nanny: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with ExitStack() as stack:
        pool = stack.enter_context(open_workers(Workers(count=2)))
        monkeypatch.setattr(distributed.Nanny, "instantiate", fail)
        for worker in children():
            worker.kill()
        wait_until(lambda: not children())
        if is_mended:
            time.sleep(1.0)  # the nannies have tried
            monkeypatch.undo()
            monkeypatch.setattr(pool.executor, "patience_s", 4.0)
            assert run_jobs([CountJob(tmp_path, 4)], pool, Notes()) == [6]
            return
        with pytest.raises(EnvironmentFault, match=r"no worker process for 4 s; check free memory"):
            run_jobs([CountJob(tmp_path, 4)], pool, Notes())
    assert not list(tmp_path.glob("lock"))


def start_nobody(workers: Workers) -> Any:
    """Return a cluster whose jobs wait in the queue."""
    from wsi_pipeline.scheduling import clusters

    return clusters.STARTERS["local"](Workers(count=0))


def test_slurm_jobs_that_never_start_are_waited_for_no_longer_than_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from wsi_pipeline.scheduling import clusters

    monkeypatch.setitem(clusters.PATIENCE_S, "slurm", 1.8)
    monkeypatch.setitem(clusters.STARTERS, "slurm", start_nobody)
    (tmp_path / "slurm.yaml").write_text("cores: 1\n")
    workers = Workers(cluster="slurm", slurm_config=tmp_path / "slurm.yaml")
    message = "Slurm started no worker within 0.0005 h; see squeue"
    with pytest.raises(EnvironmentFault, match=message):
        run_jobs([CountJob(tmp_path, 4)], workers, Notes())
    assert "for 0.0005 h at most" in caplog.text


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("answer", "message"),
    [("0.0.1", "has wsi-pipeline 0.0.1, this machine"), ("", "cannot load wsi-pipeline")],
)
def test_a_running_cluster_with_another_version_is_refused(
    answer: str, message: str, tmp_path: Path
) -> None:
    """Its workers could not read a step, and the run would wait for ever."""
    other = tmp_path / "other" / "wsi_pipeline"
    (other / "scheduling").mkdir(parents=True)
    for folder in (other, other / "scheduling"):
        (folder / "__init__.py").touch()
    tells = f"def read_version(): return {answer!r}\n" if answer else "import is_not_there\n"
    (other / "scheduling" / "clusters.py").write_text(tells)
    with (
        running_cluster(tmp_path, other.parent) as (file, _),
        pytest.raises(ConfigError, match=message),
    ):
        run_jobs([CountJob(tmp_path, 4)], Workers(scheduler=file), Notes())


@contextmanager
def running_cluster(tmp_path: Path, package: Path = ROOT) -> Iterator[tuple[str, int]]:
    """A scheduler and a worker of their own; the file with its address, and the scheduler's
    process.
    """
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
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
        cwd=package,  # which Python's -m puts first
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
    return [child for child in run.children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # also one that has ended and is not waited for yet
        return any("spawn_main" in word for word in process.cmdline())
    return False


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


@pytest.mark.faults  # test_watchdog.py has its sample
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
