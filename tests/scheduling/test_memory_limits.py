"""No slide takes more memory than it may: neither in worker processes nor in the process that the
user started.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.builders import write_model
from tests.commands import run
from tests.counting_jobs import CountPlan, Notes
from tests.hostile_slides import png_of, write_tiled
from wsi_pipeline.core import limits
from wsi_pipeline.core.outcome import describe_failure
from wsi_pipeline.scheduling import Workers, run_jobs
from wsi_pipeline.slides.checks import check_slide_file

GIB = 1024**3


@dataclass(frozen=True)
class HungryJob:
    """Reports its process's limit; where it is greedy, it asks for more."""

    greedy: bool

    @contextmanager
    def hold(self) -> Iterator[None]:
        yield

    def prepare(self) -> CountPlan:
        return CountPlan((0,))

    def run_block(self, plan: CountPlan, block: int) -> int:
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if self.greedy:
            np.empty(limit, np.uint8)  # not one byte of it is touched
        return limit

    def finish(self, plan: CountPlan, reports: Sequence[int]) -> int:
        return reports[0]


@pytest.mark.system
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_a_worker_that_asks_for_too_much_fails_one_slide_and_lives_on(count: int) -> None:
    from distributed.system import MEMORY_LIMIT

    limit, greedy, after = run_jobs(
        [HungryJob(False), HungryJob(True), HungryJob(False)], Workers(count=count), Notes()
    )
    assert limit == after == max(4 * GIB, MEMORY_LIMIT // count)
    assert isinstance(greedy, MemoryError)
    line = describe_failure("s", "/slides/s.svs", greedy).message
    assert line.startswith("/slides/s.svs: needs more memory than a worker may take")


def test_the_machines_memory_is_shared_out_but_a_gpus_worker_may_take_all_of_it() -> None:
    from distributed.system import MEMORY_LIMIT

    from wsi_pipeline.scheduling.worker_process import share_memory

    assert share_memory(Workers(count=2)) == max(4 * GIB, MEMORY_LIMIT // 2)
    assert share_memory(Workers(count=1000)) == 4 * GIB
    assert share_memory(Workers(gpus=("0", "1"))) == max(4 * GIB, MEMORY_LIMIT)


LIMITED_RUN = """
import sys
from pathlib import Path
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.runs.batch import run_batch
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.stages.tile import TileJob
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.core import limits
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.tile_config import TileConfig

slides, out = find_slides([Path(sys.argv[1])]), Path(sys.argv[2])
out.mkdir()
limits.machine_memory = lambda: 512 << 20
jobs = [TileJob(slide, out, TileConfig(spec=PatchSpec(mpp=0.5))) for slide in slides]
for outcome in run_batch(jobs, Workers(count=0), Listener()).account.outcomes:
    print(outcome.slide_id, outcome.state, outcome.message)
"""

BOMB = png_of(13_000, 13_000)
"""Memory is taken for 169 million pixels before anybody notices that there are none."""


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_a_picture_that_unpacks_to_more_than_there_is_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "bomb.png").write_bytes(BOMB)
    write_tiled(tmp_path / "slides" / "good.tiff")
    command = [sys.executable, "-c", LIMITED_RUN, str(tmp_path / "slides"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    bomb, good = done.stdout.splitlines()
    assert bomb.startswith("bomb failed")
    assert "needs more memory than a worker may take" in bomb
    assert good == "good ok 120 patches"


INFO = """
from wsi_cli.main import wsi
from wsi_pipeline.core import limits

limits.machine_memory = lambda: 512 << 20
wsi()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_info_of_a_picture_that_unpacks_to_more_than_there_is_ends_in_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "bomb.png").write_bytes(BOMB)
    command = [sys.executable, "-c", INFO, "info", str(tmp_path / "bomb.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"wsi: {tmp_path / 'bomb.png'}: needs more memory than this machine has; leave it out\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_info_a_dry_run_and_a_plain_loop_read_slides_under_a_limit_and_lift_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, held = resource.getrlimit(resource.RLIMIT_DATA), []

    def note_limit(path: Path) -> None:
        held.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
        check_slide_file(path)

    monkeypatch.setattr("wsi_pipeline.slides.check_slide_file", note_limit)
    monkeypatch.setattr(limits, "machine_memory", lambda: 64 * GIB)
    slide, model = (
        write_tiled(tmp_path / "slides" / "s.tiff"),
        write_model(tmp_path / "model.safetensors"),
    )
    where = ["--slides", slide, "--model", model, "--results-dir", tmp_path / "r"]
    for command in (
        ["info", slide],
        ["infer", "--dry-run", *where, "--device", "cpu"],
        ["tile", slide, "--out", tmp_path / "stores", "--mpp", 0.5, "--workers", 0],
    ):
        assert run(*command).exit_code == 0
        assert set(held) == {64 * GIB}
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
        held.clear()
