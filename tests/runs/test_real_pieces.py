"""Two real sections on one glass, told apart."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.builders import write_slide
from tests.commands import PLAIN, run

MPP = 4.0
GAP_PX = 250
"""One millimetre of glass."""


@pytest.mark.system
def test_two_sections_on_one_glass_are_counted_apart(shared_data: Path, tmp_path: Path) -> None:
    names = ("idc_8863_mosaic.tiff", "idc_8865_mosaic.tiff")
    sections = [tifffile.imread(shared_data / "slides" / name) for name in names]
    height = max(len(section) for section in sections)
    glass = np.full((height, GAP_PX, 3), 245, dtype=np.uint8)
    padded = [np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=245)
              for each in sections]  # fmt: skip
    write_slide(tmp_path / "both.tif", np.concatenate([padded[0], glass, padded[1]], axis=1), MPP)
    answer = run(
        *("infer", tmp_path / "both.tif", "--model", "idc", "--workers", 0, *PLAIN),
        *("--results-dir", tmp_path / "results", "--outputs", "tissue"),
    )
    assert answer.exit_code == 0, answer.output
    folder = tmp_path / "results" / "both"
    with (folder / "tissue.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(int(row["patches"]) for row in rows) == summary["patches"]
    assert sum(int(row["positives"]) for row in rows) == summary["positives"]
    middle = sections[0].shape[1] + GAP_PX / 2
    largest = sorted(rows, key=lambda row: -float(row["area_mm2"]))[:2]
    assert {float(row["x1_l0"]) < middle for row in largest} == {True, False}
