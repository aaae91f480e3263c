"""Regions that are drawn, relabelled and erased; and everything that is refused."""

from pathlib import Path
from typing import Any

import pytest
import shapely

from tests.builders import make_table
from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.core.json_io import format_json
from wsi_pipeline.labels.corrections import (
    Correction,
    corrections_to_geojson,
    draw,
    erase,
    read_corrections,
    relabel,
    remove,
)
from wsi_pipeline.labels.sent_areas import MAX_CORNERS, read_area

SLIDE = make_table([(0, 0)], rows=10, cols=12).slide
NAMES = ("negative", "positive")


def square(x: float, side: float = 100) -> Any:
    return shapely.box(x, 0, x + side, side)


def areas(corrections: tuple[Correction, ...]) -> list[tuple[str, float]]:
    return [(each.class_name, each.area.area) for each in corrections]


def test_what_is_drawn_last_holds() -> None:
    """A square of 100 px, then one of the other class 50 px to the right: half of the first."""
    both = draw(draw((), "negative", square(0)), "positive", square(50))
    assert areas(both) == [("negative", 5000), ("positive", 10000)]


def test_overlapping_regions_of_a_class_become_one() -> None:
    joined = draw(draw((), "positive", square(0)), "positive", square(50))
    assert areas(joined) == [("positive", 15000)]


def test_erasing_leaves_what_is_outside_the_line() -> None:
    assert areas(erase(draw((), "positive", square(0)), square(75))) == [("positive", 7500)]
    assert erase(draw((), "positive", square(0)), square(-10, 200)) == ()


def test_a_region_is_relabelled_and_removed_by_its_number() -> None:
    two = draw(draw((), "negative", square(0)), "positive", square(200))
    assert areas(relabel(two, 0, "positive")) == [("positive", 10000), ("positive", 10000)]
    assert areas(remove(two, 1)) == [("negative", 10000)]
    with pytest.raises(LabelError, match="there is no region 2"):
        remove(two, 2)


def test_the_file_goes_round(tmp_path: Path) -> None:
    two = draw(draw((), "negative", square(0)), "positive", square(200))
    path = tmp_path / "one.geojson"
    path.write_text(format_json(corrections_to_geojson(two, SLIDE, NAMES)))
    assert areas(read_corrections(path, SLIDE)) == areas(two)
    assert read_corrections(tmp_path / "none.geojson", SLIDE) == ()


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


RING = [[0, 0], [100, 0], [100, 100], [0, 100]]


def test_a_line_that_crosses_itself_encloses_what_it_goes_around() -> None:
    """A bow tie of two triangles of 100 px wide and 50 high."""
    bow = [[0, 0], [100, 100], [100, 0], [0, 100]]
    assert read_area(polygon(bow), SLIDE).area == pytest.approx(5000)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "geometry of type 'None'"),
        ([], "geometry of type 'None'"),
        ({"type": "Point", "coordinates": [1, 2]}, "geometry of type 'Point'"),
        ({"type": ["Polygon"], "coordinates": []}, "geometry of type"),
        ({"type": "Polygon"}, "a polygon is not a list"),
        (polygon(), "a polygon is not a list"),
        (polygon([]), "a ring is not a list"),
        (polygon(5), "a ring is not a list"),
        (polygon([[0, 0], [1, 1]]), "ring of 2 corners"),
        (polygon([[0, 0], [1, 1], [2]]), "not a pair of numbers"),
        (polygon([[0, 0], [1, 1], ["2", 2]]), "not a pair of numbers"),
        (polygon([[0, 0], [1, 1], [True, 2]]), "not a pair of numbers"),
        (polygon([[0, 0], [1, 1], [[2], 2]]), "not a pair of numbers"),
        (polygon([[0, 0], [1, 1], [float("nan"), 2]]), "not finite"),
        (polygon([[0, 0], [1, 1], [float("inf"), 2]]), "not finite"),
        (polygon([[0, 0], [1, 1], [10**400, 2]]), "beyond the slide"),
        (polygon([[0, 0], [50, 50], [100, 100]]), "encloses no area"),
        (polygon([[x + 10_000, y] for x, y in RING]), "beyond the slide"),
        (polygon([[0, 0]] * (MAX_CORNERS + 1)), "not a list of 1 to 100,000"),
        ({"type": "MultiPolygon", "coordinates": [[[[0, 0]] * 60_000]] * 2}, "corners"),
    ],
)
def test_what_is_no_region_is_refused_in_words(value: Any, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        read_area(value, SLIDE)
