"""Drawn regions: read, counted, measured and turned into labels."""

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon

from tests.builders import make_slide_info
from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.core.geometry import Grid, PatchSpec, all_positions, positions_to_boxes_l0
from wsi_pipeline.core.slide import SlideInfo
from wsi_pipeline.labels import LABEL_SOURCES, label_positions
from wsi_pipeline.labels.annotation import Annotation, Region, describe, describe_regions
from wsi_pipeline.labels.asap_xml import close_spline, read_asap
from wsi_pipeline.labels.assignment import covered_shares, decide
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.labels.imagescope_xml import inscribe_ellipse, read_imagescope
from wsi_pipeline.labels.rules import LabelRules, read_label_map

Corners = Sequence[Sequence[float]]

GRID = Grid(PatchSpec(50, 50, 0.5), 4, 4, Fraction(1))
SLIDE = make_slide_info(size_l0=(200, 200))
CELLS = all_positions(GRID)
RULES = LabelRules(class_names=("benign", "tumour"))

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]


def feature(
    coordinates: object, name: str | None = "tumour", kind: str = "Polygon", **properties: object
) -> dict[str, object]:
    properties |= {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def write_asap(path: Path, *annotations: tuple[str, str, Corners]) -> Path:
    body = "".join(
        f'<Annotation Name="a{k}" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(corners))
        + "</Coordinates></Annotation>"
        for k, (kind, group, corners) in enumerate(annotations)
    )
    path.write_text(
        "<?xml"
        f" version='1.0'?><ASAP_Annotations><Annotations>{body}</Annotations></ASAP_Annotations>"
    )
    return path


def write_imagescope(
    path: Path, *regions: tuple[str, str, Corners], name: str = "tumour", mpp: str = "0.5"
) -> Path:
    body = "".join(
        f'<Region Id="{k}" Type="{kind}" NegativeROA="{negative}"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
        + "</Vertices></Region>"
        for k, (kind, negative, corners) in enumerate(regions)
    )
    layer = f'<Annotation Id="1" Name="{name}"><Regions>{body}</Regions></Annotation>'
    path.write_text(f'<Annotations MicronsPerPixel="{mpp}">{layer}</Annotations>')
    return path


def label(path: Path, slide: SlideInfo = SLIDE, **rules: object) -> list[list[int]]:
    settings = {"class_names": ("benign", "tumour")} | rules
    chosen = LabelRules(**settings)  # type: ignore[arg-type]
    labels = label_positions(path, slide, GRID, CELLS, chosen).labels
    rows: list[list[int]] = labels.reshape(4, 4).tolist()
    return rows


TOP_LEFT = [[1, 1, -1, -1], [1, 1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]]


@pytest.mark.parametrize(
    "value",
    [
        {"type": "FeatureCollection", "features": [feature([SQUARE])]},
        [feature([SQUARE])],
        feature([SQUARE]),
        feature([[SQUARE]], kind="MultiPolygon"),
        feature([[*SQUARE, SQUARE[0]]]),
        feature([SQUARE], name=None, classification={"names": ["tumour"]}),
        feature([SQUARE], name=None, classification="tumour"),
        feature([SQUARE], name="TUMOUR"),
    ],
    ids=[
        "collection",
        "list",
        "single",
        "multipolygon",
        "closed",
        "names",
        "plain string",
        "other case",
    ],
)
def test_every_form_of_geojson_labels_the_same_patches(value: object, tmp_path: Path) -> None:
    assert label(write_json(tmp_path / "a.geojson", value)) == TOP_LEFT


def test_asap_polygons_label_patches(tmp_path: Path) -> None:
    assert label(write_asap(tmp_path / "a.xml", ("Polygon", "tumour", SQUARE))) == TOP_LEFT


def test_the_share_of_every_patch_is_recorded(tmp_path: Path) -> None:
    path = write_asap(
        tmp_path / "a.xml", ("Polygon", "tumour", [[0, 0], [100, 0], [100, 60], [0, 60]])
    )
    fraction = label_positions(path, SLIDE, GRID, CELLS, RULES).fraction.reshape(4, 4)
    assert fraction.tolist() == [
        [1, 1, 0, 0],
        [pytest.approx(0.2), pytest.approx(0.2), 0, 0],
        [0] * 4,
        [0] * 4,
    ]


def test_imagescope_regions_label_patches(tmp_path: Path) -> None:
    assert label(write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE))) == TOP_LEFT


