"""What is no number is unreadable and never negative, in every format; every format counts alike;
every text is JSON or no formula.
"""

import ast
import base64
import csv
import gzip
import io
import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import ROOT
from tests.builders import make_checkpoint, write_model, write_slide
from tests.commands import infer
from tests.written_results import write_result
from wsi_pipeline.core.csv_io import FORMULA_STARTS, format_csv, shield, unshield
from wsi_pipeline.core.json_io import format_json, parse_json
from wsi_pipeline.models.model import SelfTest, compute_reference
from wsi_pipeline.outputs import View, choose_formats
from wsi_pipeline.outputs.run_files import read_finished, write_slides_tables
from wsi_pipeline.store.slide_results import open_result

PURPLE, PINK = (90, 40, 110), (225, 120, 190)
"""Tissue below and above the middle of red."""


def make_network_that_overflows() -> Any:
    """Its first layer turns red above the middle into infinity, and what follows into no number;
    below, it gives a plain answer.
    """
    checkpoint = make_checkpoint(bias=3.0, architecture="idc_cnn")
    first = checkpoint.weights["features.0.weight"]
    first.fill_(0.0)
    first[:, 0] = 3e38
    checkpoint.weights["features.1.bias"].fill_(0.0)
    checkpoint.weights["classifier.6.weight"].copy_(
        torch.ones_like(checkpoint.weights["classifier.6.weight"]) * 1e-3
    )
    purple = torch.tensor(PURPLE, dtype=torch.uint8).expand(1, 50, 50, 3).contiguous()
    return replace(checkpoint, self_test=SelfTest(purple, compute_reference(checkpoint, purple)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one slide, 4 × 4 cells: the left half gets a number, the right half none."""
    root = tmp_path_factory.mktemp("numbers")
    pixels = np.empty((200, 200, 3), dtype=np.uint8)
    pixels[:, :100], pixels[:, 100:] = PURPLE, PINK
    write_slide(root / "slides" / "=s1.tiff", pixels)
    model = write_model(root / "m.safetensors", make_network_that_overflows())
    view = View(choose_formats(["all", "geojson-patches"]))
    account = infer(root / "slides", model, root / "results", precision="auto", view=view)
    assert account.exit_code == 3, account.outcomes[0].message
    return root / "results"


@pytest.fixture(scope="module")
def slide(run: Path) -> Path:
    return next(path.parent for path in run.glob("*/summary.json"))


def count_csv(slide: Path) -> tuple[int, int, int]:
    with (slide / "patches.csv").open(newline="") as stream:
        cells = [row["prob_positive"] for row in csv.DictReader(stream)]
    numbers = [float(cell) for cell in cells if cell]
    return (
        sum(value >= 0.5 for value in numbers),
        sum(value < 0.5 for value in numbers),
        cells.count(""),
    )


def count_parquet(slide: Path) -> tuple[int, int, int]:
    table = pyarrow.parquet.read_table(slide / "patches.parquet").to_pydict()
    assert [value is None for value in table["probability"]] == [
        not readable for readable in table["readable"]
    ]
    return (
        table["positive"].count(True),
        table["positive"].count(False),
        table["positive"].count(None),
    )


def count_geojson(slide: Path) -> tuple[int, int, int]:
    features = parse_json((slide / "patches.geojson").read_bytes())["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    return names.count("positive"), names.count("negative"), names.count("unreadable")


def count_summary(slide: Path) -> tuple[int, int, int]:
    return _count_figures(parse_json((slide / "summary.json").read_bytes()))


def count_slides_csv(slide: Path) -> tuple[int, int, int]:
    with (slide.parent / "slides.csv").open(newline="") as stream:
        return _count_figures(next(csv.DictReader(stream)))


def count_slides_parquet(slide: Path) -> tuple[int, int, int]:
    return _count_figures(
        pyarrow.parquet.read_table(slide.parent / "slides.parquet").to_pylist()[0]
    )


def _count_figures(row: Any) -> tuple[int, int, int]:
    patches, unreadable, positives = (
        int(row[name]) for name in ("patches", "unreadable", "positives")
    )
    return positives, patches - unreadable - positives, unreadable


def count_predictions(slide: Path) -> tuple[int, int, int]:
    return _count_values(open_result(slide).probability)


def count_zarr(slide: Path) -> tuple[int, int, int]:
    image = np.asarray(zarr.open_array(slide / "heatmap.ome.zarr" / "0", mode="r")[:])
    labels = np.asarray(
        zarr.open_array(slide / "heatmap.ome.zarr" / "labels" / "classes" / "0", mode="r")[:]
    )
    counts = _count_values(image)
    assert counts == tuple(int(np.count_nonzero(labels == value)) for value in (2, 1, 0))
    return counts


def count_tiff(slide: Path) -> tuple[int, int, int]:
    return _count_values(tifffile.imread(slide / "heatmap.ome.tiff"))


def count_report(slide: Path) -> tuple[int, int, int]:
    text = (slide / "report.html").read_text()
    encoded = re.search(r'"map": "([A-Za-z0-9+/=]+)"', text)
    assert encoded is not None
    return _count_values(np.frombuffer(base64.b64decode(encoded[1]), dtype="<f4"))


def count_manifest(slide: Path) -> tuple[int, int, int]:
    return _count_figures(parse_json((slide / "manifest.json").read_bytes())["counts"])


def _count_values(values: Any) -> tuple[int, int, int]:
    """Every position of this slide has a patch, so that only unreadable ones have no value."""
    return (
        int(np.count_nonzero(values >= 0.5)),
        int(np.count_nonzero(values < 0.5)),
        int(np.count_nonzero(np.isnan(values))),
    )


COUNTS = [
    count_csv,
    count_parquet,
    count_geojson,
    count_summary,
    count_slides_csv,
    count_slides_parquet,
    count_predictions,
    count_zarr,
    count_tiff,
    count_report,
    count_manifest,
]


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.__name__)
def test_every_format_counts_alike_and_what_is_no_number_is_never_negative(
    count: Any, slide: Path
) -> None:
    assert count(slide) == (8, 0, 8)


def test_regions_hold_the_positive_patches_and_no_others(slide: Path) -> None:
    for name, unpack in (("regions.geojson", bytes), ("regions.geojson.gz", gzip.decompress)):
        features = parse_json(unpack((slide / name).read_bytes()))["features"]
        assert sum(feature["properties"]["measurements"]["patches"] for feature in features) == 8
    with (slide / "regions.csv").open(newline="") as stream:
        assert sum(int(row["patches"]) for row in csv.DictReader(stream)) == 8


def test_a_slide_that_is_called_like_a_formula_is_none_in_any_table(run: Path) -> None:
    for path in run.rglob("*.csv"):
        with path.open(newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert [
            cell for cell in cells if cell.startswith(FORMULA_STARTS) and shield(cell) != cell
        ] == []


def test_every_json_file_of_a_run_is_json_and_nothing_else(run: Path) -> None:
    files = [
        path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".geojson")
    ]
    lines = [line for path in run.rglob("*.jsonl") for line in path.read_bytes().splitlines()]
    for content in [*(path.read_bytes() for path in files), *lines]:
        parse_json(content)
    assert len(files) > 10
    assert lines


PROBABILITIES = st.lists(
    st.one_of(st.floats(0, 1, width=32), st.just(float("nan"))), min_size=0, max_size=6
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([])
@example([float("nan")] * 6)
@example([1e-45, 1.0, 0.0, float("nan")])
@given(PROBABILITIES)
def test_whatever_was_predicted_the_files_are_finite_json(
    tmp_path: Path, probability: list[float]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        slide = Path(folder) / "slide"
        summary = write_result(
            slide, probability, view=View(("summary", "geojson", "geojson-patches", "parquet"))
        )
        write_slides_tables(Path(folder), read_finished(Path(folder)).summaries)
        for name in ("summary.json", "regions.geojson", "patches.geojson", "manifest.json"):
            parse_json((slide / name).read_bytes())
        unreadable = sum(np.isnan(probability))
        assert (summary.unreadable, summary.positives) == (
            unreadable,
            sum(np.float32(value) >= np.float32(0.5) for value in probability),
        )
        assert count_parquet(slide) == (
            summary.positives,
            summary.patches - summary.unreadable - summary.positives,
            unreadable,
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


@settings(max_examples=50)
@given(JSON)
def test_json_is_written_finite_or_not_at_all(value: Any) -> None:
    try:
        text = format_json(value)
    except ValueError:
        assert "NaN" in repr(value) or "nan" in repr(value) or "inf" in repr(value)
    else:
        assert parse_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "NaN",
            "Infinity",
            "-Infinity",
            "[1e999]",
            "[-1e999]",
            "[" * 100_000,
            "",
            "{",
            "'a'",
            '{"a": 1,}',
            "[1 2]",
        ),
        *(
            str(2**63),
            str(-(2**63) - 1),
            "1" * 5000,
            r'"\ud800"',
            r'{"\udfff": 1}',
            r'["a\udc7fb"]',
            "\ufeff1",
        ),
    ],
)
def test_what_is_no_json_is_not_read_as_json(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_json(text)


def test_the_name_of_a_file_that_is_not_utf8_comes_back_from_json() -> None:
    name = os.fsdecode(b"s\xff.tiff")
    assert parse_json(format_json({"path": name})) == {"path": name}


def test_json_is_never_written_without_looking_for_nan() -> None:
    """Where `json.dumps` is called at all, it is told to."""
    careless: list[str] = []
    for path in [*(ROOT / "wsi_pipeline").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("dump", "dumps")
                and ast.unparse(node.func.value) not in ("pickle", "yaml")
            ):
                careless += (
                    []
                    if any(keyword.arg == "allow_nan" for keyword in node.keywords)
                    else [f"{path.name}:{node.lineno}"]
                )
    assert careless == []


def test_csv_is_written_in_one_place() -> None:
    sources = [*(ROOT / "wsi_pipeline").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    assert [
        path.name
        for path in sources
        if re.search(r"csv\.(writer|DictWriter)\(|savetxt|to_csv", path.read_text())
    ] == []
    columns = [path.name for path in sources if "pyarrow.csv" in path.read_text()]
    assert columns == ["patches_csv.py"]  # numbers alone, under a header of ours


@given(
    st.lists(
        st.lists(
            st.text() | st.integers() | st.floats(allow_nan=False) | st.none(),
            min_size=2,
            max_size=2,
        ),
        max_size=5,
    )
)
@example(
    [
        ["=1+1", "+1"],
        ["-2+3+cmd|' /C calc'!A0", "@SUM(A1)"],
        ["\t=1", "\r=1"],
        ["＝1", "\n=1"],
        ["-0.5", "'=1"],
    ]
)
def test_no_cell_is_ever_a_formula_and_every_text_comes_back(rows: list[list[Any]]) -> None:
    text = format_csv(["one", "two"], rows)
    read = list(csv.reader(io.StringIO(text, newline="")))[1:]
    for row, cells in zip(rows, read, strict=True):
        for value, cell in zip(row, cells, strict=True):
            assert not cell.startswith(FORMULA_STARTS) or _is_plain_number(cell)
            if isinstance(value, str):
                assert unshield(cell) == value or value.startswith("'")


def _is_plain_number(cell: str) -> bool:
    return (
        cell.isascii()
        and set(cell.lower()) <= set("0123456789.e+-infa")
        and float(cell) is not None
    )


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("-0.5", "-0.5"),
        ("-1+1", "'-1+1"),
        ("-", "'-"),
        (-0.5, -0.5),
        (None, ""),
        ("a=b", "a=b"),
        ("+49 30", "'+49 30"),
        (" -1", " -1"),
    ],
)
def test_cells_by_hand(value: Any, cell: Any) -> None:
    assert shield(value) == cell


def test_a_zero_probability_is_a_number(tmp_path: Path) -> None:
    write_result(tmp_path / "s", [0.0, 1.0], view=View(("summary", "csv")))
    assert json.loads((tmp_path / "s" / "summary.json").read_bytes())["unreadable"] == 0
