"""Files beside slides that are none, and the files of a DICOM series, which are one."""

import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.builders import tissue, write_slide
from tests.commands import run
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.slides.dicom_series import DicomFile, read_header
from wsi_pipeline.slides.selection import find_one, find_slides, list_slides

SIDE_FILES = (
    *("Thumbs.db", "thumbs.DB", "desktop.ini", "a.ndpi.ndpa", "a.svs.md5", "a.SHA256"),
    *("readme.txt", "project.qpdata", "b.svs.partial", "b.svs.crdownload", "set.ndpis"),
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_side_file_is_no_slide(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", name)
    for place in (tmp_path, f"{tmp_path}/*"):
        listing = list_slides([place])
        assert [slide.path.name for slide in listing.slides] == ["a.svs"]
        assert [path.name for path in listing.passed] == [name]


def test_a_side_file_that_is_named_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    assert list_slides([tmp_path / "a.txt"]).passed == []


def test_side_files_are_counted_in_one_line(tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "a.tif", tissue(100, 100), mpp=1.0)
    touch(tmp_path / "in", "a.md5", "b.md5", "Thumbs.db", "a.geojson.txt")
    result = run("tile", tmp_path / "in", "-o", tmp_path / "out", "--mpp", 1, "--workers", 0)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "passed over" in line]
    assert lines == ["wsi: passed over: 4 files that are no slides (2 .md5, 1 Thumbs.db, 1 .txt)"]


def test_a_folder_without_side_files_mentions_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.svs", "a.geojson", "table.csv", ".DS_Store")
    find_slides([tmp_path])
    assert not caplog.records


def test_a_folder_of_nothing_else_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.md5")
    with pytest.raises(
        ConfigError, match=r"no slide files \(1 file that is no slide \(1 \.md5\)\)"
    ):
        find_slides([tmp_path])


def test_folders_of_systems_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "__MACOSX/a.svs", "@eaDir/a.svs", "$RECYCLE.BIN/b.svs", "c/d.svs")
    found = [slide.path.name for slide in find_slides([tmp_path], recursive=True)]
    assert found == ["a.svs", "d.svs"]


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    if kind == b"SQ":
        return struct.pack("<HH2sHI", group, number, kind, 0, 0xFFFFFFFF) + value
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ENDS = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)


def write_dicom(path: Path, series: str, columns: int, kind: str = "VOLUME") -> Path:
    """A header with what says where a file belongs, and a sequence without a length before it."""
    nested = ITEM + element(0x0020, 0x000E, b"UI", b"another series") + ENDS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes(128)
        + b"DICM"
        + element(0x0008, 0x0008, b"CS", f"DERIVED\\PRIMARY\\{kind}\\NONE".encode())
        + element(0x0008, 0x1115, b"SQ", nested)
        + element(0x0020, 0x000E, b"UI", series.encode())
        + element(0x0048, 0x0006, b"UL", columns.to_bytes(4, "little"))
        + element(0x0048, 0x0007, b"UL", columns.to_bytes(4, "little"))
    )
    return path


def test_a_header_says_where_its_file_belongs(tmp_path: Path) -> None:
    assert read_header(write_dicom(tmp_path / "a.dcm", "1.2.3", 70_000)) == DicomFile(
        "1.2.3", True, 70_000
    )
    assert read_header(write_dicom(tmp_path / "b.dcm", "1.2.3", 9, "LABEL")) == DicomFile(
        "1.2.3", False, 9
    )


