"""Every format is read back by somebody else's reader; all of them agree, and put each patch at the
same place.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import geopandas
import jsonschema
import numpy as np
import ome_types
import pandas as pd
import pyarrow.parquet
import pytest
import tifffile
import zarr
from ngff_zarr.validate import validate as validate_ngff
from ome_zarr_models.v05 import Image, ImageLabel

from tests import ROOT
from tests.builders import folder_bytes, make_table
from tests.written_results import CASES, CELLS, FORMATS, write_result
from wsi_pipeline.core.choices import OUTPUT_GROUPS, PREDICTIONS
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import Grid, PatchSpec
from wsi_pipeline.core.outcome import SlideSummary
from wsi_pipeline.outputs import WRITERS, View, choose_formats
from wsi_pipeline.outputs.heatmap import Aggregation
from wsi_pipeline.outputs.pyramid import build_pyramid, reduce_image, reduce_labels
from wsi_pipeline.outputs.result import PlotStyle
from wsi_pipeline.outputs.summary_json import make_schema

NAN = float("nan")


def open_array(path: Path) -> Any:
    return zarr.open_array(path, mode="r")


def open_group(path: Path) -> Any:
    return zarr.open_group(path, mode="r")


def read_json(path: Path) -> Any:
    return json.loads(
        path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )


@pytest.fixture(scope="module", params=CASES)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SlideSummary]:
    folder = tmp_path_factory.mktemp("case") / "slide"
    return folder, write_result(folder, CASES[request.param])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "slide"
    write_result(folder, CASES["mixed"])
    return folder


# Whatever the result, every reader opens it, and all count the same.


def test_the_summary_keeps_to_its_schema(written: tuple[Path, SlideSummary]) -> None:
    jsonschema.validate(read_json(written[0] / "summary.json"), make_schema())


def test_parquet_counts_as_the_summary(written: tuple[Path, SlideSummary]) -> None:
    folder, summary = written
    table = pyarrow.parquet.read_table(folder / "patches.parquet").to_pandas()
    assert len(table) == summary.patches
    assert (table["positive"] == True).sum() == summary.positives  # noqa: E712  # null is not positive
    assert (~table["readable"]).sum() == summary.unreadable


def test_csv_counts_as_the_summary(written: tuple[Path, SlideSummary]) -> None:
    folder, summary = written
    table = pd.read_csv(folder / "patches.csv", dtype={"prob_tumour": np.float32})
    assert list(table.columns) == [
        "minx",
        "miny",
        "width",
        "height",
        "prob_non, tumour",
        "prob_tumour",
    ]
    assert len(table) == summary.patches
    assert (table["prob_tumour"] >= np.float32(summary.threshold)).sum() == summary.positives
    assert table["prob_tumour"].isna().sum() == summary.unreadable


def test_ome_zarr_labels_count_as_the_summary(written: tuple[Path, SlideSummary]) -> None:
    folder, summary = written
    labels = open_array(folder / "heatmap.ome.zarr" / "labels" / "classes" / "0")[:]
    assert (labels == 2).sum() == summary.positives
    assert (labels > 0).sum() == summary.patches - summary.unreadable


def test_region_geojson_counts_as_the_summary(written: tuple[Path, SlideSummary]) -> None:
    folder, summary = written
    features = read_json(folder / "regions.geojson")["features"]
    assert len(features) == summary.positive_regions
    assert (
        sum(feature["properties"]["measurements"]["patches"] for feature in features)
        == summary.positives
    )
    assert pd.read_csv(folder / "regions.csv")["patches"].sum() == summary.positives


def test_patch_geojson_counts_as_the_summary(written: tuple[Path, SlideSummary]) -> None:
    folder, summary = written
    classes = [
        feature["properties"]["classification"]["name"]
        for feature in read_json(folder / "patches.geojson")["features"]
    ]
    assert len(classes) == summary.patches
    assert classes.count("tumour") == summary.positives
    assert classes.count("unreadable") == summary.unreadable


def test_ome_zarr_is_valid(written: tuple[Path, SlideSummary]) -> None:
    path = written[0] / "heatmap.ome.zarr"
    image = open_group(path)
    labels = open_group(path / "labels" / "classes")
    Image.from_zarr(image)
    ImageLabel.from_zarr(labels)
    validate_ngff(dict(image.attrs), version="0.5", model="image")
    validate_ngff(dict(labels.attrs), version="0.5", model="label")
    assert image["labels"].attrs["ome"]["labels"] == ["classes"]


def test_ome_tiff_is_valid(written: tuple[Path, SlideSummary]) -> None:
    path = written[0] / "heatmap.ome.tiff"
    (image,) = ome_types.from_tiff(path).images
    with tifffile.TiffFile(path) as tiff:
        pixels = tiff.series[0].asarray()
    assert tiff.is_ome
    assert (image.pixels.size_y, image.pixels.size_x) == pixels.shape
    assert str(image.pixels.type.value) == "float"


def test_geopandas_opens_both(written: tuple[Path, SlideSummary]) -> None:
    for name in ("regions.geojson", "patches.geojson"):
        if read_json(written[0] / name)["features"]:
            assert geopandas.read_file(written[0] / name).geometry.is_valid.all()


def test_the_same_bytes_every_time(written: tuple[Path, SlideSummary], tmp_path: Path) -> None:
    folder, summary = written
    case = next(
        name
        for name, values in CASES.items()
        if len(values) == summary.patches and _is_case(values, summary)
    )
    write_result(tmp_path / "slide", CASES[case])
    assert folder_bytes(tmp_path / "slide") == folder_bytes(folder)


def _is_case(values: list[float], summary: SlideSummary) -> bool:
    known = np.array([value for value in values if not np.isnan(value)], dtype=np.float32)
    return (
        len(values) - len(known) == summary.unreadable
        and int((known >= 0.5).sum()) == summary.positives
    )


# What QuPath asks of GeoJSON.


def test_regions_are_as_qupath_wants_them(mixed: Path) -> None:
    collection = read_json(mixed / "regions.geojson")
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert len(feature["id"]) == 36
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["classification"] == {"name": "tumour", "color": [217, 95, 14]}
        assert all(isinstance(value, int | float) for value in properties["measurements"].values())
        assert feature["geometry"]["type"] in ("Polygon", "MultiPolygon")


def test_patches_are_tiles_with_probabilities_under_measurements(mixed: Path) -> None:
    first, *_ = read_json(mixed / "patches.geojson")["features"]
    assert first["properties"]["objectType"] == "tile"
    assert first["properties"]["classification"] == {"name": "tumour", "color": [217, 95, 14]}
    assert first["properties"]["measurements"] == {
        "prob_non, tumour": pytest.approx(0.1),
        "prob_tumour": pytest.approx(0.9),
    }
    assert first["geometry"]["coordinates"] == [[[0, 0], [50, 0], [50, 50], [0, 50], [0, 0]]]


def test_every_object_has_a_name_of_its_own(mixed: Path) -> None:
    names = [
        feature["id"]
        for name in ("regions", "patches")
        for feature in read_json(mixed / f"{name}.geojson")["features"]
    ]
    assert len(set(names)) == len(names)


def test_the_gzip_is_the_same_text_without_a_date(mixed: Path) -> None:
    content = (mixed / "regions.geojson.gz").read_bytes()
    assert gzip.decompress(content) == (mixed / "regions.geojson").read_bytes()
    assert content[4:8] == bytes(4)


def test_qupath_counts_from_the_scanned_area(tmp_path: Path) -> None:
    table = make_table([(0, 0)], mpp=4.0, rows=1, cols=1)
    slide = replace(table.slide, size_l0=(900, 900), bounds_l0=(300, 100, 50, 50))
    table = replace(table, slide=slide, grid=replace(table.grid, origin_xy_l0=(300, 100)))
    write_result(tmp_path / "slide", [0.9], table=table)
    for name in ("regions", "patches"):
        (feature,) = read_json(tmp_path / "slide" / f"{name}.geojson")["features"]
        assert sorted(feature["geometry"]["coordinates"][0])[0] == [0, 0]
    assert pd.read_csv(tmp_path / "slide" / "patches.csv")["minx"].tolist() == [300]


# Registration: the only positive patch is the corner cell (3, 4) of a grid that begins at (40, 80)
# px of a slide at 0.3 µm/px; patches of 50 px at 1 µm/px. Its centre: x = 40·0.3 + (4·50 + 25) =
# 237, y = 80·0.3 + (3·50 + 25) = 199 µm.

CENTER_UM = (237.0, 199.0)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = make_table(CELLS, mpp=1.0, block_size=10, rows=4, cols=5)
    grid = Grid(PatchSpec(50, 50, 1.0), 4, 5, Fraction(10, 3), (40, 80))
    table = replace(
        table,
        grid=grid,
        slide=replace(table.slide, mpp=0.3, size_l0=(1000, 1000), bounds_l0=(0, 0, 1000, 1000)),
    )
    folder = tmp_path_factory.mktemp("marked") / "slide"
    write_result(folder, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], table=table)
    return folder


def center_in_csv(folder: Path) -> tuple[float, float]:
    table = pd.read_csv(folder / "patches.csv")
    row = table[table["prob_tumour"] == 1].iloc[0]
    return (row.minx + row.width / 2) * 0.3, (row.miny + row.height / 2) * 0.3


def center_in_parquet(folder: Path) -> tuple[float, float]:
    table = pyarrow.parquet.read_table(folder / "patches.parquet").to_pandas()
    row = table[table["positive"]].iloc[0]
    return row.x_um + row.width_um / 2, row.y_um + row.height_um / 2


def center_in_geojson(folder: Path) -> tuple[float, float]:
    frame = geopandas.read_file(folder / "regions.geojson")
    center = frame.geometry.iloc[0].centroid
    return center.x * 0.3, center.y * 0.3


def center_in_patch_geojson(folder: Path) -> tuple[float, float]:
    features = read_json(folder / "patches.geojson")["features"]
    (ring,) = (
        f["geometry"]["coordinates"][0]
        for f in features
        if f["properties"]["classification"]["name"] == "tumour"
    )
    x, y = np.mean(ring[:4], axis=0) * 0.3
    return x, y


def center_in_regions_csv(folder: Path) -> tuple[float, float]:
    row = pd.read_csv(folder / "regions.csv").iloc[0]
    return row.peak_x_um, row.peak_y_um


def center_in_ome_zarr(folder: Path) -> tuple[float, float]:
    """By the metadata as ome-zarr-models reads them: index · scale + translation is the pixel's
    centre.
    """
    group = open_group(folder / "heatmap.ome.zarr")
    attributes: Any = Image.from_zarr(group).ome_attributes
    scale, translation = attributes.multiscales[0].datasets[0].coordinateTransformations
    row, col = np.argwhere(group["0"][:] == 1)[0]
    return (
        col * scale.scale[1] + translation.translation[1],
        row * scale.scale[0] + translation.translation[0],
    )


def center_in_ome_zarr_labels(folder: Path) -> tuple[float, float]:
    group = open_group(folder / "heatmap.ome.zarr" / "labels" / "classes")
    scale, translation = group.attrs["ome"]["multiscales"][0]["datasets"][0][
        "coordinateTransformations"
    ]
    row, col = np.argwhere(group["0"][:] == 2)[0]
    return (
        col * scale["scale"][1] + translation["translation"][1],
        row * scale["scale"][0] + translation["translation"][0],
    )


def center_in_ome_tiff(folder: Path) -> tuple[float, float]:
    """By the plane's position, which ome-types reads."""
    pixels = ome_types.from_tiff(folder / "heatmap.ome.tiff").images[0].pixels
    assert str(pixels.physical_size_x_unit.value) == "µm"
    row, col = np.argwhere(tifffile.imread(folder / "heatmap.ome.tiff") == 1)[0]
    plane = pixels.planes[0]
    return (
        plane.position_x + col * pixels.physical_size_x,
        plane.position_y + row * pixels.physical_size_y,
    )


