import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TextIO

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import rewrite_manifest
from wsi_pipeline.core.choices import MANIFEST
from wsi_pipeline.core.errors import EnvironmentFault, StoreError
from wsi_pipeline.store import commit, files, lock
from wsi_pipeline.store.commit import Staging, find_finished
from wsi_pipeline.store.files import HOST, exchange, make_folder, remove_dead_asides, write_file
from wsi_pipeline.store.lock import hold_lock, is_lock_held, read_owner, remove_lock, remove_remains
from wsi_pipeline.store.manifest import (
    check_files,
    check_whole,
    find_damage,
    find_faults,
    find_kind,
    is_product,
    read_manifest,
)

KIND = "test product"
RECIPE = {"slide": "s", "mpp": 0.5}


def make_product(
    target: Path, content: bytes = b"content", recipe: dict[str, object] = RECIPE
) -> Path:
    staging = Staging(target, recipe)
    staging.begin()
    (staging.product / "sub").mkdir()
    (staging.product / "sub" / "a.bin").write_bytes(content)
    (staging.product / "b.txt").write_bytes(b"b")
    staging.mark_prepared()
    staging.commit(KIND, {"patches": 3})
    return target


def test_a_product_appears_under_its_name_with_a_manifest(tmp_path: Path) -> None:
    manifest = read_manifest(make_product(tmp_path / "p"))
    assert manifest.kind == "test product"
    assert manifest.recipe == RECIPE
    assert manifest.counts == {"patches": 3}
    assert manifest.files["sub/a.bin"][0] == 7
    assert set(manifest.files) == {"sub/a.bin", "b.txt"}


def test_nothing_is_there_before_the_commit(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    (staging.product / "a").write_bytes(b"half")
    assert not (tmp_path / "p").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".wsi"]