@pytest.mark.parametrize(
    "content", [b"", b"no DICOM" * 40, bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 99]
)
def test_other_files_belong_nowhere(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    assert read_header(tmp_path / "a.dcm") is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.dcm")
    assert read_header(tmp_path / "a.dcm") is None


@pytest.mark.parametrize(
    "names", [("1.dcm", "2.dcm", "3.dcm"), ("a", "b", "c"), ("1.2", "1.3", "1.4")]
)
def test_a_series_is_one_slide_named_as_its_folder(names: tuple[str, ...], tmp_path: Path) -> None:
    for name, columns, kind in zip(
        names, (9, 100, 400), ("LABEL", "VOLUME", "VOLUME"), strict=True
    ):
        write_dicom(tmp_path / "patient" / name, "1.2", columns, kind)
    for places in ([tmp_path / "patient"], sorted((tmp_path / "patient").iterdir())):
        (slide,) = find_slides(places)
        assert (slide.slide_id, slide.path.name) == ("patient", names[2])


def test_two_series_in_a_folder_are_two_slides(tmp_path: Path) -> None:
    for name, series in (("a1", "1"), ("a2", "1"), ("b1", "2"), ("b2", "2")):
        write_dicom(tmp_path / f"{name}.dcm", series, 100)
    assert [slide.slide_id for slide in find_slides([tmp_path])] == ["a1", "b1"]


def test_folders_of_series_are_found_beside_slides_and_other_folders_are_not(
    tmp_path: Path,
) -> None:
    for folder in ("one", "two"):
        write_dicom(tmp_path / folder / "1.dcm", folder, 100)
        write_dicom(tmp_path / folder / "2.dcm", folder, 400)
    touch(tmp_path, "a.svs", "other/b.svs")
    found = {slide.slide_id: slide.path.name for slide in find_slides([tmp_path])}
    assert found == {"a": "a.svs", "one": "2.dcm", "two": "2.dcm"}


def test_series_of_patients_and_studies_are_found_within_folders(tmp_path: Path) -> None:
    for place in ("p1/s1/x", "p1/s2/x", "p2/s1/x"):
        write_dicom(tmp_path / place / "1.dcm", place, 100)
        write_dicom(tmp_path / place / "2.dcm", place, 100)
    assert len(find_slides([tmp_path], recursive=True)) == 3


def test_a_folder_of_several_slides_is_not_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    with pytest.raises(ConfigError, match=r"holds 2 slides \(a\.svs, b\.svs\); name one"):
        find_one(tmp_path)


def test_info_shows_a_series_by_its_folder_and_tile_cuts_it_once(
    tmp_path: Path, shared_data: Path
) -> None:
    series = shared_data / "slides" / "openslide-python_boxes_dcm"
    for name in ("one", "two"):
        shutil.copytree(series, tmp_path / "in" / name)
    shown = run("info", tmp_path / "in" / "one")
    assert (shown.exit_code, "16 × 16 px" in shown.output) == (0, True), shown.output
    options = ("--mpp", 0.5, "--patch-size", 8, "--min-tissue", 0, "--workers", 0)
    result = run("tile", tmp_path / "in", "-o", tmp_path / "out", *options)
    assert (result.exit_code, "2 slides: 2 ok" in result.stdout) == (0, True), result.output
    assert (tmp_path / "out" / "one.patches.zarr").is_dir()


@pytest.mark.parametrize(("compression", "is_slide"), [("jpeg", True), ("deflate", False)])
def test_a_scan_called_mask_is_a_slide_unless_it_may_be_the_mask_of_another(
    compression: str, is_slide: bool, tmp_path: Path
) -> None:
    touch(tmp_path, "with_scores.tif")
    tifffile.imwrite(
        *(tmp_path / "with_mask.tif", tissue(64, 64)),
        compression=compression,
        photometric="rgb",
        tile=(64, 64),
    )
    found = {slide.path.name for slide in find_slides([tmp_path])}
    assert ("with_mask.tif" in found) == is_slide


def test_the_mask_of_a_slide_of_exactly_its_name_is_none_whatever_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif")
    tifffile.imwrite(tmp_path / "a_mask.tif", tissue(64, 64), compression="jpeg", photometric="rgb")
    assert [slide.path.name for slide in find_slides([tmp_path])] == ["a.tif"]


def test_a_dicom_header_of_very_many_tags_costs_little(tmp_path: Path) -> None:
    tags = b"".join(
        struct.pack("<HH2sH", group, number, b"LO", 0)
        for group in range(8)
        for number in range(4000)
    )
    (tmp_path / "one.dcm").write_bytes(bytes(128) + b"DICM" + tags)
    began = time.process_time()
    assert read_header(tmp_path / "one.dcm") is None
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("slide", "mask"),
    [
        ("X.tiff", "X_mask.tif"),
        ("x.tiff", "X_MASK.TIF"),
        ("X.tiff", "X mask.tif"),
        ("X.tiff", "X_tissue_mask.tif"),
        ("X_HE.tiff", "X_mask.tif"),
        ("X.tiff", "masks/X_mask.tif"),
        ("X_labels.tiff", "X_labels_mask.tif"),
    ],
)
def test_a_mask_without_losses_is_never_a_slide_beside_its_slide(
    slide: str, mask: str, tmp_path: Path
) -> None:
    write_slide(tmp_path / slide, tissue(300, 280))
    (tmp_path / mask).parent.mkdir(exist_ok=True)
    tifffile.imwrite(tmp_path / mask, np.zeros((280, 300), np.uint8), compression="deflate")
    listing = list_slides([tmp_path], recursive=True)
    assert [found.path.name for found in listing.slides] == [slide]
    assert [path.name for path in listing.images] == [Path(mask).name]
