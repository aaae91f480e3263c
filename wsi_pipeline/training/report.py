"""The report of a model on one set of patients: one HTML file with its plots.

Plots depend on nothing but their numbers. They contain no names from outside, which could need
glyphs that the font lacks, and in which a dollar sign would begin a formula.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_pipeline.core.choices import LEAK_WARNING
from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.counts import Count, Counts
from wsi_pipeline.training.evaluate import NAMED_THRESHOLDS, CalibrationMetrics, Compared, Metrics
from wsi_pipeline.training.metrics import (
    FEW_PATIENTS,
    METRIC_NAMES,
    Floats,
    Interval,
    Labels,
    Names,
    show_metric,
)

WORST_PATCHES = 24
BLUE, ORANGE, GREY = "#1f5fa8", "#c8501e", "#888888"
SIZE_INCH = (4.6, 4.1)
WIDE_INCH = (9.4, 3.4)
COUNTS_INCH = (5.6, 5.4)
COUNT_STYLES = (
    (None, "black", "o", "no interval"),
    (True, BLUE, "o", "interval holds the true number"),
    (False, ORANGE, "s", "interval misses it"),
)
"""By `Count.holds`: colour, marker and legend; shapes differ for those who see no colours."""
WIDE_RANGE = 5
"""Counts whose largest is so many times their median are shown on a logarithmic axis."""
NO_METADATA: Any = {"Software": None}  # typed as strings only, but None is what leaves an entry out
MAX_CURVE_POINTS = 2000
MIN_PATIENT_PATCHES = 20
MAX_PATIENT_CURVES = 60


@dataclass(frozen=True, slots=True)
class WorstPatch:
    """One of the patches with the worst predictions, and its caption."""

    pixels: NDArray[np.uint8]
    """RGB, (side, side, 3)."""
    caption: str


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A further table of a report; every text in it may be untrusted."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class ReportContent:
    """The content of a report; every text in it may be untrusted."""

    title: str
    class_names: tuple[str, str]
    metrics: Metrics
    labels: Labels
    """(n,) 0 or 1."""
    probability: Floats
    """(n,), final."""
    patients: Names
    facts: Mapping[str, str] = field(default_factory=dict)
    """Rows of the table about the model and its patches."""
    history: Sequence[Mapping[str, Any]] = ()
    """Epochs, with `epoch` and any of `train_loss`, `val_loss`, `val_auroc` and `is_best`."""
    worst: Sequence[WorstPatch] = ()
    worst_note: str = ""
    """The reason why patches have no image, if some have none."""
    is_leaky: bool = False
    comparison: Compared | None = None
    tables: Sequence[ReportTable] = ()
    counts: Counts | None = None
    """Counted against true positives, of each slide or patient."""
    notes: Sequence[str] = ()
    """Warnings to read before the metrics."""


def write_report_page(path: Path, content: ReportContent) -> None:
    """Write the page completely or not at all; the same content gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.training"),
        autoescape=select_autoescape(),
        trim_blocks=True,
    )
    environment.filters |= {"number": show_metric, "interval": format_interval, "percent": _percent}
    page = environment.get_template("report.html").render(
        content=content,
        metrics=content.metrics,
        scores=content.metrics.scores,
        metric_names=METRIC_NAMES,
        has_alone=content.metrics.alone != content.metrics.scores,
        plots=_plot_all(content),
        matrices=[content.metrics.scores, *map(content.metrics.at, NAMED_THRESHOLDS)],
        has_few_patients=len(content.metrics.patients) < FEW_PATIENTS,
        leak_warning=LEAK_WARNING,
        worst=[
            (embed_image("png", encode_png(patch.pixels)), patch.caption) for patch in content.worst
        ],
    )
    write_file(path, page.encode(errors="replace"))


