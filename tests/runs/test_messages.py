"""The line of a failure: its cause, its slide once, and what to do."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.builders import paint, write_slide
from tests.commands import run
from wsi_pipeline.core.outcome import SlideOutcome, SlideState, describe_failure


@pytest.mark.parametrize("size", [(30, 40), (49, 400), (400, 49)])
def test_a_slide_smaller_than_a_patch_says_so(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.full((*size, 3), (180, 90, 160), np.uint8)
    tifffile.imwrite(tmp_path / "s.tiff", pixels, tile=(256, 256), photometric="rgb")
    done = run("tile", tmp_path / "s.tiff", "--slide-mpp", 0.5, "--mpp", 0.5, "-o", tmp_path / "o")
    height, width = (side * 0.5 for side in size)
    assert done.exit_code == 4
    assert (
        f"failed: {tmp_path / 's.tiff'}: its {width:g} × {height:g} µm hold no patch of 25 µm;"
        " use smaller patches or a finer scale, or leave it out\n"
    ) in done.stderr


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("/d/s.svs: no scale; give one", "failed: /d/s.svs: no scale; give one"),
        ("s: no mask of that name", "failed: s: no mask of that name"),
        ("a process died over it", "s: failed: a process died over it"),
        ("s is no word to begin with", "s: failed: s is no word to begin with"),
    ],
)
def test_a_failure_names_its_slide_once(message: str, line: str) -> None:
    assert SlideOutcome("s", "/d/s.svs", SlideState.FAILED, message).line == line


def test_a_librarys_text_does_not_name_the_file_again() -> None:
    error = ValueError("/d/s.svs: cannot be decoded (libtiff, /d/s.svs: bad tile)")
    message = describe_failure("s", "/d/s.svs", error).message
    assert message == "ValueError: /d/s.svs: cannot be decoded (libtiff, bad tile)"


def run_limited(limit: int, value: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own under a resource limit."""
    code = "import sys; sys.argv[0] = 'wsi'; from wsi_cli.main import wsi; wsi()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )


@pytest.mark.system
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_limit_of_file_sizes_is_named_with_its_remedy(workers: int, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(300, 300))
    options = ("-o", tmp_path / "o", "--mpp", 0.5, "--min-tissue", 0, "--workers", workers)
    done = run_limited(resource.RLIMIT_FSIZE, 40_000, "tile", slide, *options)
    assert done.returncode == 5
    assert "File too large; raise the limit of file sizes (ulimit -f)" in done.stderr


@pytest.mark.system
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_finds_no_file_handles_is_named_with_its_remedy(
    workers: int, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "s.tiff", paint(300, 300))
    options = ("-o", tmp_path / "o", "--mpp", 0.5, "--workers", workers)
    limit = 12 if workers == 1 else 20
    done = run_limited(resource.RLIMIT_NOFILE, limit, "tile", slide, *options)
    assert done.returncode == 5
    assert "Too many open files" in done.stderr
    assert "(ulimit -" in done.stderr
    assert "Traceback" not in done.stderr