CENTERS: dict[str, Callable[[Path], tuple[float, float]]] = {
    "csv": center_in_csv,
    "parquet": center_in_parquet,
    "geojson": center_in_geojson,
    "geojson-patches": center_in_patch_geojson,
    "regions": center_in_regions_csv,
    "ome-zarr": center_in_ome_zarr,
    "ome-zarr labels": center_in_ome_zarr_labels,
    "ome-tiff": center_in_ome_tiff,
}


@pytest.mark.parametrize("format_name", CENTERS)
def test_every_format_puts_the_marked_patch_at_the_same_place(
    format_name: str, marked: Path
) -> None:
    # Formats in whole level-0 pixels (0.3 µm) round the corners of this grid down.
    assert CENTERS[format_name](marked) == pytest.approx(CENTER_UM, abs=0.3)


def test_every_format_is_tried_for_its_place() -> None:
    assert {name.split()[0] for name in CENTERS} | {
        "summary",
        "tissue",
        "heatmap",
        "overlay",
        "spread",
        "gallery",
        "report",
        "dicom",
    } == set(WRITERS)


# Reductions.


def test_means_are_of_what_was_assessed() -> None:
    image = np.array([[0.2, NAN, NAN], [0.4, NAN, NAN]], dtype=np.float32)
    np.testing.assert_allclose(reduce_image(image), [[0.3, NAN]])


