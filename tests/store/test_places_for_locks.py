"""Folders in which nothing can be locked, and links in the place of our own folders: refused in one
line, with nothing left behind and nothing written elsewhere.
"""

import errno
import fcntl
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.builders import folder_bytes, tissue, write_slide
from tests.commands import run
from tests.written_results import CASES, write_result
from wsi_pipeline.core.choices import HIDDEN
from wsi_pipeline.core.errors import EnvironmentFault
from wsi_pipeline.outputs import View
from wsi_pipeline.runs.checks import Verdict, check_folder
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.lock import LockHeld, hold_lock, read_owner, remove_lock

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_result(folder / "a", CASES["everything positive"], view=View(("summary",)))
    return folder


@pytest.fixture(params=NO_LOCKS, ids=[errno.errorcode[number] for number in NO_LOCKS])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    def refuse(*_: object) -> None:
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    return int(request.param)


@pytest.mark.usefixtures("no_locks")
def test_a_folder_without_locks_is_named_with_a_remedy(results: Path) -> None:
    before = folder_bytes(results / "a")
    made = run("aggregate", results, "--threshold", "0.2", "--outputs", "summary")
    assert made.exit_code == 5
    assert f"{results}: files cannot be locked there (no locks here)" in made.output
    assert "name a folder on another file system" in made.output
    assert folder_bytes(results / "a") == before
    assert not (results / HIDDEN).exists()


@pytest.mark.usefixtures("no_locks")
def test_tiling_into_a_folder_without_locks_ends_with_5(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tiff", tissue(200, 200))
    made = run("tile", slide, "--out", tmp_path / "stores", "--mpp", "0.5", "--workers", 0)
    assert made.exit_code == 5
    assert f"{tmp_path / 'stores'}: files cannot be locked there" in made.output
    assert not (tmp_path / "stores" / HIDDEN).exists()


def test_a_lock_that_another_may_hold_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the table of locks is full for a moment."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with hold_lock(tmp_path / "a"):
        owner = read_owner(tmp_path / "a")
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", refuse)
            with pytest.raises(EnvironmentFault, match="No locks available"):
                hold_lock(tmp_path / "a").__enter__()
        assert read_owner(tmp_path / "a") == owner is not None


@pytest.mark.usefixtures("no_locks")
def test_doctor_says_that_nothing_can_be_locked(tmp_path: Path) -> None:
    (writing,) = (check for check in check_folder(tmp_path) if check.name == "writing")
    assert writing.verdict is Verdict.BAD
    assert "no locks here" in writing.found


# -- links
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".wsi", ".wsi/locks", ".wsi/staging"])
@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a file"])
def test_what_is_no_folder_in_the_place_of_ours_is_refused(
    place: str, kind: str, results: Path
) -> None:
    elsewhere = results.parent / "elsewhere"
    shutil.rmtree(results / ".wsi", ignore_errors=True)
    (results / place).parent.mkdir(exist_ok=True)
    if kind == "a file":
        (results / place).write_text("mine")
    else:
        (results / place).symlink_to(elsewhere)
    if kind == "a link":
        elsewhere.mkdir()
    made = run("aggregate", results, "--threshold", "0.2", "--outputs", "summary")
    assert made.exit_code == 5
    assert f"{results / place}: is {kind[:6]}, where wsi" in made.output
    assert "remove it, and run the same line again" in made.output
    assert not elsewhere.exists() or not any(elsewhere.iterdir())


def test_a_link_in_the_place_of_a_staging_is_refused(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "a", {"any": "recipe"})
    staging.folder.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    staging.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFault, match=r"is a link, where wsi"), hold_lock(tmp_path / "a"):
        staging.begin()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_link_to_a_results_folder_is_as_good_as_the_folder(results: Path) -> None:
    link = results.with_name("link")
    link.symlink_to(results)
    assert run("aggregate", link, "--threshold", "0.2", "--outputs", "summary").exit_code == 0


def test_a_writer_whose_lock_was_taken_by_force_leaves_its_successors(tmp_path: Path) -> None:
    with ExitStack() as first:
        first.enter_context(hold_lock(tmp_path / "a"))
        remove_lock(tmp_path / "a")
        with hold_lock(tmp_path / "a"):
            first.close()
            with pytest.raises(LockHeld), hold_lock(tmp_path / "a"):
                pass


def test_a_folder_that_another_writer_removes_at_that_moment_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, refusals = Path.mkdir, [FileExistsError(errno.EEXIST, "File exists")] * 2

    def make_later(folder: Path, *arguments: Any, **options: Any) -> None:
        if refusals:
            raise refusals.pop()
        make(folder, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", make_later)
    with hold_lock(tmp_path / "a"):
        assert not refusals
