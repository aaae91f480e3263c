"""Made-up sites of real patients, one of them with another stain: what pooled figures hide."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import PLAIN, run
from wsi_pipeline.stages.ingest_layouts import IDC_NAME

SITES = ("north", "east", "west")
TINT = np.array([1.0, 0.8, 0.9])
"""Of red, green and blue in the patches of the west: a stain with more pink."""
MOST = 115
"""Patches of a patient."""


def tint_patches(source: Path, folder: Path) -> Path:
    """Copy the patches of smaller patients with both classes; return their table."""
    rows = ["path,patient,label,x,y,site"]
    number = 0
    for patient in sorted(source.iterdir()):
        files = sorted(patient.rglob("*.png"))
        positives = sum(file.stem.endswith("class1") for file in files)
        if not 0 < positives < len(files) <= MOST:
            continue
        site, number = SITES[number % len(SITES)], number + 1
        for file in files:
            pixels = np.asarray(Image.open(file).convert("RGB"))
            match = IDC_NAME.fullmatch(file.stem)
            if match is None or pixels.shape != (50, 50, 3):
                continue
            shown = pixels * TINT if site == SITES[-1] else pixels
            (folder / patient.name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown.round().astype(np.uint8)).save(folder / patient.name / file.name)
            place = f"{int(match['x']) - 1},{int(match['y']) - 1}"
            name = f"{patient.name}/{file.name}"
            rows.append(f"{name},{patient.name},{match['label']},{place},{site}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


@pytest.mark.system
@pytest.mark.timeout(900)  # half a minute of work, on a machine that may have other things to do
def test_the_groups_show_a_drop_that_all_together_hide(shared_data: Path, tmp_path: Path) -> None:
    table, stores = tint_patches(shared_data / "idc", tmp_path / "patches"), tmp_path / "stores"
    names = ("--class-names", "non_idc", "idc")
    steps = (
        ("ingest", table, "--layout", "csv", "--mpp", 4, "--out", stores, *names),
        *(("infer", "--stores", stores, "--model", "idc", "--workers", 0, *PLAIN),),
        ("evaluate", tmp_path / "results", "--by", "site"),
    )
    for step in steps:
        to = ("--results-dir", tmp_path / "results", "--outputs", "summary")
        answer = run(*step, *(to if step[0] == "infer" else ()))
        assert answer.exit_code == 0, answer.output
    with (tmp_path / "results" / "evaluation.csv").open(newline="") as stream:
        *_, pooled = csv.DictReader(stream)
    with (tmp_path / "results" / "evaluation_groups.csv").open(newline="") as stream:
        rows = {row["site"]: row for row in csv.DictReader(stream)}
    found = {site: float(rows[site]["balanced_accuracy"]) for site in SITES}
    assert min(found["north"], found["east"]) > found["west"] + 0.15
    assert float(pooled["balanced_accuracy"]) > found["west"] + 0.1
    assert float(rows["west"]["sensitivity_high"]) < float(rows["east"]["sensitivity_low"])
    assert float(rows["(p)"]["balanced_accuracy"]) < 0.01
