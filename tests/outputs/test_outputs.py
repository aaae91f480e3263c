"""Every writer is read back."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import make_patches, make_table, write_probabilities
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.outcome import SlideOutcome, SlideState
from wsi_pipeline.core.patch_table import PatchTable
from wsi_pipeline.outputs import View
from wsi_pipeline.outputs.result import Sample
from wsi_pipeline.outputs.run_files import (
    read_finished,
    write_csv,
    write_failures_csv,
    write_index,
    write_slides_tables,
)
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.stages.aggregate import publish
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.predictions import prepare_predictions

NAN = float("nan")
PICTURES = ("heatmap", "overlay", "gallery", "summary")
CASES = {
    "mixed": [0.9, 0.1, NAN, 0.6],
    "nothing positive": [0.1, 0.2, 0.0, 0.3],
    "everything positive": [1.0, 1.0, 0.9, 0.8],
    "all unreadable": [NAN] * 4,
    "one patch": [0.7],
    "no patches": [],
}


def make_result(
    results: Path, slide_id: str, probability: list[float], formats: tuple[str, ...] = ("summary",)
) -> Path:
    """A committed slide folder."""
    staging = Staging(results / slide_id, {"slide": slide_id})
    positions = [(0, 0), (0, 1), (1, 2), (2, 2)][: len(probability)]
    table = make_table(positions, slide_id=slide_id, mpp=4.0, block_size=10, rows=3, cols=3)
    prepare_predictions(
        staging,
        table,
        {"model": {"threshold": 0.5, "digest": "d" * 64, "class_names": ["negative", "positive"]}},
    )
    if probability:
        write_probabilities(staging, table, 0, np.array(probability, dtype=np.float32))
    publish(staging, View(formats), make_samples(table, probability), results / slide_id)
    return results / slide_id


def make_samples(table: PatchTable, probability: list[float]) -> tuple[Sample, ...]:
    """A gallery of two lines, of every patch that could be read and of none."""
    known = np.flatnonzero(~np.isnan(np.array(probability, dtype=np.float32)))
    pixels = make_patches(len(known))
    some = Sample(
        "most probable",
        table.positions[known],
        np.array(probability, dtype=np.float32)[known],
        pixels,
    )
    return some, Sample(
        "least probable", table.positions[:0], np.empty(0, dtype=np.float32), pixels[:0]
    )


@pytest.mark.parametrize("case", CASES)
def test_every_picture_opens_whatever_the_result(case: str, tmp_path: Path) -> None:
    folder = make_result(tmp_path, "s", CASES[case], PICTURES)
    for name in ("heatmap.png", "overlay.png", "gallery.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) > 200


@pytest.mark.parametrize("case", CASES)
def test_the_summary_comes_back_and_is_json(case: str, tmp_path: Path) -> None:
    folder = make_result(tmp_path, "s", CASES[case])
    text = (folder / "summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))[
        "patches"
    ] == len(CASES[case])
    assert read_summary(folder).patches == len(CASES[case])


def test_pictures_have_the_same_bytes_every_time(tmp_path: Path) -> None:
    one, two = (make_result(tmp_path / name, "s", CASES["mixed"], PICTURES) for name in "ab")
    for name in ("heatmap.png", "overlay.png", "gallery.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_high_probability_is_dark_red_and_low_is_pale(tmp_path: Path) -> None:
    make_result(tmp_path, "high", [1.0], PICTURES)
    make_result(tmp_path, "low", [0.0], PICTURES)
    colors = {}
    for name in ("high", "low"):
        with Image.open(tmp_path / name / "heatmap.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        colors[name] = pixels[pixels.shape[0] // 4, pixels.shape[1] // 6].tolist()
    assert colors == {"high": [186, 10, 30], "low": [255, 236, 170]}  # the ends of orange-red


def test_slides_csv_has_a_row_per_finished_slide(tmp_path: Path) -> None:
    make_result(tmp_path, "b", CASES["mixed"])
    make_result(tmp_path, "a", CASES["no patches"])
    write_slides_tables(tmp_path, read_finished(tmp_path).summaries)
    with (tmp_path / "slides.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["slide_id"] for row in rows] == ["a", "b"]
    assert (rows[1]["patches"], rows[1]["positives"], rows[1]["unreadable"], rows[1]["state"]) == (
        "4",
        "2",
        "1",
        "damaged",
    )
    assert (rows[0]["positive_fraction"], rows[0]["mean_probability"], rows[0]["state"]) == (
        "",
        "",
        "zero",
    )


def test_failures_csv_names_the_failures_only(tmp_path: Path) -> None:
    outcomes = [
        SlideOutcome("a", "a.svs", SlideState.OK, "fine"),
        SlideOutcome("b", "b.svs", SlideState.FAILED, "broken, badly"),
    ]
    write_failures_csv(tmp_path, outcomes)
    with (tmp_path / "failures.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"slide_id": "b", "path": "b.svs", "state": "failed", "reason": "broken, badly"}
        ]


@pytest.mark.parametrize("name", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1"])
def test_no_cell_is_run_by_a_spreadsheet(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["name", "number"], [[name, -1]])
    with (tmp_path / "t.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[1] == [f"'{name}", "-1"]


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("href", "src") and value]


def test_every_link_of_the_page_leads_to_a_file(tmp_path: Path) -> None:
    from urllib.parse import unquote

    for name in ("a b", "ü-50%"):
        make_result(tmp_path, name, CASES["mixed"], PICTURES)
    write_slides_tables(tmp_path, read_finished(tmp_path).summaries)
    links = Links()
    links.feed(write_index(tmp_path).read_text())
    files = [unquote(target) for target in links.targets if not target.startswith("#")]
    # slides.csv, slides.parquet, patients.csv; per slide three pictures twice each (shown, opened
    # by a click), and a list of all.
    assert len(files) == 3 + 2 * (6 + 5)
    assert all((tmp_path / name).exists() for name in files)


def test_names_cannot_smuggle_markup_into_the_page(tmp_path: Path) -> None:
    make_result(tmp_path, "<script>alert(1)<", CASES["mixed"])
    links = Links()
    links.feed(write_index(tmp_path).read_text())
    assert links.tags.count("script") == 1  # the page's own


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    make_result(tmp_path, "a", CASES["mixed"])
    assert "://" not in write_index(tmp_path).read_text()


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    folder = make_result(tmp_path, "a", CASES["mixed"])
    (folder / "summary.json").write_text("{")
    with pytest.raises(StoreError, match=r"summary\.json has 1 bytes instead of"):
        read_summary(folder)
