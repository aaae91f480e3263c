"""The status of folders that somebody else filled: what is wrong in them is told by slide."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.builders import rewrite_manifest
from tests.commands import run
from tests.written_results import CASES, write_result
from wsi_pipeline.core.choices import FAILURES_CSV, RUN_JSON
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.outputs import View
from wsi_pipeline.runs.status import read_status
from wsi_pipeline.store.manifest import read_manifest


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in "ab":
        write_result(tmp_path / name, CASES["everything positive"], view=View(("summary",)))
    return tmp_path


@pytest.mark.parametrize("patches", ["many", None, [1], "1" * 5000])
def test_counts_that_are_none_fail_their_slide_only(patches: Any, results: Path) -> None:
    rewrite_manifest(results / "a", lambda value: value["counts"].update(patches=patches))
    told = run("status", results)
    assert not isinstance(told.exception, Exception)
    assert f"{results / 'a'}: damaged" in told.output.replace("\n", "")


def test_an_account_of_unknown_words_is_told_without_them(results: Path) -> None:
    account = "in 2 = ok 2 + splendid 7 + failed ٣"
    record = {"outcomes": [], "account": account}
    (results / RUN_JSON).write_text(json.dumps(record))
    told = run("status", results)
    assert told.exit_code == 0
    assert "splendid" not in told.output


@pytest.mark.timeout(60)
def test_a_reason_of_very_many_digits_costs_little(results: Path) -> None:
    reason = f"'+{'1' * 100_000}x"
    (results / FAILURES_CSV).write_text(f"slide_id,state,reason\na,failed,{reason}\n")
    began = time.process_time()
    (failure,) = read_status(results).failures
    assert failure.reason == reason[1:]
    assert time.process_time() - began < 1


def test_a_name_that_no_file_can_have_is_damage(results: Path) -> None:
    name = f"{'x' * 300}/y"
    rewrite_manifest(results / "a", lambda value: value["files"].update({name: [1, ""]}))
    with pytest.raises(StoreError, match="is missing"):
        read_manifest(results / "a")
