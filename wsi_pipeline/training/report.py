"""The report of a model on one set of patients: one HTML file with its plots."""

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
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_pipeline.store.files import write_file
from wsi_pipeline.training.calibrate import apply_temperature
from wsi_pipeline.training.evaluate import (
    NAMED_THRESHOLDS,
    CalibrationFigures,
    Comparison,
    Judgement,
)
from wsi_pipeline.training.metrics import FEW_PATIENTS, FIGURES, Interval

LEAK_WARNING = "split at random: patients on both sides, figures are inflated"


@dataclass(frozen=True, slots=True)
class WorstPatch:
    """One patch that the model got most wrong, with its words."""

    pixels: NDArray[np.uint8]
    """RGB, (side, side, 3)."""
    caption: str


@dataclass(frozen=True)
class ComparisonSection:
    """How another model did on the same patches."""

    one: str
    """Name of this model."""
    other: str
    comparison: Comparison


@dataclass(frozen=True)
class ReportContent:
    """What a report is made of; every text in it may come from strangers."""

    title: str
    class_names: tuple[str, str]
    judgement: Judgement
    labels: NDArray[np.int8]
    """(n,) 0 or 1."""
    logits: NDArray[np.float32]
    """(n,) before the temperature."""
    patients: NDArray[np.str_]
    """(n,)"""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was judged and how it was made, in the order of the table."""
    history: Sequence[Mapping[str, Any]] = ()
    """Rows of the training's history, with `epoch` and any of `train_loss`, `val_loss`, `val_auroc` and `is_best`."""
    worst: Sequence[WorstPatch] = ()
    worst_note: str = ""
    """Why patches have no picture, where some have none."""
    is_leaky: bool = False
    comparison: ComparisonSection | None = None
    notes: Sequence[str] = ()
    """What a reader must know before believing the figures."""


def write_report_page(path: Path, content: ReportContent) -> None:
    """Write the page whole or not at all; the same content gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.training"),
        autoescape=select_autoescape(),
        trim_blocks=True,
    )
    environment.filters |= {"figure": format_figure, "interval": format_interval}
    page = environment.get_template("report.html").render(
        content=content,
        judgement=content.judgement,
        scores=content.judgement.scores,
        figures=FIGURES,
        pictures=_draw_pictures(content),
        matrices=[content.judgement.scores, *map(content.judgement.at, NAMED_THRESHOLDS)],
        has_few_patients=len(content.judgement.patients) < FEW_PATIENTS,
        leak_warning=LEAK_WARNING,
        worst=[
            (embed_picture("png", encode_png(patch.pixels)), patch.caption)
            for patch in content.worst
        ],
    )
    write_file(path, page.encode(errors="replace"))


WORST_PATCHES = 24


def pick_worst(
    labels: NDArray[np.int8], probability: NDArray[np.float32], count: int = WORST_PATCHES
) -> NDArray[np.intp]:
    """Places of the `count` most confidently wrong patches, worst first: on the wrong side of 0.5, NaN never.

    Half of them missed positives, half false calls, where there are as many; else more of the other
    kind.
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
    """The words under a patch that was got wrong."""
    return (
        f"{class_names[label]}, but probability of {class_names[1]} {probability:.3f}; patient"
        f" {patient}"
    )


def format_figure(value: float | None) -> str:
    """Three decimals, a dash for what has no meaning."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(interval: Interval | None) -> str:
    """Both ends, a dash where there is none."""
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def embed_picture(kind: str, content: bytes) -> str:
    """A picture as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _draw_pictures(content: ReportContent) -> dict[str, str]:
    judgement, labels = content.judgement, content.labels
    probability = apply_temperature(content.logits, judgement.after.temperature)
    drawn: dict[str, bytes] = {}
    if content.history:
        drawn["history"] = draw_history(content.history)
    if judgement.scores.auroc is not None:
        drawn["roc"] = draw_roc(labels, probability, content.patients, judgement)
        drawn["precision_recall"] = draw_precision_recall(labels, probability, judgement)
    if len(labels):
        drawn["before"] = draw_reliability(judgement.before, "before, temperature 1")
        drawn["after"] = draw_reliability(
            judgement.after, f"after, temperature {judgement.after.temperature:.3f}"
        )
        drawn["sweep"] = draw_sweep(judgement)
    return {name: embed_picture("svg+xml", picture) for name, picture in drawn.items()}


BLUE, ORANGE, GREY = "#1f5fa8", "#c8501e", "#888888"
SIZE_INCH = (4.6, 4.1)
NO_METADATA: Any = {"Software": None}  # typed as strings only, but None is what leaves an entry out
MAX_CURVE_POINTS = 2000
MIN_PATIENT_PATCHES = 20
MAX_PATIENT_CURVES = 60