def test_no_positive_patch_vanishes_from_reduced_labels() -> None:
    assert reduce_labels(np.array([[1, 2, 0], [0, 1, 0], [0, 1, 0]], dtype=np.uint8)).tolist() == [
        [2, 0],
        [1, 0],
    ]


def test_reductions_halve_until_they_are_small() -> None:
    levels = build_pyramid(np.zeros((100, 300), dtype=np.float32), reduce_image)
    assert [level.shape for level in levels] == [(100, 300), (50, 150), (25, 75), (13, 38)]


def test_reduced_levels_keep_their_place(tmp_path: Path) -> None:
    table = make_table([(0, 0)], mpp=1.0, rows=130, cols=1)
    write_result(tmp_path / "slide", [0.9], table=table, view=View(("summary", "ome-zarr")))
    datasets = open_group(tmp_path / "slide" / "heatmap.ome.zarr").attrs["ome"]["multiscales"][0][
        "datasets"
    ]
    found = [
        (
            level["coordinateTransformations"][0]["scale"],
            level["coordinateTransformations"][1]["translation"],
        )
        for level in datasets
    ]
    assert found == [([50, 50], [25, 25]), ([100, 100], [50, 50]), ([200, 200], [100, 100])]


# Choosing.


def test_all_is_everything_but_what_must_be_named() -> None:
    assert choose_formats(["all"]) == OUTPUT_GROUPS["all"]
    assert "geojson-patches" not in OUTPUT_GROUPS["all"]


