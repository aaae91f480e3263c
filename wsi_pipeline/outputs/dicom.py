"""annotations.dcm and segmentation.dcm: regions and map of a DICOM slide (extra `dicom`).

They refer to the slide by its UIDs and geometry, copied by an allow-list; nothing about a patient
is copied.
"""

import importlib.util
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.recipe import TOOL, tool_version
from wsi_pipeline.outputs.pyramid import find_place, image_of
from wsi_pipeline.outputs.result import SlideResult

SOURCE_JSON = "dicom_source.json"
WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
KEPT = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "Modality", "ImageType", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes",
    "TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "DimensionOrganizationType",
    "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth",
    "SharedFunctionalGroupsSequence",
)  # fmt: skip
KEPT_OF_SHARED = ("PixelMeasuresSequence",)
EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Demanded by DICOM, allowed to be empty."""


def find_source(result: SlideResult, folder: Path) -> Any | None:
    """Return the slide's reduced header, also written to `folder`; None for other slides.

    It comes from the slide or from the folder of an earlier run.
    """
    import pydicom

    header = _read_slide(Path(result.table.slide.path), result.table.slide.size_l0)
    earlier = result.previous and result.previous / SOURCE_JSON
    if header is None and earlier and earlier.is_file():
        header = pydicom.Dataset.from_json(json.loads(earlier.read_bytes()))
    if header is not None:
        text = json.dumps(header.to_json_dict(), indent=1, sort_keys=True, allow_nan=False)
        (folder / SOURCE_JSON).write_text(text + "\n")
    return header


def _read_slide(path: Path, size_l0: tuple[int, int]) -> Any | None:
    """Return the reduced header of the file in the series of `path` that holds level 0."""
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
        if header is None or header.get("SeriesInstanceUID") != first.SeriesInstanceUID:
            continue
        if (header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows) == size_l0:
            return _reduce(header)
    return None


def _reduce(header: Any) -> Any:
    """Return a header of the allowed elements only."""
    import pydicom

    def copy(source: Any, keywords: Sequence[str]) -> Any:
        copied = pydicom.Dataset()
        for keyword in keywords:
            if keyword in source:
                copied[keyword] = source[keyword]
        return copied

    reduced = copy(header, KEPT)
    shared = copy(header.SharedFunctionalGroupsSequence[0], KEPT_OF_SHARED)
    reduced.SharedFunctionalGroupsSequence = [shared]
    for keyword in EMPTY:
        setattr(reduced, keyword, "")
    return reduced


ANNOTATIONS = "annotations.dcm"
SEGMENTATION = "segmentation.dcm"
TILE = 512
LABEL_LENGTH = 64
"""Longest label that DICOM allows."""
FIXED = {"DA": "19700101", "TM": "000000", "DT": "19700101000000"}
"""Dates and times by type: DICOM requires them; fixed ones hide the day and keep the bytes."""


def check_installed() -> None:
    """Raise ConfigError where the extra is missing."""
    if not all(importlib.util.find_spec(name) for name in ("highdicom", "pydicom")):
        raise ConfigError(
            "--outputs dicom: needs pydicom and highdicom; pip install 'wsi-pipeline[dicom]'"
        )


def write_dicom(result: SlideResult, folder: Path) -> None:
    """Write a polygon per region and a fractional segmentation, a pixel per patch.

    Writes nothing where the slide is not DICOM.
    """
    check_installed()
    source = find_source(result, folder)
    if source is None:
        return
    dimensions = _uid(result, "dimensions")
    if result.regions:
        _save(_annotate(result, source), folder / ANNOTATIONS, dimensions)
    _save(_segment(result, source), folder / SEGMENTATION, dimensions)


def _annotate(result: SlideResult, source: Any) -> Any:
    """Return the regions' outer rings as annotations on the source's total pixel matrix."""
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    shells, probability = _list_shells(result)
    name = CodedConcept("mean_probability", "99WSI", "Mean probability")
    mean = hd.ann.Measurements(name, probability, CodedConcept("1", "UCUM", "no units"))
    category, finding = _codes()
    group = hd.ann.AnnotationGroup(
        number=1,
        uid=_uid(result, ANNOTATIONS, "group"),
        label=result.heatmap.positive_class[:LABEL_LENGTH],
        annotated_property_category=category,
        annotated_property_type=finding,
        graphic_type=hd.ann.GraphicTypeValues.POLYGON,
        graphic_data=shells,
        algorithm_type=hd.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(),
        measurements=[mean],
    )
    return hd.ann.MicroscopyBulkSimpleAnnotations(
        source_images=[source],
        annotation_coordinate_type=hd.ann.AnnotationCoordinateTypeValues.SCOORD,
        annotation_groups=[group],
        series_number=1001,
        instance_number=1,
        **_identity(result, ANNOTATIONS),
    )


def _list_shells(result: SlideResult) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the outer rings of every region, without holes, and the probability of each."""
    shells: list[NDArray[np.float32]] = []
    probability: list[float] = []
    for region in result.regions:
        for polygon in getattr(region.outline, "geoms", [region.outline]):
            shells.append(np.asarray(polygon.exterior.coords, dtype=np.float32)[:-1])
            probability.append(region.mean_probability)
    return shells, np.array(probability, dtype=np.float32)