def test_an_imagescope_rectangle_may_have_two_corners(tmp_path: Path) -> None:
    assert label(write_imagescope(tmp_path / "a.xml", ("1", "0", [[0, 0], [100, 100]]))) == TOP_LEFT


def test_a_hole_in_a_polygon_is_no_tumour(tmp_path: Path) -> None:
    hole = [[0, 0], [50, 0], [50, 50], [0, 50]]
    assert label(write_json(tmp_path / "a.geojson", feature([SQUARE, hole])))[0] == [-1, 1, -1, -1]


def test_a_negative_roa_is_a_hole(tmp_path: Path) -> None:
    hole = [[0, 0], [50, 0], [50, 50], [0, 50]]
    assert label(write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE), ("0", "1", hole)))[0] == [
        -1,
        1,
        -1,
        -1,
    ]


def test_a_group_may_be_mapped_to_a_hole(tmp_path: Path) -> None:
    path = write_asap(
        tmp_path / "a.xml",
        ("Polygon", "_0", SQUARE),
        ("Polygon", "_2", [[0, 0], [50, 0], [50, 50], [0, 50]]),
    )
    assert label(path, meanings={"_0": "tumour", "_2": "hole"})[0] == [-1, 1, -1, -1]


def test_points_lines_and_detections_are_counted_not_used(tmp_path: Path) -> None:
    features = [
        feature([1, 2], kind="Point"),
        feature([[1, 2], [3, 4]], kind="LineString"),
        feature([SQUARE], objectType="cell"),
        feature([SQUARE], objectType="annotation"),
    ]
    annotation = read_geojson(write_json(tmp_path / "a.geojson", features), is_strict=False)
    assert annotation.ignored == {"Point": 1, "LineString": 1, "cell": 1}
    assert len(annotation.regions) == 1