def test_names_and_groups_may_be_mixed_in_any_order() -> None:
    assert choose_formats(["csv", "png", "csv"]) == (
        "heatmap",
        "overlay",
        "spread",
        "gallery",
        "summary",
        "csv",
    )


def test_an_unknown_format_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="--outputs excel: no such format; choose from all, png, heatmap"
    ):
        choose_formats(["excel"])


@pytest.mark.parametrize("wrong", [{"colormap": "jet"}, {"alpha": 1.5}])
def test_a_look_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PlotStyle(**wrong)


def test_a_folder_holds_what_was_asked_for_only(tmp_path: Path) -> None:
    write_result(tmp_path / "slide", [0.9], view=View(choose_formats(["csv"])))
    assert {path.name for path in (tmp_path / "slide").iterdir()} == {
        PREDICTIONS,
        "manifest.json",
        "summary.json",
        "patches.csv",
    }


def test_small_regions_are_positive_in_no_format(tmp_path: Path) -> None:
    summary = write_result(
        tmp_path / "s", CASES["mixed"], view=View(FORMATS, Aggregation(min_region_mm2=0.1))
    )
    assert (summary.positives, summary.positives_left_out) == (3, 1)
    table = pyarrow.parquet.read_table(tmp_path / "s" / "patches.parquet").to_pandas()
    labels = open_array(tmp_path / "s" / "heatmap.ome.zarr" / "labels" / "classes" / "0")[:]
    (feature,) = read_json(tmp_path / "s" / "regions.geojson")["features"]
    assert ((table["positive"] == True).sum(), (labels == 2).sum()) == (3, 3)  # noqa: E712
    assert feature["properties"]["measurements"]["patches"] == 3


def test_the_published_schema_is_the_one_in_docs() -> None:
    docs = ROOT / "docs" / "reference" / "summary.schema.json"
    assert json.loads(docs.read_text()) == make_schema()


def test_the_schema_refuses_what_is_no_summary(mixed: Path) -> None:
    value = read_json(mixed / "summary.json")
    for wrong in ({"mean_probability": 1.5}, {"state": "fine"}, {"patient": "Smith"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value | wrong, make_schema())
