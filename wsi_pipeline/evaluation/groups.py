"""Groups of slides by a column of the sample sheet, such as the site, and whether they differ.

A model that learned one laboratory's stain does worse on another's, and figures of all slides
together hide it. The test permutes patients between the groups: patches of one patient are alike,
and permuting patches, or slides, would find differences everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.evaluation.labelled import LabelledSlide, pool_slides
from wsi_pipeline.evaluation.units import NO_INTERVAL, UnitEvaluation
from wsi_pipeline.slides.sheet import show_names
from wsi_pipeline.training.counts import MeanErrors
from wsi_pipeline.training.metrics import (
    DRAWS,
    FEW_PATIENTS,
    METRIC_NAMES,
    Floats,
    Interval,
    Labels,
    Names,
    ResampledMetrics,
    Scores,
    bootstrap_intervals,
    score,
    show_metric,
)
from wsi_pipeline.training.report import ReportTable, format_interval

SHOWN = ("auroc", "f1", "balanced_accuracy", "sensitivity", "specificity")
"""Metrics of the table in the terminal."""
SLACK = 1e-9
"""By which rounding may make a permuted difference smaller than an equal one."""


@dataclass(frozen=True, slots=True)
class Group:
    """The slides that share a value of the column."""

    value: str
    slides: int
    patients: int
    scores: Scores
    intervals: Mapping[str, Interval]
    """95 % intervals by metric, from resampling the group's patients."""
    errors: MeanErrors
    """Of the counted shares of its slides."""

    def to_row(self) -> dict[str, Any]:
        """Return the columns of evaluation_groups.csv, but for the value."""
        row = {"slides": self.slides, "patients": self.patients} | asdict(self.scores)
        for name in METRIC_NAMES:
            low, high = self.intervals.get(name) or NO_INTERVAL
            row |= {f"{name}_low": low, f"{name}_high": high}
        bias, error = self.errors.bias, self.errors.mean_absolute_error
        return row | {"count_bias": bias, "count_mean_absolute_error": error}


@dataclass(frozen=True, slots=True)
class GroupTest:
    """Difference of a metric between the groups, and its chance where there is none."""

    metric: str
    lowest: float | None
    highest: float | None
    """Of the groups in which it is defined; None where there are fewer than two."""
    p: float | None
    """Share of permutations of patients whose difference is as large, this one counted too."""

    @property
    def difference(self) -> float | None:
        """Highest minus lowest."""
        if self.lowest is None or self.highest is None:
            return None
        return self.highest - self.lowest