def test_tissue_outside_is_unknown_unless_said_otherwise(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.geojson", feature([SQUARE]))
    assert label(path, outside="negative") == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_a_hole_stays_unknown_where_the_rest_is_negative(tmp_path: Path) -> None:
    value = [
        feature([SQUARE]),
        feature([[[100, 0], [150, 0], [150, 50], [100, 50]]], name="artefact"),
    ]
    assert label(
        write_json(tmp_path / "a.geojson", value), outside="negative", meanings={"artefact": "hole"}
    )[0] == [1, 1, -1, 0]


@pytest.mark.parametrize(("priority", "expected"), [("positive", 1), ("negative", 0)])
def test_priority_decides_where_both_are_drawn(
    priority: str, expected: int, tmp_path: Path
) -> None:
    path = write_json(tmp_path / "a.geojson", [feature([SQUARE]), feature([SQUARE], name="benign")])
    assert label(path, priority=priority)[0][0] == expected


@pytest.mark.parametrize(("min_area", "expected"), [(0.5, 1), (0.51, -1)])
def test_half_a_patch_is_enough_unless_more_is_asked_for(
    min_area: float, expected: int, tmp_path: Path
) -> None:
    half = [[0, 0], [25, 0], [25, 50], [0, 50]]
    assert (
        label(write_json(tmp_path / "a.geojson", feature([half])), min_area=min_area)[0][0]
        == expected
    )


def test_qupath_counts_from_the_scanned_area_and_asap_from_the_slide(tmp_path: Path) -> None:
    from dataclasses import replace

    slide = replace(SLIDE, size_l0=(300, 300), bounds_l0=(100, 100, 200, 200))
    grid = Grid(GRID.spec, 4, 4, Fraction(1), origin_xy_l0=(100, 100))
    qupath = write_json(tmp_path / "a.geojson", feature([SQUARE]))
    shifted = [[x + 100, y + 100] for x, y in SQUARE]
    asap = write_asap(tmp_path / "a.xml", ("Polygon", "tumour", shifted))
    for path in (qupath, asap):
        assert (
            label_positions(path, slide, grid, CELLS, RULES).labels.reshape(4, 4).tolist()
            == TOP_LEFT
        )
    from_slide = LabelRules(class_names=("benign", "tumour"), origin="slide")
    assert (
        label_positions(write_json(qupath, feature([shifted])), slide, grid, CELLS, from_slide)
        .labels.reshape(4, 4)
        .tolist()
        == TOP_LEFT
    )


def shares(geometry: shapely.Geometry) -> np.ndarray:
    return covered_shares(geometry, positions_to_boxes_l0(CELLS, GRID)).reshape(4, 4)


def test_shares_of_a_square_by_hand() -> None:
    got = shares(shapely.box(25, 10, 75, 40))
    assert got[0].tolist() == pytest.approx([0.3, 0.3, 0, 0])
    assert got[1:].sum() == 0


def test_shares_of_a_ring_by_hand() -> None:
    got = shares(shapely.box(0, 0, 200, 200).difference(shapely.box(50, 60, 150, 140)))
    assert got[0].tolist() == [1, 1, 1, 1]
    assert got[1].tolist() == pytest.approx([1, 0.2, 0.2, 1])


def test_shares_of_a_triangle_across_patches_by_hand() -> None:
    got = shares(Polygon([(0, 0), (100, 0), (0, 100)]))
    assert got[:2, :2].tolist() == [
        [pytest.approx(1), pytest.approx(0.5)],
        [pytest.approx(0.5), pytest.approx(0)],
    ]


def test_shares_of_a_multipolygon_add_up() -> None:
    got = shares(shapely.union_all([shapely.box(0, 0, 10, 50), shapely.box(40, 0, 60, 50)]))
    assert got[0].tolist() == pytest.approx([0.4, 0.2, 0, 0])


def test_shares_of_many_patches_by_hand() -> None:
    # 400 patches of 10 px, which are halved again and again: the left half of the slide, and a
    # square about a corner of four patches.
    grid = Grid(PatchSpec(10, 10, 0.5), 20, 20, Fraction(1))
    geometry = shapely.union_all([shapely.box(0, 0, 100, 200), shapely.box(155, 155, 165, 165)])
    expected = np.zeros((20, 20))
    expected[:, :10] = 1
    expected[15:17, 15:17] = 0.25
    assert (
        covered_shares(geometry, positions_to_boxes_l0(all_positions(grid), grid))
        .reshape(20, 20)
        .tolist()
        == expected.tolist()
    )


def test_shares_of_a_rotated_ellipse_agree_with_a_fine_raster() -> None:
    ellipse = shapely.affinity.rotate(
        shapely.affinity.scale(shapely.Point(100, 100).buffer(1, quad_segs=200), 80, 35), 30
    )
    angle = np.deg2rad(30)
    y, x = np.mgrid[0:2000, 0:2000] / 10 + 0.05 - 100
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    raster = ((u / 80) ** 2 + (v / 35) ** 2 <= 1).reshape(4, 500, 4, 500).mean(axis=(1, 3))
    assert shares(ellipse) == pytest.approx(raster, abs=1e-3)


thousandths = st.integers(-50_000, 250_000).map(lambda value: value / 1000)


@given(st.lists(st.tuples(thousandths, thousandths), min_size=3, max_size=9))
def test_shares_add_up_to_the_area_on_the_slide(corners: list[tuple[float, float]]) -> None:
    geometry = shapely.make_valid(Polygon(corners))
    inside = shapely.area(shapely.intersection(geometry, shapely.box(0, 0, 200, 200)))
    assert shares(geometry).sum() * 2500 == pytest.approx(inside, abs=1e-6)


def test_corners_that_are_hardly_apart_do_no_harm() -> None:
    assert shares(Polygon([(0.0, 0.0), (5e-224, 3e-112), (-7e-198, 3e-112)])).sum() == 0


def test_a_hundred_thousand_corners_are_measured_exactly() -> None:
    grid = Grid(PatchSpec(), 800, 800, Fraction(1))
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    circle = Polygon(20_000 + 15_000 * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    got = covered_shares(circle, positions_to_boxes_l0(all_positions(grid), grid))
    assert got.sum() * 2500 == pytest.approx(circle.area, rel=1e-9)


def test_an_ellipse_keeps_its_area() -> None:
    assert Polygon(inscribe_ellipse([(0, 0), (80, 40)])).area == pytest.approx(
        np.pi * 40 * 20, rel=1e-9
    )


def test_an_ellipse_of_256_corners_lies_in_the_middle_of_its_box() -> None:
    corners = inscribe_ellipse([(10, 20), (91, 61)])
    assert len(corners) == 256
    assert np.allclose(np.mean(corners, axis=0), (50.5, 40.5))
    assert Polygon(corners).bounds == pytest.approx((10, 20, 91, 61), abs=0.01)


PENTAGON = [[0, 0], [100, 0], [100, 100], [50, 120], [0, 100]]


@pytest.mark.parametrize(
    ("kind", "corners", "area"),
    [
        ("0", SQUARE, 10_000),
        ("0", PENTAGON, 11_000),
        *(
            ("2", corners, np.pi * 50 * 50)
            for corners in ([[0, 0], [100, 100]], SQUARE[:3], SQUARE)
        ),
        ("2", PENTAGON, 11_000),
    ],
)
def test_an_imagescope_ellipse_has_up_to_four_corners(
    kind: str, corners: Corners, area: float, tmp_path: Path
) -> None:
    (region,) = read_imagescope(
        write_imagescope(tmp_path / "a.xml", (kind, "0", corners)), is_strict=False
    ).regions
    assert region.geometry.area == pytest.approx(area)


def test_imagescope_objects_without_area_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [(kind, "0", [[0, 0], [9, 9]]) for kind in ("3", "4", "5")]
    annotation = read_imagescope(
        write_imagescope(tmp_path / "a.xml", *lines, ("2", "0", [[5, 5]]), ("0", "0", SQUARE)),
        is_strict=False,
    )
    assert annotation.ignored == {"arrow": 1, "ruler": 1, "counter": 1, "polygon of 1 points": 1}
    assert len(annotation.regions) == 1


@pytest.mark.parametrize(
    ("layer", "attributes", "name"),
    [
        ("benign", '<Attribute Name="Description" Value="tumour"/>', "benign"),
        ("", '<Attribute Name="Description" Value="tumour"/>', "tumour"),
        (
            "",
            '<Attribute Name="Description" Value=""/><Attribute Name="stroma" Value=""/>',
            "stroma",
        ),
        ("", '<Attribute Name="Area" Value=""/>', "Area"),
        ("", '<Attribute Name="Description" Value=""/>', "layer 1"),
        ("", "", "layer 1"),
        ("benign", "", "benign"),
    ],
)
def test_an_imagescope_layer_is_called_what_it_says_first(
    layer: str, attributes: str, name: str, tmp_path: Path
) -> None:
    path = write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE), name=layer)
    path.write_text(
        path.read_text().replace("<Regions>", f"<Attributes>{attributes}</Attributes><Regions>")
    )
    regions = read_imagescope(path, is_strict=False).regions
    assert {region.class_name for region in regions} == {name}