def draw_history(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses and validation AUROC by epoch; columns that are not there are not drawn."""
    figure = Figure(figsize=(9.4, 3.4), layout="constrained")
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
            axes.plot(
                *zip(*points, strict=True), color=color, marker="o", markersize=3, label=label
            )
            axes.legend(fontsize=8)
    best = [row["epoch"] for row in rows if row.get("is_best")]
    for axes, name in ((losses, "loss"), (rank, "AUROC")):
        if best:
            axes.axvline(best[-1], color=GREY, linewidth=1, linestyle=":")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _save(figure)


def draw_roc(
    labels: NDArray[np.int8],
    probability: NDArray[np.float32],
    patients: NDArray[np.str_],
    judgement: Judgement,
) -> bytes:
    """The ROC curve of all patches, thin ones of single patients, and the threshold's place."""
    figure, axes = _square("1 − specificity", "sensitivity")
    for members in _patients_with_curves(labels, patients):
        false_rate, true_rate, _ = roc_curve(labels[members], probability[members])
        axes.plot(false_rate, true_rate, color=GREY, linewidth=0.5, alpha=0.5)
    false_rate, true_rate, _ = roc_curve(labels, probability)
    shown = _thin_out(len(false_rate))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(false_rate[shown], true_rate[shown], color=BLUE, linewidth=2, label="all patches")
    scores = judgement.scores
    axes.plot(
        1 - (scores.specificity or 0),
        scores.sensitivity or 0,
        "o",
        color=ORANGE,
        label=f"threshold {scores.threshold:.3f}",
    )
    axes.legend(loc="lower right", fontsize=8)
    return _save(figure)


def draw_precision_recall(
    labels: NDArray[np.int8], probability: NDArray[np.float32], judgement: Judgement
) -> bytes:
    """Precision over sensitivity, the share of positives, and the threshold's place."""
    figure, axes = _square("sensitivity (recall)", "precision")
    precision, recall, _ = precision_recall_curve(labels, probability)
    shown = _thin_out(len(precision))
    axes.plot(recall[shown], precision[shown], color=BLUE, linewidth=2, label="all patches")
    axes.axhline(
        float(np.mean(labels)), color=GREY, linestyle=":", linewidth=1, label="share of positives"
    )
    scores = judgement.scores
    called = scores.true_positives + scores.false_positives
    if called:
        axes.plot(
            scores.sensitivity or 0,
            scores.true_positives / called,
            "o",
            color=ORANGE,
            label=f"threshold {scores.threshold:.3f}",
        )
    axes.legend(loc="lower left", fontsize=8)
    return _save(figure)


def draw_reliability(figures: CalibrationFigures, title: str) -> bytes:
    """What came true over what was promised; the bars beneath show the share of patches in each bin."""
    figure, axes = _square("promised: mean probability in the bin", "came true: share of positives")
    filled = [item for item in figures.reliability if item.patches]
    total = sum(item.patches for item in filled)
    heights = [item.patches / total for item in filled]
    width = 1 / len(figures.reliability)
    axes.bar(
        [item.low for item in filled],
        heights,
        width=width,
        align="edge",
        color="#d5dde8",
        label="share of patches",
    )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    points = [(item.mean_probability or 0.0, item.positive_share or 0.0) for item in filled]
    axes.plot(*zip(*points, strict=True), "o-", color=BLUE, markersize=4, label="came true")
    axes.set_title(
        f"{title}: calibration error {figures.expected_calibration_error or 0:.3f}", fontsize=10
    )
    axes.legend(loc="upper left", fontsize=8)
    return _save(figure)


def draw_sweep(judgement: Judgement) -> bytes:
    """Sensitivity, specificity, F1 and balanced accuracy over the threshold."""
    figure = Figure(figsize=(9.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    at = [point.threshold for point in judgement.sweep]
    for column, color, style in (
        ("sensitivity", BLUE, "-"),
        ("specificity", ORANGE, "-"),
        ("f1", "black", "--"),
        ("balanced_accuracy", "black", "-"),
    ):
        values = [getattr(point, column) for point in judgement.sweep]
        name = {"f1": "F1"}.get(column, column.replace("_", " "))
        axes.plot(
            at,
            [np.nan if value is None else value for value in values],
            style,
            color=color,
            label=name,
        )
    axes.axvline(
        judgement.scores.threshold,
        color=GREY,
        linestyle=":",
        label=f"threshold {judgement.scores.threshold:.3f}",
    )
    axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """An RGB picture (height, width, 3) as PNG."""
    stream = io.BytesIO()
    imsave(stream, pixels, format="png", metadata=NO_METADATA)
    return stream.getvalue()


def _square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    return figure, axes


def _patients_with_curves(
    labels: NDArray[np.int8], patients: NDArray[np.str_]
) -> list[NDArray[np.intp]]:
    """Patches of each patient who has both classes and enough of them for a curve; none where there are too many patients to tell apart."""
    members = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    curves = [
        own
        for own in members
        if len(own) >= MIN_PATIENT_PATCHES and 0 < labels[own].sum() < len(own)
    ]
    return curves if 1 < len(curves) <= MAX_PATIENT_CURVES else []


def _thin_out(count: int) -> NDArray[np.intp]:
    """Places of at most `MAX_CURVE_POINTS` of so many points, the ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_CURVE_POINTS)).astype(np.intp))


def _save(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "wsi", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
