"""Columns that a sample sheet has beyond ours."""

from pathlib import Path

import pytest

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.slides.free_columns import is_nearly, tells_who
from wsi_pipeline.slides.sheet import SheetRow, read_sheet


def read(folder: Path, text: str) -> list[SheetRow]:
    for name in ("a.tif", "b.tif"):
        (folder / name).touch()
    (folder / "sheet.csv").write_text(text)
    return read_sheet(folder / "sheet.csv")


def test_a_further_column_is_kept_with_its_slide_and_an_empty_value_is_none(
    tmp_path: Path,
) -> None:
    one, other = read(tmp_path, "wsi,site,scanner\na.tif, north ,\nb.tif,south,X1\n")
    assert one.slide.columns == (("site", "north"),)
    assert other.slide.columns == (("site", "south"), ("scanner", "X1"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("patient", "patient_id"),
        ("Patients", "patient_id"),
        ("patientid", "patient_id"),
        ("Patient ID", "patient_id"),
        ("patien_id", "patient_id"),
        ("Split", "split"),
        ("splits", "split"),
        ("lables", "labels"),
        ("MPP", "mpp"),
        ("masks", "mask"),
        ("mask_path", "mask"),
        ("label file", "labels"),
    ],
)
def test_a_name_that_is_nearly_ours_is_refused_with_ours(
    name: str, meant: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"line 1: the column {name} is nearly {meant};"):
        read(tmp_path, f"wsi,{name}\na.tif,x\n")


@pytest.mark.parametrize("name", ["site", "stain", "patient_age", "spot", "slit", "wsi_date", "pp"])
def test_another_word_is_no_misspelt_one(name: str, tmp_path: Path) -> None:
    (row,) = read(tmp_path, f"wsi,{name}\na.tif,x\n")
    assert dict(row.slide.columns) == {name: "x"}


def test_two_slips_are_another_word() -> None:
    assert is_nearly("labels", "labelz")
    assert not is_nearly("labels", "lapelz")


def test_a_column_of_the_tables_of_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the column threshold is one that tables of results"):
        read(tmp_path, "wsi,threshold\na.tif,1\n")


def test_a_value_as_long_as_a_note_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2: site has 201 characters; at most 200"):
        read(tmp_path, f"wsi,site\na.tif,{'x' * 201}\n")


def test_a_sheet_without_the_slides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the columns are site; wsi must be one"):
        read(tmp_path, "site\nnorth\n")


@pytest.mark.parametrize(
    "name",
    [
        *("date_of_birth", "Date of birth", "birthdate", "birthday", "DOB", "name", "patient_name"),
        *("Surname", "last name", "MRN", "mrn", "accession_number", "e-mail", "Geburtsdatum"),
    ],
)
def test_a_column_that_tells_who_a_patient_is_is_known_by_its_name(name: str) -> None:
    assert tells_who(name)


@pytest.mark.parametrize("name", ["site", "scanner", "stain", "grade", "age", "sex", "scanner_id"])
def test_a_column_that_does_not_tell_is_none_of_them(name: str) -> None:
    assert not tells_who(name)


def test_a_column_that_tells_who_a_patient_is_is_warned_of_without_its_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path, "wsi,site,date_of_birth\na.tif,north,1950-02-03\n")
    (record,) = caplog.records
    assert "sheet.csv: date_of_birth: tells who a patient is" in record.getMessage()
    assert not {"1950-02-03", "north"} & set(record.getMessage().split())


def test_a_mask_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match="line 2: mask: masks is a folder; name the file in it"):
        read(tmp_path, "wsi,mask\na.tif,masks\n")