def test_an_imagescope_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="MicronsPerPixel is '40x', which is not a number"):
        read_imagescope(
            write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE), mpp="40x"), is_strict=False
        )


def test_a_spline_goes_through_its_knots() -> None:
    knots = [(0.0, 0.0), (100.0, 0.0), (100.0, 80.0), (0.0, 80.0)]
    curve = Polygon(close_spline(knots))
    assert max(curve.exterior.distance(shapely.Point(knot)) for knot in knots) < 1e-9
    assert curve.area > 8000  # rounder than the rectangle
    assert np.allclose(close_spline(knots)[::16], knots)


@pytest.mark.parametrize("kind", ["Polygon", "Rectangle"])
def test_straight_asap_regions_stay_straight(kind: str, tmp_path: Path) -> None:
    (region,) = read_asap(
        write_asap(tmp_path / "a.xml", (kind, "tumour", SQUARE)), is_strict=False
    ).regions
    assert region.geometry.equals(shapely.box(0, 0, 100, 100))


def test_an_asap_spline_of_two_knots_is_no_region(tmp_path: Path) -> None:
    path = write_asap(
        tmp_path / "a.xml", ("Spline", "tumour", [[0, 0], [9, 9]]), ("Spline", "tumour", SQUARE[:3])
    )
    annotation = read_asap(path, is_strict=False)
    assert annotation.ignored == {"polygon of 2 points": 1}
    assert annotation.regions[0].geometry.area > 5000  # rounder than the triangle


