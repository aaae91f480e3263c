"""Free columns of a sample sheet, from the sheet to the tables, and patients as a unit."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.builders import make_table, tissue, write_model, write_png, write_slide
from tests.commands import PLAIN, run
from tests.written_results import CELLS, write_result
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs.patients import add_intervals, summarise_patients
from wsi_pipeline.outputs.run_files import read_finished, write_slides_tables
from wsi_pipeline.serve.catalogue import Catalogue
from wsi_pipeline.store.manifest import read_manifest
from wsi_pipeline.store.patches import PatchStore, describe_store

SHEET = "wsi,patient_id,site,stain\na.tif,p1,north,H&E\nb.tif,p1,south,\n"
LARGE = pytest.approx(0.04)
"""Of one patch in mm²."""


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides with a sheet."""
    folder = tmp_path_factory.mktemp("columns")
    for seed, name in enumerate("ab"):
        write_slide(folder / f"{name}.tif", tissue(200, 100, seed))
    (folder / "sheet.csv").write_text(SHEET)
    (folder / "plain.csv").write_text("wsi,patient_id\na.tif,p1\nb.tif,p1\n")
    return folder


@pytest.fixture(scope="module")
def results(place: Path) -> Path:
    """What `wsi infer` makes of the sheet."""
    model = write_model(place / "model.safetensors")
    line = ("infer", "--sheet", place / "sheet.csv", "--model", model, "--workers", 0)
    answer = run(*line, "--results-dir", place / "results", "--outputs", "parquet", *PLAIN)
    assert answer.exit_code == 0, answer.output
    assert not {"north", "south", "H&E"} & set(answer.output.split())
    return place / "results"


def tile_sheet(place: Path, sheet: str, out: str, *options: object) -> Path:
    line = ("tile", "--sheet", place / sheet, "--out", place / out, "--mpp", 0.5, "--workers", 0)
    answer = run(*line, *options)
    assert answer.exit_code == 0, answer.output
    assert not {"north", "south", "H&E"} & set(answer.output.split())
    return place / out / "a.patches.zarr"


def test_a_store_keeps_the_columns_and_shows_their_names_alone(place: Path) -> None:
    store = PatchStore(tile_sheet(place, "sheet.csv", "stores"))
    assert store.table.columns == {"site": "north", "stain": "H&E"}
    assert describe_store(store)["columns"] == "site, stain (values are not shown)"


def test_a_sheet_without_further_columns_makes_the_recipe_of_before(place: Path) -> None:
    plain = tile_sheet(place, "plain.csv", "plain")
    assert "columns" not in read_manifest(plain).recipe
    assert "columns" not in PatchStore(plain).attributes
    assert PatchStore(plain).table.columns == {}


def test_other_columns_are_another_store(place: Path) -> None:
    tile_sheet(place, "plain.csv", "again")
    line = ("tile", "--sheet", place / "sheet.csv", "--out", place / "again", "--mpp", 0.5)
    answer = run(*line, "--workers", 0)
    assert answer.exit_code == 4
    assert "was made from another columns" in answer.output


def test_columns_and_patient_are_in_every_table(results: Path) -> None:
    rows = read_rows(results / "slides.csv")
    assert [(row["slide_id"], row["patient_id"], row["site"], row["stain"]) for row in rows] == [
        ("a", "p1", "north", "H&E"),
        ("b", "p1", "south", ""),
    ]
    table = pyarrow.parquet.read_table(results / "slides.parquet")
    assert table.column("site").to_pylist() == ["north", "south"]
    assert table.column("stain").to_pylist() == ["H&E", None]
    summary = json.loads((results / "a" / "summary.json").read_text())
    assert (summary["patient_id"], summary["columns"]) == ("p1", {"site": "north", "stain": "H&E"})
    patches = pyarrow.parquet.read_table(results / "a" / "patches.parquet")
    assert json.loads(patches.schema.metadata[b"wsi"])["columns"]["site"] == "north"


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "failures.csv"])
def test_the_records_of_the_run_have_no_values(name: str, results: Path) -> None:
    text = (results / name).read_text()
    assert not [value for value in ("north", "south", "H&E") if value in text]


def test_the_list_of_the_viewer_has_both(results: Path) -> None:
    one, other = Catalogue([results], None).entries()
    assert (one.patient_id, dict(one.columns)) == ("p1", {"site": "north", "stain": "H&E"})
    assert dict(other.columns) == {"site": "south"}


def test_a_pseudonymised_folder_has_no_further_columns(place: Path, tmp_path: Path) -> None:
    line = ("pseudonymize", "--sheet", place / "sheet.csv", "--out", tmp_path / "links")
    answer = run(*line, "--key", tmp_path / "key")
    assert answer.exit_code == 0, answer.output
    assert "left out: columns of the sheet: site, stain" in answer.output
    assert list(read_rows(tmp_path / "links" / "slides.csv")[0]) == [
        *("wsi", "mpp", "patient_id", "labels", "mask", "split", "label"),
    ]


