"""annotations.dcm and segmentation.dcm: regions and map as DICOM objects, where the slide is DICOM itself (extra `dicom`)."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.recipe import TOOL, tool_version
from wsi_pipeline.outputs import dicom_source
from wsi_pipeline.outputs.pyramid import find_place, image_of
from wsi_pipeline.outputs.result import SlideResult

ANNOTATIONS = "annotations.dcm"
SEGMENTATION = "segmentation.dcm"
TILE = 512
LABEL_LENGTH = 64
"""Longest label that DICOM allows."""
FIXED = {"DA": "19700101", "TM": "000000", "DT": "19700101000000"}
"""Dates and times by type: DICOM demands a date; when a slide was worked on is nobody's business, and the bytes must not change."""


def check_installed() -> None:
    """Raise ConfigError where the extra is missing."""
    if importlib.util.find_spec("highdicom") is None or importlib.util.find_spec("pydicom") is None:
        raise ConfigError(
            "--outputs dicom: needs pydicom and highdicom; install them with pip install"
            " 'wsi-pipeline[dicom]'"
        )


def write_dicom(result: SlideResult, folder: Path) -> None:
    """Annotations (a polygon per region) and a fractional segmentation (a pixel per patch); nothing where the slide is no DICOM.

    They refer to the slide by its UIDs; no patient's name, number or date is copied from it.
    """
    check_installed()
    source = dicom_source.find_source(result, folder)
    if source is None:
        return
    dimensions = _uid(result, "dimensions")
    if result.regions:
        _save(_annotate(result, source), folder / ANNOTATIONS, dimensions)
    _save(_segment(result, source), folder / SEGMENTATION, dimensions)


def _annotate(result: SlideResult, source: Any) -> Any:
    """Microscopy Bulk Simple Annotations: the shells of all regions, in pixels of the source's total pixel matrix."""
    import highdicom as hd

    shells, probability = _list_shells(result)
    finding_category, finding = _codes()
    group = hd.ann.AnnotationGroup(
        number=1,
        uid=_uid(result, ANNOTATIONS, "group"),
        label=result.heatmap.positive_class[:LABEL_LENGTH],
        annotated_property_category=finding_category,
        annotated_property_type=finding,
        graphic_type=hd.ann.GraphicTypeValues.POLYGON,
        graphic_data=shells,
        algorithm_type=hd.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(),
        measurements=[_measure(probability)],
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
    """The outer rings of every region, open, and the mean probability of their regions; DICOM polygons have no holes."""
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
        **_place(result, source),
        **_identity(result, SEGMENTATION),
    )


def _place(result: SlideResult, source: Any) -> dict[str, Any]:
    """Where the map's pixels lie, in the slide's own coordinates in mm."""
    import highdicom as hd

    place = find_place(result.table.grid, result.table.slide.mpp)
    column_x, column_y, _, row_x, row_y, _ = (
        float(value) for value in source.ImageOrientationSlide
    )
    origin = source.TotalPixelMatrixOriginSequence[0]
    # DICOM gives the centre of the first pixel, of the matrix as of the map.
    right, down = ((center - result.table.slide.mpp / 2) / 1000 for center in place.center_um)
    x = float(origin.XOffsetInSlideCoordinateSystem) + right * column_x + down * row_x
    y = float(origin.YOffsetInSlideCoordinateSystem) + right * column_y + down * row_y
    slide = hd.CoordinateSystemNames.SLIDE
    return {
        "pixel_measures": hd.PixelMeasuresSequence(
            pixel_spacing=[place.pixel_um / 1000] * 2, slice_thickness=0.001
        ),
        "plane_orientation": hd.PlaneOrientationSequence(
            slide, [float(value) for value in source.ImageOrientationSlide]
        ),
        "plane_positions": [
            hd.PlanePositionSequence(
                slide, image_position=[x, y, 0.0], pixel_matrix_position=(1, 1)
            )
        ],
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


def _measure(probability: NDArray[np.float32]) -> Any:
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    name = CodedConcept("mean_probability", "99WSI", "Mean probability")
    return hd.ann.Measurements(
        name=name, unit=CodedConcept("1", "UCUM", "no units"), values=probability
    )


def _identity(result: SlideResult, name: str) -> dict[str, Any]:
    """Who made it, and names that are the same on every run."""
    return {
        "series_instance_uid": _uid(result, name, "series"),
        "sop_instance_uid": _uid(
            result,
            name,
            "instance",
            result.heatmap.threshold,
            result.heatmap.smooth_um,
            result.heatmap.min_region_mm2,
        ),
        "manufacturer": TOOL,
        "manufacturer_model_name": TOOL,
        "software_versions": tool_version(),
        "device_serial_number": "1",
    }


def _uid(result: SlideResult, *parts: Any) -> Any:
    import uuid

    import highdicom as hd

    return hd.UID.from_uuid(str(uuid.UUID(result.name_uuid(*parts))))


def _save(dataset: Any, path: Path, dimensions_uid: Any) -> None:
    """Write with fixed dates and names: the libraries fill in the clock and random UIDs, also deep inside."""

    def settle(_: Any, element: Any) -> None:
        if element.VR in FIXED and element.value:
            element.value = FIXED[element.VR]
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimensions_uid

    dataset.walk(settle)
    dataset.save_as(path)
