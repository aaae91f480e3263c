"""Every example runs as its first lines say, on small made data."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.builders import write_png, write_slide
from tests.test_output_formats import CASES, write_result
from wsi_pipeline.outputs.view import View

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def write_patches(folder: Path, patients: int) -> None:
    """Twelve patches of each patient in the IDC set's layout; positive ones are violet, negative ones pink."""
    rng = np.random.default_rng(0)
    for patient in range(patients):
        for index in range(12):
            label = index % 2
            base = np.array([(225, 140, 200), (120, 60, 150)][label])
            pixels = np.clip(base + rng.integers(-20, 21, (50, 50, 3)), 0, 255).astype(np.uint8)
            x, y = 1 + 50 * (index % 4), 1 + 50 * (index // 4)
            write_png(folder / str(patient) / str(label) / f"{patient}_idx5_x{x}_y{y}_class{label}.png", pixels)


@pytest.mark.slow
def test_idc_end_to_end(tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", patients=6)
    slide = np.full((400, 400, 3), (225, 140, 200), dtype=np.uint8)
    slide[:, 200:] = (120, 60, 150)
    write_slide(tmp_path / "slides" / "5.tiff", slide, mpp=4.0)
    mask = np.full((400, 400), 100, dtype=np.uint8)
    mask[:, 200:] = 200
    write_png(tmp_path / "labels" / "5_labels.png", mask)
    command = [sys.executable, EXAMPLES / "idc_end_to_end.py", tmp_path / "patches", tmp_path / "out", "--test-patients", "5"]
    places = ["--slides", tmp_path / "slides", "--labels", tmp_path / "labels", "--epochs", "3"]
    done = subprocess.run([*map(str, command), *map(str, places)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "72 patches of 6 patients, 0 files left out"
    assert "in 1 = ok 1 + zero 0 + damaged 0 + failed 0" in lines
    assert lines[-1].startswith("all slides: AUROC 1.000")


def test_results_in_python(tmp_path: Path) -> None:
    write_result(tmp_path / "results" / "a", CASES["mixed"], view=View(("summary",)))
    write_result(tmp_path / "results" / "b", CASES["nothing positive"], view=View(("summary",)))
    (tmp_path / "clinical.csv").write_text("slide_id,grade\na,3\n")
    command = [sys.executable, EXAMPLES / "results_in_python.py", tmp_path / "results", tmp_path / "clinical.csv", tmp_path / "out"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 slides, 2 positive regions, 1 with clinical data"
    with (tmp_path / "out" / "joined.csv").open(newline="") as stream:
        assert {row["slide_id"]: row["grade"] for row in csv.DictReader(stream)} == {"a": "3.0", "b": ""}
    assert (tmp_path / "out" / "a.png").stat().st_size > 10_000
