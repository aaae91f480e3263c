"""Tables that people write, as spreadsheets save them."""

from pathlib import Path

import pytest

from tests.builders import paint, tissue, write_png, write_slide
from tests.cases import make_case
from tests.commands import run
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.slides.found_slide import FoundSlide
from wsi_pipeline.slides.sheet import read_mpp_csv, read_sheet, scale_slides, show_names
from wsi_pipeline.store.patches import PatchStore

ROWS = "wsi,mpp,patient_id\na.tif,0.5,007\n"


def write_sheet(folder: Path, content: str | bytes) -> Path:
    (folder / "a.tif").touch()
    path = folder / "sheet.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "wsi,mpp,patient_id,,\na.tif,0.5,007,,\n,,,,\n",
        "wsi,mpp,patient_id\na.tif,0.5,007,,,\n",
        "wsi,mpp,patient_id,,\na.tif,0.5,007\n",
        "wsi,mpp,patient_id, , \na.tif,0.5,007, ,\n , ,\n",
        "wsi, mpp ,patient_id\na.tif, 0.5,007\n",
        "wsi;mpp;patient_id\na.tif;0.5;007\n",
        "wsi;mpp;patient_id;;\r\na.tif;0,5;007;;\r\n;;;;\r\n",
        "wsi\tmpp\tpatient_id\na.tif\t0,5\t007\n",
        "\ufeff" + ROWS,
        ("\ufeff" + ROWS.replace(",", "\t")).encode("utf-16-le"),
        ("\ufeff" + ROWS).encode("utf-16-be"),
    ],
)
def test_a_sheet_is_read_as_spreadsheets_save_it(content: str | bytes, tmp_path: Path) -> None:
    (row,) = read_sheet(write_sheet(tmp_path, content))
    assert (row.slide.path.name, row.slide.slide_mpp, row.patient_id) == ("a.tif", 0.5, "007")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("wsi,mpp,,\na.tif,0.5,x,\n", 2),
        ("wsi,mpp\na.tif,0.5\na.tif,0.5,x\n", 3),
        ("wsi,mpp\na.tif\n", 2),
    ],
)
def test_a_value_of_no_column_and_a_column_without_a_value_are_named_by_line(
    content: str, line: int, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"line {line}: has another number of values"):
        read_sheet(write_sheet(tmp_path, content))


def test_a_path_in_the_spelling_of_windows_is_found(tmp_path: Path) -> None:
    write_png(tmp_path / "scans" / "a.png", paint(10, 10))
    (tmp_path / "sheet.csv").write_text("wsi\nscans\\a.png\n")
    (row,) = read_sheet(tmp_path / "sheet.csv")
    assert row.slide.path == tmp_path / "scans" / "a.png"


@pytest.mark.parametrize(
    "name", ["a.tif", "a", "A.TIF", "C:\\scans\\a.tif", "/mnt/scans/a.tif", "..\\a"]
)
def test_a_line_means_the_slide_of_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text(f"wsi;mpp\n{name};0,5\n")
    (slide,) = scale_slides([FoundSlide("a", Path("a.tif"))], tmp_path / "mpp.csv")
    assert (slide.slide_mpp, slide.mpp_source) == (0.5, "user (mpp.csv)")


def test_the_exact_name_wins(tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\nA.TIF,1\na.tif,2\n")
    slides = [FoundSlide("a", Path("a.tif")), FoundSlide("b", Path("A.TIF"))]
    assert [s.slide_mpp for s in scale_slides(slides, tmp_path / "mpp.csv")] == [2, 1]


def test_lines_that_mean_no_slide_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na.tif,1\nb.tif,2\nc,3\n")
    scale_slides([FoundSlide("a", Path("a.tif"))], tmp_path / "mpp.csv")
    (record,) = caplog.records
    assert "mpp.csv: 2 " in record.getMessage()
    assert record.getMessage().endswith(": b.tif, c")


def test_a_table_of_which_every_line_is_used_is_not_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na.tif,1\n")
    scale_slides([FoundSlide("a", Path("a.tif"))], tmp_path / "mpp.csv")
    assert not caplog.records


def test_shards_use_the_whole_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_slide(tmp_path / "in" / f"{name}.tif", tissue(100, 100), mpp=1.0)
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na,1\nb,1\n")
    options = ("--mpp-csv", tmp_path / "mpp.csv", "--shard", "1/2", "--workers", 0, "--mpp", 1)
    result = run("tile", tmp_path / "in", "-o", tmp_path / "out", *options)
    assert (result.exit_code, "not in the run" in result.stderr) == (0, False), result.stderr


def test_tables_with_empty_columns_give_scales(tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("wsi;mpp;;\na.tif;0,25;;\n;;;\n")
    assert read_mpp_csv(tmp_path / "mpp.csv") == {"a.tif": 0.25}


def test_long_lists_are_cut() -> None:
    assert show_names("abcdefgh") == "a, b, c, d, e and 3 more"


def test_a_sheet_with_trailing_columns_is_cut(tmp_path: Path) -> None:
    sheet = make_case("14-trailing-columns-in-sheet", tmp_path) / "sheet.csv"
    result = run("tile", "--sheet", sheet, "-o", tmp_path / "out", "--mpp", 1, "--workers", 0)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "a.patches.zarr").is_dir()


def test_scales_of_windows_paths_and_of_no_slide_are_not_passed_over(tmp_path: Path) -> None:
    made = make_case("15-mpp-csv-line-without-slide", tmp_path)
    options = ("--mpp-csv", made / "mpp.csv", "--mpp", 1, "--workers", 0)
    result = run("tile", made / "a.tif", "-o", tmp_path / "out", *options)
    assert "A.TIF, b.tif" in result.stderr, result.output
    assert PatchStore(tmp_path / "out" / "a.patches.zarr").slide.mpp == 0.5
