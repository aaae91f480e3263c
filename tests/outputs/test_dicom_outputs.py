"""DICOM outputs of a DICOM slide, read back by pydicom and highdicom."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from tests.builders import folder_bytes, make_table
from tests.written_results import CELLS, write_result
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs import View, choose_formats
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.slides import open_slide
from wsi_pipeline.stages.aggregate import aggregate_results

NAN = float("nan")
VIEW = View(("summary", "dicom"))
SECRETS = ("Smith^Jane", "P-12345", "19610203", "ACC-777", "BARCODE-42")
PROBABILITY = [0.0, 0.25, NAN, 0.0, 1.0, 0.75]


def write_dicom_slide(path: Path) -> Path:
    """A whole-slide image of 1,000 × 1,000 pixels at 0.3 µm, with everything in it that must not
    leave; its pixels are left out.
    """
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    for number, keyword in enumerate(
        ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    ):
        setattr(header, keyword, f"1.2.3.{number}")
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    (
        header.PatientName,
        header.PatientID,
        header.PatientBirthDate,
        header.AccessionNumber,
        header.ContainerIdentifier,
    ) = SECRETS
    header.PatientSex = "F"
    header.StudyDate, header.StudyTime, header.StudyID, header.ReferringPhysicianName = (
        "19610203",
        "101010",
        "1",
        "Smith^Jane",
    )
    header.PositionReferenceIndicator = "SLIDE_CORNER"
    header.Modality, header.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    header.Rows = header.Columns = 500
    header.NumberOfFrames, header.SamplesPerPixel, header.PhotometricInterpretation = 4, 3, "RGB"
    (
        header.BitsAllocated,
        header.BitsStored,
        header.HighBit,
        header.PixelRepresentation,
        header.PlanarConfiguration,
    ) = (
        8,
        8,
        7,
        0,
        0,
    )
    header.TotalPixelMatrixColumns = header.TotalPixelMatrixRows = 1000
    header.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    header.DimensionOrganizationType = "TILED_FULL"
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 10.0, 20.0
    header.TotalPixelMatrixOriginSequence = Sequence([origin])
    measures.PixelSpacing, measures.SliceThickness = [0.0003, 0.0003], 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    header.save_as(path, enforce_file_format=True)
    return path


def table_of(slide: Path) -> PatchTable:
    """The grid of the registration test: it begins at (40, 80) px; patches of 50 px at 1 µm/px."""
    table = make_table(CELLS, mpp=1.0, block_size=10, rows=4, cols=5)
    info = replace(
        table.slide, path=str(slide), mpp=0.3, size_l0=(1000, 1000), bounds_l0=(0, 0, 1000, 1000)
    )
    return replace(
        table, grid=Grid(PatchSpec(50, 50, 1.0), 4, 5, Fraction(10, 3), (40, 80)), slide=info
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dicom")
    slide = write_dicom_slide(place / "level0.dcm")
    write_result(place / "results" / "slide", PROBABILITY, table=table_of(slide), view=VIEW)
    return place / "results" / "slide"


def test_annotations_outline_every_region(folder: Path) -> None:
    (group,) = hd.ann.annread(folder / "annotations.dcm").get_annotation_groups()
    (shell,) = group.get_graphic_data("2D")
    left, top = (
        40 + 500,
        80 + 500,
    )  # cells (3, 3) and (3, 4): columns from 3 · 50 µm and row from 3 · 50 µm on, at 0.3 µm/px
    assert (shell.min(axis=0) == [left, top]).all()
    np.testing.assert_allclose(shell.max(axis=0), [40 + 250 / 0.3, 80 + 200 / 0.3], atol=1)
    _, values, _ = group.get_measurements()
    assert values[0, 0] == pytest.approx((1.0 + 0.75) / 2)


def test_the_segmentation_is_the_map(folder: Path) -> None:
    segmentation = hd.seg.segread(folder / "segmentation.dcm")
    image = segmentation.get_total_pixel_matrix(combine_segments=False)[..., 0]
    assert image.shape == (4, 5)
    assert (image[3, 4], image[0, 0], image[1, 2]) == (1.0, 0.0, 0.0)
    assert image[3, 3] == pytest.approx(0.75, abs=1 / 255)


def test_the_segmentation_lies_where_the_marked_patch_is(folder: Path) -> None:
    """The slide's rows run along x and its columns along y; its first pixel's centre is at 10 mm,
    20 mm.
    """
    segmentation = pydicom.dcmread(folder / "segmentation.dcm")
    origin = segmentation.TotalPixelMatrixOriginSequence[0]
    spacing = (
        segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]
    )
    x = float(origin.XOffsetInSlideCoordinateSystem) + 3 * float(spacing)
    y = float(origin.YOffsetInSlideCoordinateSystem) + 4 * float(spacing)
    assert ((y - 20) * 1000 + 0.15, (x - 10) * 1000 + 0.15) == pytest.approx((237, 199), abs=0.01)


def test_objects_refer_to_the_slide(folder: Path) -> None:
    for name in ("annotations.dcm", "segmentation.dcm"):
        written = pydicom.dcmread(folder / name)
        series = written.ReferencedSeriesSequence[0]
        assert (written.StudyInstanceUID, series.SeriesInstanceUID) == ("1.2.3.1", "1.2.3.2")
        assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == "1.2.3.0"
    assert pydicom.dcmread(folder / "segmentation.dcm").FrameOfReferenceUID == "1.2.3.3"


def test_nothing_of_the_patient_leaves_the_slide(folder: Path) -> None:
    for content in folder_bytes(folder).values():
        assert not any(secret.encode() in content for secret in SECRETS)


def test_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    write_result(
        tmp_path / "slide", PROBABILITY, table=table_of(folder.parents[1] / "level0.dcm"), view=VIEW
    )
    assert folder_bytes(tmp_path / "slide") == folder_bytes(folder)


def test_aggregation_needs_the_slide_no_more(tmp_path: Path) -> None:
    slide = write_dicom_slide(tmp_path / "level0.dcm")
    write_result(tmp_path / "results" / "slide", PROBABILITY, table=table_of(slide), view=VIEW)
    slide.unlink()
    aggregate_results(tmp_path / "results", replace(VIEW, aggregation=Aggregation(threshold=0.9)))
    (group,) = hd.ann.annread(
        tmp_path / "results" / "slide" / "annotations.dcm"
    ).get_annotation_groups()
    assert group.get_graphic_data("2D")[0].max() > 600
    assert len(group.get_graphic_data("2D")[0]) == 4  # one patch now


def test_nothing_positive_gives_a_segmentation_only(tmp_path: Path) -> None:
    slide = write_dicom_slide(tmp_path / "level0.dcm")
    write_result(tmp_path / "slide", [0.1] * 6, table=table_of(slide), view=VIEW)
    assert not (tmp_path / "slide" / "annotations.dcm").exists()
    assert hd.seg.segread(tmp_path / "slide" / "segmentation.dcm").NumberOfFrames == 1


def test_other_slides_give_no_dicom(tmp_path: Path) -> None:
    write_result(tmp_path / "slide", PROBABILITY, view=VIEW)
    assert list((tmp_path / "slide").glob("*.dcm")) == []


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi-pipeline\[dicom\]'"):
        choose_formats(["dicom"])


def test_a_real_dicom_slide(shared_data: Path, tmp_path: Path) -> None:
    first = sorted((shared_data / "slides" / "openslide-python_boxes_dcm").glob("*.dcm"))[0]
    reader = open_slide(first)
    table = make_table(
        [(0, 0), (0, 1)], side_px=8, mpp=reader.info.mpp, rows=2, cols=2, block_size=10
    )
    reader.close()
    write_result(tmp_path / "slide", [0.9, 0.1], table=replace(table, slide=reader.info), view=VIEW)
    (group,) = hd.ann.annread(tmp_path / "slide" / "annotations.dcm").get_annotation_groups()
    np.testing.assert_array_equal(
        np.sort(group.get_graphic_data("2D")[0], axis=0), [[0, 0], [0, 0], [8, 8], [8, 8]]
    )
    assert hd.seg.segread(tmp_path / "slide" / "segmentation.dcm").get_total_pixel_matrix(
        combine_segments=False
    ).shape == (2, 2, 1)
