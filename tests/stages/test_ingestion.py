from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_patches, write_png
from tests.cases import make_case
from tests.commands import run
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.stages.ingest import fingerprint_patches, sort_files
from wsi_pipeline.stages.ingest_layouts import LayoutOptions, LeftOut, find_patches, summarise
from wsi_pipeline.store.patches import PatchStore

SPEC = PatchSpec(50, 50, 4.0)
OPTIONS = IngestOptions(mpp=4.0)


def write_patch(
    folder: Path, patient: str, x: int, y: int, label: int, pixels: np.ndarray | None = None
) -> Path:
    name = f"{patient}_idx5_x{x}_y{y}_class{label}.png"
    return write_png(
        folder / patient / str(label) / name,
        make_patches(1, seed=x * 7 + y)[0] if pixels is None else pixels,
    )


def test_one_store_per_patient_with_every_patch_in_its_place(tmp_path: Path) -> None:
    pixels = make_patches(3)
    write_patch(tmp_path / "in", "8863", 101, 51, 0, pixels[0])
    write_patch(tmp_path / "in", "8863", 1, 201, 1, pixels[1])
    write_patch(tmp_path / "in", "9000", 1, 1, 1, pixels[2])
    account = ingest_patches(tmp_path / "in", tmp_path / "out", OPTIONS)
    store = PatchStore(tmp_path / "out" / "8863.patches.zarr")
    assert account.patches == 3
    assert store.positions.tolist() == [
        [1, 2],
        [4, 0],
    ]  # row from y, column from x, both counted from 1 in steps of 50
    assert store.table.labels.tolist() == [0, 1]
    assert np.array_equal(store.read_block(0).pixels, pixels[:2])
    assert (store.grid.rows, store.grid.cols, store.grid.spec.mpp) == (5, 3, 4.0)
    assert (store.table.patient_id, store.slide.mpp_source) == ("8863", "user")
    assert (tmp_path / "out" / "9000.patches.zarr").is_dir()


def test_odd_files_are_left_out_by_name_and_reason(tmp_path: Path) -> None:
    write_patch(tmp_path, "7", 1, 1, 0)
    write_patch(tmp_path, "7", 51, 1, 0, make_patches(1)[0][:, :31])
    write_patch(tmp_path, "7", 60, 1, 0)
    write_patch(tmp_path, "7", 1, 1, 1)
    write_patch(tmp_path, "7", 50 * 30_000 + 1, 1, 0)
    (tmp_path / "7" / "0" / "7_idx5_x101_y1_class0.png").write_bytes(b"no image")
    files, left_out = sort_files(find_patches(tmp_path, "idc", LayoutOptions()).patients[0], SPEC)
    assert [(file.row, file.col, file.entry.label) for file in files] == [(0, 0, 0)]
    reasons = {Path(entry.file).name: entry.reason for entry in left_out}
    assert reasons == {
        "7_idx5_x51_y1_class0.png": "31 × 50 px instead of 50 × 50",
        "7_idx5_x60_y1_class0.png": "its place 59,0 (from 0) is no multiple of 50",
        "7_idx5_x1_y1_class1.png": "lies where 7/0/7_idx5_x1_y1_class0.png lies",
        "7_idx5_x1500001_y1_class0.png": "lies beyond any slide",
        "7_idx5_x101_y1_class0.png": "cannot be decoded",
    }


def test_what_is_left_out_is_in_the_report(tmp_path: Path) -> None:
    write_patch(tmp_path / "in", "7", 1, 1, 0)
    write_patch(tmp_path / "in", "7", 51, 1, 0, make_patches(1)[0][:, :31])
    account = ingest_patches(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert [entry.file for entry in account.left_out] == ["7/0/7_idx5_x51_y1_class0.png"]
    assert (tmp_path / "out" / "left_out.csv").read_text().splitlines() == [
        "file,reason",
        "7/0/7_idx5_x51_y1_class0.png,31 × 50 px instead of 50 × 50",
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".tif", ".bmp"])
def test_patches_of_other_formats_are_taken(suffix: str, tmp_path: Path) -> None:
    name = f"7_idx5_x51_y1_class1{suffix}"
    write_png(tmp_path / "in" / name, np.full((50, 50, 3), 90, dtype=np.uint8))
    ingest_patches(tmp_path / "in", tmp_path / "out", OPTIONS)
    store = PatchStore(tmp_path / "out" / "7.patches.zarr")
    assert (store.positions.tolist(), store.table.labels.tolist()) == ([[0, 1]], [1])
    assert (store.read_block(0).pixels == 90).all()


COPIES = ("{} (1)", "{}(2)", "{} - Copy", "{} - Copy (2)", "{} copy", "{} - Kopie", "Copy of {}")


