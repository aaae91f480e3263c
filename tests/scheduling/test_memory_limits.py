"""No slide takes more memory than it may: neither in worker processes nor in the process that the user started."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.builders import write_model
from tests.commands import run
from tests.counting_jobs import CountPlan, Notes
from tests.hostile_slides import png_of, write_aperio, write_tiled
from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.core.outcome import describe_failure
from wsi_pipeline.scheduling import Workers, run_jobs
from wsi_pipeline.slides.probe import Probe

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
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private memory alone")
def test_a_worker_that_asks_for_too_much_fails_one_slide_and_lives_on() -> None:
    from distributed.system import MEMORY_LIMIT

    limit, greedy, after = run_jobs(
        [HungryJob(False), HungryJob(True), HungryJob(False)], Workers(count=1), Notes()
    )
    assert limit == after == max(4 * GIB, MEMORY_LIMIT)
    assert isinstance(greedy, MemoryError)
    line = describe_failure("s", "/slides/s.svs", greedy).message
    assert line.startswith("/slides/s.svs: needs more memory than a worker may take")


def test_the_machines_memory_is_shared_out_but_a_gpus_worker_may_take_all_of_it() -> None:
    from distributed.system import MEMORY_LIMIT

    from wsi_pipeline.scheduling.clusters import share_memory

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
from wsi_pipeline.scheduling.clusters import limit_memory
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.stages.patch_plan import TileConfig

slides, out = find_slides([Path(sys.argv[1])]), Path(sys.argv[2])
out.mkdir()
limit_memory(768 << 20)
jobs = [TileJob(slide, out, TileConfig(spec=PatchSpec(mpp=0.5))) for slide in slides]
for outcome in run_batch(slides, jobs, Workers(count=0), Listener()).account.outcomes:
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


@pytest.fixture
def probe() -> Iterator[Probe]:
    """A limited process with little patience."""
    probe = Probe(deadline_s=20, memory_bytes=GIB // 2)
    yield probe
    probe.close()


def child_of(probe: Probe) -> subprocess.Popen[bytes]:
    assert probe._process is not None
    return probe._process


def test_a_slide_that_opens_passes_the_probe_which_stays(probe: Probe, tmp_path: Path) -> None:
    slide = write_tiled(tmp_path / "s.tiff")
    probe.try_open(slide, scale=None, reader="auto")
    first = child_of(probe).pid
    probe.try_open(slide, scale=(0.25, "user"), reader="openslide")
    assert child_of(probe).pid == first


def test_what_the_probe_finds_wrong_is_the_slides_own_fault(probe: Probe, tmp_path: Path) -> None:
    with pytest.raises(
        SlideError, match=r"nan\.svs: the file states no µm per pixel; give it with --slide-mpp"
    ):
        probe.try_open(write_aperio(tmp_path / "nan.svs", "nan"), scale=None, reader="auto")


def test_a_slide_that_needs_too_much_memory_is_refused_and_the_next_one_opens(
    probe: Probe, tmp_path: Path
) -> None:
    (tmp_path / "bomb.png").write_bytes(BOMB)
    with pytest.raises(
        SlideError, match=r"bomb\.png: needs more memory to be opened than any slide does"
    ):
        probe.try_open(tmp_path / "bomb.png", scale=None, reader="auto")
    probe.try_open(write_tiled(tmp_path / "s.tiff"), scale=None, reader="auto")


def test_a_slide_over_which_the_probe_dies_is_refused_and_the_next_one_opens(
    probe: Probe, tmp_path: Path
) -> None:
    slide = write_tiled(tmp_path / "s.tiff")
    probe.try_open(slide, scale=None, reader="auto")
    os.kill(child_of(probe).pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, [child_of(probe).pid, signal.SIGKILL]).start()
    with pytest.raises(SlideError, match=r"s\.tiff: a process that opened it crashed"):
        probe.try_open(slide, scale=None, reader="auto")
    probe.try_open(slide, scale=None, reader="auto")


def test_a_slide_over_which_the_probe_hangs_is_refused_and_the_next_one_opens(
    tmp_path: Path,
) -> None:
    slide, probe = write_tiled(tmp_path / "s.tiff"), Probe(deadline_s=20)
    probe.try_open(slide, scale=None, reader="auto")
    os.kill(child_of(probe).pid, signal.SIGSTOP)
    probe._deadline_s = 0.3
    with pytest.raises(SlideError, match=r"s\.tiff: is not open after 0\.3 s"):
        probe.try_open(slide, scale=None, reader="auto")
    probe._deadline_s = 20
    probe.try_open(slide, scale=None, reader="auto")
    probe.close()


def test_a_probe_leaves_no_process_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wsi_pipeline.slides import open_slide; from"
        " wsi_pipeline.slides.probe import PROBE; open_slide(Path(sys.argv[1]));"
        " print(PROBE._process.pid)"
    )
    command = [sys.executable, "-c", code, str(write_tiled(tmp_path / "s.tiff"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_info_and_a_dry_run_ask_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Probe, "try_open", lambda self, path, **request: asked.append(path.name))
    slide, model = (
        write_tiled(tmp_path / "slides" / "s.tiff"),
        write_model(tmp_path / "model.safetensors"),
    )
    assert run("info", str(slide)).exit_code == 0
    dry = [
        "infer",
        "--dry-run",
        "--slides",
        str(slide),
        "--model",
        str(model),
        "--results-dir",
        str(tmp_path / "r"),
        "--device",
        "cpu",
    ]
    assert run(*dry).exit_code == 0
    assert asked == ["s.tiff"] * 2


def test_a_limited_process_needs_no_probe() -> None:
    code = (
        "import resource; from wsi_pipeline.slides.probe import is_limited; before = is_limited(); "
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 32, 1 << 32)); print(before, is_limited())"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False True\n"
    )
