"""Groups of slides by a column: figures of each, and the test of no difference."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_checkpoint, make_store, make_table, write_model
from tests.commands import infer, run
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.evaluation import evaluate_results
from wsi_pipeline.evaluation.groups import permute_patients

pytestmark = pytest.mark.usefixtures("plots_left_out")

CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]
PATIENTS = {
    "s0": ("p0", "north"),
    "s1": ("p1", "north"),
    "s2": ("p2", "south"),
    "s3": ("p2", "south"),
    "s4": ("p3", ""),
}
"""Slides, their patients and sites."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a model that calls every patch positive; patches of the north are 3 of 4."""
    folder = tmp_path_factory.mktemp("groups")
    for number, (name, (patient, site)) in enumerate(PATIENTS.items()):
        labels = [1, 1, 1, 0] if site == "north" else [1, 0, 0, 0]
        table = make_table(CELLS, labels=labels, slide_id=name, patient_id=patient)
        table = replace(table, columns={"site": site} if site else {})
        pixels = np.full((4, 50, 50, 3), 40 * number, dtype=np.uint8)
        make_store(folder / "stores" / f"{name}.patches.zarr", table, pixels)
    model = write_model(folder / "model.safetensors", make_checkpoint(bias=1.0))
    infer(folder / "stores", model, folder / "results")
    return folder / "results"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_group_has_its_own_figures(results: Path) -> None:
    grouped = evaluate_results(results, by="site").grouped
    assert grouped is not None
    north, south = grouped.groups
    assert (north.value, north.slides, north.patients, north.scores.patches) == ("north", 2, 2, 8)
    assert (south.value, south.slides, south.patients, south.scores.patches) == ("south", 2, 1, 8)
    # All are called positive: F1 is 2 · 6 / (2 · 6 + 2) of 6 in 8, 2 · 2 / (2 · 2 + 6) of 2 in 8.
    assert north.scores.f1 == pytest.approx(12 / 14)
    assert south.scores.f1 == pytest.approx(4 / 10)
    (f1,) = (test for test in grouped.tests if test.metric == "f1")
    assert f1.difference == pytest.approx(12 / 14 - 4 / 10)
    assert (grouped.permuted, grouped.several, grouped.without) == (3, 0, 1)
    assert north.errors.bias == pytest.approx(0.25)
    assert south.errors.bias == pytest.approx(0.75)


def test_the_tables_and_the_page_have_the_groups_and_the_terminal_numbers(results: Path) -> None:
    answer = run("evaluate", results, "--by", "site")
    assert answer.exit_code == 0, answer.output
    assert "by site, groups numbered as in evaluation_groups.csv:" in answer.stdout
    assert not {"north", "south"} & set(answer.stdout.split())
    rows = read_rows(results / "evaluation_groups.csv")
    assert [row["site"] for row in rows] == ["north", "south", "(difference)", "(p)"]
    assert float(rows[2]["f1"]) == pytest.approx(12 / 14 - 4 / 10)
    assert [bool(row["f1_low"]) for row in rows[:2]] == [True, False]  # one patient has none
    record = json.loads((results / "evaluation.json").read_text())["by"]
    assert record["column"] == "site"
    assert record["tests"]["f1"]["p"] == pytest.approx(float(rows[3]["f1"]), abs=1e-6)
    assert "<h2>By site</h2>" in (results / "evaluation.html").read_text()


def test_an_evaluation_without_groups_leaves_no_table_of_earlier_ones(results: Path) -> None:
    run("evaluate", results, "--by", "site")
    run("evaluate", results)
    assert not (results / "evaluation_groups.csv").exists()
    assert json.loads((results / "evaluation.json").read_text())["by"] is None


def test_a_column_that_nobody_has_is_refused_with_those_that_there_are(results: Path) -> None:
    with pytest.raises(ConfigError, match=r"--by scanner: no slide .* have the columns site;"):
        evaluate_results(results, by="scanner")


def test_one_group_is_not_enough_and_slides_without_a_value_are_counted(
    results: Path, tmp_path: Path
) -> None:
    rows = [f"{name}.tif,{'x' if name == 's0' else ''}" for name in PATIENTS]
    for name in PATIENTS:
        (tmp_path / f"{name}.tif").touch()
    (tmp_path / "sheet.csv").write_text("\n".join(["wsi,stain", *rows]))
    others = f"{len(PATIENTS) - 1} of {len(PATIENTS)} have none"
    with pytest.raises(ConfigError, match=rf"--by stain: 1 group of it has labels, and {others};"):
        evaluate_results(results, by="stain", sheet=tmp_path / "sheet.csv")