@pytest.mark.parametrize("copy", COPIES)
def test_a_renamed_copy_is_its_patch(copy: str, tmp_path: Path) -> None:
    write_png(tmp_path / f"{copy.format('7_idx5_x51_y1_class1')}.png", make_patches(1)[0])
    (patient,) = find_patches(tmp_path, "idc", LayoutOptions()).patients
    assert (patient.patient_id, patient.entries[0][1:4]) == ("7", (1, 50, 0))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_beside_its_original_is_the_one_that_is_left_out(copy: str, tmp_path: Path) -> None:
    original = write_patch(tmp_path, "7", 51, 1, 1)
    renamed = original.with_stem(copy.format(original.stem))
    renamed.write_bytes(original.read_bytes())
    files, left_out = sort_files(find_patches(tmp_path, "idc", LayoutOptions()).patients[0], SPEC)
    assert [Path(file.entry.file).name for file in files] == [original.name]
    assert [(Path(entry.file).name, entry.kind) for entry in left_out] == [
        (renamed.name, "lies where another patch lies")
    ]


def test_images_of_other_names_are_left_out_and_files_of_systems_are_not_mentioned(
    tmp_path: Path,
) -> None:
    write_patch(tmp_path, "7", 1, 1, 0)
    for name in ("7/0/overview.png", "7/0/7_idx5_x51_y1_class2.png"):
        write_png(tmp_path / name, make_patches(1)[0])
    for name in ("7/0/._7_idx5_x1_y1_class0.png", "__MACOSX/7_idx5_x51_y1_class0.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0")
    found = find_patches(tmp_path, "idc", LayoutOptions())
    assert len(found.patients[0].entries) == 1
    assert [entry.file for entry in found.left_out] == [
        "7/0/7_idx5_x51_y1_class2.png",
        "7/0/overview.png",
    ]


def test_many_duplicates_are_one_line_with_a_count() -> None:
    left_out = [LeftOut(f"b/{n}.png", f"lies where a/{n}.png lies") for n in range(10_000)]
    left_out += [LeftOut("c.png", "31 × 50 px instead of 50 × 50")]
    assert summarise(left_out) == [
        "10,000 files: lies where another patch lies (first: b/0.png)",
        "1 file: another size instead of 50 × 50 (first: c.png)",
    ]


def test_a_few_files_are_named_each() -> None:
    assert summarise([LeftOut("c.png", "is missing")]) == ["c.png: is missing"]


def test_a_copy_of_the_set_within_itself_is_counted_on_screen_and_named_in_the_table(
    tmp_path: Path,
) -> None:
    result = run(
        "ingest",
        make_case("32-kaggle-nested-copy", tmp_path),
        *("--mpp", 4, "-o", tmp_path / "out"),
    )
    assert "12 patches of 50×50 in 2 stores, 12 files left out" in result.stdout, result.output
    assert len((tmp_path / "out" / "left_out.csv").read_text().splitlines()) == 13


def test_again_does_nothing_and_reports_the_same(tmp_path: Path) -> None:
    write_patch(tmp_path / "in", "7", 1, 1, 0)
    write_patch(tmp_path / "in", "7", 51, 1, 0, make_patches(1)[0][:, :31])
    first = ingest_patches(tmp_path / "in", tmp_path / "out", OPTIONS)
    again = ingest_patches(tmp_path / "in", tmp_path / "out", OPTIONS)
    assert again.left_out == first.left_out
    assert all(outcome.is_resumed_whole for outcome in again.run.outcomes)


def test_the_thumbnail_shows_the_patches_in_place(tmp_path: Path) -> None:
    write_patch(tmp_path / "in", "7", 51, 1, 0, np.full((50, 50, 3), 90, dtype=np.uint8))
    ingest_patches(tmp_path / "in", tmp_path / "out", OPTIONS)
    thumbnail = PatchStore(tmp_path / "out" / "7.patches.zarr").table.thumbnail
    half = thumbnail.pixels.shape[1] // 2
    assert (thumbnail.pixels[:, :half] == 255).all()
    assert (thumbnail.pixels[:, half:] == 90).all()


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    path = write_patch(tmp_path, "7", 1, 1, 0)
    before = fingerprint_patches(find_patches(tmp_path, "idc", LayoutOptions()).patients[0])
    write_png(path, make_patches(1, seed=99)[0])
    assert fingerprint_patches(find_patches(tmp_path, "idc", LayoutOptions()).patients[0]) != before


def test_a_folder_without_patches_is_an_error(tmp_path: Path) -> None:
    write_png(tmp_path / "holiday.png", make_patches(1)[0])
    with pytest.raises(ConfigError, match="no files called"):
        find_patches(tmp_path, "idc", LayoutOptions())
