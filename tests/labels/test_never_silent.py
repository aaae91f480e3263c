"""No readable label file turns into patches that are all negative without a word."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import paint, write_png, write_slide
from tests.commands import run
from tests.labels.grids import label_all
from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels import describe_labels

places = st.integers(0, 190)
corners = st.lists(st.tuples(places, places).map(list), max_size=5)
areas = st.tuples(places, places, st.integers(1, 60), st.integers(1, 60)).map(
    lambda box: [
        [box[0], box[1]],
        [box[0] + box[2], box[1]],
        [box[0] + box[2], box[1] + box[3]],
        [box[0], box[1] + box[3]],
    ]
)
rings = st.one_of(corners, areas)
geometries = st.recursive(
    st.one_of(
        st.none(),
        st.builds(lambda ring: {"type": "Polygon", "coordinates": [ring]}, rings),
        st.builds(lambda ring: {"type": "MultiPolygon", "coordinates": [[ring]]}, rings),
        st.builds(lambda ring: {"type": "MultiPoint", "coordinates": ring}, corners),
        st.builds(lambda ring: {"type": "LineString", "coordinates": ring}, corners),
    ),
    lambda inner: st.builds(
        lambda parts: {"type": "GeometryCollection", "geometries": parts},
        st.lists(inner, max_size=3),
    ),
    max_leaves=4,
)
kinds = st.sampled_from(["annotation", "detection", "cell", "tile", "tma_core", "zone", None])
ids = st.sampled_from(["PathAnnotationObject", "PathDetectionObject", "PathCellObject", "7f3a"])
names = st.sampled_from(["tumour", "benign", "roi", "edge"])


def make_feature(
    geometry: Any, kind: str | None, number: str, name: str, key: str, children: list[Any]
) -> dict[str, Any]:
    properties: dict[str, Any] = {"classification": {"name": name}}
    properties |= {} if kind is None else {key: kind}
    value = {"type": "Feature", "id": number, "geometry": geometry, "properties": properties}
    return value | ({"childObjects": children} if children else {})


keys = st.sampled_from(["objectType", "object_type"])


def features(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        make_feature, geometries, kinds, ids, names, keys, st.lists(children, max_size=2)
    )


leaves = st.builds(make_feature, geometries, kinds, ids, names, keys, st.just([]))
trees = st.recursive(leaves, features, max_leaves=5)
RULES: dict[str, Any] = {"outside": "negative", "meanings": {"roi": "ignore", "edge": "hole"}}


def check_told(path: Path) -> None:
    """A file is refused by name, or has a positive patch, or a line that says why it has none."""
    refusal = ""
    try:
        labels = label_all(path, **RULES)
    except LabelError as error:
        refusal = str(error)
    if refusal:
        assert path.name in refusal
        return
    if (labels.labels == 1).any():
        return
    told = describe_labels(labels.description | {"file": path.name})
    assert told.startswith(f"{path.name}: ")
    assert "tumour" in told or told.endswith("nothing drawn")
    regions = labels.description.get("regions")
    assert regions is None or sum(regions.values()) > 0


@settings(max_examples=150)
@given(st.lists(trees, max_size=4))
def test_no_geojson_is_negative_without_a_word(collection: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.geojson")
        path.write_text(json.dumps(collection))
        check_told(path)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 1, 2, 37, 100, 200, 255]), min_size=16, max_size=16))
def test_no_label_image_is_negative_without_a_word(values: list[int]) -> None:
    with TemporaryDirectory() as folder:
        pixels = np.array(values, np.uint8).reshape(4, 4)
        path = write_png(Path(folder, "a_labels.png"), pixels)
        check_told(path)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 1, 200]), min_size=16, max_size=16))
def test_drawn_pixels_without_a_meaning_are_never_negative(values: list[int]) -> None:
    with TemporaryDirectory() as folder:
        pixels = np.array(values, np.uint8).reshape(4, 4)
        path = write_png(Path(folder, "a_labels.png"), pixels)
        try:
            labels = label_all(path, outside="negative").labels
        except LabelError:
            assert 200 not in values
            assert 1 in values
        else:
            assert (labels == 1).sum() == values.count(200)
            assert 200 in values or 1 not in values


def tile(folder: Path, *options: object) -> str:
    where = ("-o", folder / "out", "--mpp", 0.5, "--workers", 0)
    return run("tile", folder / "in", *where, *options).stderr


def test_a_class_without_a_patch_in_the_whole_run_is_said(tmp_path: Path) -> None:
    for name in "ab":
        write_slide(tmp_path / "in" / f"{name}.tiff", paint(150, 150), mpp=0.5)
        write_png(tmp_path / "in" / f"{name}_labels.png", np.full((150, 150), 100, np.uint8))
    fault = "NO PATCH of class 'positive' in the whole run: 18 negative and 0 positive"
    assert fault in tile(tmp_path)
    again = tile(tmp_path)  # already done by the first run
    assert fault in again
    assert "next: wsi label" in again
    assert "wsi train" not in again


def test_classes_that_both_occur_in_a_run_are_not_missed(tmp_path: Path) -> None:
    for name, value in (("a", 100), ("b", 200)):
        write_slide(tmp_path / "in" / f"{name}.tiff", paint(150, 150), mpp=0.5)
        write_png(tmp_path / "in" / f"{name}_labels.png", np.full((150, 150), value, np.uint8))
    told = tile(tmp_path)
    assert "NO PATCH" not in told
    assert "next: wsi train" in told


def test_slides_without_labels_miss_no_class(tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "a.tiff", paint(150, 150), mpp=0.5)
    assert "NO PATCH" not in tile(tmp_path)


def test_new_labels_of_one_class_are_said(tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "a.tiff", paint(150, 150), mpp=0.5)
    tile(tmp_path)
    labels = write_png(tmp_path / "a_labels.png", np.full((150, 150), 200, np.uint8))
    result = run("label", tmp_path / "out", "--labels", labels)
    assert "a_labels.png: 22,500 px positive, 0 px negative" in result.stderr
    assert "NO PATCH of class 'negative' in the whole run" in result.stderr


def test_a_slide_on_which_nothing_is_drawn_is_said(tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "a.tiff", paint(150, 150), mpp=0.5)
    write_png(tmp_path / "in" / "a_labels.png", np.zeros((150, 150), np.uint8))
    assert "a: ok: 9 patches, 9 labelled; a_labels.png: nothing drawn" in tile(
        tmp_path, "--outside", "negative"
    )
