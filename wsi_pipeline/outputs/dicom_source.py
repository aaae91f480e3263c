"""What DICOM outputs need to know of a DICOM slide: its UIDs and its geometry, by an allow-list, and nothing of a patient."""

import json
from pathlib import Path
from typing import Any

from wsi_pipeline.outputs.result import SlideResult

SOURCE_JSON = "dicom_source.json"
WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
KEPT = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "TotalPixelMatrixColumns", "TotalPixelMatrixRows",
    "TotalPixelMatrixFocalPlanes", "TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "DimensionOrganizationType",
    "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth", "SharedFunctionalGroupsSequence",
)  # fmt: skip
KEPT_OF_SHARED = ("PixelMeasuresSequence",)
EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""Demanded by DICOM, allowed to be empty."""


def find_source(result: SlideResult, folder: Path) -> Any | None:
    """The slide's reduced header, from the slide or as an earlier run kept it; also written to `folder`. None for other slides."""
    import pydicom

    header = _read_slide(Path(result.table.slide.path), result.table.slide.size_l0)
    if header is None and result.previous is not None and (result.previous / SOURCE_JSON).is_file():
        header = pydicom.Dataset.from_json(json.loads((result.previous / SOURCE_JSON).read_bytes()))
    if header is not None:
        (folder / SOURCE_JSON).write_text(
            json.dumps(header.to_json_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n"
        )
    return header


def _read_slide(path: Path, size_l0: tuple[int, int]) -> Any | None:
    """The reduced header of the file beside `path`, of the same series, that holds level 0."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    def read(file: Path) -> Any | None:
        try:
            return pydicom.dcmread(file, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            return None

    first = read(path) if path.is_file() else None
    if first is None or first.get("SOPClassUID") != WHOLE_SLIDE_IMAGE:
        return None
    for file in sorted(path.parent.iterdir()):
        header = read(file) if file.is_file() else None
        is_of_series = (
            header is not None and header.get("SeriesInstanceUID") == first.SeriesInstanceUID
        )
        if (
            header is not None
            and is_of_series
            and (header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows) == size_l0
        ):
            return _reduce(header)
    return None


def _reduce(header: Any) -> Any:
    """A header of the allowed elements only."""
    import pydicom

    reduced = pydicom.Dataset()
    for keyword in KEPT:
        if keyword in header:
            reduced[keyword] = header[keyword]
    shared = pydicom.Dataset()
    for keyword in KEPT_OF_SHARED:
        if keyword in header.SharedFunctionalGroupsSequence[0]:
            shared[keyword] = header.SharedFunctionalGroupsSequence[0][keyword]
    reduced.SharedFunctionalGroupsSequence = [shared]
    for keyword in EMPTY:
        setattr(reduced, keyword, "")
    return reduced
