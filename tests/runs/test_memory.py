"""Where memory ends: the process that the user started says so and can be run again; a slide that
takes too much fails by itself, so that nothing is tried again without end.
"""

import errno
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders import tissue, write_model, write_slide
from tests.commands import PLAIN, run, spawn
from wsi_pipeline.core.errors import is_memory_fault
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.runs import infer as infer_module
from wsi_pipeline.stages.infer import InferJob

MOST_DRIVER_KB = 400_000
"""Measured: 121,000 with one worker, 154,000 with two."""
NO_MEMORY = (
    MemoryError("Unable to allocate 9.31 GiB for an array"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ImportError("libany.so: failed to map segment from shared object"),
)


def infer_again(root: Path) -> tuple[object, ...]:
    line = ("infer", "--slides", root / "slides", "--model", root / "results.safetensors")
    made = ("--results-dir", root / "results", "--workers", 0, "--outputs", "summary")
    return (*line, *made, *PLAIN)


@pytest.fixture
def root(served_root: Path, tmp_path: Path) -> Path:
    """Slides `one` and `two`, and a model; nothing is inferred."""
    shutil.copytree(served_root / "slides", tmp_path / "slides")
    shutil.copy(served_root / "results.safetensors", tmp_path)
    return tmp_path


@pytest.fixture
def done(root: Path) -> Path:
    """The same with the results of both."""
    assert run(*infer_again(root)).exit_code == 0
    return root


def raise_it(error: BaseException) -> object:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


# -- the process that the user started
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: f"{type(error).__name__} {error}")
def test_without_memory_a_run_ends_with_5_and_a_remedy(
    error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_module, "write_tables", raise_it(error))
    made = run(*infer_again(root))
    assert made.exit_code == 5
    (line,) = (line for line in made.stderr.splitlines() if line.startswith("wsi: "))
    assert line.startswith("wsi: out of memory")
    assert line.endswith("larger machine, and run the same line again")
    assert "Traceback" not in made.output


def test_another_error_is_not_taken_for_missing_memory() -> None:
    for error in (
        RuntimeError("a worker process died over it (out of memory, or a crash in a decoder)"),
        ImportError("No module named 'x'"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("can't allocate memory"),
    ):
        assert not is_memory_fault(error)


@pytest.mark.system
@pytest.mark.parametrize("megabytes", [300, 600])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_with_little_address_space_a_run_ends_with_5_and_one_line(
    megabytes: int, root: Path
) -> None:
    limit = megabytes * 1024 * 1024
    ended = subprocess.run(
        [sys.executable, "-c", "from wsi_cli.main import wsi; wsi()", *map(str, infer_again(root))],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 5
    assert ended.stderr.splitlines()[-1].startswith("wsi: out of memory")
    assert "Traceback" not in ended.stderr


# -- one slide's work
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: f"{type(error).__name__} {error}")
def test_an_oversized_slide_fails_alone_and_fails_the_same_again(
    error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = InferJob.prepare

    def prepare_or_fail(job: InferJob) -> object:
        if job.slide.slide_id == "one":
            raise error
        return prepare(job)

    monkeypatch.setattr(InferJob, "prepare", prepare_or_fail)
    for _ in range(2):  # 5 would say: try again
        made = run(*infer_again(root))
        assert made.exit_code == 3
        assert "2 slides: 1 ok, 1 failed" in made.output
        assert f"{root / 'slides' / 'one.tiff'}: needs more memory" in made.output
        assert "leave it out, or use fewer workers or a larger machine" in made.output


def test_a_finished_slide_that_cannot_be_looked_at_for_memory_stops_no_run(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    find_done = InferJob.find_done

    def fail_once(job: InferJob) -> object:
        looked.append(job.slide.slide_id)
        if looked == ["one"]:
            raise MemoryError
        return find_done(job)

    monkeypatch.setattr(InferJob, "find_done", fail_once)
    assert run(*infer_again(done)).exit_code == 0
    assert "one" in looked


def test_results_that_are_too_large_to_read_are_one_slides_failure(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_or_fail(folder: Path) -> object:
        if folder.name == "one":
            raise MemoryError
        return read_summary(folder)

    monkeypatch.setattr("wsi_pipeline.outputs.run_files.read_summary", read_or_fail)
    made = run("aggregate", done / "results", "--outputs", "summary", "--threshold", "0.4")
    assert made.exit_code == 3
    assert "2 slides: 1 ok, 1 failed" in made.output


# -- how much the process that the user started takes
# --------------------------------------------------------------------------------------------------


def peak_kb(process: int) -> int:
    """Return the most memory that a process has had, without its children; 0 once it ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line), 0)


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_driver_of_a_run_stays_under_400_mb(workers: int, tmp_path: Path) -> None:
    for number in range(3):
        write_slide(tmp_path / "slides" / f"s{number}.tiff", tissue(2000, 1500, seed=number))
    model = write_model(tmp_path / "m.safetensors")
    line = ("infer", "--slides", tmp_path / "slides", "--model", model, "--workers", workers)
    driver = spawn(*line, "--results-dir", tmp_path / "results", *PLAIN)
    most = 0
    try:
        while driver.poll() is None:
            most = max(most, peak_kb(driver.pid))
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.communicate()
    assert driver.returncode == 0
    assert 20_000 < most < MOST_DRIVER_KB
