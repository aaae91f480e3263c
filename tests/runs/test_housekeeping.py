"""`wsi verify`, `wsi unlock` and `wsi clean`: what is whole, who holds what, and what dead runs
leave.
"""

import errno
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.builders import make_store, make_table, rewrite_manifest, write_model
from tests.commands import run
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.lock import hold_lock
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.patches import KIND

CELLS = [(row, col) for row in range(3) for col in range(3)]


def make_stores(folder: Path, count: int = 2) -> list[Path]:
    return [
        make_store(folder / f"s{number}.patches.zarr", make_table(CELLS)) for number in range(count)
    ]


def begin_work(target: Path) -> Path:
    """What a run leaves that was killed: a staging with a kilobyte in it."""
    staging = Staging(target, {"any": "recipe"})
    staging.begin()
    (staging.product / "half").write_bytes(bytes(1000))
    return staging.folder


def hold(target: Path, held: Event) -> None:
    with hold_lock(target):
        held.set()
        time.sleep(60)


@contextmanager
def another_holds(target: Path) -> Iterator[int]:
    """Another process has the lock; its number."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(target, held))
    process.start()
    assert held.wait(60)
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


# --- verify


def test_whole_products_are_counted(tmp_path: Path) -> None:
    stores = make_stores(tmp_path)
    files = sum(
        len(list(path.rglob("*"))) - sum(entry.is_dir() for entry in path.rglob("*")) - 1
        for path in stores
    )
    result = run("verify", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"2 products = whole 2 + damaged 0; {files} files, ")


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    first, second = make_stores(tmp_path)
    chunks = sorted((first / "patches" / "c").rglob("*"))
    pixels = next(path for path in chunks if path.is_file())
    content = bytearray(pixels.read_bytes())
    content[5] ^= 1
    pixels.write_bytes(content)
    (first / "zarr.json").unlink()
    result = run("verify", tmp_path)
    assert result.exit_code == 3
    assert f"{first}: zarr.json: is missing" in result.stdout
    assert (
        f"{first}: {pixels.relative_to(first)}: has another content than was written"
        in result.stdout
    )
    assert str(second) not in result.stdout
    assert "2 products = whole 1 + damaged 1" in result.stdout


def test_a_store_without_its_manifest_is_damaged(tmp_path: Path) -> None:
    (store,) = make_stores(tmp_path, 1)
    (store / "manifest.json").unlink()
    result = run("verify", tmp_path)
    assert result.exit_code == 3
    assert f"{store}: manifest.json: its manifest.json is missing" in result.stdout


def test_what_lies_there_besides_is_mentioned(tmp_path: Path) -> None:
    (store,) = make_stores(tmp_path, 1)
    (store / ".DS_Store").write_bytes(b"a file manager was here")
    result = run("verify", store)
    assert result.exit_code == 0
    assert f"{store}: not a part of it: .DS_Store" in result.stdout


def test_the_run_file_beside_a_product_is_expected(tmp_path: Path) -> None:
    (store,) = make_stores(tmp_path, 1)
    (store / "run.yaml").write_text("out: here\n")
    assert "not a part of it" not in run("verify", store).stdout


def test_a_checkpoint_by_itself_is_read(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors")
    assert run("verify", model).exit_code == 0
    content = bytearray(model.read_bytes())
    content[-3] ^= 4
    model.write_bytes(content)
    result = run("verify", tmp_path)
    assert result.exit_code == 3
    assert f"{model}: m.safetensors: " in result.stdout


def test_nothing_to_verify_is_an_error(tmp_path: Path) -> None:
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert "nothing to verify" in result.stderr


def test_verify_for_machines(tmp_path: Path) -> None:
    (store,) = make_stores(tmp_path, 1)
    (store / "zarr.json").write_bytes(b"")
    (told,) = json.loads(run("verify", store, "--json").stdout)
    assert told["kind"] == KIND
    assert not told["is_whole"]
    assert list(told["faults"]) == ["zarr.json"]


def test_work_under_way_is_no_product(tmp_path: Path) -> None:
    make_stores(tmp_path, 1)
    begin_work(tmp_path / "s9.patches.zarr")
    assert run("verify", tmp_path).stdout.startswith("1 products = whole 1 ")


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    make_stores(tmp_path, 1)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert run("verify", tmp_path).stdout.startswith("1 products = whole 1 ")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_files_outside_a_product_are_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store,) = make_stores(tmp_path / "stores", 1)
    (tmp_path / "stores" / "outside").write_bytes(b"somebody else's")
    rewrite_manifest(store, lambda manifest: manifest["files"].update({name: [15, "0"]}))
    read: list[Path] = []

    def note(path: Path) -> str:
        read.append(path)
        return ""

    monkeypatch.setattr("wsi_pipeline.store.manifest.file_checksum", note)
    result = run("verify", store)
    assert result.exit_code == 3
    assert "names a file outside the product" in result.stdout
    assert read == []


# --- unlock


@pytest.mark.system
def test_a_lock_that_is_held_here_is_never_removed(tmp_path: Path) -> None:
    target = tmp_path / "s.patches.zarr"
    with another_holds(target) as owner:
        for force in ((), ("--force",)):
            result = run("unlock", tmp_path, *force)
            assert result.exit_code == 5
            assert f"{target}: held by process {owner} on " in result.stdout
            assert (tmp_path / ".wsi" / "locks" / "s.patches.zarr.lock").exists()


@pytest.mark.system
def test_a_dead_owners_lock_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "s.patches.zarr"
    with another_holds(target) as owner:
        pass  # and dies
    assert (tmp_path / ".wsi" / "locks" / "s.patches.zarr.lock").exists()
    result = run("unlock", tmp_path)
    assert result.exit_code == 0
    assert f"{target}: unlocked; its owner was process {owner} on " in result.stdout
    assert not (tmp_path / ".wsi").exists()


@pytest.mark.system
def test_another_machines_lock_is_removed_by_force_only(tmp_path: Path) -> None:
    """The lock of a drive that has not noticed yet: held, and its owner is elsewhere."""
    target = tmp_path / "s"
    with another_holds(target):
        lock = tmp_path / ".wsi" / "locks" / "s.lock"
        lock.write_text("process 7 on another-machine")
        assert run("unlock", target).exit_code == 5
        assert lock.exists()
        assert run("unlock", target, "--force").exit_code == 0
        assert not lock.exists()
        with hold_lock(target):
            pass


# --- clean


def test_work_of_dead_runs_is_removed_and_products_stay(tmp_path: Path) -> None:
    (store,) = make_stores(tmp_path, 1)
    begin_work(tmp_path / "s9.patches.zarr")
    result = run("clean", tmp_path)
    assert result.exit_code == 0
    assert f"{tmp_path / 's9.patches.zarr'}: 0.0 MB of unfinished work" in result.stdout
    assert not (tmp_path / ".wsi").exists()
    assert find_damage(store) == []


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    staging = begin_work(tmp_path / "s9")
    assert "would remove 1, 0.0 MB; left 0" in run("clean", tmp_path, "--dry-run").stdout
    assert (staging / "product" / "half").exists()


@pytest.mark.system
def test_work_that_somebody_is_at_stays(tmp_path: Path) -> None:
    target = tmp_path / "s9"
    staging = begin_work(target)
    with another_holds(target) as owner:
        result = run("clean", tmp_path)
    assert f"{target}: left: process {owner} on " in result.stdout
    assert "removed 0, 0.0 MB; left 1" in result.stdout
    assert staging.exists()


def test_young_work_may_be_spared(tmp_path: Path) -> None:
    staging = begin_work(tmp_path / "s9")
    assert "removed 0" in run("clean", tmp_path, "--older-than", 1).stdout
    assert staging.exists()
    for path in [*staging.rglob("*"), staging]:
        os.utime(path, (0, 0))
    assert "removed 1" in run("clean", tmp_path, "--older-than", 1).stdout
    assert not staging.exists()


def test_only_the_named_products_work_is_removed(tmp_path: Path) -> None:
    begin_work(tmp_path / "one")
    other = begin_work(tmp_path / "two")
    assert "removed 1," in run("clean", tmp_path / "one").stdout
    assert other.exists()


def test_files_that_were_never_renamed_are_removed_when_they_are_old(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=print)
    process.start()
    process.join()
    names = (
        f".slides.csv.0abc.{process.pid}",
        f".run.json.0abc.{os.getpid()}",
        f".a.json.0abc.{process.pid}",
    )
    dead, own, young = (tmp_path / name for name in names)
    for path in (dead, own, young):
        path.write_bytes(b"half")
    for path in (dead, own):
        os.utime(path, (0, 0))
    result = run("clean", tmp_path)
    assert result.exit_code == 0
    assert [path.exists() for path in (dead, own, young)] == [False, True, True]


@pytest.mark.parametrize("command", ["clean", "unlock"])
def test_a_place_where_nothing_can_be_locked_is_the_machines_fault(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_work(tmp_path / "s9")
    (tmp_path / ".wsi" / "locks").mkdir()
    (tmp_path / ".wsi" / "locks" / "s9.lock").write_text("process 7 on another-machine")
    opened = os.open

    def refuse(path: str | Path, flags: int, *others: int, **named: int) -> int:
        if str(path).endswith(".lock") and flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *others, **named)

    monkeypatch.setattr(os, "open", refuse)
    result = run(command, tmp_path)
    assert result.exit_code == 5
    assert "s9.lock: cannot be written (Read-only file system)" in result.stderr


def test_hidden_files_that_wsi_never_wrote_are_not_removed(tmp_path: Path) -> None:
    own = [tmp_path / name for name in (".zsh_history.1999", ".notes.2023", ".vimrc.20240101")]
    for path in own:
        path.write_text("mine")
        os.utime(path, (0, 0))
    assert "removed 0" in run("clean", tmp_path).stdout
    assert all(path.exists() for path in own)


@pytest.mark.parametrize("link", [".wsi", ".wsi/staging"])
def test_work_is_not_looked_for_through_a_link(link: str, tmp_path: Path) -> None:
    staging = begin_work(tmp_path / "elsewhere" / "s9")
    (tmp_path / "results" / link).parent.mkdir(parents=True)
    (tmp_path / "results" / link).symlink_to(tmp_path / "elsewhere" / link)
    assert "removed 0" in run("clean", tmp_path / "results").stdout
    assert staging.exists()


def test_a_link_to_nowhere_in_begun_work_does_not_keep_it(tmp_path: Path) -> None:
    staging = begin_work(tmp_path / "s9")
    (staging / "link").symlink_to(tmp_path / "nowhere")
    assert "removed 1" in run("clean", tmp_path).stdout
    assert not staging.exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_only_called_like_begun_work_is_passed_over(kind: str, tmp_path: Path) -> None:
    staging = begin_work(tmp_path / "s9")
    (tmp_path / "folder").mkdir()
    odd = staging.with_name(f"odd.{'0' * 16}")
    if kind == "file":
        odd.write_text("mine")
    else:
        odd.symlink_to(tmp_path / "folder")
    assert "removed 1" in run("clean", tmp_path).stdout
    assert not staging.exists()
    assert odd.exists()


def test_locks_are_not_looked_for_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "poetry.lock").write_text("mine")
    (tmp_path / "results" / ".wsi").mkdir(parents=True)
    (tmp_path / "results" / ".wsi" / "locks").symlink_to(tmp_path / "project")
    assert "0 locks" in run("unlock", tmp_path / "results").stdout
    assert (tmp_path / "project" / "poetry.lock").read_text() == "mine"


def test_a_pipe_called_like_a_checkpoint_does_not_stop_verify(tmp_path: Path) -> None:
    make_stores(tmp_path, 1)
    os.mkfifo(tmp_path / "x.safetensors")
    assert run("verify", tmp_path).stdout.startswith("1 products = whole 1 ")


def test_a_pipe_that_is_to_be_verified_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    result = run("verify", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert (
        f"{tmp_path / 'x.safetensors'}: neither a folder nor a .safetensors file" in result.stderr
    )


@pytest.mark.parametrize("command", ["clean", "unlock"])
def test_a_place_that_is_not_there_is_one_line(command: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    result = run(command, tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "no run of wsi has written here" in result.stderr