def pick_worst(labels: Labels, probability: Floats, count: int = WORST_PATCHES) -> NDArray[np.intp]:
    """Return the indices of the `count` most confidently wrong patches, worst first.

    Wrong is on the wrong side of 0.5; NaN never is. Half of them are missed positives and half
    false positives, if there are as many; else more of the other kind.
    """
    distance = np.abs(np.nan_to_num(probability.astype(np.float64), nan=0.5) - (labels == 1))
    order = np.argsort(-distance, kind="stable")
    wrong = order[(distance[order] > 0.5) & ~np.isnan(probability[order])]
    missed, false = wrong[labels[wrong] == 1], wrong[labels[wrong] == 0]
    most_missed = max(count - count // 2, count - len(false))
    chosen = np.concatenate([missed[:most_missed], false[: count - len(missed[:most_missed])]])
    return np.asarray(chosen[np.argsort(-distance[chosen], kind="stable")], dtype=np.intp)


def describe_worst(
    label: int, probability: float, class_names: tuple[str, str], patient: str
) -> str:
    """Return the caption of a wrongly predicted patch."""
    return (
        f"{class_names[label]}, but probability of {class_names[1]} {probability:.3f}; patient"
        f" {patient}"
    )


def format_interval(interval: Interval | None) -> str:
    """Return both ends, or a dash for None."""
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _percent(value: float | None) -> str:
    """Return a share with its sign in percent, or a dash for None."""
    return "–" if value is None else f"{value:+.1%}"


def embed_image(kind: str, content: bytes) -> str:
    """Return an image as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _plot_all(content: ReportContent) -> dict[str, str]:
    metrics, labels = content.metrics, content.labels
    probability = content.probability
    plots: dict[str, bytes] = {}
    if content.history:
        plots["history"] = plot_history(content.history)
    if content.counts is not None and content.counts.rows:
        plots["counts"] = plot_counts(content.counts)
    if metrics.scores.auroc is not None:
        plots["roc"] = plot_roc(labels, probability, content.patients, metrics)
        plots["precision_recall"] = plot_precision_recall(labels, probability, metrics)
    if len(labels):
        plots["before"] = plot_reliability(metrics.before, "the network itself")
        plots["after"] = plot_reliability(metrics.after, "final probabilities")
        plots["sweep"] = plot_sweep(metrics)
    return {name: embed_image("svg+xml", plot) for name, plot in plots.items()}


def plot_history(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Plot losses and validation AUROC by epoch; absent columns are left out."""
    figure = Figure(figsize=WIDE_INCH, layout="constrained")
    losses, rank = figure.subplots(1, 2)
    columns = (
        (losses, "train_loss", "training patients", BLUE),
        (losses, "val_loss", "validation patients", ORANGE),
        (rank, "val_auroc", "validation patients", ORANGE),
    )
    for axes, column, label, color in columns:
        points = [
            (float(row["epoch"]), float(row[column])) for row in rows if row.get(column) is not None
        ]
        if points:
            style = {"color": color, "marker": "o", "markersize": 3, "label": label}
            axes.plot(*zip(*points, strict=True), **style)
            axes.legend(fontsize=8)
    best = [row["epoch"] for row in rows if row.get("is_best")]
    for axes, name in ((losses, "loss"), (rank, "AUROC")):
        if best:
            axes.axvline(best[-1], color=GREY, linewidth=1, linestyle=":")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _save(figure)


def plot_counts(counts: Counts) -> bytes:
    """Plot counted over true positives, with intervals as bars, which cross the diagonal or miss.

    Axes are linear up to 10 and logarithmic above where counts range widely.
    """
    rows, figure = counts.rows, Figure(figsize=COUNTS_INCH, layout="constrained")
    axes = figure.add_subplot()
    if counts.has_alone:
        alone = [(row.true, row.counted_alone) for row in rows if row.counted_alone is not None]
        style: dict[str, Any] = {"color": GREY, "markersize": 5, "linestyle": ""}
        axes.plot(*zip(*alone, strict=True), marker="x", label="each patch alone", **style)
    for holds, color, marker, label in COUNT_STYLES:
        shown = [row for row in rows if row.holds is holds]
        for true, (low, high) in ((row.true, row.interval) for row in shown if row.interval):
            axes.plot([true, true], [low, high], color=color, linewidth=1.5, alpha=0.6)
        points = [(row.true, row.counted) for row in shown]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=color, markersize=5, label=label)
    _scale_counts(axes, rows)
    axes.set(xlabel=f"true: patches of each {counts.noun} labelled positive", ylabel="counted")
    axes.legend(loc="upper left", fontsize=8)
    return _save(figure)


def _scale_counts(axes: Axes, rows: Sequence[Count]) -> None:
    """Give both axes one scale that shows every count and interval, and draw the diagonal."""
    points = [number for row in rows for number in (row.true, row.counted, row.counted_alone or 0)]
    ends = [end for row in rows for end in row.interval or ()]
    top = 1.08 * max(*points, *ends, 1)
    if top > WIDE_RANGE * max(float(np.median(points)), 1.0):
        axes.set_xscale("symlog", linthresh=10)
        axes.set_yscale("symlog", linthresh=10)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
    axes.plot([0, top], [0, top], color=GREY, linestyle=":", linewidth=1)
    axes.set(xlim=(-0.02 * min(top, 40), top), ylim=(-0.02 * min(top, 40), top), box_aspect=1)