def test_asap_objects_without_area_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_asap(
        tmp_path / "a.xml",
        ("Dot", "tumour", [[5, 5]]),
        ("Measurement", "x", [[0, 0], [9, 9]]),
        ("Polygon", "tumour", SQUARE),
    )
    annotation = read_asap(path, is_strict=False)
    assert annotation.ignored == {"Dot": 1, "Measurement": 1}
    assert len(annotation.regions) == 1


def test_an_asap_region_without_a_group_has_its_own_name(tmp_path: Path) -> None:
    path = write_asap(
        tmp_path / "a.xml",
        ("Polygon", "None", SQUARE),
        ("Polygon", "Alpha", SQUARE),
        ("Polygon", "tumour", SQUARE),
    )
    assert [region.class_name for region in read_asap(path, is_strict=False).regions] == [
        "a0",
        "Alpha",
        "tumour",
    ]


@pytest.mark.parametrize("kind", ["Curve", "Zigzag"])
def test_an_asap_type_that_nobody_knows_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        LabelError,
        match=f"an annotation of type '{kind}'; only Polygon, Rectangle and Spline have an area",
    ):
        read_asap(write_asap(tmp_path / "a.xml", (kind, "tumour", SQUARE)), is_strict=False)


def test_asap_corners_come_in_the_order_that_they_state(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", ("Polygon", "tumour", SQUARE))
    path.write_text(path.read_text().replace('Order="1"', 'Order="2.5"'))
    assert read_asap(path, is_strict=False).repaired == 1  # corners 0, 2, 1, 3 cross one another
    path.write_text(path.read_text().replace('Order="2.5"', 'Order="second"'))
    with pytest.raises(LabelError, match="an Order that is not a number"):
        read_asap(path, is_strict=False)


@pytest.mark.parametrize("kind", ["Polygon", "Spline"])
def test_a_corner_at_nan_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="a corner is not finite"):
        read_asap(
            write_asap(tmp_path / "a.xml", (kind, "tumour", [*SQUARE, [float("nan"), 5]])),
            is_strict=False,
        )


def test_an_annotation_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LabelError, match=r"a\.geojson: cannot be read \(No such file or directory\)"
    ):
        read_geojson(tmp_path / "a.geojson", is_strict=False)


def test_what_an_imagescope_layer_has_no_area_for_and_what_was_mended_is_counted(
    tmp_path: Path,
) -> None:
    bow_tie = [[0, 0], [100, 100], [100, 0], [0, 100]]
    path = write_imagescope(
        tmp_path / "a.xml",
        ("0", "0", [[5, 5]]),
        ("0", "0", bow_tie),
        ("0", "1", [[7, 7]]),
        ("4", "0", [[0, 0], [9, 9]]),
    )
    annotation = read_imagescope(path, is_strict=False)
    assert (annotation.ignored, annotation.repaired) == ({"polygon of 1 points": 2, "ruler": 1}, 1)


def test_a_polygon_that_crosses_itself_is_mended_and_counted(tmp_path: Path) -> None:
    bow_tie = [[0, 0], [100, 100], [100, 0], [0, 100]]
    annotation = read_geojson(
        write_json(tmp_path / "a.geojson", feature([bow_tie])), is_strict=False
    )
    assert annotation.repaired == 1
    assert annotation.regions[0].geometry.area == pytest.approx(5000)
    with pytest.raises(LabelError, match="Self-intersection"):
        read_geojson(tmp_path / "a.geojson", is_strict=True)


@pytest.mark.parametrize(
    ("corners", "points"), [([[5, 5]], 1), ([[5, 5], [5, 5]], 1), ([[0, 0], [9, 9], [0, 0]], 2)]
)
def test_a_corner_that_closes_a_polygon_is_not_counted_twice(
    corners: Corners, points: int, tmp_path: Path
) -> None:
    path = write_json(tmp_path / "a.geojson", [feature([corners]), feature([SQUARE])])
    assert read_geojson(path, is_strict=False).ignored == {f"polygon of {points} points": 1}