def test_patches_in_a_table_keep_the_columns_of_their_patient(tmp_path: Path) -> None:
    for index in range(3):
        write_png(tmp_path / f"{index}.png", tissue(50, 50, index))
    lines = ("0.png,p,0,north", "1.png,p,1,north", "2.png,q,1,")
    (tmp_path / "table.csv").write_text("\n".join(["path,patient,label,site", *lines]))
    line = ("ingest", tmp_path / "table.csv", "--layout", "csv", "--mpp", 4)
    assert run(*line, "--out", tmp_path / "stores").exit_code == 0
    assert PatchStore(tmp_path / "stores" / "p.patches.zarr").table.columns == {"site": "north"}
    assert PatchStore(tmp_path / "stores" / "q.patches.zarr").table.columns == {}
    elsewhere = write_png(tmp_path / "elsewhere" / "3.png", tissue(50, 50, 3))
    (tmp_path / "table.csv").write_text(f"path,patient,label,site\n{elsewhere},r,0,east\n")
    assert run(*line, "--out", tmp_path / "stores").exit_code == 0
    assert PatchStore(tmp_path / "stores" / "r.patches.zarr").table.columns == {"site": "east"}
    (tmp_path / "table.csv").write_text("path,patient,label,site\n0.png,p,0,a\n1.png,p,1,b\n")
    answer = run(*line, "--out", tmp_path / "others")
    assert "line 3: its site is another than in the patient's first line" in answer.output


def write_slides(folder: Path) -> list[SlideSummary]:
    """Three slides of two patients: 3 of 4 and 1 of 2 patches positive; 0 of 1 of the other."""
    tables = {
        "s1": ("p", [0.9, 0.8, 0.7, 0.1]),
        "s2": ("p", [0.9, 0.2]),
        "s3": ("q", [0.3]),
    }
    for name, (patient, probability) in tables.items():
        cells = CELLS[: len(probability)]
        table = make_table(cells, slide_id=name, mpp=4.0, block_size=10, rows=4, cols=5)
        write_result(folder / name, probability, table=replace(table, patient_id=patient))
    return list(read_finished(folder).summaries)


def test_patients_are_the_sums_of_their_slides(tmp_path: Path) -> None:
    write_slides_tables(tmp_path, write_slides(tmp_path))
    first, second = read_rows(tmp_path / "patients.csv")
    assert (first["patient_id"], first["slides"], first["patches"]) == ("p", "2", "6")
    assert float(first["assessed_mm2"]) == pytest.approx(6 * 0.04)
    assert float(first["positive_mm2"]) == pytest.approx(4 * 0.04)
    assert float(first["positive_fraction"]) == pytest.approx(4 / 6)
    assert (first["positives"], first["interval_source"]) == ("4", "none")
    assert first["largest_region_slide"] == "s1"
    assert (second["positives"], second["largest_region_slide"]) == ("0", "")


def test_an_estimate_counts_as_its_whole_slide_in_a_patient(tmp_path: Path) -> None:
    """s1: 3 of 4 patches, of a slide of 40; s2: 1 of 2, all there are: 30 + 1 of 42."""
    summaries = write_slides(tmp_path)
    slides = [replace(summaries[0], slide_patches=40), *summaries[1:]]
    first, second = summarise_patients(slides)
    assert first.positive_fraction == pytest.approx(31 / 42)
    assert (first.estimated_slides, second.estimated_slides) == (1, 0)


def test_a_slide_without_a_patient_is_one_of_its_own(tmp_path: Path) -> None:
    slides = [replace(each, patient_id=None) for each in write_slides(tmp_path)]
    assert [one.patient_id for one in summarise_patients(slides)] == ["s1", "s2", "s3"]


def test_the_ends_of_the_slides_intervals_are_added(tmp_path: Path) -> None:
    one, other, _ = write_slides(tmp_path)
    known: dict[str, Any] = {"interval_source": "validation"}
    slides = [
        replace(one, positives_low=1.0, positives_high=4.0, **known),
        replace(other, positives_low=0.5, positives_high=2.0, **known),
    ]
    (patient,) = summarise_patients(slides)
    assert (patient.positives_low, patient.positives_high) == (1.5, 6.0)
    assert patient.interval_source == "validation"


def test_a_sum_with_a_count_without_interval_has_none() -> None:
    assert add_intervals([(1.0, 2.0), (None, None)]) is None


def test_a_summary_from_before_patients_takes_them_from_its_predictions(tmp_path: Path) -> None:
    from tests.builders import rewrite_manifest
    from wsi_pipeline.outputs.summary_json import read_summary
    from wsi_pipeline.store.files import file_checksum

    write_slides(tmp_path)
    path = tmp_path / "s1" / "summary.json"
    value = json.loads(path.read_text())
    del value["patient_id"], value["columns"]
    path.write_text(json.dumps(value))
    entry = [path.stat().st_size, file_checksum(path)]
    rewrite_manifest(tmp_path / "s1", lambda all_: all_["files"].update({"summary.json": entry}))
    summary = read_summary(tmp_path / "s1")
    assert (summary.patient_id, summary.columns) == ("p", {})
