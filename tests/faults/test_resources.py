"""What a machine runs out of: room, file handles, shared memory. Each ends in one line that says
so, and the same line again goes on.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders import PINK, folder_bytes, paint_noise, write_model, write_slide
from tests.faults.injector import Ended, Zygote
from tests.faults.workloads import content, find_broken

pytestmark = pytest.mark.system

OUTPUTS = ("--outputs", "summary,csv")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """Two slides of twelve patches, a model, and what undisturbed runs make of them, `results` and
    `stores`.
    """
    root = tmp_path_factory.mktemp("resources")
    for number in range(2):
        pixels = np.clip(
            np.array(PINK) + paint_noise(210, 160, number).astype(np.int64) // 8 - 16, 0, 255
        ).astype(np.uint8)
        write_slide(root / "slides" / f"s{number}.tiff", pixels)
    write_model(root / "m.safetensors")
    zygote.warm(infer(root, root / "results"))
    zygote.warm(tile(root, root / "stores"))
    return root


def infer(base: Path, out: Path) -> tuple[object, ...]:
    model = (
        "--model",
        base / "m.safetensors",
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--workers",
        "0",
    )
    return ("infer", "--slides", base / "slides", *model, "--results-dir", out, *OUTPUTS)


def tile(base: Path, out: Path) -> tuple[object, ...]:
    return ("tile", base / "slides", "--out", out, "--mpp", "0.5", "--workers", "0")


def is_clear(ended: Ended, reason: str) -> None:
    """One line of the reason, exit code 5, no traceback."""
    said = ended.stdout + ended.stderr
    assert ended.code == 5, said
    assert reason in said
    assert "run the same line again" in said
    assert "Traceback" not in said
    assert "internal error" not in said


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory of a few kB; skips where it may not be mounted."""
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root, and a machine that lets it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def grow(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.parametrize(
    ("small", "large", "reason"),
    [
        (
            "size=160k",
            "size=64m",
            "0.00 GB free, of which --min-free keeps 0.00 GB and this slide needs",
        ),
        (
            "size=110k",
            "size=64m",
            "No space left on device",
        ),  # for the patches of one slide, 90 kB, and not for what lies beside them
        ("size=64m,nr_inodes=40", "size=64m,nr_inodes=4000", "No space left on device"),
    ],
)
def test_a_full_disk_is_named_and_with_more_room_the_same_line_goes_on(
    small: str, large: str, reason: str, base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", small) as disk:
        arguments = (*tile(base, disk / "stores"), "--min-free", "0")
        is_clear(zygote.run(arguments), reason)
        assert find_broken(disk) == []
        grow(disk, large)
        assert zygote.run(arguments).code == 0
        assert content(disk / "stores") == content(base / "stores")


@pytest.mark.parametrize("limit", [40_000])
def test_a_limit_of_file_sizes_is_named(
    limit: int, base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    is_clear(
        zygote.run(tile(base, tmp_path / "stores"), limits={"RLIMIT_FSIZE": limit}),
        "File too large",
    )
    assert find_broken(tmp_path) == []
    assert zygote.run(tile(base, tmp_path / "stores")).code == 0
    assert content(tmp_path / "stores") == content(base / "stores")


@pytest.mark.parametrize("handles", [4, 10, 16])
def test_too_few_file_handles_are_named(
    handles: int, base: Path, zygote: Zygote, tmp_path: Path
) -> None:
    ended = zygote.run(infer(base, tmp_path / "results"), limits={"RLIMIT_NOFILE": handles})
    if ended.code != 0:
        is_clear(ended, "Too many open files")
    assert find_broken(tmp_path) == []
    assert zygote.run(infer(base, tmp_path / "results")).code == 0
    assert content(tmp_path / "results") == content(base / "results")


TINY = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'


def test_worker_processes_need_no_shared_memory(base: Path, zygote: Zygote, tmp_path: Path) -> None:
    """In a mount name space of its own, where /dev/shm holds 64 kB, and blocks of pixels would not
    fit.
    """
    apart = ("unshare", "--mount", "sh", "-c", TINY, "sh")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a small /dev/shm needs root, and a machine that lets it be mounted")
    arguments = [
        "1" if argument == "0" else str(argument) for argument in infer(base, tmp_path / "results")
    ]
    program = (sys.executable, "-c", "from wsi_cli.main import wsi; wsi()")
    done = subprocess.run(
        [*apart, *program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "results" / "s0") == folder_bytes(base / "results" / "s0")
