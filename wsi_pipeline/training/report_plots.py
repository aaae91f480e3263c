"""The report's pictures, as bytes that depend on nothing but the numbers in them.

No name from outside is drawn in them: it would need its glyphs in the font, and a dollar sign would
begin a formula.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_pipeline.training.scores import CalibrationFigures, Judgement

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
