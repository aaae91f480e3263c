"""No slide takes more memory than it may: neither in worker processes nor in the process that the user started."""

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.test_scheduling import CountPlan, Notes
from wsi_pipeline.outcome import describe_failure
from wsi_pipeline.scheduling import Workers, run_jobs

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_a_worker_that_asks_for_too_much_fails_one_slide_and_lives_on() -> None:
    from distributed.system import MEMORY_LIMIT

    limit, greedy, after = run_jobs([HungryJob(False), HungryJob(True), HungryJob(False)], Workers(count=2), Notes())
    assert limit == after == max(4 * GIB, MEMORY_LIMIT // 2)
    assert isinstance(greedy, MemoryError)
    line = describe_failure("s", "/slides/s.svs", greedy).message
    assert line.startswith("/slides/s.svs: needs more memory than a worker may take")


LIMITED_RUN = """
import sys
from pathlib import Path
from wsi_pipeline.geometry import PatchSpec
from wsi_pipeline.pipeline import tile_slides
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.scheduling.confinement import limit_memory
from wsi_pipeline.tiling import TileConfig

limit_memory(1792 << 20)
for outcome in tile_slides([Path(sys.argv[1])], Path(sys.argv[2]), TileConfig(spec=PatchSpec(mpp=0.5)), workers=Workers(count=0)).outcomes:
    print(outcome.slide_id, outcome.state, outcome.message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_a_picture_that_unpacks_to_more_than_there_is_fails_alone(tmp_path: Path) -> None:
    from tests.hostile_slides import png_of, write_tiled

    (tmp_path / "slides").mkdir()
    side = 13_000  # 0.5 GB as RGB and more on the way, from a file of 0.5 MB
    (tmp_path / "slides" / "bomb.png").write_bytes(png_of(side, side, bytes(side * (side * 3 + 1))))
    write_tiled(tmp_path / "slides" / "good.tiff")
    command = [sys.executable, "-c", LIMITED_RUN, str(tmp_path / "slides"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    bomb, good = done.stdout.splitlines()
    assert bomb.startswith("bomb failed")
    assert "needs more memory than a worker may take" in bomb
    assert good == "good ok 120 patches"