@pytest.mark.parametrize(
    ("description", "text"),
    [
        (
            {"regions": {"a": 2, "b": 1}, "repaired": 0, "ignored": {}},
            "3 regions",
        ),
        (
            {
                "regions": {"Tumor": 2, "roi": 1},
                "meanings": {"tumour": 2, "ignored": 1},
                "repaired": 0,
                "ignored": {"Point": 4},
            },
            "3 regions, 2 tumour, 1 ignored; 4 points passed over",
        ),
        (
            {
                "regions": {"Tumor": 1},
                "meanings": {"tumour": 1},
                "repaired": 1,
                "ignored": {"LineString": 1, "polygon of 2 points": 2, "tma_core": 1000},
            },
            "1 region, 1 tumour, 1 of them invalid and repaired;"
            " 1 line, 2 polygons of 2 points, 1,000 TMA-cores passed over",
        ),
    ],
)
def test_what_was_read_and_passed_over_is_told(description: dict[str, object], text: str) -> None:
    assert describe_regions(description) == text


def test_a_description_counts_regions_by_class() -> None:
    regions = tuple(
        Region(name, shapely.box(0, 0, 1, 1)) for name in ("tumour", "benign", "tumour")
    )
    assert describe(Annotation(regions)) == {
        "regions": {"tumour": 2, "benign": 1},
        "ignored": {},
        "repaired": 0,
    }


def test_a_triangle_is_a_region_and_a_hole(tmp_path: Path) -> None:
    corner = [[0, 0], [50, 0], [0, 50]]
    annotation = read_geojson(
        write_json(tmp_path / "a.geojson", [feature([corner]), feature([SQUARE, corner])]),
        is_strict=False,
    )
    assert [region.geometry.area for region in annotation.regions] == [1250, 8750]


def test_a_region_of_one_pixel_is_one_and_a_region_of_no_area_is_none(tmp_path: Path) -> None:
    pixel, line = [[0, 0], [1, 0], [1, 1], [0, 1]], [[0, 0], [5, 5], [9, 9]]
    sliver = [
        [0, 0],
        [1, 0],
        [0, 5e-324],
    ]  # GEOS calls it valid, and its area is below the smallest number
    path = write_json(
        tmp_path / "a.geojson", [feature([corners]) for corners in (pixel, line, sliver)]
    )
    annotation = read_geojson(path, is_strict=False)
    assert [region.geometry.area for region in annotation.regions] == [1]
    assert annotation.ignored == {"region without area": 2}


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b'
    ' "&a;&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'
)
ENTITY = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY x SYSTEM'
    ' "file:///etc/passwd">]><ASAP_Annotations>&x;</ASAP_Annotations>'
)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.xml", BOMB, "declares a document type or entities"),
        ("a.xml", ENTITY, "declares a document type or entities"),
        ("a.xml", "<ASAP_Annotations><broken", "not whole XML"),
        ("a.xml", "<Other/>", "not a label file of a known kind"),
        ("a.xml", "<ASAP_Annotations/>", "holds no annotation"),
        ("a.geojson", "", "file is empty"),
        ("a.geojson", "{", "not JSON"),
        ("a.geojson", "[1, 2]", "not GeoJSON Features"),
        (
            "a.geojson",
            '{"type": "Feature", "geometry": null}',
            "1 object without geometry",
        ),
        ("a.geojson", json.dumps(feature([[[0, 0], [1, 1], ["x", 2]]])), "not a pair of numbers"),
        (
            "a.geojson",
            json.dumps(feature([[[0, 0], [1, float("nan")], [2, 2]]])),
            "a corner is not finite",
        ),
        (
            "a.geojson",
            json.dumps(feature([SQUARE], name="stroma")),
            "class 'stroma' is unknown; add --map stroma=benign",
        ),
        (
            "a.geojson",
            json.dumps(feature([[[x + 5000, y] for x, y in SQUARE]])),
            "looks like another slide's annotation",
        ),
        (
            "a.geojson",
            json.dumps({"type": "Polygon", "coordinates": [SQUARE]}),
            "not GeoJSON Features",
        ),
        ("a.txt", "x", "not a label file of a known kind"),
    ],
)
def test_bad_annotations_are_refused_by_name(
    name: str, content: str, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(LabelError, match=fault) as caught:
        label(path)
    assert name in str(caught.value)


def test_another_slides_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"drawn on a slide of 0\.25 µm/px, slide has 0\.5"):
        label(write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE), mpp="0.25"))