def plot_roc(labels: Labels, probability: Floats, patients: Names, metrics: Metrics) -> bytes:
    """Plot the ROC curve of all patches, thin curves of single patients, and the threshold."""
    figure, axes = _make_square("1 − specificity", "sensitivity")
    for members in _patients_with_curves(labels, patients):
        false_rate, true_rate, _ = roc_curve(labels[members], probability[members])
        axes.plot(false_rate, true_rate, color=GREY, linewidth=0.5, alpha=0.5)
    false_rate, true_rate, _ = roc_curve(labels, probability)
    shown = _thin_out(len(false_rate))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(false_rate[shown], true_rate[shown], color=BLUE, linewidth=2, label="all patches")
    scores = metrics.scores
    _mark_threshold(axes, 1 - (scores.specificity or 0), scores.sensitivity or 0, metrics)
    axes.legend(loc="lower right", fontsize=8)
    return _save(figure)


def plot_precision_recall(labels: Labels, probability: Floats, metrics: Metrics) -> bytes:
    """Plot precision over sensitivity, the share of positives, and the threshold."""
    figure, axes = _make_square("sensitivity (recall)", "precision")
    precision, recall, _ = precision_recall_curve(labels, probability)
    shown = _thin_out(len(precision))
    axes.plot(recall[shown], precision[shown], color=BLUE, linewidth=2, label="all patches")
    share = float(np.mean(labels))
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1, label="share of positives")
    scores = metrics.scores
    called = scores.true_positives + scores.false_positives
    if called:
        _mark_threshold(axes, scores.sensitivity or 0, scores.true_positives / called, metrics)
    axes.legend(loc="lower left", fontsize=8)
    return _save(figure)


def plot_reliability(calibration: CalibrationMetrics, title: str) -> bytes:
    """Plot observed over predicted share of positives, with the share of patches in each bin."""
    figure, axes = _make_square("predicted probability", "observed frequency")
    filled = [item for item in calibration.reliability if item.patches]
    total = sum(item.patches for item in filled)
    axes.bar(
        [item.low for item in filled],
        [item.patches / total for item in filled],
        width=1 / len(calibration.reliability),
        align="edge",
        color="#d5dde8",
        label="share of patches",
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    points = [(item.mean_probability or 0.0, item.positive_share or 0.0) for item in filled]
    axes.plot(*zip(*points, strict=True), "o-", color=BLUE, markersize=4, label="observed")
    error = calibration.expected_calibration_error or 0
    axes.set_title(f"{title}: calibration error {error:.3f}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8)
    return _save(figure)


def plot_sweep(metrics: Metrics) -> bytes:
    """Plot sensitivity, specificity, F1 and balanced accuracy over the threshold."""
    figure = Figure(figsize=WIDE_INCH, layout="constrained")
    axes = figure.add_subplot()
    at = [point.threshold for point in metrics.sweep]
    for name, color, style in (
        ("sensitivity", BLUE, "-"),
        ("specificity", ORANGE, "-"),
        ("f1", "black", "--"),
        ("balanced_accuracy", "black", "-"),
    ):
        values = np.array([getattr(point, name) for point in metrics.sweep], dtype=np.float64)
        axes.plot(at, values, style, color=color, label=METRIC_NAMES[name])
    threshold = metrics.scores.threshold
    axes.axvline(threshold, color=GREY, linestyle=":", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an RGB image (height, width, 3) as PNG."""
    stream = io.BytesIO()
    imsave(stream, pixels, format="png", metadata=NO_METADATA)
    return stream.getvalue()


def _make_square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    return figure, axes


def _mark_threshold(axes: Axes, x: float, y: float, metrics: Metrics) -> None:
    label = f"threshold {metrics.scores.threshold:.3f}"
    axes.plot(x, y, "o", color=ORANGE, label=label)


def _patients_with_curves(labels: Labels, patients: Names) -> list[NDArray[np.intp]]:
    """Return the patches of each patient with both classes and enough patches for a curve.

    Nothing where there are too many patients to tell their curves apart.
    """
    members = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    curves = [
        own
        for own in members
        if len(own) >= MIN_PATIENT_PATCHES and 0 < labels[own].sum() < len(own)
    ]
    return curves if 1 < len(curves) <= MAX_PATIENT_CURVES else []


def _thin_out(count: int) -> NDArray[np.intp]:
    """Return at most `MAX_CURVE_POINTS` indices of so many points, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_CURVE_POINTS)).astype(np.intp))


def _save(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "wsi", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
