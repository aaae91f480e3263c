"""heatmap.ome.zarr: the map as an OME-Zarr 0.5 image with labels, in µm of the slide."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.image_label_types import Color, Label, Property, Source
from ome_zarr_models.v05.labels import LabelsAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale

from wsi_pipeline.outputs.pyramid import (
    NEGATIVE,
    POSITIVE,
    Place,
    build_pyramid,
    find_place,
    image_of,
    labels_of,
    reduce_image,
    reduce_labels,
)
from wsi_pipeline.outputs.result import NEGATIVE_COLOR, POSITIVE_COLOR, SlideResult
from wsi_pipeline.store.zarr_io import create_group, put_image

FILE_NAME = "heatmap.ome.zarr"
LABELS = "classes"
AXES = ("y", "x")


def write_ome_zarr(result: SlideResult, folder: Path) -> None:
    """Write one pixel per patch: `prob_<class>`, float32, NaN where not assessed, and labels.

    Labels are 0 not assessed, 1 negative, 2 positive.
    """
    path = folder / FILE_NAME
    place = find_place(result.table.grid, result.table.slide.mpp)
    image = build_pyramid(image_of(result), reduce_image)
    name = f"prob_{result.heatmap.positive_class}"
    multiscales = [_describe_levels(name, image, place)]
    attributes = _dump(ImageAttrs(version="0.5", multiscales=multiscales))
    _put(path, attributes | {"omero": _describe_channel(name)}, image)
    create_group(path / "labels", {"ome": _dump(LabelsAttrs(version="0.5", labels=[LABELS]))})
    labels = build_pyramid(labels_of(result), reduce_labels)
    multiscales = [_describe_levels(LABELS, labels, place)]
    described = {"image-label": _describe_labels(result)}
    attributes = _dump(ImageLabelAttrs(version="0.5", multiscales=multiscales, **described))
    _put(path / "labels" / LABELS, attributes, labels)


def _put(path: Path, ome: dict[str, Any], levels: list[NDArray[Any]]) -> None:
    create_group(path, {"ome": ome})
    for number, level in enumerate(levels):
        put_image(path, str(number), level, AXES)


def _describe_levels(name: str, levels: list[NDArray[Any]], place: Place) -> Multiscale:
    datasets = []
    for number in range(len(levels)):
        level = place.reduce(2**number)
        scale, (x, y) = [level.pixel_um] * 2, level.center_um
        datasets.append(Dataset.build(path=str(number), scale=scale, translation=[y, x]))
    axes = [Axis(name=axis, type="space", unit="micrometer") for axis in AXES]
    return Multiscale(axes=axes, datasets=tuple(datasets), name=name)


def _describe_channel(name: str) -> dict[str, Any]:
    window = {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}
    return {
        "channels": [{"label": name, "color": "FFFFFF", "active": True, "window": window}],
        "rdefs": {"model": "greyscale"},
    }


def _describe_labels(result: SlideResult) -> Label:
    colors, properties = [], []
    shown = {NEGATIVE: NEGATIVE_COLOR, POSITIVE: POSITIVE_COLOR}
    for (value, color), name in zip(shown.items(), result.class_names, strict=True):
        colors.append(Color.model_validate({"label-value": value, "rgba": (*color, 255)}))
        properties.append(Property.model_validate({"label-value": value, "class": name}))
    source = Source(image="../../")
    return Label(colors=tuple(colors), properties=tuple(properties), source=source)


def _dump(attributes: Any) -> dict[str, Any]:
    """Return validated metadata as JSON values."""
    values: dict[str, Any] = attributes.model_dump(mode="json", by_alias=True, exclude_none=True)
    return values
