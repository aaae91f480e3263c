"""Results that have lost their manifest, or themselves: every command that would pass them over
names them and fails.
"""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import wsi_pipeline
from tests.builders import make_store, make_table
from tests.commands import run
from wsi_pipeline.core.choices import (
    AGGREGATE_JSON,
    FAILURES_CSV,
    INDEX_HTML,
    MANIFEST,
    PREDICTIONS,
    RUN_JSON,
    SLIDES_CSV,
)
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.serve.catalogue import Catalogue

Loss = Callable[[Path], object]


def replace_by_file(path: Path) -> None:
    remove(path)
    path.write_text("not what was here")


def replace_by_link(path: Path) -> None:
    remove(path)
    path.symlink_to("nowhere")


def replace_by_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_both(one: Path) -> None:
    for name in (MANIFEST, PREDICTIONS):
        remove(one / name)


LOSSES: dict[str, Loss] = {
    "no manifest": lambda one: remove(one / MANIFEST),
    "an empty manifest": lambda one: (one / MANIFEST).write_bytes(b""),
    "a folder called manifest": lambda one: replace_by_folder(one / MANIFEST),
    "a link in place of the manifest": lambda one: replace_by_link(one / MANIFEST),
    "the manifest of another slide": lambda one: shutil.copy(one.parent / "two" / MANIFEST, one),
    "no predictions": lambda one: remove(one / PREDICTIONS),
    "a file in place of the predictions": lambda one: replace_by_file(one / PREDICTIONS),
    "neither manifest nor predictions": remove_both,
    "no folder": remove,
    "a file in place of the folder": replace_by_file,
    "a link in place of the folder": replace_by_link,
}


@pytest.fixture(params=list(LOSSES.values()), ids=list(LOSSES))
def results(request: pytest.FixtureRequest, served_root: Path, tmp_path: Path) -> Path:
    """Results of slides `one`, which is lost, and `two`, which is whole."""
    results = tmp_path / "results"
    shutil.copytree(served_root / "results", results)
    request.param(results / "one")
    return results


def read_slides(results: Path) -> list[str]:
    with (results / SLIDES_CSV).open(newline="") as stream:
        return [row["slide_id"] for row in csv.DictReader(stream)]


def test_aggregate_names_it_as_failed_and_makes_the_others(results: Path) -> None:
    made = run("aggregate", results, "--threshold", "0.3", "--outputs", "summary")
    assert made.exit_code == 3
    assert made.stdout.startswith("2 slides: 1 ok, 1 failed")
    assert f"\nfailed: {results / 'one'}: " in f"\n{made.output}"
    assert read_slides(results) == ["two"]
    assert str(results / "one") in (results / INDEX_HTML).read_text()


def test_status_names_it_as_failed(results: Path) -> None:
    shown = run("status", results)
    assert shown.exit_code == 3
    assert f"one: failed: {results / 'one'}: " in shown.stdout
    assert "finished 2 slides: 1 ok, 1 failed" in shown.stdout


def test_status_for_machines_has_its_fault(results: Path) -> None:
    shown = run("status", results, "--json")
    assert shown.exit_code == 3
    assert [bool(one["fault"]) for one in json.loads(shown.stdout)["finished"]] == [True, False]


def test_verify_names_it(results: Path) -> None:
    checked = run("verify", results)
    assert checked.exit_code == 3
    assert str(results / "one") in checked.stdout


def test_no_evaluation_leaves_it_out(results: Path) -> None:
    evaluated = run("evaluate", results)
    assert evaluated.exit_code == 1
    assert str(results / "one") in evaluated.stderr


def test_python_does_not_leave_it_out(results: Path) -> None:
    with pytest.raises(StoreError, match=str(results / "one")):
        wsi_pipeline.open_results(results)


def test_the_server_lists_it_as_damaged(results: Path) -> None:
    entry = Catalogue([results], None).find("one")
    assert entry is not None
    assert entry.results["r0"].summary is None


# -- the record of a run
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(served_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(served_root / "results", tmp_path / "results")
    return tmp_path / "results"


def test_results_that_are_all_lost_are_each_named(whole: Path) -> None:
    for slide in ("one", "two"):
        shutil.rmtree(whole / slide)
    made = run("aggregate", whole)
    assert made.exit_code == 4
    assert made.stdout.startswith("2 slides: 2 failed")


def test_the_record_of_a_share_counts(whole: Path) -> None:
    (whole / RUN_JSON).rename(whole / "run.1of2.json")
    shutil.rmtree(whole / "one")
    assert run("status", whole).exit_code == 3


def test_a_folder_of_aggregate_has_a_record_too(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run("aggregate", whole, "--out", other, "--outputs", "summary").exit_code == 0
    assert not (other / RUN_JSON).exists()
    assert json.loads((other / AGGREGATE_JSON).read_text())["outcomes"] == [
        {"slide_id": "one", "state": "ok"},
        {"slide_id": "two", "state": "ok"},
    ]
    shutil.rmtree(other / "one")
    assert run("status", other).exit_code == 3


def test_a_slide_that_failed_in_the_run_is_not_missed(whole: Path) -> None:
    record = json.loads((whole / RUN_JSON).read_text())
    record["outcomes"].append({"slide_id": "three", "state": "failed"})
    (whole / RUN_JSON).write_text(json.dumps(record))
    assert run("status", whole).exit_code == 0


@pytest.mark.parametrize("name", ["../slides", "/etc", "", ".", "..", "a/b", "a\0b", 7, None])
def test_a_name_that_no_folder_of_results_has_is_passed_over(whole: Path, name: object) -> None:
    record = json.loads((whole / RUN_JSON).read_text())
    record["outcomes"].append({"slide_id": name, "state": "ok"})
    (whole / RUN_JSON).write_text(json.dumps(record))
    assert run("status", whole).exit_code == 0


def test_whatever_the_record_is_status_shows_the_slides(whole: Path) -> None:
    for content in (b"", b"{}", b'{"outcomes": 3}', b'{"outcomes": ["one"]}', b"[1]"):
        (whole / RUN_JSON).write_bytes(content)
        assert "finished 2 slides: 2 ok" in run("status", whole).stdout


def test_a_slide_that_was_removed_on_purpose_is_forgotten_by_the_next_run(
    whole: Path, served_root: Path
) -> None:
    shutil.rmtree(whole / "one")
    model = served_root / "results.safetensors"
    slides = served_root / "slides" / "two.tiff"
    line = ("infer", "--slides", slides, "--model", model, "--results-dir", whole, "--workers", 0)
    assert run(*line).exit_code == 0
    assert f"one,{whole / 'one'},failed," in (whole / FAILURES_CSV).read_text()  # named once more
    assert run("status", whole).exit_code == 0


# -- stores
# --------------------------------------------------------------------------------------------------


def test_a_store_without_its_manifest_is_named_by_status(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / f"{name}.patches.zarr", make_table([(0, 0), (0, 1)]))
    (tmp_path / "one.patches.zarr" / MANIFEST).unlink()
    shown = run("status", tmp_path)
    assert shown.exit_code == 3
    assert "one: failed: " in shown.stdout
    assert "finished 2 slides: 1 ok, 1 failed" in shown.stdout
