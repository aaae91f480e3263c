"""Tables for people: rounded numbers, texts that no spreadsheet runs, reasons to look."""

import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.outputs.test_outputs import make_result
from wsi_pipeline.core.csv_io import format_csv, round_number
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.outcome import SlideSummary, list_concerns
from wsi_pipeline.outputs.run_files import format_workbook
from wsi_pipeline.outputs.summary_json import read_summary


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (35.88000000000001, "35.88"),
        (1 / 3, "0.333333"),
        (123456.789, "123456.8"),
        (1.23456789e-7, "1.23457e-07"),
        (0.0, "0.0"),
        (np.float64(2.0000000001), "2.0"),
        (float("nan"), "nan"),
        (1234567, "1234567"),
        (None, ""),
        (True, "True"),
    ],
)
def test_numbers_are_rounded_for_people(value: Any, shown: str) -> None:
    assert format_csv(["v"], [[value]]).splitlines()[1] == shown


def test_rounding_leaves_texts_and_counts_as_they_are() -> None:
    assert [round_number(value) for value in ("35.88000000000001", 12345678)] == [
        "35.88000000000001",
        12345678,
    ]


def test_areas_of_a_summary_have_no_noise(tmp_path: Path) -> None:
    # 3 patches of 0.04 mm²: 0.12 is 0.12 and not 0.12000000000000001.
    summary = read_summary(make_result(tmp_path, "s", [0.9, 0.9, 0.9]))
    area = round(3 * summary.assessed_mm2 / summary.patches, 9)
    assert summary.positive_mm2 == area
    assert len(str(summary.positive_mm2)) <= 11


@pytest.fixture
def summary(tmp_path: Path) -> SlideSummary:
    return read_summary(make_result(tmp_path, "s", [0.9, 0.1, 0.45, 0.62]))


def test_patches_within_a_tenth_of_the_threshold_are_near_it(summary: SlideSummary) -> None:
    assert (summary.threshold, summary.positives, summary.near_threshold) == (0.5, 2, 1)


@pytest.mark.parametrize(
    ("positives", "near", "is_concern"),
    [(2, 1, True), (3, 1, False), (0, 1, True), (0, 0, False), (0, None, False)],
)
def test_a_count_hangs_on_the_threshold_where_half_as_many_are_near_it(
    positives: int, near: int | None, is_concern: bool, summary: SlideSummary
) -> None:
    changed = replace(summary, positives=positives, near_threshold=near)
    assert ("near" in list_concerns(changed)) == is_concern


def test_concerns_are_named_most_pressing_first(summary: SlideSummary) -> None:
    changed = replace(
        summary, unreadable=3, colour_distance=2.0, colour_limit=1.5, unlike_training="colour"
    )
    assert list_concerns(changed) == {
        "damaged": "3 of 4 patches unreadable",
        "unlike": "colour 2.00 (limit 1.50)",
        "near": "1 patch within 0.1 of the threshold, 2 positive",
    }


def test_a_workbook_holds_numbers_as_numbers_and_formulas_as_texts() -> None:
    pytest.importorskip("xlsxwriter")
    rows = [["=1+1", 0.1 + 0.2, None], ["http://x", 3, "+4"]]
    with zipfile.ZipFile(io.BytesIO(format_workbook(["name", "share", "note"], rows))) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
        texts = book.read("xl/sharedStrings.xml").decode()
    assert "<f>" not in sheet
    assert "hyperlink" not in sheet
    assert "<v>0.3</v>" in sheet
    assert all(text in texts for text in ("=1+1", "http://x", "+4"))


def test_without_its_library_a_workbook_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi-pipeline\[excel\]'"):
        format_workbook(["a"], [[1]])