def _segment(result: SlideResult, source: Any) -> Any:
    """Fractional segmentation, one pixel per patch, 0 where not assessed (DICOM knows no NaN)."""
    import highdicom as hd

    category, finding = _codes()
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=result.heatmap.positive_class[:LABEL_LENGTH],
        segmented_property_category=category,
        segmented_property_type=finding,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(),
    )
    image = np.nan_to_num(image_of(result))
    return hd.seg.Segmentation(
        source_images=[source],
        pixel_array=image[None],
        segmentation_type=hd.seg.SegmentationTypeValues.FRACTIONAL,
        segment_descriptions=[segment],
        fractional_type=hd.seg.SegmentationFractionalTypeValues.PROBABILITY,
        max_fractional_value=255,
        tile_pixel_array=True,
        tile_size=(min(TILE, image.shape[0]), min(TILE, image.shape[1])),
        omit_empty_frames=False,
        series_number=1002,
        instance_number=1,
        **_locate(result, source),
        **_identity(result, SEGMENTATION),
    )


def _locate(result: SlideResult, source: Any) -> dict[str, Any]:
    """Return the place of the map's pixels in the slide's own coordinates, in mm."""
    import highdicom as hd

    place = find_place(result.table.grid, result.table.slide.mpp)
    orientation = [float(value) for value in source.ImageOrientationSlide]
    column_x, column_y, _, row_x, row_y, _ = orientation
    origin = source.TotalPixelMatrixOriginSequence[0]
    # DICOM gives the centre of the first pixel, of the matrix as of the map.
    right, down = ((center - result.table.slide.mpp / 2) / 1000 for center in place.center_um)
    x = float(origin.XOffsetInSlideCoordinateSystem) + right * column_x + down * row_x
    y = float(origin.YOffsetInSlideCoordinateSystem) + right * column_y + down * row_y
    slide = hd.CoordinateSystemNames.SLIDE
    return {
        "pixel_measures": hd.PixelMeasuresSequence([place.pixel_um / 1000] * 2, 0.001),
        "plane_orientation": hd.PlaneOrientationSequence(slide, orientation),
        "plane_positions": [hd.PlanePositionSequence(slide, [x, y, 0.0], (1, 1))],
    }


def _codes() -> tuple[Any, Any]:
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    return codes.SCT.MorphologicallyAbnormalStructure, CodedConcept("108369006", "SCT", "Neoplasm")


def _algorithm() -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.AlgorithmIdentificationSequence(
        name=TOOL, version=tool_version(), family=codes.cid7162.ArtificialIntelligence
    )


def _identity(result: SlideResult, name: str) -> dict[str, Any]:
    """Return maker and UIDs, the same on every run."""
    shown = result.heatmap
    aggregation = (shown.threshold, shown.context_um, shown.min_region_mm2, shown.prevalence)
    return {
        "series_instance_uid": _uid(result, name, "series"),
        "sop_instance_uid": _uid(result, name, "instance", *aggregation),
        "manufacturer": TOOL,
        "manufacturer_model_name": TOOL,
        "software_versions": tool_version(),
        "device_serial_number": "1",
    }


def _uid(result: SlideResult, *parts: Any) -> Any:
    import highdicom as hd

    return hd.UID.from_uuid(str(uuid.UUID(result.name_uuid(*parts))))


def _save(dataset: Any, path: Path, dimensions_uid: Any) -> None:
    """Write with fixed dates and UIDs, where the libraries use the clock and random UIDs."""

    def fix(_: Any, element: Any) -> None:
        if element.VR in FIXED and element.value:
            element.value = FIXED[element.VR]
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimensions_uid

    dataset.walk(fix)
    dataset.save_as(path)