@pytest.mark.parametrize("mpp", ["0.476", "0.524", ""])
def test_a_scale_within_a_twentieth_is_the_slides_own(mpp: str, tmp_path: Path) -> None:
    assert label(write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE), mpp=mpp)) == TOP_LEFT


@pytest.mark.parametrize("mpp", ["0.474", "0.526"])
def test_a_scale_off_by_more_than_a_twentieth_is_refused(mpp: str, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=f"drawn on a slide of {mpp} µm/px, slide has 0.5"):
        label(write_imagescope(tmp_path / "a.xml", ("0", "0", SQUARE), mpp=mpp))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (-100, 0),
        (0, -100),
        (200, 0),
        (0, 200),
        (-150, -150),
        (250, 250),
        (-150, 250),
    ],  # the square of 100 px beside the slide of 200
)
def test_a_region_beside_the_slide_is_refused_with_its_place(
    x: int, y: int, tmp_path: Path
) -> None:
    path = write_json(
        tmp_path / "a.geojson",
        [feature([SQUARE]), feature([[[x + dx, y + dy] for dx, dy in SQUARE]])],
    )
    fault = (
        f"1 of 2 regions lie beyond the slide of 200 × 200 px (one from {x},{y} to"
        f" {x + 100},{y + 100})"
    )
    with pytest.raises(LabelError, match=re.escape(fault)):
        label(path)


@pytest.mark.parametrize(("x", "y"), [(-99, 0), (0, -99), (199, 0), (0, 199)])
def test_a_region_of_which_a_pixel_lies_on_the_slide_is_taken(
    x: int, y: int, tmp_path: Path
) -> None:
    assert (
        label(
            write_json(tmp_path / "a.geojson", feature([[[x + dx, y + dy] for dx, dy in SQUARE]]))
        )[0][0]
        == -1
    )


@pytest.mark.parametrize(("priority", "expected"), [("positive", 1), ("negative", 0)])
def test_priority_decides_between_two_halves_of_a_patch(priority: str, expected: int) -> None:
    half = np.array([0.5])
    labels, fraction = decide((half, half), LabelRules(priority=priority))
    assert (labels.tolist(), fraction.tolist()) == ([expected], [0.5])


def test_the_larger_share_wins_whatever_the_priority() -> None:
    labels, fraction = decide((np.array([0.75]), np.array([0.25])), LabelRules(priority="positive"))
    assert (labels.tolist(), fraction.tolist()) == ([0], [0.75])


def test_a_polygon_of_two_points_is_counted_or_refused(tmp_path: Path) -> None:
    path = write_asap(
        tmp_path / "a.xml", ("Polygon", "tumour", [[0, 0], [9, 9]]), ("Polygon", "tumour", SQUARE)
    )
    assert read_asap(path, is_strict=False).ignored == {"polygon of 2 points": 1}
    with pytest.raises(LabelError, match="polygon of 2 points"):
        read_asap(path, is_strict=True)


def test_a_label_map_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        "classes: [benign, tumour]\nmap: {Tumor: tumour, _2: hole, 3: ignore}\noutside: negative\n"
    )
    rules = LabelRules(**read_label_map(tmp_path / "m.yaml"))
    assert rules.meanings == {"Tumor": "tumour", "_2": "hole", "3": "ignore"}
    assert (rules.class_names, rules.outside) == (("benign", "tumour"), "negative")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [", "not YAML"),
        ("- a", "has the entries"),
        ("colour: red", "has the entries"),
        ("classes: [a]", "two names"),
        ("classes: [a, b, c]", "two names"),
        ("map: [a]", "must hold lines"),
    ],
)
def test_a_broken_label_map_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(LabelError, match=fault):
        read_label_map(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"min_area": 0.0},
            {"min_area": -0.5},
            {"min_area": 1.5},
            {"outside": "x"},
            {"priority": "x"},
            {"origin": "x"},
        ),
        *({"class_names": ("a", "a")}, {"class_names": ("a", "Unknown")}, {"meanings": {"x": "y"}}),
    ],
)
def test_rules_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LabelRules(**wrong)  # type: ignore[arg-type]