def test_a_sheet_gives_columns_that_the_results_lack(results: Path, tmp_path: Path) -> None:
    for name in PATIENTS:
        (tmp_path / f"{name}.tif").touch()
    lines = [f"{name}.tif,{'A' if name in ('s0', 's3') else 'B'}" for name in PATIENTS]
    (tmp_path / "sheet.csv").write_text("\n".join(["wsi,scanner", *lines]))
    grouped = evaluate_results(results, by="scanner", sheet=tmp_path / "sheet.csv").grouped
    assert grouped is not None
    assert [group.slides for group in grouped.groups] == [2, 3]
    # Patient p2 has a slide of each scanner.
    assert (grouped.permuted, grouped.several) == (3, 1)


def test_patients_are_evaluated_beside_slides(results: Path) -> None:
    evaluation = evaluate_results(results)
    rows = read_rows(results / "evaluation_patients.csv")
    assert [row["patient_id"] for row in rows] == ["p0", "p1", "p2", "p3", "all slides"]
    assert (rows[2]["labelled"], rows[2]["counted"], rows[2]["true"]) == ("8", "8", "2")
    counts = json.loads((results / "evaluation.json").read_text())["counts_of_patients"]
    assert [row["patient_id"] for row in counts["patients"]] == ["p0", "p1", "p2", "p3"]
    # 1/4 too many of p0 and p1, 3/4 of p2 and p3; of slides 2 · 1/4 and 3 · 3/4.
    assert "4 patients: mean absolute error 50.0% of the patches" in str(evaluation)
    assert "5 slides of 4 patients: mean absolute error 55.0% of the patches" in str(evaluation)


def make_patients(
    sensitivities: list[float], patches: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and patients: half are positive, of which a share is found."""
    labels = np.tile(np.arange(patches) % 2, len(sensitivities)).astype(np.int8)
    probability = np.zeros(len(labels), dtype=np.float32)
    patients = np.repeat([f"p{number:02}" for number in range(len(sensitivities))], patches)
    for number, share in enumerate(sensitivities):
        own = np.flatnonzero((patients == f"p{number:02}") & (labels == 1))
        probability[own[: round(share * len(own))]] = 1
    return labels, probability, patients


def test_p_is_the_share_of_permutations_as_large() -> None:
    """Of 2 + 2 patients six divisions are alike likely, and two are as extreme as 1, 1 and 0, 0."""
    labels, probability, patients = make_patients([1.0, 1.0, 0.0, 0.0])
    groups = np.repeat([0, 0, 1, 1], 20)
    p, permuted, several = permute_patients(labels, probability, patients, groups, 0.5)
    assert (permuted, several) == (4, 0)
    assert p[4] == pytest.approx(1 / 3, abs=0.05)  # sensitivity
    assert p[5] == 1  # specificity is 1 everywhere


def test_a_difference_of_many_patients_is_told_and_that_of_none_is_not() -> None:
    groups = np.repeat(np.arange(16) % 2, 20)
    differing = make_patients([0.9 if number % 2 else 0.3 for number in range(16)])
    alike = make_patients([0.5 + 0.05 * (number // 2 - 4) for number in range(16)])
    assert (permute_patients(*differing, groups, 0.5)[0][4] or 1) < 0.01
    assert (permute_patients(*alike, groups, 0.5)[0][4] or 0) > 0.5


def test_patches_of_one_patient_are_no_evidence() -> None:
    """A thousand patches of two patients: their only two divisions are alike extreme."""
    labels, probability, patients = make_patients([1.0, 0.0], patches=1000)
    p, *_ = permute_patients(labels, probability, patients, np.repeat([0, 1], 1000), 0.5)
    assert p[4] == 1


def test_patients_of_several_groups_and_patches_of_none_are_left_out() -> None:
    labels, probability, patients = make_patients([1.0, 1.0, 0.0, 0.0])
    groups = np.repeat([0, 0, 1, 1], 20)
    groups[0] = 1
    groups[20] = -1
    _, permuted, several = permute_patients(labels, probability, patients, groups, 0.5)
    assert (permuted, several) == (3, 1)
