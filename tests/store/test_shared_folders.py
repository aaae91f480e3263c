"""Folders that several users write into: what one cannot read does not hide the rest."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import make_store, make_table, write_model
from tests.written_results import CASES, write_result
from wsi_pipeline.core.outcome import SlideState
from wsi_pipeline.models import checkpoint
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.outputs.run_files import read_finished
from wsi_pipeline.runs.clean import clean, unlock
from wsi_pipeline.runs.status import read_status
from wsi_pipeline.runs.verify import find_products, verify
from wsi_pipeline.stages.aggregate import aggregate_results
from wsi_pipeline.store.commit import Staging

NOBODY = 65534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that anybody may write into; those of pytest are for their maker alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextmanager
def as_a_user() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def open_to_all(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)


def make_stores(folder: Path) -> tuple[Path, Path]:
    one, two = (
        make_store(folder / f"{name}.patches.zarr", make_table([(0, 0)])) for name in ("a", "b")
    )
    open_to_all(folder)
    return one, two


def close(product: Path, what: str) -> None:
    """Deny reading, as `--mode 600` does to other users; in a test the owner cannot read either."""
    (product if what == "folder" else product / "manifest.json").chmod(0)


@pytest.mark.parametrize("what", ["folder", "manifest"])
def test_status_names_a_product_that_cannot_be_read_and_goes_on(what: str, shared: Path) -> None:
    closed, _ = make_stores(shared)
    close(closed, what)
    with as_a_user():
        one, two = read_status(shared).finished
    assert (one.slide_id, one.state, "cannot be read (Permission denied)" in one.fault) == (
        "a",
        SlideState.FAILED,
        True,
    )
    assert (two.slide_id, two.state) == ("b", SlideState.OK)


def test_status_goes_on_past_work_that_cannot_be_looked_into(shared: Path) -> None:
    make_stores(shared)
    begin_work(shared / "c").chmod(0)
    with as_a_user():
        status = read_status(shared)
    assert [slide.slide_id for slide in status.finished] == ["a", "b"]
    assert [work.slide_id for work in status.under_way] == ["c"]


@pytest.mark.parametrize("what", ["folder", "manifest"])
def test_verify_names_a_product_that_cannot_be_read_and_goes_on(what: str, shared: Path) -> None:
    closed, _ = make_stores(shared)
    close(closed, what)
    with as_a_user():
        one, two = (verify(product) for product in find_products([shared]))
    assert "cannot be read (Permission denied)" in one.faults["manifest.json"]
    assert two.is_whole


def test_verify_goes_on_past_a_folder_that_cannot_be_looked_into(shared: Path) -> None:
    make_stores(shared)
    (shared / "private").mkdir(mode=0)
    with as_a_user():
        verified = {
            product.path.name: verify(product).is_whole for product in find_products([shared])
        }
    assert verified == {"a.patches.zarr": True, "b.patches.zarr": True, "private": False}


def test_verify_names_a_checkpoint_that_cannot_be_read(shared: Path) -> None:
    assert checkpoint  # imported before, by who may read it
    write_model(shared / "m.safetensors").chmod(0)
    with as_a_user():
        (model,) = (verify(product) for product in find_products([shared]))
    assert "cannot be read (Permission denied)" in model.faults["m.safetensors"]


def begin_work(target: Path) -> Path:
    staging = Staging(target, {"any": "recipe"})
    staging.begin()
    open_to_all(target.parent / ".wsi")
    return staging.folder


def test_clean_passes_over_a_product_that_cannot_be_read_and_says_so(shared: Path) -> None:
    closed, _ = make_stores(shared)
    close(closed, "folder")
    staging = begin_work(shared / "c")
    with as_a_user():
        work, product = clean([shared])
    assert (work.target.name, work.owner, staging.exists()) == ("c", "", False)
    assert (product.target, product.owner) == (closed, "perhaps another user (it cannot be read)")


def test_clean_passes_over_work_that_cannot_be_looked_into_and_says_so(shared: Path) -> None:
    closed, staging = begin_work(shared / "c"), begin_work(shared / "d")
    closed.chmod(0)
    with as_a_user():
        left, gone = clean([shared])
    assert (left.target.name, left.owner) == ("c", "perhaps another user (Permission denied)")
    assert (gone.target.name, gone.owner, staging.exists()) == ("d", "", False)


def make_lock(target: Path) -> Path:
    lock = target.parent / ".wsi" / "locks" / f"{target.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("process 7 on another-machine")
    open_to_all(target.parent / ".wsi")
    return lock


def test_clean_leaves_work_whose_lock_is_another_users(shared: Path) -> None:
    staging = begin_work(shared / "c")
    make_lock(shared / "c").chmod(0)
    with as_a_user():
        (left,) = clean([shared])
    assert left.owner == "perhaps another user (Permission denied)"
    assert staging.exists()


def test_a_lock_that_only_another_user_may_open_counts_as_held_and_no_force_removes_it(
    shared: Path,
) -> None:
    make_lock(shared / "c")
    make_lock(shared / "d")
    (shared / ".wsi" / "locks" / "c.lock").chmod(0)
    with as_a_user():
        locks = unlock([shared], force=True)
    assert [(lock.target.name, lock.owner, lock.is_held) for lock in locks] == [
        ("c", "another process", True),
        ("d", "process 7 on another-machine", False),
    ]


@pytest.mark.parametrize("what", ["folder", "manifest"])
def test_a_colleagues_result_is_named_and_its_neighbour_is_done(what: str, shared: Path) -> None:
    for name in ("a", "b"):
        write_result(shared / name, CASES["everything positive"], view=View(("summary",)))
    open_to_all(shared)
    close(shared / "a", what)
    with as_a_user():
        account = aggregate_results(shared, View(("summary",), Aggregation(threshold=0.8)))
        finished = read_finished(shared)
    assert [(outcome.slide_id, outcome.state) for outcome in account.outcomes] == [
        ("a", SlideState.FAILED),
        ("b", SlideState.OK),
    ]
    assert "Permission denied" in account.outcomes[0].message
    assert [summary.slide_id for summary in finished.summaries] == ["b"]