def test_nothing_is_left_after_the_commit(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "p"):
        make_product(tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = make_product(tmp_path / "x" / "p"), make_product(tmp_path / "y" / "p")
    assert (one / MANIFEST).read_bytes() == (two / MANIFEST).read_bytes()


def test_finished_blocks_are_remembered(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    staging.mark_prepared()
    chunk = staging.product / "4"
    chunk.write_bytes(b"pixels")
    staging.mark_block(4, {"unreadable": 2}, chunk)
    again = Staging(tmp_path / "p", RECIPE)
    assert again.is_prepared
    assert again.block_reports()[4]["unreadable"] == 2


def begin_with_block(target: Path) -> Staging:
    staging = Staging(target, RECIPE)
    staging.begin()
    staging.mark_prepared()
    (staging.product / "0").write_bytes(b"pixels")
    staging.mark_block(0, {}, staging.product / "0")
    return staging


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of files that are read for their checksum from now on."""
    names: list[str] = []
    real = files.file_checksum

    def note(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "file_checksum", note)
    return names


def test_a_chunk_that_its_block_reported_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = begin_with_block(tmp_path / "p")
    (staging.product / "table").write_bytes(b"rows")
    names = watch_reads(monkeypatch)
    manifest = staging.commit(KIND, {})
    assert names == ["table"]
    assert manifest.files["0"] == (6, xxhash.xxh3_128(b"pixels").hexdigest())


def test_a_checksum_from_the_writer_is_that_of_the_manifest(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "p")
    staging.mark_block(0, {}, staging.product / "0", "written as 0")
    assert staging.commit(KIND, {}).files["0"] == (6, "written as 0")


def rewrite(chunk: Path) -> None:
    chunk.write_bytes(b"PIXELS")


def rewrite_and_hide(chunk: Path) -> None:
    before = chunk.stat()
    chunk.write_bytes(b"PIXELS")
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(chunk: Path) -> None:
    other = chunk.with_name("other")
    other.write_bytes(b"PIXELS")
    other.replace(chunk)


@pytest.mark.parametrize("change", [rewrite, rewrite_and_hide, replace_by_another])
def test_a_chunk_that_was_changed_after_its_report_is_read_again(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    staging = begin_with_block(tmp_path / "p")
    time.sleep(0.02)  # a file's times have steps of up to 10 ms
    change(staging.product / "0")
    manifest = staging.commit(KIND, {})
    assert manifest.files["0"] == (6, xxhash.xxh3_128(b"PIXELS").hexdigest())
    assert find_damage(tmp_path / "p") == []


def test_a_staging_of_a_version_without_checksums_is_committed_alike(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "old" / "p")
    report = {"chunk": {"file": "0", "bytes": 6}}
    (staging.folder / "blocks" / "0.json").write_text(json.dumps(report))
    staging.commit(KIND, {})
    begin_with_block(tmp_path / "new" / "p").commit(KIND, {})
    one, two = (tmp_path / way / "p" / MANIFEST for way in ("old", "new"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"pix"])
def test_a_block_whose_pixels_are_gone_is_not_finished(
    content: bytes | None, tmp_path: Path
) -> None:
    staging = begin_with_block(tmp_path / "p")
    (staging.product / "0").unlink()
    if content is not None:
        (staging.product / "0").write_bytes(content)
    assert staging.block_reports() == {}
    with pytest.raises(EnvironmentFault, match="have vanished"):
        staging.check_complete(1)


def test_vanished_blocks_are_counted(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"p: 2 finished blocks have vanished"):
        begin_with_block(tmp_path / "p").check_complete(3)


def test_what_an_unprepared_attempt_left_is_thrown_away(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "p")
    staging.begin()
    assert list(staging.product.iterdir()) == []
    assert staging.block_reports() == {}
    assert not staging.is_prepared


def test_begun_work_is_kept_unless_forced(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "p")
    assert find_finished(staging, KIND, force=False) is None
    assert staging.is_prepared


def test_begun_work_of_a_finished_product_is_thrown_away(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    staging = begin_with_block(target)
    assert find_finished(staging, KIND, force=False) is not None
    assert not staging.folder.exists()


class Killed(BaseException):
    """What ends a process between two steps."""


def test_a_run_killed_right_before_the_rename_goes_on_with_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_product: Path, _target: Path) -> None:
        raise Killed

    staging = Staging(
        tmp_path / "p", {"slide": "s", "zoom": 1}
    )  # names before and after "view" in the alphabet
    staging.begin()
    staging.mark_prepared()
    monkeypatch.setattr(commit, "_publish", die)
    with pytest.raises(Killed):
        staging.commit(KIND, {}, view={"colors": "red"})
    assert staging.is_prepared


def test_a_product_is_found_finished_whatever_its_view(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    staging.commit(KIND, {}, view={"colors": "red"})
    assert find_finished(Staging(tmp_path / "p", RECIPE), KIND, force=False) is not None


def test_an_empty_report_is_none(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "p")
    next(staging.folder.glob("blocks/0.json")).write_bytes(b"")
    assert staging.block_reports() == {}


def test_a_run_killed_while_it_committed_is_taken_up(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "p")
    (staging.product / MANIFEST).write_text("half a manifest")
    (staging.product / "chunk.partial").write_bytes(b"half a chunk")
    staging.commit(KIND, {})
    assert set(read_manifest(tmp_path / "p").files) == {"0"}


def test_a_run_killed_between_two_renames_is_taken_up(tmp_path: Path) -> None:
    make_product(tmp_path / "p", b"old", {"slide": "other"})
    staging = begin_with_block(tmp_path / "p")
    (tmp_path / "p").rename(staging.folder / "retired")
    staging.commit(KIND, {})
    assert set(read_manifest(tmp_path / "p").files) == {"0"}


def test_force_throws_begun_work_away(tmp_path: Path) -> None:
    staging = begin_with_block(tmp_path / "p")
    find_finished(staging, KIND, force=True)
    assert not staging.is_prepared


def test_a_commit_removes_what_other_recipes_left(tmp_path: Path) -> None:
    other = Staging(tmp_path / "p", {"slide": "other"})
    other.begin()
    neighbour = Staging(tmp_path / "p.b", {"slide": "other"})
    neighbour.begin()
    begin_with_block(tmp_path / "p").commit(KIND, {})
    assert not other.folder.exists()
    assert neighbour.folder.exists()


def test_another_recipe_sees_none_of_them(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    staging.mark_prepared()
    assert not Staging(tmp_path / "p", {"slide": "s", "mpp": 0.25}).is_prepared


def test_the_same_recipe_is_found_finished(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    assert find_finished(Staging(target, RECIPE), KIND, force=False) is not None
    assert find_finished(Staging(target, RECIPE), KIND, force=True) is None


def test_another_recipe_is_refused_unless_forced(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    other = Staging(target, {"slide": "s", "mpp": 0.25})
    with pytest.raises(StoreError, match="made from another mpp; use --force"):
        find_finished(other, KIND, force=False)
    assert find_finished(other, KIND, force=True) is None


def test_every_entry_in_which_recipes_differ_is_named(tmp_path: Path) -> None:
    target = make_product(
        tmp_path / "p", recipe={"labels": None, "model": {"digest": "d", "threshold": 0.5}}
    )
    other = Staging(target, {"labels": {"file": "f"}, "model": {"digest": "d", "threshold": 0.7}})
    with pytest.raises(
        StoreError, match=r"was made from another labels and model\.threshold; use --force"
    ):
        find_finished(other, KIND, force=False)


def test_force_replaces_the_old_product(tmp_path: Path) -> None:
    make_product(tmp_path / "p", b"old")
    make_product(tmp_path / "p", b"new", {"slide": "other"})
    assert (tmp_path / "p" / "sub" / "a.bin").read_bytes() == b"new"


def test_what_was_not_made_by_us_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.doc").write_text("ten years of work")
    with pytest.raises(StoreError, match="not made by wsi"):
        find_finished(Staging(tmp_path / "p", RECIPE), KIND, force=True)
    with pytest.raises(StoreError, match="not made by wsi"):
        make_product(tmp_path / "p")
    assert (tmp_path / "p" / "thesis.doc").exists()


def test_force_never_replaces_a_product_of_another_kind(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    with pytest.raises(StoreError, match="is a test product, no model, and is never replaced"):
        find_finished(Staging(target, {"model": 1}), "model", force=True)
    staging = Staging(target, {"model": 1})
    staging.begin()
    with pytest.raises(StoreError, match="is a test product, no model"):
        staging.commit("model", {})
    assert find_damage(target) == []


def test_a_manifest_of_other_programs_is_no_licence(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / MANIFEST).write_text('{"name": "an extension of a browser"}')
    with pytest.raises(StoreError, match="was not made by wsi"):
        find_finished(Staging(tmp_path / "p", RECIPE), KIND, force=True)


def test_force_replaces_what_has_no_readable_manifest_any_more(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    (target / MANIFEST).write_text("{")
    assert find_finished(Staging(target, RECIPE), KIND, force=True) is None


@pytest.mark.parametrize("place", ["p/inside", "p/sub/deep/inside"])
def test_nothing_is_written_into_a_finished_product(place: str, tmp_path: Path) -> None:
    make_product(tmp_path / "p")
    with pytest.raises(StoreError, match="lies inside a finished test product"):
        find_finished(Staging(tmp_path / place, RECIPE), KIND, force=True)


def test_force_spares_what_the_work_reads(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    with pytest.raises(StoreError, match=r"b\.txt, which this work reads"):
        find_finished(
            Staging(target, {"new": 1}), KIND, force=True, inputs=[None, target / "b.txt"]
        )


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    assert find_finished(Staging(tmp_path / "p", RECIPE), KIND, force=False) is None


def test_a_folder_without_a_manifest_is_no_product(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    assert not is_product(tmp_path / "p")
    with pytest.raises(StoreError, match="not a finished product"):
        read_manifest(tmp_path / "p")


def test_a_folder_that_may_not_be_looked_into_may_be_a_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(_path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", forbid)
        may_be = is_product(tmp_path)
    assert may_be


def test_a_missing_file_is_found_at_once(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    (target / "b.txt").unlink()
    with pytest.raises(StoreError, match=r"b\.txt is missing"):
        read_manifest(target)


def test_a_truncated_file_is_found_at_once(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    (target / "sub" / "a.bin").write_bytes(b"cont")
    with pytest.raises(StoreError, match=r"has 4 bytes instead of 7"):
        read_manifest(target)


def test_a_flipped_bit_is_found_by_checksum(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    (target / "sub" / "a.bin").write_bytes(b"contenu")
    assert find_damage(target) == ["sub/a.bin"]
    with pytest.raises(StoreError, match=r"damaged: sub/a\.bin"):
        check_whole(target)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_any_flipped_bit_in_the_manifest_is_found(place: int, bit: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        target = make_product(Path(folder) / "p")
        content = bytearray((target / MANIFEST).read_bytes())
        content[place % len(content)] ^= 1 << bit
        (target / MANIFEST).write_bytes(content)
        with pytest.raises(StoreError, match="manifest"):
            read_manifest(target)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_a_manifest_that_points_outside_is_refused(name: str, tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    rewrite_manifest(target, lambda manifest: manifest["files"].update({name: [1, "0"]}))
    with pytest.raises(StoreError, match="outside the product"):
        read_manifest(target)


def test_a_future_manifest_is_refused(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    value = json.loads((target / MANIFEST).read_text()) | {"format": 99}
    (target / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(
        StoreError,
        match="has a manifest of format 99, this wsi reads 3; update wsi",
    ):
        read_manifest(target)


@pytest.mark.parametrize(
    ("entry", "value", "fault"),
    [
        ("kind", 7, "its kind, recipe or counts are missing"),
        ("recipe", [], "its kind, recipe or counts are missing"),
        ("counts", [], "its kind, recipe or counts are missing"),
        ("files", [], "has no attribute 'items'"),
        ("files", {"a": 7}, "cannot unpack"),
        ("files", {"a": ["x", "0"]}, "invalid literal"),
    ],
)
def test_a_sealed_manifest_of_other_types_is_damaged(
    entry: str, value: object, fault: str, tmp_path: Path
) -> None:
    target = make_product(tmp_path / "p")
    rewrite_manifest(target, lambda manifest: manifest.update({entry: value}))
    with pytest.raises(
        StoreError, match=f"its manifest.json is damaged or of another version of wsi .*{fault}"
    ):
        read_manifest(target)


def test_a_sealed_manifest_that_lacks_an_entry_is_damaged(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    rewrite_manifest(target, lambda manifest: manifest.pop("counts"))
    with pytest.raises(StoreError, match=r"is damaged or of another version of wsi \('counts'\)"):
        read_manifest(target)


def test_a_manifest_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    (target / MANIFEST).rename(tmp_path / "elsewhere")
    (target / MANIFEST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        StoreError,
        match=r"its manifest\.json cannot be read \(Too many levels of symbolic links\); fix that",
    ):
        read_manifest(target)


@pytest.mark.parametrize(
    "manifest",
    [
        {"kind": "a", "files": [], "recipe": {}},
        {"kind": "a", "files": {}},
        {"kind": 7, "files": {}, "recipe": {}},
        ["kind"],
    ],
)
def test_a_manifest_that_others_write_tells_no_kind(manifest: object, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert find_kind(tmp_path) is None


def test_a_count_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    with pytest.raises(ValueError, match="JSON"):
        staging.commit(KIND, {"share": float("nan")})
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("files", "end"), [(3, ";"), (4, " …;")])
def test_three_damaged_files_are_named_and_more_are_hinted_at(
    files: int, end: str, tmp_path: Path
) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    for name in "abcd"[:files]:
        (staging.product / name).write_bytes(b"old")
    staging.commit(KIND, {})
    for name in "abcd"[:files]:
        (tmp_path / "p" / name).write_bytes(b"new")
    with pytest.raises(
        StoreError,
        match=f"damaged: a has .*, b has .*, c has another content than was written{end}",
    ):
        check_whole(tmp_path / "p")


def test_a_file_that_vanished_after_the_manifest_was_read_is_named(tmp_path: Path) -> None:
    manifest = read_manifest(make_product(tmp_path / "p"))
    (tmp_path / "p" / "b.txt").unlink()
    with pytest.raises(
        StoreError,
        match=r"damaged: b\.txt cannot be read \(No such file or directory\), x is not part of it;",
    ):
        check_files(tmp_path / "p", manifest, ["b.txt", "x"])


def test_the_size_of_every_file_is_told_while_faults_are_sought(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    sizes: list[int] = []
    assert find_faults(target, read_manifest(target), sizes.append) == {}
    assert sorted(sizes) == [1, 7]


def test_a_manifest_of_the_past_is_refused_as_one_that_is_none(tmp_path: Path) -> None:
    target = make_product(tmp_path / "p")
    value = json.loads((target / MANIFEST).read_text()) | {"format": 2}
    (target / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(
        StoreError, match=r"damaged or of another version of wsi \(manifest format 2\)"
    ):
        read_manifest(target)


def test_a_manifest_of_two_million_bytes_and_a_file_of_a_thousand_are_read(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    (staging.product / "a.bin").write_bytes(bytes(1000))
    staging.commit(KIND, {"note": "x" * 2_000_000})
    assert read_manifest(tmp_path / "p").files["a.bin"][0] == 1000


def hold_until(target: Path, held: Event, release: Event) -> None:
    with hold_lock(target):
        held.set()
        release.wait(30)


@pytest.mark.system
def test_the_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=hold_until, args=(tmp_path / "p", held, release))
    holder.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(EnvironmentFault, match=f"being written by process {holder.pid} on"),
            hold_lock(tmp_path / "p"),
        ):
            pass
    finally:
        release.set()
        holder.join(30)


@pytest.mark.system
def test_a_dead_writers_lock_does_not_stop_the_next(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=hold_until, args=(tmp_path / "p", held, release))
    holder.start()
    assert held.wait(60)
    holder.kill()
    holder.join(30)
    with hold_lock(tmp_path / "p"):
        pass


def test_a_lock_whose_file_others_replaced_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older"
    older.touch()
    opened: list[TextIO] = []

    def open_too_late(path: Path) -> TextIO:
        opened.append(open_lock(path))
        if len(opened) == 1:
            older.replace(path)
        elif len(opened) == 2:
            path.unlink()
            path.touch()
        return opened[-1]

    open_lock = lock._open_lock
    monkeypatch.setattr(lock, "_open_lock", open_too_late)
    with hold_lock(tmp_path / "p"):
        assert [stream.closed for stream in opened] == [True, True, False]
        assert read_owner(tmp_path / "p") == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_lock_is_taken_although_a_neighbour_removes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Path] = []

    def open_after_neighbour(path: Path) -> TextIO:
        attempts.append(path)
        if len(attempts) < 3:
            path.parent.rmdir()
        return open_lock(path)

    open_lock = lock._open_lock
    monkeypatch.setattr(lock, "_open_lock", open_after_neighbour)
    with hold_lock(tmp_path / "p"):
        assert len(attempts) == 3


def test_a_writer_whose_lock_was_removed_ends_in_peace(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "p"):
        remove_lock(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_held_only_within_its_block(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "p"):
        assert is_lock_held(tmp_path / "p")
    assert not is_lock_held(tmp_path / "p")


def test_a_dead_writers_lock_is_removed_with_its_empty_folders(tmp_path: Path) -> None:
    lock_file(tmp_path / "p").write_text("process 1 on nowhere")
    remove_remains(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_empty_folders_go_although_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".wsi" / "staging").mkdir(parents=True)
    remove_remains(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_removed_lock_leaves_no_empty_folders(tmp_path: Path) -> None:
    lock_file(tmp_path / "p").touch()
    remove_lock(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_puts_its_name_in_place_of_a_dead_ones(tmp_path: Path) -> None:
    lock_file(tmp_path / "p").write_text("process 123456789 on a machine of a long name")
    with hold_lock(tmp_path / "p"):
        assert read_owner(tmp_path / "p") == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_living_writers_lock_stays(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "p"):
        remove_remains(tmp_path / "p")
        assert read_owner(tmp_path / "p") is not None


def test_writing_a_file_leaves_the_old_one_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_file(path, b"old")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentFault, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(
    not Path("/proc/self").exists(),
    reason="this machine has no /proc, where folders never come to be",
)
def test_a_place_where_no_folder_can_be_made_is_refused() -> None:
    with (
        pytest.raises(EnvironmentFault, match="name a folder that you may write to"),
        hold_lock(Path("/proc/nowhere/product")),
    ):
        pass


def test_a_folder_is_made_although_a_neighbour_removes_the_empty_one_above_it(
    tmp_path: Path,
) -> None:
    above = tmp_path / "staging"
    is_over = threading.Event()

    def tidy_up() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                above.rmdir()
            time.sleep(1e-4)  # more often than any run, yet leaving time for the others

    neighbour = threading.Thread(target=tidy_up)
    neighbour.start()
    try:
        for number in range(300):
            make_folder(above / str(number) / "product")
            (above / str(number) / "product").rmdir()
            (above / str(number)).rmdir()
    finally:
        is_over.set()
        neighbour.join()


def test_a_product_is_swapped_with_the_one_that_it_replaces_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a").write_text("a")
    assert exchange(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["a"]
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_product_is_replaced_on_every_file_system(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(commit, "exchange", lambda one, other: False)
    make_product(tmp_path / "p", b"old")
    make_product(tmp_path / "p", b"new", {"slide": "other"})
    assert (tmp_path / "p" / "sub" / "a.bin").read_bytes() == b"new"
    assert not list((tmp_path / ".wsi").rglob("*.bin"))


def test_a_product_that_stepped_aside_for_one_that_never_came_is_put_back(tmp_path: Path) -> None:
    make_product(tmp_path / "p", b"old")
    staging = begin_with_block(tmp_path / "p")
    (tmp_path / "p").rename(staging.folder / commit.RETIRED)
    commit.put_back_retired(tmp_path)
    assert (tmp_path / "p" / "sub" / "a.bin").read_bytes() == b"old"


def test_a_product_that_stepped_aside_is_found_finished_in_its_place(tmp_path: Path) -> None:
    other = begin_with_block(tmp_path / "p")
    make_product(tmp_path / "q", b"old", {"slide": "other"}).rename(other.folder / commit.RETIRED)
    assert find_finished(Staging(tmp_path / "p", {"slide": "other"}), KIND, force=False) is not None
    assert (tmp_path / "p" / "sub" / "a.bin").read_bytes() == b"old"


def watch_flushes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders in the order in which a commit has them written to disk."""
    flushed: list[Path] = []
    monkeypatch.setattr(commit, "flush_folder", flushed.append)
    return flushed


@pytest.mark.parametrize("way", ["first", "swapped", "stepped aside"])
def test_a_manifest_is_on_disk_before_the_rename_and_the_name_after_it(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "first":
        make_product(tmp_path / "p", b"old", {"slide": "other"})
    if way == "stepped aside":
        monkeypatch.setattr(commit, "exchange", lambda one, other: False)
    staging = begin_with_block(tmp_path / "p")
    flushed = watch_flushes(monkeypatch)
    staging.commit(KIND, {})
    assert flushed == [staging.product, tmp_path]


def test_a_name_that_was_given_back_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = begin_with_block(tmp_path / "p")
    make_product(tmp_path / "q", b"old").rename(staging.folder / commit.RETIRED)
    flushed = watch_flushes(monkeypatch)
    commit.put_back(tmp_path / "p")
    assert flushed == [tmp_path]


def test_a_layout_is_on_disk_before_it_is_called_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path / "p", RECIPE)
    staging.begin()
    seen: list[tuple[Path, bool]] = []
    monkeypatch.setattr(
        commit, "flush_tree", lambda folder: seen.append((folder, staging.is_prepared))
    )
    staging.mark_prepared()
    assert seen == [(staging.product, False)]
    assert staging.is_prepared


def test_what_a_swap_left_of_another_recipe_is_not_taken_up(tmp_path: Path) -> None:
    make_product(tmp_path / "p", b"old", {"slide": "other"})
    staging = begin_with_block(tmp_path / "p")
    staging.commit(KIND, {})
    begin_with_block(tmp_path / "p")
    shutil.rmtree(staging.product)
    make_product(tmp_path / "q", b"old", {"slide": "other"}).rename(
        staging.product
    )  # as a kill right after the swap leaves it
    assert not staging.is_prepared


def test_what_a_killed_process_left_beside_a_file_is_removed_and_what_others_write_is_not(
    tmp_path: Path,
) -> None:
    dead = multiprocessing.get_context("spawn").Process()
    dead.start()
    dead.join()
    left = tmp_path / f".slides.csv.{HOST}.{dead.pid}"
    spared = [
        tmp_path / name
        for name in (f".slides.csv.{HOST}.{os.getpid()}", f".slides.csv.zzzz.{dead.pid}", ".hidden")
    ]
    for path in (left, *spared):
        path.touch()
    remove_dead_asides(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(spared)


def lock_file(target: Path) -> Path:
    path = target.parent / ".wsi" / "locks" / f"{target.name}.lock"
    path.parent.mkdir(parents=True)
    return path


def test_a_lock_file_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "thesis.doc").write_text("ten years of work")
    lock = lock_file(tmp_path / "p")
    lock.symlink_to(tmp_path / "thesis.doc")
    with (
        pytest.raises(EnvironmentFault, match=f"{lock}: is a link, .* remove it"),
        hold_lock(tmp_path / "p"),
    ):
        pass
    assert (tmp_path / "thesis.doc").read_text() == "ten years of work"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a socket"])
def test_what_is_no_lock_file_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = lock_file(tmp_path / "p")
    monkeypatch.chdir(lock.parent)  # a socket's path must be short
    make: dict[str, Callable[[str], None]] = {
        "a pipe": os.mkfifo,
        "a folder": os.mkdir,
        "a socket": bind,
    }
    make[kind](lock.name)
    with (
        pytest.raises(EnvironmentFault, match=f"{lock}: is {kind}, .* remove it"),
        hold_lock(tmp_path / "p"),
    ):
        pass
    assert read_owner(tmp_path / "p") == "another process"


def bind(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(name)


def test_nothing_is_told_of_a_file_that_a_lock_leads_to(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    lock_file(tmp_path / "p").symlink_to(tmp_path / "secret")
    assert read_owner(tmp_path / "p") == "another process"


@pytest.mark.parametrize(
    ("content", "owner"), [(b"", "another process"), (b"process 7 on far\n", "process 7 on far")]
)
def test_the_owner_of_a_lock_is_what_its_file_says(
    content: bytes, owner: str, tmp_path: Path
) -> None:
    lock_file(tmp_path / "p").write_bytes(content)
    assert read_owner(tmp_path / "p") == owner


def test_without_a_lock_there_is_no_owner_and_nothing_to_remove(tmp_path: Path) -> None:
    remove_lock(tmp_path / "p")
    assert read_owner(tmp_path / "p") is None


def test_a_lock_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    lock = lock_file(tmp_path / "p")
    lock.touch()
    os.truncate(lock, 10**9)
    assert read_owner(tmp_path / "p") == "another process"


def test_a_file_is_not_written_through_a_link_that_lies_where_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("ten years of work")
    (tmp_path / f".f.{HOST}.{os.getpid()}").symlink_to(tmp_path / "thesis.doc")
    write_file(tmp_path / "f", b"new")
    assert (tmp_path / "thesis.doc").read_text() == "ten years of work"
    assert (tmp_path / "f").read_bytes() == b"new"
    assert not (tmp_path / "f").is_symlink()


def test_what_a_dead_process_of_the_same_number_left_does_not_stop_a_file(tmp_path: Path) -> None:
    (tmp_path / f".f.{HOST}.{os.getpid()}").write_bytes(b"half")
    write_file(tmp_path / "f", b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("f", b"new")]


def test_a_product_in_the_place_of_a_link_to_what_is_not_there_is_refused_before_any_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "p").symlink_to(tmp_path / "drive" / "p")
    with pytest.raises(StoreError, match="is a link to nothing; mount its target, or remove it"):
        find_finished(Staging(tmp_path / "p", {}), "test", force=False)