@dataclass(frozen=True, slots=True)
class Grouped:
    """The groups of a column, and the test of each metric."""

    column: str
    groups: tuple[Group, ...]
    """By value."""
    tests: tuple[GroupTest, ...]
    permuted: int
    """Patients that were permuted."""
    several: int
    """Patients with slides in several groups, whom the test leaves out."""
    without: int
    """Slides without a value, which are in no group."""
    permutations: int = DRAWS

    def to_json(self) -> dict[str, Any]:
        """Return the object `by` of evaluation.json."""
        tests = {test.metric: asdict(test) | {"difference": test.difference} for test in self.tests}
        for test in tests.values():
            del test["metric"]
        return asdict(self) | {"tests": tests}

    @property
    def sentence(self) -> str:
        """Words on what was tested."""
        few = ": so few that only a large difference can be told" if self._has_few else ""
        text = (
            f"p: share of {self.permutations:,} permutations of {self.permuted} patients between"
            f" the groups whose difference is as large{few}. One test for each metric, not"
            " corrected for their number."
        )
        if self.several:
            text += f" {self.several} patients with slides in several groups are left out of it."
        if self.without:
            text += f" {self.without} slides have no value and are in no group."
        return text

    def to_table(self) -> ReportTable:
        """Return every metric of each group with its interval, for the page."""
        header = ["metric", *(group.value for group in self.groups), "difference", "p"]
        rows = [
            [
                METRIC_NAMES[test.metric],
                *self._show(test.metric),
                show_metric(test.difference),
                show_metric(test.p),
            ]
            for test in self.tests
        ]
        sizes = (
            f"{group.patients} patients, {group.scores.patches} patches" for group in self.groups
        )
        rows.append(["of", *sizes, "", ""])
        return ReportTable(f"By {self.column}", header, rows, self.sentence)

    def _show(self, metric: str) -> list[str]:
        """Return a metric of each group with its interval."""
        return [
            f"{show_metric(getattr(group.scores, metric))}"
            f" ({format_interval(group.intervals.get(metric))})"
            for group in self.groups
        ]

    @property
    def _has_few(self) -> bool:
        return self.permuted < FEW_PATIENTS

    def __str__(self) -> str:
        """Return a table in which groups are numbers: their values are data of patients."""
        head = ("group", "slides", "patients", "patches", *(METRIC_NAMES[name] for name in SHOWN))
        rows = [head]
        for number, group in enumerate(self.groups, 1):
            sizes = (number, group.slides, group.patients, group.scores.patches)
            values = (show_metric(getattr(group.scores, name)) for name in SHOWN)
            rows.append((*map(str, sizes), *values))
        tests = {test.metric: test for test in self.tests}
        rows.append(("difference", "", "", "", *(show_metric(tests[n].difference) for n in SHOWN)))
        rows.append(("p", "", "", "", *(show_metric(tests[name].p) for name in SHOWN)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "   ".join(f"{value:>{width}}" for value, width in zip(row, widths, strict=True))
            for row in rows
        ]
        what = f"by {self.column}, groups numbered as in evaluation_groups.csv:"
        return "\n".join([what, *lines, self.sentence])


def _describe_fault(
    column: str, groups: Sequence[str], columns: Sequence[Mapping[str, str]]
) -> str:
    """Return why the slides cannot be compared, and what to do."""
    if groups:
        none = sum(column not in own for own in columns)
        others = f", and {none} of {len(columns)} have none" if none else ""
        return f"1 group of it has labels{others}; two are needed, so label slides of another"
    known = sorted({name for own in columns for name in own})
    has = f"have the columns {show_names(known)}" if known else "have no further columns"
    return f"no slide with labels has that column; they {has}; name the sheet with --sheet"


def group_slides(
    column: str,
    slides: Sequence[LabelledSlide],
    evaluated: Sequence[UnitEvaluation],
    threshold: float,
    sheet: Mapping[str, Mapping[str, str]] | None = None,
) -> Grouped:
    """Compare the groups of assessed slides, of which `evaluated` are the metrics.

    `sheet` has the columns of each slide, in place of those that the results record. Raises
    ConfigError where fewer than two groups have labels.
    """
    columns = [
        slide.table.columns if sheet is None else sheet.get(slide.slide_id, {}) for slide in slides
    ]
    values = [own.get(column, "") for own in columns]
    groups = sorted(set(values) - {""})
    if len(groups) < 2:
        raise ConfigError(f"--by {column}: {_describe_fault(column, groups, columns)}")
    labels, probability, patients = pool_slides(slides)
    sizes = [len(slide.labels) for slide in slides]
    codes = np.repeat([groups.index(value) if value else -1 for value in values], sizes)
    found = []
    for number, value in enumerate(groups):
        own = codes == number
        chosen = [k for k, each in enumerate(values) if each == value]
        errors = MeanErrors.of([evaluated[k].count.share_errors[0] for k in chosen])
        names = patients[own]
        found.append(
            Group(
                value,
                len(chosen),
                len(np.unique(names)),
                score(labels[own], probability[own], threshold),
                bootstrap_intervals(labels[own], probability[own], names, threshold),
                errors,
            )
        )
    chances, permuted, several = permute_patients(labels, probability, patients, codes, threshold)
    tests = tuple(_make_test(name, found, p) for name, p in zip(METRIC_NAMES, chances, strict=True))
    return Grouped(column, tuple(found), tests, permuted, several, values.count(""))


def _make_test(metric: str, groups: Sequence[Group], p: float | None) -> GroupTest:
    values = [getattr(group.scores, metric) for group in groups]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return GroupTest(metric, None, None, None)
    return GroupTest(metric, min(known), max(known), p)


def permute_patients(
    labels: Labels,
    probability: Floats,
    patients: Names,
    groups: NDArray[np.intp],
    threshold: float,
    *,
    permutations: int = DRAWS,
    seed: int = 0,
) -> tuple[list[float | None], int, int]:
    """Return p of "no difference" for each metric, and the patients permuted and left out.

    labels, probability, patients and groups are (n,), a group -1 is none. The difference is that of
    the highest and the lowest group. p is (1 + as large) / (1 + permutations), so never 0 (Phipson
    and Smyth 2010). Patients with patches in several groups cannot be permuted and are left out.
    """
    known = groups >= 0
    labels, probability, groups = labels[known], probability[known], groups[known]
    names, codes = np.unique(patients[known], return_inverse=True)
    first = np.full(len(names), -1, dtype=np.intp)
    first[codes] = groups
    is_single = np.bincount(codes, first[codes] != groups, len(names)) == 0
    kept = is_single[codes]
    numbers = np.cumsum(is_single) - 1
    measure = ResampledMetrics(
        labels[kept], probability[kept], numbers[codes[kept]], int(is_single.sum()), threshold
    )
    own, count = first[is_single], int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.stack(
        [_spread(measure, rng.permutation(own), count) for _ in range(permutations)]
    )  # (permutations, metrics)
    observed = _spread(measure, own, count)
    is_known = ~np.isnan(drawn)
    large = np.count_nonzero(is_known & (drawn >= observed - SLACK), axis=0)
    chances = (1 + large) / (1 + np.count_nonzero(is_known, axis=0))
    p = [None if np.isnan(o) else float(c) for o, c in zip(observed, chances, strict=True)]
    return p, len(own), len(names) - len(own)


def _spread(measure: ResampledMetrics, groups: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Return highest minus lowest group of each metric; NaN where fewer than two have it."""
    values = np.stack(
        [measure((groups == number).astype(np.int64)) for number in range(count)]
    )  # (groups, metrics)
    low = np.where(np.isnan(values), np.inf, values).min(axis=0)
    high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    is_known = np.count_nonzero(~np.isnan(values), axis=0) >= 2
    return np.where(is_known, high - low, np.nan)
