"""The plain loop and real worker processes keep the same contract."""

import contextlib
import os
import socket
import subprocess
import sys
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.commands import tile
from tests.counting_jobs import CountJob, Notes
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault, SlideError
from wsi_pipeline.core.options import WorkerOptions
from wsi_pipeline.models.choice import Gpu
from wsi_pipeline.runs.workers import choose_gpus, choose_workers
from wsi_pipeline.scheduling import Deadlines, NotYet, WorkerPool, Workers, open_workers, run_jobs
from wsi_pipeline.scheduling.dask_executor import DaskExecutor
from wsi_pipeline.scheduling.run import PlainLoop
from wsi_pipeline.scheduling.worker_process import choose_deadline, gpu_environment

CREWS = {
    "plain loop": Workers(count=0),
    "one process": Workers(count=1),
    "two processes": Workers(count=2),
}


@pytest.fixture(scope="module", params=CREWS)
def pool(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """The plain loop, or processes that are started once."""
    with open_workers(CREWS[request.param]) as pool:
        yield pool


def make_jobs(tmp_path: Path, count: int, **special: dict[str, object]) -> list[CountJob]:
    jobs = []
    for index in range(count):
        folder = tmp_path / f"job{index}"
        folder.mkdir()
        jobs.append(CountJob(folder, blocks=4, **special.get(f"job{index}", {})))  # type: ignore[arg-type]
    return jobs


def test_every_job_is_done(pool: WorkerPool, tmp_path: Path) -> None:
    notes = Notes()
    assert run_jobs(make_jobs(tmp_path, 5), pool, notes) == [6] * 5
    assert sorted(notes.blocks) == [(job, block) for job in range(5) for block in range(4)]
    assert notes.ends == dict.fromkeys(range(5), 6)


def test_a_failing_job_does_not_stop_the_others(pool: WorkerPool, tmp_path: Path) -> None:
    special: dict[str, dict[str, object]] = {
        f"job{k}": {"fails_in": place} for k, place in enumerate(("prepare", "block", "finish"))
    }
    results = run_jobs(make_jobs(tmp_path, 5, **special), pool, Notes())
    assert [str(result) for result in results] == [
        "broken in prepare",
        "broken in block",
        "broken in finish",
        "6",
        "6",
    ]


def test_a_crew_does_other_jobs_after_one_failed(pool: WorkerPool, tmp_path: Path) -> None:
    """Numbers of jobs begin at 0 each time: what is ignored of the first list must not be ignored
    of the second.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert isinstance(
        run_jobs(make_jobs(first, 2, job1={"fails_in": "block"}), pool, Notes())[1], SlideError
    )
    assert run_jobs(make_jobs(second, 2), pool, Notes()) == [6, 6]


def test_locks_are_let_go_whatever_happens(pool: WorkerPool, tmp_path: Path) -> None:
    run_jobs(make_jobs(tmp_path, 3, job1={"fails_in": "block"}), pool, Notes())
    assert list(tmp_path.glob("*/lock")) == []


class Interrupting(Notes):
    """A listener during whose first block the user ends the run."""

    def block_done(self, job: int, report: int) -> None:
        raise KeyboardInterrupt


def test_workers_are_ended_before_locks_are_let_go(tmp_path: Path) -> None:
    """A worker that is at work would write, and read a copy, that are another run's by then."""
    locks: list[list[Path]] = []
    pool = WorkerPool(PlainLoop(), window=2, end=lambda: locks.append([*tmp_path.glob("*/lock")]))
    with pytest.raises(KeyboardInterrupt):
        run_jobs(make_jobs(tmp_path, 2), pool, Interrupting())
    assert [len(found) for found in locks] == [2]
    assert list(tmp_path.glob("*/lock")) == []


@pytest.mark.system
@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupted_run_ends_its_workers(count: int, tmp_path: Path) -> None:
    with open_workers(Workers(count=count)) as pool:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(make_jobs(tmp_path, 2), pool, Interrupting())
        workers = {path.read_text() for path in tmp_path.glob("*/[0-9]")}
        assert workers
        assert [pid for pid in workers if Path("/proc", pid).exists()] == []


def test_a_job_held_by_another_is_reported_and_the_rest_go_on(
    pool: WorkerPool, tmp_path: Path
) -> None:
    results = run_jobs(make_jobs(tmp_path, 3, job0={"is_locked": True}), pool, Notes())
    assert isinstance(results[0], EnvironmentFault)
    assert results[1:] == [6, 6]


@dataclass(frozen=True)
class AloneJob(CountJob):
    """Waits until no other is under way."""

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        if any(self.folder.parent.glob("*/lock")):
            raise NotYet
        with super().hold():
            yield


def test_a_job_that_cannot_begin_yet_waits_until_another_has_ended(
    pool: WorkerPool, tmp_path: Path
) -> None:
    jobs = [AloneJob(job.folder, blocks=4) for job in make_jobs(tmp_path, 3)]
    notes = Notes()
    assert run_jobs(jobs, pool, notes) == [6] * 3
    assert [job for job, _ in notes.blocks] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_job_without_blocks_is_finished(pool: WorkerPool, tmp_path: Path) -> None:
    assert run_jobs([CountJob(tmp_path, blocks=0)], pool, Notes()) == [0]


def test_no_jobs_at_all(pool: WorkerPool) -> None:
    assert run_jobs([], pool, Notes()) == []


def test_the_plain_loop_works_here_and_workers_elsewhere(pool: WorkerPool, tmp_path: Path) -> None:
    run_jobs(make_jobs(tmp_path, 2), pool, Notes())
    pids = {
        int((tmp_path / f"job{job}" / str(block)).read_text())
        for job in range(2)
        for block in range(4)
    }
    assert (pids == {os.getpid()}) is isinstance(pool.executor, PlainLoop)


def test_one_process_needs_no_dask_but_a_dashboard_does() -> None:
    assert Workers().is_one_process
    assert Workers(gpus=("0",)).is_one_process
    others = [
        Workers(count=0),
        Workers(count=2),
        Workers(gpus=("0", "1")),
        Workers(cluster="cuda"),
        Workers(scheduler="tls://h:1"),
        Workers(has_dashboard=True),
    ]
    assert not any(workers.is_one_process for workers in others)


@pytest.mark.system
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_kills_its_worker_fails_its_own_job_only(count: int, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 3, job1={"fails_in": "kill"})
    results = run_jobs(jobs, Workers(count=count), Notes())
    assert "worker process died over it, also when it ran alone" in str(results[1])
    assert [results[0], results[2]] == [6, 6]


def test_a_scheduler_that_is_not_there_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.scheduling.clusters.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        run_jobs([CountJob(tmp_path, 1)], Workers(scheduler="tcp://127.0.0.1:1"), Notes())


@pytest.mark.system
def test_our_cluster_listens_on_the_loopback_only_and_lists_no_tasks() -> None:
    from wsi_pipeline.scheduling.clusters import connect

    with connect(Workers(count=1)) as executor:
        client = executor.client
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        assert all(
            address.startswith("tls://127.0.0.1:")
            for address in client.scheduler_info(n_workers=-1)["workers"]
        )
        assert client.cluster.scheduler.http_application.applications == []


@pytest.mark.system
def test_the_dashboard_is_on_the_loopback_only_also_where_its_port_is_taken() -> None:
    from wsi_pipeline.scheduling.clusters import DASHBOARD_PORT, connect

    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it, which is as good
            taken.bind(("127.0.0.1", DASHBOARD_PORT))
            taken.listen()
        with connect(Workers(count=1, has_dashboard=True)) as executor:
            link = executor.client.dashboard_link
            assert link.startswith("http://127.0.0.1:")
            assert not link.startswith(f"http://127.0.0.1:{DASHBOARD_PORT}/")
            with urllib.request.urlopen(link, timeout=30) as answer:
                assert answer.status == 200
                assert b"Dask" in answer.read()


def test_a_dashboard_without_bokeh_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wsi_pipeline.scheduling.clusters import connect

    monkeypatch.setitem(sys.modules, "bokeh", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'wsi-pipeline\[dashboard\]'"),
        connect(Workers(count=1, has_dashboard=True)),
    ):
        pass


@pytest.mark.system
def test_task_names_hold_no_slide_names(tmp_path: Path) -> None:
    from wsi_pipeline.scheduling.clusters import connect
    from wsi_pipeline.scheduling.jobs import Step

    with connect(Workers(count=1)) as executor:
        executor.submit(Step(0, "prepare"), CountJob(tmp_path / "Jane Doe", 1).prepare)
        assert not any("Jane" in str(key) for key in executor._pending)
        executor.next_done()


def list_groups(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.task_prefixes)


def count_spans(dask_scheduler: Any) -> int:
    return len(dask_scheduler.extensions["spans"].spans)


def count_profiles(dask_worker: Any) -> int:
    return len(dask_worker.profile_history)


def read_allocator() -> dict[str, str | None]:
    return {
        name: os.environ.get(name) for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    }


@pytest.mark.system
def test_workers_keep_the_memory_that_a_network_will_want_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dask's own setting hands every freed layer back to the kernel, which makes PyTorch take twice
    as long.
    """
    from wsi_pipeline.scheduling.clusters import connect

    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        # Where a test before this one started a cluster of Dask's own, its value is still there.
        monkeypatch.delenv(name, raising=False)
    with connect(Workers(count=1)) as executor:
        (found,) = executor.client.run(read_allocator).values()
    assert found == {
        "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    }


@pytest.mark.system
def test_dask_remembers_nothing_of_steps_that_are_done(tmp_path: Path) -> None:
    """What it kept per step, or wrote down of what a worker does, would fill the memory in days."""
    with open_workers(Workers(count=2)) as pool:
        run_jobs([CountJob(tmp_path, 2) for _ in range(20)], pool, Notes())
        executor = pool.executor
        assert isinstance(executor, DaskExecutor)
        assert len(executor.client.run_on_scheduler(list_groups)) == 3
        assert set(executor.client.run(count_profiles).values()) == {0}


@pytest.mark.system
def test_dask_begins_no_new_notes_where_it_had_nothing_to_do_for_a_moment(tmp_path: Path) -> None:
    """One per kind of step, however many slides: each would be kept to the end."""
    from wsi_pipeline.scheduling.clusters import connect
    from wsi_pipeline.scheduling.jobs import Step

    with connect(Workers(count=1)) as executor:
        for job in range(6):
            for kind in ("prepare", "finish"):
                executor.submit(Step(job, kind), int)
                executor.next_done()
        assert executor.client.run_on_scheduler(count_spans) == 2


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(1, 1, 2), (2, 2, 2), (16, 16, 2), (64, 16, 4)]
)
def test_tiling_takes_a_process_per_core(
    cores: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.runs.workers.available_cores", lambda: cores)
    pool = choose_workers(WorkerOptions(), tiled=9)
    assert (pool.processes, pool.threads) == (processes, threads)
    assert choose_workers(WorkerOptions(workers=3), tiled=9).processes == 3
    elsewhere = WorkerOptions(scheduler="tls://127.0.0.1:1")
    assert choose_workers(elsewhere, tiled=9).count is None


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 1), (4, 4)])
def test_one_slide_on_two_cores_is_tiled_by_one_process(
    cores: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_pipeline.runs.workers.available_cores", lambda: cores)
    assert choose_workers(WorkerOptions(), tiled=1).processes == processes


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pipeline.runs.workers.available_cores", lambda: 12)
    pools = [choose_workers(WorkerOptions(workers=count)) for count in (None, 0, 1, 4, 12)]
    assert [pool.threads for pool in pools] == [12, 12, 12, 3, 2]


def test_negative_workers_are_refused() -> None:
    with pytest.raises(ConfigError):
        Workers(count=-1)


@pytest.mark.parametrize(
    ("workers", "processes"),
    [
        (Workers(), 1),
        (Workers(gpus=("0", "1", "2")), 3),
        (Workers(count=2, gpus=("0",)), 2),
        (Workers(count=0, gpus=("0",)), 0),
    ],
)
def test_one_process_per_gpu_unless_said_otherwise(workers: Workers, processes: int) -> None:
    assert workers.processes == processes


def test_each_process_sees_one_gpu() -> None:
    workers = Workers(gpus=("2", "GPU-b"))
    seen = [gpu_environment(workers, index) for index in range(3)]
    assert [entry["CUDA_VISIBLE_DEVICES"] for entry in seen] == ["2", "GPU-b", "2"]
    assert gpu_environment(Workers(), 0) == {}


FOUND = [Gpu("2", "GPU-aa"), Gpu("MIG-bb", "MIG-bb"), Gpu("5", "")]
"""As with CUDA_VISIBLE_DEVICES=2,MIG-bb,5."""


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ((), ("2", "MIG-bb", "5")),
        (("0",), ("2",)),
        (("2", "0"), ("5", "2")),
        (("GPU-aa",), ("2",)),
        (("MIG-bb", "2"), ("MIG-bb", "5")),
    ],
)
def test_gpus_are_named_by_number_among_the_visible_ones_or_by_uuid(
    wanted: tuple[str, ...], names: tuple[str, ...]
) -> None:
    assert choose_gpus(wanted, FOUND) == names


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("3",), "--gpus 3: not among the GPUs that this process may use .0: GPU-aa, 1: MIG-bb"),
        (("GPU-cc",), "--gpus GPU-cc: not among"),
        (("first",), "--gpus first: not among"),
        (("-1",), "--gpus -1: not among"),
        (("0", "GPU-aa"), "--gpus GPU-aa: named twice"),
    ],
)
def test_a_gpu_that_is_not_visible_is_refused(wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_gpus(wanted, FOUND)


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 2, ["0", "1"]),
        ("2,3", 2, ["2", "3"]),
        ("GPU-a", 1, ["GPU-a"]),
        ("1,9,0", 1, ["1"]),  # CUDA takes what stands before the first that is not there
        ("", 0, []),
        ("-1", 0, []),
    ],
)
def test_gpus_are_those_that_this_process_may_see(
    visible: str | None, count: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from wsi_pipeline.models.device import list_gpus

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    uuids = [SimpleNamespace(uuid=f"u{index}") for index in range(count)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", uuids.__getitem__)
    found = list_gpus()
    assert [gpu.name for gpu in found] == names
    assert [gpu.uuid for gpu in found] == [f"GPU-u{index}" for index in range(count)]


def see_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_pipeline.models.gpus.ask_gpus", lambda: FOUND)


def test_without_worker_processes_one_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch)
    chosen = [
        choose_workers(WorkerOptions(workers=0, gpus=gpus), "cuda").gpus for gpus in (None, "1")
    ]
    assert chosen == [("2",), ("MIG-bb",)]
    with pytest.raises(ConfigError, match="--workers 0 computes on one GPU"):
        choose_workers(WorkerOptions(workers=0, gpus="0,1"), "cuda")


def test_a_plain_loop_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with open_workers(Workers(count=0, gpus=("MIG-bb",))):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-bb"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


@pytest.mark.system
def test_the_gpus_are_asked_for_in_a_process_of_its_own() -> None:
    code = (
        "import sys; from wsi_pipeline.models.gpus import ask_gpus;"
        "print(len(ask_gpus()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import torch

    assert done.stdout.split() == [str(torch.cuda.device_count()), "False"]


def test_a_torch_that_cannot_tell_its_gpus_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EnvironmentFault, match="torch cannot tell which GPUs there are"):
        choose_workers(WorkerOptions(), "cuda")


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="--gpus 0,2: no usable GPU"):
        choose_workers(WorkerOptions(gpus="0,2"), "cpu")


def test_a_scheduler_without_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="is neither an address nor a file"):
        Workers(scheduler="foo")


@pytest.mark.timeout(120)
def test_a_product_that_is_not_here_is_not_called_done(tmp_path: Path) -> None:
    """A cluster whose workers see other folders: what they made is not where this machine looks."""
    from tests.builders import paint
    from tests.builders import write_slide as write
    from wsi_pipeline.core.geometry import PatchSpec
    from wsi_pipeline.stages.tile import TileJob
    from wsi_pipeline.stages.tile_config import TileConfig

    write(tmp_path / "s.tiff", paint(60, 60))
    finish = TileJob.finish

    def finish_elsewhere(job: TileJob, plan: object, reports: object) -> object:
        outcome = finish(job, plan, reports)  # type: ignore[arg-type]
        job.target.rename(tmp_path / "elsewhere")
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileJob, "finish", finish_elsewhere)
        with pytest.raises(
            EnvironmentFault,
            match="is not here; give a folder that this machine and the workers share",
        ):
            tile(
                [tmp_path / "s.tiff"],
                tmp_path / "out",
                TileConfig(spec=PatchSpec(mpp=0.5)),
                workers=Workers(count=0),
            )


@pytest.mark.parametrize("seconds", [{"floor_s": 0}, {"first_s": -1}, {"factor": 0}])
def test_deadlines_that_no_step_can_keep_are_refused(seconds: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="deadlines must be above 0"):
        Deadlines(**seconds)


@pytest.mark.parametrize(
    ("kind", "before", "expected"),
    [
        ("block", [], 600),
        ("block", [1, 1], 600),
        ("block", [1, 2, 3], 60),
        ("block", [5, 7, 90], 70),
        ("finish", [1, 1, 1], 7200),
    ],
)
def test_a_block_may_take_ten_medians_and_a_minute_at_least(
    kind: str, before: list[float], expected: float
) -> None:
    from wsi_pipeline.scheduling.jobs import Step

    assert choose_deadline(Step(0, kind), Deadlines(), deque(before)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": "pbs"}, "must be one of local, slurm, cuda"),
        ({"cluster": "slurm"}, "--cluster slurm and --slurm-config belong together"),
        (
            {"cluster": "cuda", "scheduler": "tls://h:1"},
            "give a running cluster or --cluster cuda, not both",
        ),
    ],
)
def test_crews_that_contradict_themselves_are_refused(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Workers(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must be a table"),
        ("cores: [", "cannot be read as YAML"),
        ("protocol: tcp", "protocol: not to be set here"),
        ("jobs: many", "jobs is 'many'"),
    ],
)
def test_a_slurm_configuration_that_makes_no_sense_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    from wsi_pipeline.scheduling.clusters import read_slurm_config

    (tmp_path / "slurm.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_slurm_config(tmp_path / "slurm.yaml")


def test_what_dask_cuda_would_start_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(ConfigError, match="--cluster cuda needs dask-cuda"):
        run_jobs([CountJob(tmp_path, 1)], Workers(cluster="cuda"), Notes())
