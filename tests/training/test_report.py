"""The report page: one file, the same for the same numbers, and safe against names in it."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import make_patches
from tests.measured import calibrate, measure
from wsi_pipeline.core.choices import LEAK_WARNING
from wsi_pipeline.training.counts import Count, Counts
from wsi_pipeline.training.evaluate import Compared, compare
from wsi_pipeline.training.metrics import score
from wsi_pipeline.training.report import (
    ReportContent,
    WorstPatch,
    describe_worst,
    pick_worst,
    plot_counts,
    write_report_page,
)

HOSTILE = '<script>alert("$x$")</script>\ud800'


class Tags(HTMLParser):
    """Every tag that is opened, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.addresses += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "action", "data", "srcset")
        ]

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)


def parse(path: Path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text())
    tags.close()
    return tags


def count(name: str, labels: list[int], calls: list[int], **how: Any) -> Count:
    """A slide of which `calls` are what the results call positive."""
    scores = score(np.array(labels, dtype=np.int8), np.array(calls, dtype=np.float32), 0.5)
    return Count(name, scores, **how)


COUNTS = Counts(
    200.0,
    0.4,
    (
        count("held", [1, 0, 0], [1, 1, 0], interval=(1.0, 2.0), interval_source="site"),
        count("missed", [1, 1, 1], [1, 0, 0], interval=(0.0, 2.0)),
        count("without", [1, 0, 0], [1, 0, 0]),
    ),
    patients=2,
)


def make_content() -> ReportContent:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1] * 60, dtype=np.int8)
    logits = (labels * 3 - 1.5 + rng.normal(size=120) * 2).astype(np.float32)
    patients = np.repeat(["a", "b", "c"], 40)
    return ReportContent(
        title="net on validation patients",
        class_names=("benign", "tumour"),
        metrics=measure(labels, logits, patients, temperature=2.0, threshold=0.4, draws=50),
        labels=labels,
        probability=calibrate(logits, 2.0),
        patients=patients,
        counts=COUNTS,
        facts={"network": "idc_cnn"},
        history=[
            {"epoch": 1, "train_loss": 0.7, "val_loss": 0.6, "val_auroc": 0.8, "is_best": True},
            {"epoch": 2, "train_loss": 0.5},
        ],
        worst=[WorstPatch(make_patches(1, 5)[0], "tumour, but 0.010")],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report_page(path, make_content())
    return path


def test_every_tag_is_closed(page: Path) -> None:
    tags = parse(page)
    opened = [tag for tag in tags.opened if tag not in ("meta", "img", "br")]
    assert sorted(opened) == sorted(tags.closed)


def test_nothing_is_fetched_from_elsewhere(page: Path) -> None:
    tags = parse(page)
    assert (
        len(tags.addresses) == 8
    )  # history, counts, ROC, precision-recall, reliability before and after, sweep, one patch
    assert all(address.startswith("data:image/") for address in tags.addresses)
    assert {"script", "link", "iframe"} & set(tags.opened) == set()
    assert "url(" not in page.read_text()


def test_images_hold_no_script_and_no_date(page: Path) -> None:
    for address in parse(page).addresses:
        kind, _, content = address.partition(";base64,")
        drawn = base64.b64decode(content)
        assert drawn.startswith(b"<?xml" if kind == "data:image/svg+xml" else b"\x89PNG")
        assert b"<script" not in drawn
        assert not re.search(rb"<dc:date>", drawn)


def test_the_same_content_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    write_report_page(tmp_path / "again.html", make_content())
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_the_page_holds_its_metrics(page: Path) -> None:
    text = page.read_text()
    metrics = make_content().metrics
    low, high = metrics.intervals["f1"]
    assert f"<td>F1</td><td>{metrics.scores.f1:.3f}</td><td>{low:.3f} to {high:.3f}</td>" in text
    before, after = (
        f"{each.expected_calibration_error:.3f}" for each in (metrics.before, metrics.after)
    )
    assert f"<td>the network itself</td><td>{before}</td>" in text
    assert f"<td>final probabilities</td><td>{after}</td>" in text
    for threshold in (0.5, 0.7, 0.8, 0.9):
        assert f"<caption>{threshold}</caption>" in text


def test_counts_stand_beside_the_true_numbers(page: Path) -> None:
    text = page.read_text()
    assert "A count is the number of patches of 200 µm at or above 0.400" in text
    assert "<td>held</td><td>3</td><td>2</td><td>1</td><td>+1</td>\n<td>+33.3%</td>" in text
    assert "<td>1 to 2</td><td>site</td>" in text
    assert "<td>0 to 2 (missed)</td>" in text
    assert 'alt="counted against true positives"' in text


def test_a_report_without_counts_has_no_such_section(tmp_path: Path) -> None:
    write_report_page(tmp_path / "report.html", replace(make_content(), counts=None))
    assert "<h2>Counts</h2>" not in (tmp_path / "report.html").read_text()


def test_each_patch_alone_has_a_column_where_it_differs(page: Path, tmp_path: Path) -> None:
    content = make_content()
    alone = score(content.labels, 1 - content.probability, 0.5)
    other = replace(content, metrics=replace(content.metrics, alone=alone))
    write_report_page(tmp_path / "report.html", other)
    text = (tmp_path / "report.html").read_text()
    assert "<th>each patch alone</th>" in text
    assert f"<td>{alone.auroc:.3f}</td></tr>" in text


def test_a_wide_range_of_counts_is_plotted_too() -> None:
    rows = tuple(count(f"s{k}", [1] * k + [0], [1] * k + [0]) for k in (0, 1, 2, 3, 500))
    assert plot_counts(Counts(200.0, 0.5, rows, patients=5)).startswith(b"<?xml")


def test_few_patients_are_told(page: Path) -> None:
    assert "only a rough guide" in page.read_text()


def test_names_from_strangers_are_escaped(tmp_path: Path) -> None:
    content = make_content()
    content = replace(
        content,
        title=HOSTILE,
        class_names=(HOSTILE, HOSTILE),
        metrics=measure(
            content.labels, content.probability, np.repeat([HOSTILE, "b"], 60), draws=5
        ),
        counts=Counts(200.0, 0.5, (count(HOSTILE, [1], [1]),), patients=1),
        facts={HOSTILE: HOSTILE},
        worst=[WorstPatch(make_patches(1, 5)[0], HOSTILE)],
        notes=[HOSTILE],
    )
    write_report_page(tmp_path / "report.html", content)
    assert "script" not in parse(tmp_path / "report.html").opened


def test_a_leaky_model_is_called_one(page: Path, tmp_path: Path) -> None:
    write_report_page(tmp_path / "leaky.html", replace(make_content(), is_leaky=True))
    warning = f'<p class="leak">{LEAK_WARNING}</p>'
    assert warning in (tmp_path / "leaky.html").read_text()
    assert warning not in page.read_text()


def test_a_report_of_nothing_can_be_written(tmp_path: Path) -> None:
    labels, logits, patients = np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.str_)
    metrics = measure(labels, logits, patients)
    write_report_page(
        tmp_path / "report.html",
        ReportContent("nothing", ("a", "b"), metrics, labels, logits, patients),
    )
    assert "No curves: they need patches of both classes." in (tmp_path / "report.html").read_text()


