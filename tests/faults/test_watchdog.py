"""Workers killed at random moments, some of which cannot even be started: a run always ends, and
what it says of every job is true.
"""

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.counting_jobs import CountJob, Notes
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.scheduling import Deadlines, Workers, clusters, dask_executor, lone_worker
from wsi_pipeline.scheduling import run_jobs as run

JOBS, BLOCKS = 12, 6
LONGEST_S = 120.0
"""A run that takes longer waits for ever."""
DIED = "a worker process died over it"
STARTS_THAT_FAIL = 0.25


class BusyJob(CountJob):
    """A job whose blocks take a moment, so that some are under way at any time."""

    def run_block(self, plan: Any, block: int) -> int:
        time.sleep(0.02)
        return super().run_block(plan, block)


class Killer(threading.Thread):
    """Kills a worker every so often, until it is told to stop."""

    def __init__(self, chance: random.Random, mean_s: float) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self._chance, self._mean_s = chance, mean_s
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(self._chance.expovariate(1 / self._mean_s)):
            with suppress(psutil.NoSuchProcess):
                workers = [
                    child
                    for child in psutil.Process().children(recursive=True)
                    if any("spawn_main" in word for word in child.cmdline())
                ]
                if workers:
                    self._chance.choice(workers).kill()
                    self.kills += 1

    def stop(self) -> None:
        self._is_over.set()
        self.join()


@contextmanager
def starts_that_fail(chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some starts of a worker find no file handles."""
    import distributed

    start, instantiate = lone_worker._start_child, distributed.Nanny.instantiate

    def fail_at_times() -> None:
        if chance.random() < STARTS_THAT_FAIL:
            raise OSError(errno.EMFILE, "Too many open files")

    def start_child(workers: Workers) -> Any:
        fail_at_times()
        return start(workers)

    async def start_nanny(nanny: Any) -> Any:
        if getattr(nanny, "was_started", False):  # a cluster whose first start fails says so
            fail_at_times()
        nanny.was_started = True
        return await instantiate(nanny)

    with monkeypatch.context() as patch:
        patch.setattr(lone_worker, "_start_child", start_child)
        patch.setattr(lone_worker, "PAUSE_S", 0.05)
        patch.setattr(distributed.Nanny, "instantiate", start_nanny)
        patch.setitem(clusters.PATIENCE_S, "local", 5.0)
        patch.setattr(dask_executor, "LOOK_S", 0.5)
        yield


def run_in_time(jobs: list[BusyJob], workers: Workers, notes: Notes) -> list[object] | None:
    """Return the results, or None where the machine was at fault; fails where it does not end."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(run(jobs, workers, notes))
        except EnvironmentFault as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LONGEST_S)
    assert found, f"the run has not ended after {LONGEST_S:.0f} s"
    return None if isinstance(found[0], EnvironmentFault) else found[0]


def check_one_run(
    folder: Path, count: int, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, bool]:
    """Run jobs under kills, then undisturbed; return the kills, and whether the first run ended
    with every job done.
    """
    jobs = []
    for index in range(JOBS):
        (folder / str(index)).mkdir(parents=True)
        jobs.append(BusyJob(folder / str(index), BLOCKS))
    notes, killer = Notes(), Killer(chance, mean_s=chance.choice([0.1, 0.4, 1.0]))
    workers = Workers(count=count, deadlines=Deadlines(silence_s=10))
    with starts_that_fail(chance, monkeypatch):
        killer.start()
        results = run_in_time(jobs, workers, notes)
        killer.stop()
    for index, result in enumerate(results or ()):
        blocks = sorted(block for job, block in notes.blocks if job == index)
        if isinstance(result, Exception):
            assert DIED in str(result)
            assert len(set(blocks)) == len(blocks)
        else:
            assert (result, blocks) == (sum(range(BLOCKS)), list(range(BLOCKS)))
        assert notes.ends[index] is result
    assert not list(folder.glob("*/lock"))
    return killer.kills, all(not isinstance(result, Exception) for result in results or [OSError()])


def keep_killing(
    folder: Path, seconds: float, monkeypatch: pytest.MonkeyPatch, count: int, seed: int
) -> tuple[int, int, int]:
    """Run again and again for so long; return runs, kills and runs in which all was done."""
    chance, end = random.Random(seed), time.monotonic() + seconds
    runs = kills = whole = 0
    while not runs or time.monotonic() < end:
        killed, is_whole = check_one_run(folder / str(runs), count, chance, monkeypatch)
        runs, kills, whole = runs + 1, kills + killed, whole + is_whole
    return runs, kills, whole


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_ends_whenever_its_workers_are_killed(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kills, _ = keep_killing(tmp_path, 5, monkeypatch, count, seed=count)
    assert kills


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_ends_whenever_its_workers_are_killed_for_five_minutes(
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    runs, kills, whole = keep_killing(tmp_path, 300, monkeypatch, count, seed=10 + count)
    found = {"runs": runs, "workers killed": kills, "runs with every job done": whole}
    for name, number in found.items():
        record_property(f"count of {name} ({count} workers)", number)
    assert runs > 10
    assert kills > runs
