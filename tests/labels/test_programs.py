"""Files as annotation programs write them: what is a region, what is not, and where it lies."""

import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.labels.grids import GRID, NAMES, SQUARE, TOP_LEFT, find_positive, label_all, slide_at
from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.geometry import all_positions
from wsi_pipeline.labels import describe_labels, label_patches
from wsi_pipeline.labels.asap_xml import read_asap
from wsi_pipeline.labels.discovery import match_beside, match_labels
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.labels.halo_xml import read_halo
from wsi_pipeline.labels.imagescope_xml import read_imagescope
from wsi_pipeline.labels.ndpa_xml import place_nm, read_ndpa
from wsi_pipeline.labels.platform_json import read_cytomine, read_darwin
from wsi_pipeline.labels.rules import LabelRules

WHOLE = [[0, 0], [200, 0], [200, 200], [0, 200]]


def feature(
    ring: object = SQUARE, name: str = "tumour", kind: str = "Polygon", **more: object
) -> dict[str, object]:
    coordinates = [ring] if kind == "Polygon" else ring
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"classification": {"name": name}, **more},
    }


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


# QuPath

MEMBERS = ("detection", "cell", "tile", "tma_core", "root")
IDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": "root",
}


@pytest.mark.parametrize("key", ["objectType", "object_type"])
@pytest.mark.parametrize("kind", MEMBERS)
def test_only_annotations_are_regions(key: str, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", [feature(), feature(WHOLE, **{key: kind})])
    annotation = read_geojson(path, is_strict=False)
    assert (len(annotation.regions), annotation.ignored) == (1, {kind: 1})


@pytest.mark.parametrize("name", IDS)
def test_the_ids_of_qupath_0_2_say_what_an_object_is(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", [feature(), feature(WHOLE) | {"id": name}])
    assert read_geojson(path, is_strict=False).ignored == {IDS[name]: 1}


@pytest.mark.parametrize("name", ["PathAnnotationObject", "2c5b1c7e-0d54-4f0f-8f1f-6d54", 7, None])
def test_other_ids_are_names_of_annotations(name: object, tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", [feature(isLocked=True) | {"id": name}])
    assert find_positive(path) == TOP_LEFT


def test_an_object_of_a_kind_that_is_not_known_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", [feature(), feature(WHOLE, objectType="Zone")])
    assert read_geojson(path, is_strict=False).ignored == {"object of kind 'zone'": 1}


@pytest.mark.parametrize("depth", [1, 2, 300])
def test_objects_within_objects_are_read_however_deep(depth: int, tmp_path: Path) -> None:
    nested = feature()
    for _ in range(depth):
        nested = feature(WHOLE, name="benign") | {"childObjects": [nested]}
    assert find_positive(write(tmp_path / "a.geojson", [nested])) == TOP_LEFT


def test_an_annotation_in_a_tma_core_is_read(tmp_path: Path) -> None:
    core = feature(WHOLE, objectType="tma_core") | {"childObjects": [feature()]}
    path = write(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": [core]})
    assert find_positive(path, outside="negative") == TOP_LEFT


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_a_class_with_an_umlaut_is_read_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    text = json.dumps([feature(name="Tumör")], ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    assert find_positive(path, meanings={"Tumör": "tumour"}) == TOP_LEFT


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_measurement_without_a_value_does_no_harm_and_a_corner_does(
    value: str, tmp_path: Path
) -> None:
    measured, corner = tmp_path / "measured.geojson", tmp_path / "corner.geojson"
    measured.write_text(json.dumps(feature(measurements={"a": 7e7})).replace("70000000.0", value))
    corner.write_text(json.dumps(feature([*SQUARE, [7e7, 0]])).replace("70000000.0", value))
    assert find_positive(measured) == TOP_LEFT
    with pytest.raises(LabelError, match=r"corner\.geojson: a corner is not"):
        label_all(corner)


def test_a_corner_of_a_multipolygon_at_nan_is_refused(tmp_path: Path) -> None:
    rings = [[[*SQUARE, [float("nan"), 5]]]]
    with pytest.raises(LabelError, match="a corner is not finite"):
        label_all(write(tmp_path / "a.geojson", feature(rings, kind="MultiPolygon")))


def test_a_collection_of_geometries_gives_its_polygons(tmp_path: Path) -> None:
    parts = [
        {"type": "Point", "coordinates": [3, 3]},
        {"type": "Polygon", "coordinates": [SQUARE]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": []}]},
    ]
    collected = feature() | {"geometry": {"type": "GeometryCollection", "geometries": parts}}
    path = write(tmp_path / "a.geojson", collected)
    assert find_positive(path) == TOP_LEFT
    assert read_geojson(path, is_strict=False).ignored == {"Point": 1, "polygon of 0 points": 1}


NOTHING = {
    "a multipoint": feature([[1, 1], [2, 2]], kind="MultiPoint"),
    "a line": feature([[1, 1], [2, 2]], kind="LineString"),
    "no corners": feature([]),
    "no geometry": feature() | {"geometry": None},
    "an empty collection": feature() | {"geometry": {"type": "GeometryCollection"}},
    "a cell": feature(objectType="cell"),
    "an empty list": [],
    "an empty collection of features": {"type": "FeatureCollection", "features": []},
    "a polygon without area": feature([[0, 0], [5, 5], [9, 9]]),
}


@pytest.mark.parametrize("outside", ["unknown", "negative"])
@pytest.mark.parametrize("case", NOTHING)
def test_a_file_without_a_region_is_refused_whatever_is_outside(
    case: str, outside: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.geojson", NOTHING[case])
    with pytest.raises(LabelError, match=r"a\.geojson: (no region in it|holds no annotation)"):
        label_all(path, outside=outside)


def test_what_was_read_is_told_with_the_files_name(tmp_path: Path) -> None:
    drawn = [feature(), feature(), feature(WHOLE, name="roi")]
    points = [feature([1, 1], kind="Point")] * 4
    path = write(tmp_path / "P1.geojson", [*drawn, *points])
    rules = LabelRules(class_names=NAMES, meanings={"roi": "ignore"})
    labels = label_patches(path, slide_at(tmp_path), GRID, all_positions(GRID), rules)
    assert describe_labels(labels.description) == (
        "P1.geojson: 3 regions, 2 tumour, 1 ignored; 4 points passed over"
    )


def test_a_file_without_a_positive_region_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "P1.geojson", feature(name="benign"))
    rules = LabelRules(class_names=NAMES)
    labels = label_patches(path, slide_at(tmp_path), GRID, all_positions(GRID), rules)
    assert describe_labels(labels.description) == "P1.geojson: 1 region, 0 tumour, 1 benign"


# HALO

BOX = '<V X="0" Y="0"/><V X="100" Y="100"/>'


def corners_of(ring: list[list[int]], tag: str = "V") -> str:
    return "".join(f'<{tag} X="{x}" Y="{y}"/>' for x, y in ring)


def write_halo(path: Path, *regions: tuple[str, str, str], name: str = "tumour") -> Path:
    body = "".join(
        f'<Region Type="{kind}" HasEndcaps="0" NegativeROA="{negative}">'
        f"<Vertices>{corners}</Vertices><Comments/></Region>"
        for kind, negative, corners in regions
    )
    layer = f'<Annotation LineColor="65535" Name="{name}" Visible="True">'
    path.write_text(f"<Annotations>{layer}<Regions>{body}</Regions></Annotation></Annotations>")
    return path


@pytest.mark.parametrize(
    ("kind", "corners", "area"),
    [
        ("Polygon", corners_of(SQUARE), 10_000),
        ("Polygon", corners_of([*SQUARE, SQUARE[0]]), 10_000),
        ("Rectangle", BOX, 10_000),
        ("Ellipse", BOX, np.pi * 50 * 50),
    ],
)
def test_halo_regions_have_their_area(kind: str, corners: str, area: float, tmp_path: Path) -> None:
    (region,) = read_halo(write_halo(tmp_path / "a.xml", (kind, "0", corners)), False).regions
    assert (region.class_name, region.geometry.area) == ("tumour", pytest.approx(area))


def test_halo_files_are_called_annotations_too(tmp_path: Path) -> None:
    path = write_halo(tmp_path / "a.annotations", ("Polygon", "0", corners_of(SQUARE)))
    assert find_positive(path) == TOP_LEFT


def test_a_halo_hole_is_cut_out_and_an_island_in_it_stays(tmp_path: Path) -> None:
    hole, island = [[50, 50], [150, 50], [150, 150], [50, 150]], [[50, 50], [100, 50], [100, 100]]
    path = write_halo(
        tmp_path / "a.xml",
        ("Polygon", "0", corners_of(WHOLE)),
        ("Polygon", "1", corners_of(hole)),
        ("Polygon", "0", corners_of(island)),
    )
    ring, inner = read_halo(path, is_strict=False).regions
    assert (ring.geometry.area, inner.geometry.area) == (30_000, 1_250)


def test_an_island_in_an_imagescope_hole_stays(tmp_path: Path) -> None:
    hole, island = [[50, 50], [150, 50], [150, 150], [50, 150]], [[50, 50], [100, 50], [100, 100]]
    body = "".join(
        f'<Region Type="0" NegativeROA="{negative}"><Vertices>{corners_of(ring, "Vertex")}'
        "</Vertices></Region>"
        for ring, negative in ((WHOLE, 0), (hole, 1), (island, 0))
    )
    path = tmp_path / "a.xml"
    layer = f'<Annotation Id="1" Name="tumour"><Regions>{body}</Regions></Annotation>'
    path.write_text(f"<Annotations>{layer}</Annotations>")
    areas = [region.geometry.area for region in read_imagescope(path, is_strict=False).regions]
    assert areas == [30_000, 1_250]


@pytest.mark.parametrize(
    ("regions", "passed"),
    [
        ([("Ruler", "0", BOX), ("Pin", "0", BOX)], r"\(1 ruler, 1 pin\)"),
        ([("Polygon", "1", corners_of(SQUARE))], r"\(1 hole of no region\)"),
        ([("Polygon", "0", "")], r"\(1 polygon of 0 points\)"),
        ([], "holds no annotation"),
    ],
)
def test_a_halo_file_without_a_region_is_refused(
    regions: list[tuple[str, str, str]], passed: str, tmp_path: Path
) -> None:
    path = write_halo(tmp_path / "a.xml", *regions)
    with pytest.raises(LabelError, match=passed):
        label_all(path, outside="negative")


def test_a_halo_file_in_utf_16_is_read(tmp_path: Path) -> None:
    path = write_halo(tmp_path / "a.xml", ("Polygon", "0", corners_of(SQUARE)), name="Tumör")
    text = '<?xml version="1.0" encoding="utf-16"?>' + path.read_text()
    path.write_bytes(text.encode("utf-16"))
    assert find_positive(path, meanings={"Tumör": "tumour"}) == TOP_LEFT


# ASAP


def write_asap(path: Path, group: str, *groups: tuple[str, str]) -> Path:
    nested = "".join(f'<Group Name="{name}" PartOfGroup="{part}"/>' for name, part in groups)
    ring = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(SQUARE)
    )
    drawn = f'<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="{group}">'
    path.write_text(
        f"<ASAP_Annotations><Annotations>{drawn}<Coordinates>{ring}</Coordinates></Annotation>"
        f"</Annotations><AnnotationGroups>{nested}</AnnotationGroups></ASAP_Annotations>"
    )
    return path


def test_an_asap_group_has_the_meaning_of_the_group_that_it_lies_in(tmp_path: Path) -> None:
    groups = (("lobular", "in situ"), ("in situ", "Tumor"), ("Tumor", "None"))
    path = write_asap(tmp_path / "a.xml", "lobular", *groups)
    assert find_positive(path) == TOP_LEFT
    assert find_positive(path, meanings={"in situ": "benign"}) == []


def test_asap_groups_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", "one", ("one", "two"), ("two", "one"))
    (region,) = read_asap(path, is_strict=False).regions
    assert (region.class_name, region.groups) == ("one", ("two",))
    with pytest.raises(LabelError, match="class 'one' is unknown"):
        label_all(path)


# Hamamatsu


def write_ndpi(path: Path, x_nm: int, y_nm: int) -> Path:
    """A TIFF of one page as Hamamatsu writes it: offsets of 64 bits, their upper halves behind."""
    long, signed, short = 4, 9, 3
    tags = [
        *((256, long, 200), (257, long, 200), (258, short, 8), (259, short, 1), (262, short, 1)),
        *((273, long, 12), (277, short, 1), (278, long, 200), (279, long, 4)),
        *((65420, long, 1), (65422, signed, x_nm), (65423, signed, y_nm)),
    ]
    entries = b"".join(struct.pack("<HHIi", code, kind, 1, value) for code, kind, value in tags)
    page = struct.pack("<H", len(tags)) + entries + bytes(8) + bytes(4 * len(tags))
    path.write_bytes(struct.pack("<2sHQ4x", b"II", 42, 16) + page)
    return path


def to_nm(ring: list[list[int]], x_nm: int, y_nm: int) -> list[tuple[float, float]]:
    """Pixels of 500 nm of a slide of 200 px, by hand: (px - 100) · 500 nm + the scan's offset."""
    return [((x - 100) * 500 + x_nm, (y - 100) * 500 + y_nm) for x, y in ring]


def write_ndpa(
    path: Path, points: list[tuple[float, float]], kind: str = "freehand", closed: int = 1
) -> Path:
    corners = "".join(f"<point><x>{x:.0f}</x><y>{y:.0f}</y></point>" for x, y in points)
    path.write_text(
        '<?xml version="1.0" encoding="utf-8" standalone="yes"?><annotations>'
        '<ndpviewstate id="1"><title>tumour</title><coordformat>nanometers</coordformat>'
        f'<annotation type="{kind}" displayname="AnnotateFreehand"><closed>{closed}</closed>'
        f"<pointlist>{corners}</pointlist></annotation></ndpviewstate></annotations>"
    )
    return path


def test_a_tiff_says_where_its_scan_lies(tmp_path: Path) -> None:
    slide = tmp_path / "a.tif"
    tags = [(65422, 9, 1, 500_000, True), (65423, 9, 1, -250_000, True)]
    tifffile.imwrite(slide, np.zeros((200, 200, 3), np.uint8), photometric="rgb", extratags=tags)
    path = write_ndpa(tmp_path / "a.ndpa", to_nm(SQUARE, 500_000, -250_000))
    assert find_positive(path, slide_at(slide)) == TOP_LEFT


@pytest.mark.parametrize("offset", [(0, 0), (1_234_500, -2_345_500), (-7_000_000, 30_000)])
def test_ndpa_counts_from_the_centre_of_the_glass(offset: tuple[int, int], tmp_path: Path) -> None:
    slide = write_ndpi(tmp_path / "a.ndpi", *offset)
    path = write_ndpa(tmp_path / "a.ndpi.ndpa", to_nm(SQUARE, *offset))
    assert find_positive(path, slide_at(slide)) == TOP_LEFT


def test_a_vms_file_says_where_its_scan_lies(tmp_path: Path) -> None:
    slide = tmp_path / "a.vms"
    slide.write_text(
        "[Virtual Microscope Specimen]\nXOffsetFromSlideCentre=500000\n"
        "YOffsetFromSlideCentre=-250000\n"
    )
    path = write_ndpa(tmp_path / "a.vms.ndpa", to_nm(SQUARE, 500_000, -250_000))
    assert find_positive(path, slide_at(slide)) == TOP_LEFT


def test_an_ndpa_circle_is_a_region(tmp_path: Path) -> None:
    path = tmp_path / "a.ndpa"
    path.write_text(
        "<annotations><ndpviewstate><title>tumour</title><annotation type='circle'>"
        "<x>1000</x><y>-500</y><radius>200</radius></annotation></ndpviewstate></annotations>"
    )
    (region,) = read_ndpa(path, is_strict=False).regions
    assert region.geometry.area == pytest.approx(np.pi * 200**2)
    assert region.geometry.centroid.coords[0] == pytest.approx((1000, -500))


@pytest.mark.parametrize(
    ("kind", "closed", "passed"),
    [
        ("freehand", 0, "1 open line"),
        ("linearmeasure", 1, "1 linearmeasure"),
        ("pin", 1, "1 pin"),
    ],
)
def test_an_ndpa_without_a_closed_region_is_refused(
    kind: str, closed: int, passed: str, tmp_path: Path
) -> None:
    path = write_ndpa(tmp_path / "a.ndpa", to_nm(SQUARE, 0, 0), kind, closed)
    with pytest.raises(LabelError, match=passed):
        label_all(path, outside="negative")


def test_an_ndpa_for_a_slide_that_says_no_place_is_refused(tmp_path: Path) -> None:
    slide = tmp_path / "a.tif"
    tifffile.imwrite(slide, np.zeros((200, 200, 3), np.uint8), photometric="rgb")
    path = write_ndpa(tmp_path / "a.ndpa", to_nm(SQUARE, 0, 0))
    with pytest.raises(LabelError, match="does not say where it lies on the glass"):
        label_all(path, slide_at(slide))
    with pytest.raises(LabelError, match="cannot be read"):
        label_all(path, slide_at(tmp_path / "none.ndpi"))


# Platforms


def as_points(ring: list[list[int]]) -> list[dict[str, int]]:
    return [{"x": x, "y": y} for x, y in ring]


HOLE = [[0, 0], [50, 0], [50, 50], [0, 50]]
DARWIN: dict[str, dict[str, object]] = {
    "2.0": {"polygon": {"paths": [as_points(SQUARE)]}, "bounding_box": {}},
    "1.0": {"polygon": {"path": as_points(SQUARE)}},
    "a rectangle": {"bounding_box": {"x": 0, "y": 0, "w": 100, "h": 100}},
}


@pytest.mark.parametrize("case", DARWIN)
def test_darwin_polygons_label_patches(case: str, tmp_path: Path) -> None:
    value = {"version": "2.0", "annotations": [{"name": "tumour", **DARWIN[case]}]}
    assert find_positive(write(tmp_path / "a.json", value)) == TOP_LEFT


@pytest.mark.parametrize(
    "shape",
    [
        {"polygon": {"paths": [as_points(SQUARE), as_points(HOLE)]}},
        {"polygon": {"path": as_points(SQUARE), "additional_paths": [as_points(HOLE)]}},
        {"complex_polygon": {"path": [as_points(SQUARE), as_points(HOLE)]}},
    ],
)
def test_a_path_within_a_path_of_darwin_is_a_hole(shape: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"annotations": [{"name": "tumour", **shape}]})
    assert read_darwin(path, is_strict=False).regions[0].geometry.area == 7_500


def test_a_darwin_ellipse_is_turned_by_its_angle(tmp_path: Path) -> None:
    ellipse = {"center": {"x": 100, "y": 100}, "radius": {"x": 80, "y": 20}, "angle": np.pi / 2}
    path = write(tmp_path / "a.json", {"annotations": [{"name": "tumour", "ellipse": ellipse}]})
    geometry = read_darwin(path, is_strict=False).regions[0].geometry
    assert geometry.area == pytest.approx(np.pi * 80 * 20)
    assert geometry.bounds == pytest.approx((80, 20, 120, 180), abs=0.1)


def test_a_darwin_file_of_points_and_tags_is_refused(tmp_path: Path) -> None:
    annotations = [{"name": "a", "keypoint": {"x": 1, "y": 1}}, {"name": "b", "tag": {}}]
    path = write(tmp_path / "a.json", {"annotations": annotations})
    with pytest.raises(LabelError, match=r"\(1 keypoint, 1 tag\)"):
        label_all(path, outside="negative")


def wkt(ring: list[list[int]]) -> str:
    return f"POLYGON (({', '.join(f'{x} {y}' for x, y in [*ring, ring[0]])}))"


def test_cytomine_counts_from_the_bottom(tmp_path: Path) -> None:
    ring = [[x, 200 - y] for x, y in SQUARE]
    value = {"collection": [{"image": 5, "location": wkt(ring), "term": [4711]}], "size": 1}
    path = write(tmp_path / "a.json", value)
    assert find_positive(path, meanings={"4711": "tumour"}) == TOP_LEFT


@pytest.mark.parametrize(
    ("location", "passed"),
    [
        ("POINT (1 1)", "1 point"),
        ("LINESTRING (0 0, 5 5)", "1 line"),
        ("POLYGON EMPTY", "1 polygon of 0 points"),
    ],
)
def test_cytomine_objects_without_area_are_refused_alone_and_counted_with_others(
    location: str, passed: str, tmp_path: Path
) -> None:
    lone = {"image": 5, "location": location, "term": [1]}
    with pytest.raises(LabelError, match=passed):
        label_all(write(tmp_path / "a.json", [lone]), outside="negative")
    path = write(tmp_path / "b.json", [lone, lone | {"location": wkt(SQUARE)}])
    annotation = read_cytomine(path, is_strict=False)
    assert (len(annotation.regions), sum(annotation.ignored.values())) == (1, 1)


def test_cytomine_annotations_of_two_images_are_refused(tmp_path: Path) -> None:
    value = [{"image": image, "location": wkt(SQUARE), "term": [1]} for image in (5, 6)]
    with pytest.raises(LabelError, match="holds the annotations of 2 images"):
        label_all(write(tmp_path / "a.json", value))


def write_database(path: Path, *slides: str, kind: int = 3, deleted: int = 0) -> Path:
    """A database of SlideRunner with one annotation on the first slide."""
    ring = [SQUARE[0], SQUARE[2]] if kind in (2, 5) else SQUARE
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT);"
            "CREATE TABLE Classes (uid INTEGER PRIMARY KEY, name TEXT);"
            "CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, type INTEGER,"
            " agreedClass INTEGER, deleted INTEGER);"
            "CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER,"
            " coordinateY INTEGER, slide INTEGER, annoId INTEGER, orderIdx INTEGER);"
            "INSERT INTO Classes VALUES (1, 'tumour');"
        )
        database.executemany(
            "INSERT INTO Slides (filename) VALUES (?)", [(each,) for each in slides]
        )
        database.execute("INSERT INTO Annotations VALUES (7, 1, ?, 1, ?)", (kind, deleted))
        database.executemany(
            "INSERT INTO Annotations_coordinates (coordinateX, coordinateY, slide, annoId,"
            " orderIdx) VALUES (?, ?, 1, 7, ?)",
            [(x, y, order) for order, (x, y) in enumerate(ring)],
        )
        database.commit()
    return path


@pytest.mark.parametrize("kind", [2, 3])
def test_a_database_of_sliderunner_labels_patches(kind: int, tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.sqlite", "C:\\scans\\a.tif", "b.tif", kind=kind)
    assert find_positive(path, slide_at(tmp_path / "a.tif")) == TOP_LEFT


def test_a_database_of_one_slide_is_that_slides(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.sqlite", "before.svs", kind=5)
    labels = label_all(path, slide_at(tmp_path / "a.tif"))
    assert labels.fraction.sum() == pytest.approx(np.pi, abs=1e-6)


@pytest.mark.parametrize(
    ("slides", "kind", "deleted", "fault"),
    [
        (("b.tif", "c.tif"), 3, 0, "0 of its 2 slides are called a.tif"),
        (("a.tif", "a.tif"), 3, 0, "2 of its 2 slides are called a.tif"),
        (("a.tif",), 1, 0, r"no region in it has an area \(1 point\)"),
        (("a.tif",), 3, 1, "holds no annotation"),
        (("a.tif",), 9, 0, "an annotation of type 9"),
    ],
)
def test_a_database_without_a_region_of_the_slide_is_refused(
    slides: tuple[str, ...], kind: int, deleted: int, fault: str, tmp_path: Path
) -> None:
    path = write_database(tmp_path / "a.sqlite", *slides, kind=kind, deleted=deleted)
    with pytest.raises(LabelError, match=fault):
        label_all(path, slide_at(tmp_path / "a.tif"), outside="negative")


def test_a_database_of_a_study_belongs_to_the_slides_that_it_holds(tmp_path: Path) -> None:
    study = write_database(tmp_path / "study.sqlite", "C:\\scans\\a.tif", "b.tif", "z.svs")
    matches = match_labels(["a", "b", "c"], [study], [".tif", ".tif", ".tif"])
    assert matches.files == (study, study, None)
    assert matches.notes == ("study.sqlite holds 3 slides, 2 of this run: a.tif, b.tif, z.svs",)


def test_a_file_of_the_slides_own_name_comes_before_a_database_that_holds_it(
    tmp_path: Path,
) -> None:
    study = write_database(tmp_path / "study.sqlite", "a.tif", "b.tif")
    own = tmp_path / "a.geojson"
    assert match_labels(["a", "b"], [study, own]).files == (own, study)


def test_a_database_of_other_slides_says_so(tmp_path: Path) -> None:
    study = write_database(tmp_path / "study.sqlite", "y.tif", "z.tif")
    matches = match_labels(["a"], [study])
    assert matches.files == (None,)
    assert matches.notes == ("study.sqlite holds 2 slides, none of this run: y.tif, z.tif",)


def test_two_databases_that_hold_a_slide_are_refused(tmp_path: Path) -> None:
    both = [write_database(tmp_path / f"{name}.sqlite", "a.tif", "b.tif") for name in "xy"]
    with pytest.raises(LabelError, match="could be its labels"):
        match_labels(["a"], both)


def test_a_database_beside_slides_labels_those_that_it_holds(tmp_path: Path) -> None:
    slides = [tmp_path / name for name in ("a.tif", "a.svs", "b.tif")]
    study = write_database(tmp_path / "study.sqlite", "a.tif", "b.tif")
    assert match_beside(slides).files == (study, None, study)


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("no database, but long enough to be looked at" * 9)
    with pytest.raises(LabelError, match="not a readable database of SlideRunner"):
        label_all(tmp_path / "a.sqlite")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"shapes": [{"label": "tumour", "points": SQUARE}], "imagePath": "a.png"}),
        ("a.json", {"images": [], "annotations": [{"segmentation": [[0, 0, 9, 9, 0, 9]]}]}),
        ("a.json", {"type": "Polygon", "coordinates": [SQUARE]}),
        ("a.json", {"_via_img_metadata": {}}),
        ("a.json", 7),
    ],
)
def test_a_file_of_another_program_is_refused_by_name(
    name: str, content: object, tmp_path: Path
) -> None:
    with pytest.raises(LabelError, match=r"a\.json: "):
        label_all(write(tmp_path / name, content), outside="negative")


def test_the_offset_of_a_real_slide_is_openslides(shared_data: Path) -> None:
    import openslide

    path = shared_data / "slides" / "test3-DAPI-2-387.ndpi"
    with openslide.OpenSlide(path) as slide:
        offset = [int(slide.properties[f"hamamatsu.{axis}OffsetFromSlideCentre"]) for axis in "XY"]
    x, y = to_nm([[50, 50]], *offset)[0]
    a, _, _, d, left, top = place_nm(slide_at(path))
    assert (a * x + left, d * y + top) == pytest.approx((50, 50))