def test_one_class_has_no_curves_but_a_sweep(tmp_path: Path) -> None:
    labels, logits, patients = (
        np.zeros(4, np.int8),
        np.arange(4, dtype=np.float32),
        np.array(["a", "a", "b", "b"]),
    )
    metrics = measure(labels, logits, patients)
    write_report_page(
        tmp_path / "report.html",
        ReportContent("one class", ("a", "b"), metrics, labels, calibrate(logits, 1), patients),
    )
    assert len(parse(tmp_path / "report.html").addresses) == 3


def test_another_model_is_compared(tmp_path: Path) -> None:
    content = make_content()
    probability = content.probability
    comparison = compare(
        content.labels,
        probability,
        1 - probability,
        content.patients,
        thresholds=(0.5, 0.6),
        draws=20,
    )
    write_report_page(
        tmp_path / "report.html",
        replace(content, comparison=Compared("net A", "net <B>", 2, 0, comparison)),
    )
    text = (tmp_path / "report.html").read_text()
    assert "Other: net &lt;B&gt;, at threshold\n0.600" in text


def test_the_worst_are_the_most_confidently_wrong_half_of_each_kind() -> None:
    labels = np.array([1, 1, 0, 0, 0, 1, 0], dtype=np.int8)
    probability = np.array([0.02, 0.3, 0.99, 0.9, 0.8, 0.9, np.nan], dtype=np.float32)
    assert pick_worst(labels, probability, 4).tolist() == [2, 0, 3, 1]
    assert pick_worst(labels, probability, 2).tolist() == [2, 0]


def test_where_one_kind_is_rare_the_other_fills_up() -> None:
    labels = np.array([1, 0, 0, 0], dtype=np.int8)
    probability = np.array([0.1, 0.99, 0.98, 0.97], dtype=np.float32)
    assert pick_worst(labels, probability, 4).tolist() == [1, 2, 3, 0]
    assert pick_worst(1 - labels, 1 - probability, 4).tolist() == [1, 2, 3, 0]


def test_what_is_right_is_never_among_the_worst() -> None:
    assert (
        pick_worst(
            np.array([0, 1], dtype=np.int8), np.array([0.4, 0.6], dtype=np.float32), 5
        ).tolist()
        == []
    )


def test_a_caption_names_label_and_probability() -> None:
    assert (
        describe_worst(1, 0.0123, ("benign", "tumour"), "p7")
        == "tumour, but probability of tumour 0.012; patient p7"
    )
