"""Reported faults of labels, through the real command: each case's input and its right answer."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from tests.cases import make_case
from tests.commands import run
from wsi_pipeline.core.choices import STORE_SUFFIX
from wsi_pipeline.store.patches import PatchStore


def tile(folder: Path, *options: object, places: tuple[Path, ...] = ()) -> Result:
    """Run `wsi tile` over a case as its description says."""
    where = places or (folder,)
    out = folder.parent / "out"
    return run("tile", *where, "--out", out, "--mpp", 1, "--workers", 0, *options)


def by_map(folder: Path) -> tuple[object, ...]:
    return ("--labels", folder, "--label-map", folder / "map.yaml", "--outside", "negative")


def count(folder: Path, slide: str) -> tuple[int, int]:
    """Patches of a slide that are (negative, positive)."""
    labels = PatchStore(folder.parent / "out" / f"{slide}{STORE_SUFFIX}").labels
    return int(np.sum(labels == 0)), int(np.sum(labels == 1))


def list_stores(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder.parent / "out").glob(f"*{STORE_SUFFIX}"))


def test_detections_label_nothing_whatever_qupath_wrote_them(tmp_path: Path) -> None:
    folder = make_case("03-qupath-detections-without-objectType", tmp_path)
    result = tile(folder, *by_map(folder))
    assert result.exit_code == 0
    assert [count(folder, name) for name in ("v02", "v03", "v04")] == [(20, 16)] * 3
    for name in ("v02", "v03", "v04"):
        assert f"{name}.geojson: 1 region, 1 tumor; 1 detection passed over" in result.stderr


def test_an_annotation_within_an_annotation_is_read(tmp_path: Path) -> None:
    folder = make_case("04-qupath-child-objects", tmp_path)
    result = tile(folder, *by_map(folder))
    assert (result.exit_code, count(folder, "a")) == (0, (20, 16))
    assert "a.geojson: 2 regions, 1 tumor, 1 ignored" in result.stderr


def test_a_measurement_that_is_no_number_does_not_matter(tmp_path: Path) -> None:
    folder = make_case("05-qupath-nan-measurement", tmp_path)
    result = tile(folder, *by_map(folder))
    assert (result.exit_code, count(folder, "a")) == (0, (20, 16))


def test_a_halo_file_is_read(tmp_path: Path) -> None:
    folder = make_case("06-halo-xml-all-negative", tmp_path)
    result = tile(folder, *by_map(folder))
    assert (result.exit_code, count(folder, "a")) == (0, (20, 16))


def test_a_mask_without_a_known_value_is_refused_with_its_values(tmp_path: Path) -> None:
    folder = make_case("07-mask-values-that-do-not-occur", tmp_path)
    slides = tuple(sorted(folder.glob("*.tif")))
    options = ("--labels", folder / "labels", "--outside", "negative")
    result = tile(folder, *options, places=slides)
    assert (result.exit_code, list_stores(folder)) == (4, [])
    assert "zero_one_labels.png: no pixel has a value that means something (100 and 200)" in (
        result.stderr
    )
    assert "its values are 0, 1:" in result.stderr
    assert "its values are 0, 255:" in result.stderr
    mapped = tile(folder, *options, "--map", "1=positive", "--map", "255=positive", places=slides)
    assert mapped.exit_code == 0
    assert [count(folder, name) for name in ("zero_one", "zero_255")] == [(20, 16)] * 2


def test_a_label_file_of_the_beginning_of_a_name_is_told(tmp_path: Path) -> None:
    folder = make_case("08-label-of-another-slide", tmp_path)
    result = tile(folder, *by_map(folder))
    assert result.exit_code == 0
    assert "P1.geojson is taken for P1_2" in result.stderr


def test_a_label_file_belongs_to_the_slide_of_exactly_its_name(tmp_path: Path) -> None:
    folder = make_case("08-label-of-another-slide", tmp_path)
    (folder / "P1.tif").write_bytes((folder / "P1_2.tif").read_bytes())
    result = tile(folder, *by_map(folder))
    assert (result.exit_code, count(folder, "P1"), count(folder, "P1_2")) == (0, (20, 16), (0, 0))
    assert "no label file for 1 of 2 slides: P1_2" in result.stderr


@pytest.mark.parametrize("options", [("--labels", "auto"), ("--slide-mpp", 1)])
def test_label_images_beside_a_slide_are_no_slides(
    options: tuple[object, ...], tmp_path: Path
) -> None:
    folder = make_case("09-label-image-beside-slide", tmp_path)
    result = tile(folder, *options)
    assert (result.exit_code, list_stores(folder)) == (0, [f"a{STORE_SUFFIX}"])
    assert "left out as label images or masks (2): a_labels.png, a_mask.png" in result.stderr
    assert count(folder, "a")[1] == 16


def test_a_region_over_the_edge_is_cut_there(tmp_path: Path) -> None:
    folder = make_case("33-annotation-over-the-edge", tmp_path)
    result = tile(folder, *by_map(folder))
    assert (result.exit_code, count(folder, "a")) == (0, (15, 21))