def test_a_class_called_unknown_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no class can be called 'unknown'"):
        LabelRules(class_names=("Unknown", "tumour"))


def test_a_whole_patch_may_be_asked_for() -> None:
    assert LabelRules(min_area=1.0).min_area == 1


def test_rules_are_recorded_with_every_choice() -> None:
    assert LabelRules(class_names=("benign", "tumour"), meanings={"_0": "tumour"}).to_json() == {
        "class_names": ["benign", "tumour"],
        "meanings": {"_0": "tumour"},
        "outside": "unknown",
        "priority": "positive",
        "min_area": 0.5,
        "mask_values": {"negative": 100, "positive": 200},
        "origin": "auto",
        "is_strict": False,
    }


def real_files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "annotations" / kind).iterdir())


def test_qupath_files_agree_with_geopandas(shared_data: Path) -> None:
    import geopandas

    for path in real_files(shared_data, "qupath"):
        if any(kind in path.name for kind in ("line", "point")):
            with pytest.raises(LabelError, match="no region in it has an area"):
                read_geojson(path, is_strict=False)
            continue
        annotation = read_geojson(path, is_strict=False)
        value = json.loads(path.read_text())
        collection = value if isinstance(value, list) else [value]
        for one in (
            collection
        ):  # geopandas wants properties everywhere, QuPath's are not always objects of strings
            one["properties"] = {}
        frame = geopandas.GeoDataFrame.from_features(collection)
        areas = frame[frame.geometry.geom_type.isin(["Polygon", "MultiPolygon"])]
        assert len(annotation.regions) == len(areas), path.name
        assert sum(annotation.ignored.values()) == len(frame) - len(areas)
        vertices = sum(
            int(shapely.get_num_coordinates(region.geometry)) for region in annotation.regions
        )
        assert vertices == int(areas.geometry.count_coordinates().sum()), path.name
        assert sum(region.geometry.area for region in annotation.regions) == pytest.approx(
            areas.geometry.area.sum()
        )


def test_asap_files_agree_with_a_count_by_hand(shared_data: Path) -> None:
    from xml.etree import ElementTree

    for path in real_files(shared_data, "asap"):
        annotations = list(ElementTree.parse(path).getroot().iter("Annotation"))
        annotation = read_asap(path, is_strict=False)
        assert len(annotation.regions) == len(annotations), path.name
        assert {region.class_name for region in annotation.regions} == {
            element.attrib["PartOfGroup"] for element in annotations
        }
        if annotation.repaired == 0:
            corners = sum(
                len(list(element.iter("Coordinate")))
                * (16 if element.attrib["Type"] == "Spline" else 1)
                + 1
                for element in annotations
            )
            assert (
                sum(
                    int(shapely.get_num_coordinates(region.geometry))
                    for region in annotation.regions
                )
                == corners
            )


def test_the_imagescope_file_agrees_with_its_own_areas(shared_data: Path) -> None:
    from xml.etree import ElementTree

    (path,) = real_files(shared_data, "imagescope")
    annotation = read_imagescope(path, is_strict=False)
    stated = sorted(
        float(region.attrib["Area"]) for region in ElementTree.parse(path).getroot().iter("Region")
    )
    measured = sorted(region.geometry.area for region in annotation.regions)
    assert annotation.mpp == 0.252
    assert measured == pytest.approx(stated, rel=0.01)


def test_every_label_source_is_tried_by_a_test() -> None:
    assert set(LABEL_SOURCES) == {
        *("geojson", "darwin", "cytomine"),
        *("asap", "halo", "ndpa", "imagescope"),
        *("sliderunner", "mask"),
    }
