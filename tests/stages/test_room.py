"""Free disk space, checked before a slide starts and before every block; permissions of files."""

import os
import stat
from pathlib import Path

import pytest

from tests.builders import paint, paint_noise, write_model, write_slide
from tests.commands import HERE, PLAIN, run, tile
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.runs.disk_space import DiskSpace
from wsi_pipeline.stages.tile_config import TileConfig

CONFIG = TileConfig(spec=PatchSpec(mpp=0.5))


class Disk:
    """A file system of our own making: 4,096-byte blocks."""

    f_frsize = 4096
    f_files = 1_000_000

    def __init__(self, free_bytes: int, free_files: int = 500_000) -> None:
        self.f_bavail = free_bytes // 4096
        self.f_favail = free_files


def have(monkeypatch: pytest.MonkeyPatch, *disks: Disk) -> None:
    """The next looks at the disk show these, and then always the last."""
    left = list(disks)
    monkeypatch.setattr(
        "wsi_pipeline.runs.disk_space.os.statvfs",
        lambda folder: left.pop(0) if len(left) > 1 else left[0],
    )


def test_what_is_kept_free_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have(monkeypatch, Disk(4096 * 1000))
    DiskSpace(4096 * 1000).check(tmp_path)
    DiskSpace(4096 * 600).check(tmp_path, 4096 * 400)
    with pytest.raises(EnvironmentFault, match="--min-free keeps"):
        DiskSpace(4096 * 600).check(tmp_path, 4096 * 400 + 1)


def test_files_may_run_out_before_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have(monkeypatch, Disk(10**12, 999))
    with pytest.raises(EnvironmentFault, match="room for 999 more files only"):
        DiskSpace().check(tmp_path / "not" / "there" / "yet")


def test_a_file_system_without_a_limit_of_files_has_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = Disk(10**12, 0)
    disk.f_files = 0
    have(monkeypatch, disk)
    DiskSpace().check(tmp_path)


def test_less_than_nothing_cannot_be_kept_free() -> None:
    with pytest.raises(ConfigError):
        DiskSpace(-1)


def test_no_slide_is_begun_without_room(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tiff", paint(150, 150))
    result = run(
        "tile",
        tmp_path / "s.tiff",
        "-o",
        tmp_path / "out",
        "--mpp",
        0.5,
        "--workers",
        0,
        "--min-free",
        "900TB",
    )
    assert result.exit_code == 5
    assert (
        "of which --min-free keeps 900,000.00 GB; make room and run the same line again"
        in result.stderr
    )
    assert not (tmp_path / "out" / "s.patches.zarr").exists()
    assert (
        run(
            "tile",
            tmp_path / "s.tiff",
            "-o",
            tmp_path / "out",
            "--mpp",
            0.5,
            "--workers",
            0,
            "--min-free",
            "1MB",
        ).exit_code
        == 0
    )


def test_a_slide_that_will_not_fit_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nine patches of 50 × 50 × 3 bytes are 67,500; 16 blocks of 4,096 are 65,536."""
    write_slide(tmp_path / "s.tiff", paint(150, 150))
    have(monkeypatch, Disk(16 * 4096))
    account = tile(
        [tmp_path / "s.tiff"],
        tmp_path / "out",
        CONFIG,
        workers=HERE,
        min_free=0,
    )
    assert account.exit_code == 5
    assert "this slide needs 0.00 GB more" in account.outcomes[0].message
    have(monkeypatch, Disk(17 * 4096))
    assert (
        tile(
            [tmp_path / "s.tiff"],
            tmp_path / "out",
            CONFIG,
            workers=HERE,
            min_free=0,
        ).exit_code
        == 0
    )


def test_work_stops_before_the_disk_is_full_and_goes_on_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """10,000 patches are four blocks of 3,072: there is space before them and at two of them."""
    write_slide(tmp_path / "s.tiff", paint_noise(1000, 1000))
    config = TileConfig(spec=PatchSpec(10, 10, 0.5))
    plenty, nothing = Disk(10**12), Disk(0)
    have(monkeypatch, plenty, plenty, plenty, plenty, nothing)
    free = 1_000_000
    account = tile([tmp_path / "s.tiff"], tmp_path / "out", config, workers=HERE, min_free=free)
    assert account.exit_code == 5
    assert len(list((tmp_path / "out" / ".wsi" / "staging").glob("*/blocks/*.json"))) == 2
    monkeypatch.undo()
    assert (
        tile([tmp_path / "s.tiff"], tmp_path / "out", config, workers=HERE, min_free=free).exit_code
        == 0
    )


def test_where_everything_is_done_no_room_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_slide(tmp_path / "s.tiff", paint(150, 150))
    tile([tmp_path / "s.tiff"], tmp_path / "out", CONFIG, workers=HERE)
    have(monkeypatch, Disk(0))
    account = tile([tmp_path / "s.tiff"], tmp_path / "out", CONFIG, workers=HERE)
    assert account.exit_code == 0
    assert account.outcomes[0].is_resumed_whole


@pytest.mark.parametrize("text", ["much", "-1", "1.5.2GB", "GB", ""])
def test_what_is_no_amount_of_bytes_is_a_usage_error(text: str, tmp_path: Path) -> None:
    assert run("tile", tmp_path, "-o", tmp_path / "out", "--min-free", text).exit_code == 2


# --- permissions


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Permissions of files, and of folders."""
    entries = [folder, *folder.rglob("*")]
    files = {stat.S_IMODE(path.stat().st_mode) for path in entries if path.is_file()}
    return files, {stat.S_IMODE(path.stat().st_mode) for path in entries if path.is_dir()}


@pytest.mark.parametrize(
    ("option", "files", "folders"),
    [
        ((), {0o600}, {0o700}),
        (("--mode", "640"), {0o640}, {0o750}),
        (("--mode", "664"), {0o664}, {0o775}),
    ],
)
def test_files_have_the_permissions_that_were_asked_for(
    option: tuple[str, ...], files: set[int], folders: set[int], tmp_path: Path
) -> None:
    write_slide(tmp_path / "s.tiff", paint(150, 150))
    model = write_model(tmp_path / "m.safetensors")
    places = ("--slides", tmp_path / "s.tiff", "--model", model, "--results-dir", tmp_path / "out")
    assert (
        run(
            "infer",
            *places,
            *PLAIN,
            "--workers",
            0,
            "--keep-patches",
            tmp_path / "out" / "stores",
            *option,
        ).exit_code
        == 0
    )
    assert modes(tmp_path / "out") == (files, folders)


@pytest.mark.system
def test_worker_processes_give_the_same_permissions(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tiff", paint(150, 150))
    assert (
        run(
            "tile",
            tmp_path / "s.tiff",
            "-o",
            tmp_path / "out",
            "--mpp",
            0.5,
            "--workers",
            1,
            "--mode",
            "640",
        ).exit_code
        == 0
    )
    assert modes(tmp_path / "out") == ({0o640}, {0o750})


def test_a_command_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run("tile", tmp_path, "-o", tmp_path / "out", "--mode", "600")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", ["777", "040", "1600", "rw", "0o600"])
def test_permissions_that_files_cannot_have_are_a_usage_error(mode: str, tmp_path: Path) -> None:
    assert run("tile", tmp_path, "-o", tmp_path / "out", "--mode", mode).exit_code == 2
